defmodule Codex.Files.P22BudgetTest do
  # A budget is never passed, by no interleaving of stagings, and refusing or evicting leaves everything else
  # as it was.
  use Codex.Files.StagingCase

  alias Codex.Files
  alias Codex.Files.FakeTelemetry

  @mib 1024 * 1024

  defp registry(context, opts) do
    defaults = [staging_dir: context.staging_dir, ttl_ms: 60_000]
    start_registry(Keyword.merge(defaults, opts))
  end

  # So many bytes that differ from number to number.
  defp bytes(number, size),
    do: binary_part(:binary.copy(<<number::64>>, div(size, 8) + 1), 0, size)

  defp stage(registry, number, size, opts \\ []) do
    opts = Keyword.merge([name: "#{number}", registry: registry], opts)
    Files.stage({:data, bytes(number, size)}, opts)
  end

  defp there?(attachment), do: File.exists?(attachment.path)

  # Each inode counts once. What goes while it is added up is not there.
  defp bytes_below(dir) do
    dir
    |> files_below()
    |> Enum.reduce(%{}, fn name, inodes ->
      case File.lstat(Path.join(dir, name)) do
        {:ok, %{type: :regular, inode: inode, size: size}} -> Map.put(inodes, inode, size)
        _other -> inodes
      end
    end)
    |> Map.values()
    |> Enum.sum()
  rescue
    # A directory has gone on the way.
    File.Error -> 0
  end

  describe "when it is full a registry" do
    test "refuses what is new, and goes on with all that is known", context do
      registry = registry(context, max_bytes: 300)
      assert %{max_bytes: 300} = Files.metrics(registry)
      {:ok, first} = stage(registry, 1, 200)
      assert stage(registry, 2, 101) == {:error, {:over_budget, 101, 300}}
      assert {:ok, _small} = stage(registry, 3, 100)
      assert stage(registry, 4, 1) == {:error, {:over_budget, 1, 300}}
      # Larger than all of it.
      assert stage(registry, 5, 301) == {:error, {:over_budget, 301, 300}}

      before = files_below(context.staging_dir)
      assert {:ok, %{path: path}} = stage(registry, 1, 200)
      assert path == first.path
      source = write(context.folder, "1", bytes(1, 200))
      assert {:ok, %{path: ^path}} = Files.stage(source, registry: registry)
      assert {:ok, _empty} = stage(registry, 6, 0)
      assert length(files_below(context.staging_dir)) == length(before) + 2
      assert Files.list_staged(registry) |> Enum.map(& &1.size) |> Enum.sum() == 300

      :ok = Files.unstage(first, registry: registry)
      assert {:ok, _attachment} = stage(registry, 2, 200)
    end

    test "refuses each kind of source in the same way, and leaves nothing of it", context do
      registry = registry(context, max_bytes: @mib)
      {:ok, _attachment} = stage(registry, 0, 100)
      source = write(context.folder, "large", bytes(1, @mib))

      for large <- [source, {:data, bytes(1, @mib)}, {:stream, [bytes(1, @mib)]}] do
        assert {:error, {:over_budget, _size, @mib}} =
                 Files.stage(large, name: "large", registry: registry)
      end

      opts = stage_opts(source, destination_path: Path.join(context.folder, "elsewhere"))

      assert GenServer.call(registry, {:stage, opts}) == {:error, {:over_budget, @mib, @mib}}
      refute File.exists?(opts.destination_path)
      assert bytes_below(context.staging_dir) == 100
      assert %{total_count: 1} = Files.metrics(registry)
    end

    test "lets go first of what has expired", context do
      for when_full <- [:refuse, :evict] do
        dir = Path.join(context.folder, "#{when_full}")
        registry = registry(context, max_bytes: 300, when_full: when_full, staging_dir: dir)
        {:ok, expired} = stage(registry, 1, 100, ttl_ms: 0)
        {:ok, kept} = stage(registry, 2, 100)
        assert {:ok, _new} = stage(registry, 3, 200)
        assert {there?(expired), there?(kept)} == {false, true}
      end
    end

    test "evicts what would expire soonest, and neither persistent, infinite nor owned ones",
         context do
      registry = registry(context, max_bytes: 500, when_full: :evict)
      {:ok, persistent} = stage(registry, 1, 100, persist: true)
      {:ok, infinite} = stage(registry, 2, 100, ttl_ms: :infinity)
      {:ok, owned} = stage(registry, 3, 100, owner: self(), ttl_ms: 1_000)
      {:ok, late} = stage(registry, 4, 100, ttl_ms: 50_000)
      {:ok, soon} = stage(registry, 5, 100, ttl_ms: 40_000)

      assert {:ok, _new} = stage(registry, 6, 100, ttl_ms: 45_000)
      assert {there?(late), there?(soon)} == {true, false}
      # It can be staged again, as anything else.
      assert {:ok, _again} = stage(registry, 5, 100, ttl_ms: 60_000)

      ids = registry |> Files.list_staged() |> Enum.map(& &1.id) |> Enum.sort()
      assert stage(registry, 7, 201) == {:error, {:over_budget, 201, 500}}
      assert registry |> Files.list_staged() |> Enum.map(& &1.id) |> Enum.sort() == ids

      :ok = Files.release(owned, registry: registry)
      assert {:ok, _large} = stage(registry, 7, 300, ttl_ms: 60_000)
      assert Enum.map([persistent, infinite, owned], &there?/1) == [true, true, false]
      assert bytes_below(context.staging_dir) == 500
    end

    test "tells of what it evicts, and of what had expired", context do
      FakeTelemetry.start()
      registry = registry(context, max_bytes: 200, when_full: :evict)
      {:ok, expired} = stage(registry, 1, 100, ttl_ms: 0)
      {:ok, evicted} = stage(registry, 2, 100)
      {:ok, _new} = stage(registry, 3, 200)

      for {event, %{checksum: checksum, name: name, ttl_ms: ttl_ms}} <- [
            cleaned: expired,
            evicted: evicted
          ] do
        assert_receive {:telemetry, [:codex, :attachment, ^event], %{count: 1, bytes: 100},
                        %{checksum: ^checksum} = metadata},
                       5_000

        assert metadata == %{checksum: checksum, name: name, ttl_ms: ttl_ms}
      end

      refute_received {:telemetry, [:codex, :attachment, :evicted], _measurements, _metadata}
    end

    test "keeps a victim that cannot be removed, and another goes", context do
      FakeTelemetry.start()
      registry = registry(context, max_bytes: 300, when_full: :evict)
      {:ok, stuck} = stage(registry, 1, 100, ttl_ms: 10_000)
      {:ok, other} = stage(registry, 2, 100, ttl_ms: 20_000)
      {:ok, third} = stage(registry, 3, 100, ttl_ms: 30_000)
      make_removable = make_unremovable(stuck.path)
      assert {:ok, _new} = stage(registry, 4, 100)
      assert Enum.map([stuck, other, third], &there?/1) == [true, false, true]

      assert_receive {:telemetry, [:codex, :attachment, :cleanup_failed], _measurements,
                      %{reason: reason}},
                     5_000

      assert reason in [:eperm, :eacces, :ebusy]
      make_removable.()
      :ok = Files.reset!(registry)
    end
  end

  test "a stream reserves as it grows, and gives all back however it ends", context do
    registry = registry(context, max_bytes: 4 * @mib)
    parent = self()

    endless = Stream.repeatedly(fn -> :binary.copy("x", 65_536) end)

    assert {:error, {:over_budget, size, 4_194_304}} =
             Files.stage({:stream, endless}, name: "endless", registry: registry)

    assert size > 4 * @mib
    assert bytes_below(context.staging_dir) == 0

    slow =
      Stream.resource(
        fn -> 0 end,
        fn
          3 ->
            send(parent, {:written, self()})
            receive do: (:go_on -> {:halt, 3})

          number ->
            {[bytes(number, @mib)], number + 1}
        end,
        fn _number -> :ok end
      )

    {stager, monitor} =
      spawn_monitor(fn -> Files.stage({:stream, slow}, name: "slow", registry: registry) end)

    assert_receive {:written, ^stager}, 10_000
    assert {:error, {:over_budget, _size, _max}} = stage(registry, 9, 3 * @mib)
    Process.exit(stager, :kill)
    assert_receive {:DOWN, ^monitor, :process, ^stager, :killed}, 5_000
    eventually(fn -> match?({:ok, _attachment}, stage(registry, 9, 4 * @mib)) end)
  end

  @tag timeout: 120_000
  test "is never passed by 64 callers at once", context do
    for when_full <- [:refuse, :evict], size <- [20_000, 400_000] do
      max_bytes = 30 * size
      dir = Path.join(context.folder, "#{when_full}_#{size}")
      registry = registry(context, staging_dir: dir, max_bytes: max_bytes, when_full: when_full)
      parent = self()

      watcher =
        spawn_link(fn ->
          highest = fn highest, seen ->
            receive do
              # It may have found no time to look before.
              :stop -> send(parent, {:highest, max(seen, bytes_below(dir))})
            after
              0 -> highest.(highest, max(seen, bytes_below(dir)))
            end
          end

          highest.(highest, 0)
        end)

      results =
        1..64
        |> Task.async_stream(
          fn caller ->
            for number <- 1..6 do
              # Of some sizes, and some of them the same content.
              number = rem(caller * 6 + number, 200)
              stage(registry, number, size - number, ttl_ms: 30_000 + number)
            end
          end,
          max_concurrency: 64,
          timeout: 60_000
        )
        |> Enum.flat_map(fn {:ok, results} -> results end)

      send(watcher, :stop)
      assert_receive {:highest, highest}, 10_000
      assert highest <= max_bytes
      assert highest > 0
      assert Enum.count(results, &match?({:ok, _attachment}, &1)) >= 30

      for result <- results, not match?({:ok, _attachment}, result) do
        assert {:error, {:over_budget, _size, ^max_bytes}} = result
      end

      staged = Files.list_staged(registry)
      assert_intact(staged)
      assert staged |> Enum.map(& &1.size) |> Enum.sum() == bytes_below(dir)
      :ok = Files.reset!(registry)
      # Nothing that was reserved has been kept.
      assert {:ok, _whole} = stage(registry, 999, max_bytes)
      :ok = Files.reset!(registry)
    end
  end

  test "a successor with a smaller one evicts nothing at its start", context do
    configure(:attachment_max_bytes, 1_000)
    configure(:attachment_when_full, :evict)
    registry = registry(context, name: :p22_successor)
    staged = for number <- 1..10, do: elem(stage(registry, number, 100), 1)
    configure(:attachment_max_bytes, 100)
    configure(:attachment_when_full, :refuse)
    kill(registry)
    successor = eventually(fn -> Process.whereis(:p22_successor) end)
    assert %{max_bytes: 100, total_count: 10} = eventually(fn -> metrics(successor) end)
    assert Enum.all?(staged, &there?/1)
    assert stage(successor, 11, 1) == {:error, {:over_budget, 1, 100}}
    assert {:ok, _known} = stage(successor, 1, 100)
  end

  defp metrics(registry), do: with(%{} = metrics <- Files.metrics(registry), do: metrics)

  test "one that is malformed keeps the registry from starting", context do
    Process.flag(:trap_exit, true)

    for {key, values} <- [
          max_bytes: [0, -1, 1.0, 0x1_0000_0000_0000_0000, "100", :infinity],
          when_full: [nil, "evict", :drop]
        ],
        value <- values do
      opts = [name: :p22_malformed, staging_dir: context.staging_dir] ++ [{key, value}]
      assert {:error, reason} = Registry.start_link(opts)
      assert {key, reason} == {key, {:invalid_option, key, value}}
      assert Files.format_error(reason) =~ inspect(value)

      unless value == nil do
        configured = :"attachment_#{key}"
        configure(configured, value)
        assert {:error, reason} = Registry.start_link(name: :p22_malformed)
        assert reason == {:invalid_config, configured, value}
        unconfigure(configured)
      end
    end

    assert Files.format_error({:over_budget, 301, 300}) =~ "301 bytes"
  end
end
