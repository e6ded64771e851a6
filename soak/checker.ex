defmodule Soak.Checker do
  @moduledoc false
  # Compares what is listed with what is on the disk.

  alias Soak.{Account, Context, Operations, Problems, Wait}

  # Of each list.
  @sample 20

  @doc "Again and again: what is listed and does not expire must be there, while all goes on."
  def run(context) do
    unless Context.stopped?(context) do
      epoch = Account.epoch(context.account)

      with {:ok, attachments} <- Operations.list(context) do
        for attachment <- attachments |> Enum.filter(&lasting?/1) |> Enum.take_random(@sample),
            do: Account.check(context.account, attachment.checksum, attachment.path, epoch)
      end

      Process.sleep(50)
      run(context)
    end
  end

  defp lasting?(%{ttl_ms: ttl_ms}), do: ttl_ms == :infinity or ttl_ms >= Account.long_ms()

  @doc """
  With nobody at work: all that is owed is listed and there, all that should have expired is gone,
  and the metrics are those of the list. Returns the number of files checked.
  """
  def settle(context) do
    unless Wait.until(fn -> Codex.Files.force_cleanup() == :ok and consistent?() end) do
      detail =
        "#{inspect(Codex.Files.metrics())} beside #{length(Codex.Files.list_staged())} listed"

      Problems.add(context.problems, :leftover, "expected no expired entries: #{detail}")
    end

    listed = Map.new(Codex.Files.list_staged(), &{&1.checksum, &1.path})
    owed = Account.owed(context.account)

    for {checksum, path} <- owed, listed[checksum] != path do
      Problems.add(context.problems, :loss, "#{path} is not listed")
    end

    files = Enum.uniq(owed ++ Map.to_list(listed))
    epoch = Account.epoch(context.account)
    for {checksum, path} <- files, do: Account.check(context.account, checksum, path, epoch)
    length(files)
  end

  # Copies whose callers were killed may still come to their end.
  defp consistent? do
    attachments = Codex.Files.list_staged()

    match?({:ok, _attachments}, Codex.Files.list_staged_result()) and
      Enum.all?(attachments, &lasting?/1) and
      Codex.Files.metrics().total_count == length(attachments) and
      Codex.Files.metrics().total_bytes == Enum.sum(Enum.map(attachments, & &1.size))
  end

  @doc "Resets, and looks whether anything is left in this registry's own places."
  def clear(context) do
    source = Soak.Sources.write(Path.join(context.dir, "last"), 1)
    {:ok, attachment} = Codex.Files.stage(source.path)
    area = attachment.path |> Path.dirname() |> Path.dirname()
    elsewhere = Application.fetch_env!(:codex_files, :soak_elsewhere)

    empty? = fn ->
      Account.reset(context.account, &Codex.Files.reset!/0) == :ok and
        Codex.Files.list_staged() == [] and files(area) ++ files(elsewhere) == []
    end

    unless Wait.until(empty?) do
      files = Enum.take(files(area) ++ files(elsewhere), 5)
      Problems.add(context.problems, :leftover, "after a reset: #{inspect(files)}")
    end

    :ok
  end

  defp files(dir), do: Path.wildcard(Path.join(dir, "**"), match_dot: true)
end
