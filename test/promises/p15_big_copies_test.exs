defmodule Codex.Files.P15BigCopiesTest do
  @moduledoc """
  P15: a big copy delays nobody else: other stagings, `list` and `metrics` go on beside it.
  """

  use Codex.Files.StagingCase, async: false

  # More copies than are made at once.
  @copies 4
  @size 128 * 1024 * 1024
  @rounds 10

  @moduletag timeout: 180_000

  test "smaller stagings, list, metrics, cleanups and known keys go on", %{folder: folder} do
    known = write(folder, "known", "known")
    {:ok, known_attachment} = Codex.Files.stage(known)

    beside_big_copies(
      folder,
      fn source -> Codex.Files.stage(source, ttl_ms: 0) end,
      fn round ->
        small = write(folder, "small", "#{round}")
        assert {:ok, attachment} = Codex.Files.stage(small, ttl_ms: 0)
        opts = stage_opts(small, checksum: "key", destination_path: Path.join(folder, "copy"))
        assert {:ok, _attachment} = Registry.stage(opts)
        assert {:ok, _attachment} = Codex.Files.stage(known)
        assert attachment in Codex.Files.list_staged()
        assert %{total_count: count} = Codex.Files.metrics()
        assert count >= 3
        assert GenServer.call(Registry, :list) != []
        assert Codex.Files.force_cleanup() == :ok
        refute File.exists?(attachment.path)

        # Too large to be copied by the thread that is asked.
        medium = write(folder, "medium", String.duplicate("#{round}", 300_000))
        assert {:ok, _attachment} = Codex.Files.stage(medium, ttl_ms: 0)
      end
    )

    assert Codex.Files.force_cleanup() == :ok
    assert known_attachment.path in Enum.map(Codex.Files.list_staged(), & &1.path)
    assert length(Codex.Files.list_staged()) == 2
  end

  test "so they do when the big copies are asked for by call", %{folder: folder} do
    {:ok, registry} = Registry.ensure_started()

    beside_big_copies(
      folder,
      fn source ->
        opts = %{
          checksum: "large #{File.stat!(source).size}",
          name: "large",
          persist: false,
          ttl_ms: 0,
          size: @size,
          source_path: source,
          destination_path: source <> ".staged"
        }

        GenServer.call(registry, {:stage, opts}, :infinity)
      end,
      fn round ->
        small = write(folder, "small #{round}", "#{round}")
        assert {:ok, attachment} = GenServer.call(registry, {:stage, stage_opts(small)})
        assert attachment in GenServer.call(registry, :list)
        assert %{total_count: _} = GenServer.call(registry, :metrics)
        assert GenServer.call(registry, :force_cleanup) == :ok
      end
    )
  end

  defmodule SparseCopy do
    @moduledoc false
    # A copy of what takes no room on the disk takes none either.
    defdelegate mkdir_p!(path), to: File
    defdelegate rm_rf(path), to: File
    def cp!(source, copy), do: {"", 0} = System.cmd("cp", ["--sparse=always", source, copy])
  end

  test "so they do when a file module makes them", %{folder: folder} do
    registry = start_default_registry(file_module: SparseCopy)

    beside_big_copies(
      folder,
      fn source -> Codex.Files.stage(source, ttl_ms: 0) end,
      fn round ->
        small = write(folder, "small #{round}", "#{round}")
        assert {:ok, attachment} = Codex.Files.stage(small)
        assert attachment in Codex.Files.list_staged()
        assert %{total_count: _} = Codex.Files.metrics()
        assert GenServer.call(registry, :force_cleanup) == :ok
      end,
      # More than the VM has dirty I/O schedulers.
      :erlang.system_info(:dirty_io_schedulers) + 2
    )
  end

  # Some processes stage one big file after the other, and at any time there are more of them than
  # are copied at once. What has to wait for a copy sees one finish, or more, in every round, however
  # fast the machine is; what goes on beside them does not.
  defp beside_big_copies(folder, stage, round, copies \\ @copies) do
    finished = :counters.new(1, [])
    stop = :atomics.new(1, [])

    copies =
      for n <- 1..copies do
        Task.async(fn -> copy_on(folder, n, n, stage, finished, stop) end)
      end

    deadline = System.monotonic_time(:millisecond) + 120_000
    rounds = run_rounds(round, 1, 0, finished, deadline)
    :atomics.put(stop, 1, 1)
    Task.await_many(copies, 120_000)

    assert rounds == @rounds,
           "in only #{rounds} rounds no copy ended, of #{:counters.get(finished, 1)} copies"
  end

  defp copy_on(folder, n, number, stage, finished, stop) do
    # Each is of another size, so none is known.
    assert {:ok, %{path: _}} = stage.(large_file(folder, "large #{n}", @size + number))
    :counters.add(finished, 1, 1)
    if :atomics.get(stop, 1) == 0, do: copy_on(folder, n, number + @copies, stage, finished, stop)
  end

  defp run_rounds(_round, _number, @rounds, _finished, _deadline), do: @rounds

  defp run_rounds(round, number, undisturbed, finished, deadline) do
    before = :counters.get(finished, 1)
    round.(number)
    undisturbed = if :counters.get(finished, 1) == before, do: undisturbed + 1, else: undisturbed

    if System.monotonic_time(:millisecond) < deadline,
      do: run_rounds(round, number + 1, undisturbed, finished, deadline),
      else: undisturbed
  end
end
