defmodule Codex.Files.OwnerProcess do
  @moduledoc false
  # Processes that own attachments, and end as they are told.

  import Codex.Files.StagingCase
  import ExUnit.Assertions

  @piece 1_000_000
  @pieces 600

  @doc "The ways in which a process ends."
  def ways_to_end, do: [:return, :raise, :throw, :exit, :shutdown, :kill]

  @doc "Starts a process that lives until `end_owner/2`, or until the test ends."
  def start_owner do
    test = self()

    spawn(fn ->
      monitor = Process.monitor(test)

      receive do
        {:end, how} -> come_to_end(how)
        {:DOWN, ^monitor, :process, _pid, _reason} -> :ok
      end
    end)
  end

  defp come_to_end(:return), do: :ok
  defp come_to_end(:raise), do: raise("an owner that raises")
  defp come_to_end(:throw), do: throw("an owner that throws")
  defp come_to_end(:exit), do: exit(:anything)
  defp come_to_end(:shutdown), do: exit(:shutdown)

  @doc "Ends a process in one of these ways, and waits until it has ended."
  def end_owner(owner, :kill), do: kill(owner)

  def end_owner(owner, how) do
    monitor = Process.monitor(owner)
    send(owner, {:end, how})
    assert_receive {:DOWN, ^monitor, :process, ^owner, _reason}, 5_000
  end

  @doc "Asserts that an attachment whose last owner has just ended is gone within a second."
  def assert_gone(%{path: path, id: id}) do
    ended = System.monotonic_time(:millisecond)
    eventually(fn -> not File.exists?(path) end)
    assert System.monotonic_time(:millisecond) - ended < 1_000
    eventually(fn -> not Enum.any?(Codex.Files.list_staged(), &(&1.id == id)) end)
    assert Codex.Files.fetch(id) == {:error, :not_staged}
  end

  @doc "Asserts that a cleanup does not take an attachment."
  def assert_kept(attachment) do
    assert Codex.Files.force_cleanup() == :ok
    assert_intact([attachment])
    assert {:ok, _attachment} = Codex.Files.fetch(attachment.id)
  end

  @doc "How many attachments have owners."
  def owned_count, do: Codex.Files.metrics().owned_count

  @doc "A file that takes a while to copy."
  def large_file(folder), do: sparse_file(folder, "source/large", @pieces * @piece)

  @doc "The id of its copy."
  def large_id do
    piece = :binary.copy(<<0>>, @piece)

    1..@pieces
    |> Enum.reduce(:crypto.hash_init(:sha256), fn _, hash -> :crypto.hash_update(hash, piece) end)
    |> :crypto.hash_final()
    |> Base.encode16(case: :lower)
  end

  @doc "Waits until a large file is being written below the staging directory."
  def await_copy(staging_dir) do
    is_scratch? = &(&1 |> Path.basename() |> String.starts_with?("."))
    eventually(fn -> staging_dir |> files_below() |> Enum.any?(is_scratch?) end)
  end
end
