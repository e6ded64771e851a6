defmodule Codex.Files.RegistriesTest do
  @moduledoc """
  Registries of a host's: how they are started, named and asked.
  """

  use Codex.Files.RegistryCase, async: true

  alias Codex.Files.{Copy, Native, NativeRegistry}

  @moduletag :capture_log

  # A registry of names that knows those of another node.
  defmodule Foreign do
    def whereis_name(_term), do: Codex.Files.RegistryCase.foreign_pid()
  end

  # How long a call may take that something is done to meanwhile.
  @timeout 30_000

  setup %{folder: folder} do
    %{source: write(folder, "source/notes.txt", "some notes")}
  end

  # Every function that works on any registry.
  defp calls(registry, source) do
    opts = [registry: registry]

    [
      stage: fn -> Codex.Files.stage(source, opts) end,
      stage_data: fn -> Codex.Files.stage({:data, "some notes"}, [name: "notes.txt"] ++ opts) end,
      stage_stream: fn ->
        pieces = Stream.map(["some ", "notes"], & &1)
        Codex.Files.stage({:stream, pieces}, [name: "notes.txt"] ++ opts)
      end,
      release: fn -> Codex.Files.release("id", opts) end,
      temporary: fn -> Codex.Files.temporary(source, opts, & &1.size) end,
      fetch: fn -> Codex.Files.fetch("id", opts) end,
      unstage: fn -> Codex.Files.unstage("id", opts) end,
      verify: fn -> Codex.Files.verify(registry) end,
      list_staged: fn -> Codex.Files.list_staged(registry) end,
      list_staged_result: fn -> Codex.Files.list_staged_result(registry) end,
      force_cleanup: fn -> Codex.Files.force_cleanup(registry) end,
      metrics: fn -> Codex.Files.metrics(registry) end,
      reset!: fn -> Codex.Files.reset!(registry) end
    ]
  end

  defp assert_works(registry, source) do
    results = for {name, call} <- calls(registry, source), do: {name, call.()}
    assert {:ok, %Attachment{path: path} = attachment} = results[:stage]
    assert {:ok, %Attachment{path: ^path}} = results[:stage_data]
    assert {:ok, %Attachment{path: ^path}} = results[:stage_stream]
    assert results[:release] == :ok
    assert results[:temporary] == {:ok, 10}
    assert results[:fetch] == {:error, :not_staged}
    assert results[:unstage] == {:error, :not_staged}
    assert results[:verify] == {:ok, 1}
    assert [%Attachment{path: ^path}] = results[:list_staged]
    assert {:ok, [%Attachment{}]} = results[:list_staged_result]
    assert results[:force_cleanup] == :ok
    assert %{total_count: 1} = results[:metrics]
    assert results[:reset!] == :ok
    refute File.exists?(path)
    attachment
  end

  defp assert_refused(registry, source, reason) do
    for {name, call} <- calls(registry, source) do
      expected = if name == :list_staged, do: [], else: {:error, reason}
      assert {name, registry, call.()} == {name, registry, expected}
    end

    refute Codex.Files.format_error(reason) =~ "unexpected"
  end

  # In a process that is given up if it does not come back.
  defp in_time(call) do
    task = Task.async(call)

    case Task.yield(task, @timeout) || Task.shutdown(task, :brutal_kill) do
      {:ok, result} -> result
      other -> flunk("expected a result in time, got: #{inspect(other)}")
    end
  end

  defp via_names do
    names = :"names_#{System.unique_integer([:positive])}"
    start_supervised!({Elixir.Registry, keys: :unique, name: names}, id: names)
    names
  end

  defp unique, do: System.unique_integer([:positive])

  describe "every function" do
    test "works on a registry by any name, and by its pid, without its process", context do
      for name <- [
            :"a_#{unique()}",
            {:global, {"a registry", unique()}},
            {:via, Elixir.Registry, {via_names(), "a registry"}}
          ],
          table <- if(is_atom(name), do: [[]], else: []) ++ [[manifest_table: :"t_#{unique()}"]] do
        start_own(context.staging_dir, [name: name] ++ table)
        # No answer can come from it.
        :ok = :sys.suspend(name)

        for registry <- [name, pid(name)] do
          attachment = in_time(fn -> assert_works(registry, context.source) end)
          assert String.starts_with?(attachment.path, context.staging_dir)
        end

        :ok = :sys.resume(name)
        stop_supervised!(name)
      end
    end

    test "works on one without a name, by its pid", context do
      opts = [name: nil, manifest_table: :"t_#{unique()}", staging_dir: context.staging_dir]
      registry = start_supervised!({Registry, opts})
      assert_works(registry, context.source)
    end

    test "works on one that has just been started, whose table is not there yet", context do
      name = :"a_#{unique()}"
      asking = for _ <- 1..20, do: Task.async(fn -> stage_until_it_runs(name, context.source) end)
      start_own(context.staging_dir, name: name)
      attachments = Task.await_many(asking)
      assert attachments |> Enum.map(& &1.path) |> Enum.uniq() |> length() == 1
    end

    defp stage_until_it_runs(name, source) do
      case Codex.Files.stage(source, registry: name) do
        {:ok, attachment} -> attachment
        {:error, :noproc} -> stage_until_it_runs(name, source)
      end
    end

    test "says of one that does not run that it does not, and starts none", context do
      stopped = start_own(context.staging_dir)
      pid = pid(stopped)
      stop_supervised!(stopped)
      names = via_names()

      for registry <- [
            :"a_#{unique()}",
            stopped,
            pid,
            spawn(fn -> :ok end),
            {:global, {:none, unique()}},
            {:via, Elixir.Registry, {names, :none}},
            # A registry of names that does not run either, and a module that is none.
            {:via, Elixir.Registry, {:"a_#{unique()}", :none}},
            {:via, :"a_#{unique()}", :none}
          ] do
        in_time(fn -> assert_refused(registry, context.source, :noproc) end)
        refute is_atom(registry) and Process.whereis(registry)
      end

      assert files_below(context.staging_dir) == []
    end

    test "refuses what is no registry, or another node's", context do
      no_registry = spawn_link(fn -> receive do: (:end -> :ok) end)
      agent = start_supervised!({Agent, fn -> nil end})

      for registry <- [
            nil,
            "a registry",
            ~c"a registry",
            1,
            {},
            {:global},
            {:via, "module", 1},
            {Registry, node()},
            {Registry, :another@node},
            [registry: Registry],
            make_ref(),
            foreign_pid(),
            no_registry,
            agent,
            self(),
            # A name that another node has.
            {:via, Foreign, 1}
          ] do
        reason = {:invalid_option, :registry, registry}
        in_time(fn -> assert_refused(registry, context.source, reason) end)
      end
    end

    test "leaves no note of a registry that has ended", context do
      name = start_own(context.staging_dir)
      killed = pid(name)
      assert Native.table(killed) == {:ok, name}
      kill_own(name)
      stopped = pid(name)
      eventually(fn -> Native.table(stopped) == {:ok, name} end)
      stop_supervised!(name)
      for pid <- [killed, stopped], do: eventually(fn -> Native.table(pid) == :error end)
    end

    test "finds its registry, whoever has a table of that name", context do
      name = :"a_#{unique()}"
      opts = [staging_dir: context.staging_dir, manifest_table: :"t_#{unique()}"]
      :ets.new(name, [:named_table, :public])
      :ets.insert(name, {name, :not_ours, %{}})
      start_own(context.staging_dir, [name: name] ++ opts)
      assert_works(name, context.source)
    end

    test "is not confused by registries that have each other's table", context do
      [one, two] = for _ <- 1..2, do: :"a_#{unique()}"
      start_own(context.staging_dir, name: one, manifest_table: two)
      start_own(context.staging_dir, name: two, manifest_table: one)
      {:ok, attachment} = Codex.Files.stage(context.source, registry: one)

      for registry <- [one, pid(one)],
          do: assert(Codex.Files.list_staged(registry) == [attachment])

      for registry <- [two, pid(two)], do: assert(Codex.Files.list_staged(registry) == [])
    end
  end

  describe "an option of start_link/1" do
    test "says where the files are", context do
      [one, two] = for n <- 1..2, do: Path.join(context.folder, "dir #{n}")
      registry = start_own(one)
      {:ok, attachment} = Codex.Files.stage(context.source, registry: registry)
      assert String.starts_with?(attachment.path, one <> "/")

      # As chardata, and by the protocol.
      registry = start_own([two])
      opts = stage_opts(context.source, destination_path: Path.join(context.folder, "copy"))
      {:ok, _attachment} = GenServer.call(registry, {:stage, opts})
      assert [_area] = File.ls!(two)
      {:ok, attachment} = Codex.Files.stage(write(context.folder, "2", "2"), registry: registry)
      assert String.starts_with?(attachment.path, two <> "/")
    end

    test "says how long they are kept", context do
      registry = start_own(context.staging_dir, ttl_ms: 0)
      opts = [registry: registry]
      assert {:ok, %{ttl_ms: 0}} = Codex.Files.stage(context.source, opts)
      assert Codex.Files.force_cleanup(registry) == :ok
      assert Codex.Files.list_staged(registry) == []
      assert {:ok, %{ttl_ms: 5}} = Codex.Files.stage(context.source, [ttl_ms: 5] ++ opts)

      assert {:ok, %{ttl_ms: :infinity}} =
               Codex.Files.stage(context.source, [persist: true] ++ opts)

      registry = start_own(context.staging_dir, ttl_ms: :infinity)
      assert {:ok, %{ttl_ms: :infinity}} = Codex.Files.stage(context.source, registry: registry)
      owned = write(context.folder, "owned", "owned")
      assert {:ok, %{ttl_ms: 0}} = Codex.Files.stage(owned, registry: registry, owner: self())
    end

    test "says how often they are cleaned up", context do
      registry = start_own(context.staging_dir, cleanup_interval_ms: 5, ttl_ms: 0)
      {:ok, attachment} = Codex.Files.stage(context.source, registry: registry)
      eventually(fn -> not File.exists?(attachment.path) end)
      # Longer than any timer can count.
      start_own(context.staging_dir, cleanup_interval_ms: 0x1_0000_0000_0000_0000)
    end

    # A look from which nothing can follow is not taken.
    @tag skip: not_on(~w(bindfs sshfs), "a file there is never recognised")
    test "says whether unchanged files are recognised", context do
      for {recognise?, miss} <- [{true, :new}, {false, :unseen}] do
        registry = start_own(context.staging_dir, recognise_unchanged: recognise?)
        {:ok, {handle, _own}} = NativeRegistry.find(registry)
        # A glance fails while anybody on this machine renames something.
        eventually(fn ->
          Native.refresh_file(handle, context.source, :error, {false, 0, nil}) == miss
        end)
      end
    end

    test "says how much may be stored", context do
      refusing = start_own(context.staging_dir, max_bytes: 9)

      assert Codex.Files.stage(context.source, registry: refusing) ==
               {:error, {:over_budget, 10, 9}}

      assert Codex.Files.metrics(refusing).max_bytes == 9

      evicting = start_own(context.staging_dir, max_bytes: 10, when_full: :evict)
      {:ok, first} = Codex.Files.stage(context.source, registry: evicting)
      {:ok, second} = Codex.Files.stage(write(context.folder, "2", "2"), registry: evicting)
      assert Codex.Files.list_staged(evicting) == [second]
      refute File.exists?(first.path)

      unbounded = start_own(context.staging_dir, max_bytes: nil)
      assert Codex.Files.metrics(unbounded).max_bytes == nil
    end

    test "that is malformed fails the start", context do
      too_big = 0x1_0000_0000_0000_0000

      for {key, values} <- [
            staging_dir: [nil, 1, :dir, "a\0b", [nil]],
            ttl_ms: [nil, -1, 1.5, "1", :never, too_big],
            cleanup_interval_ms: [nil, 0, -1, 1.5, :infinity, "1"],
            recognise_unchanged: [nil, 0, "true", :yes],
            max_bytes: [0, -1, 1.5, 1.0e3, "1", :infinity, too_big],
            when_full: [nil, "evict", :drop, true],
            manifest_table: [nil, "table", 1],
            file_module: [nil, "module", 1]
          ],
          value <- values do
        reason = {:invalid_option, key, value}
        opts = [{:name, :"a_#{unique()}"}, {key, value}]
        assert Registry.start_link(opts) == {:error, reason}
        refute Process.whereis(opts[:name])
        said = Codex.Files.format_error(reason)
        assert said =~ "expected #{inspect(key)} to be "
        # What is said of a key that is not known.
        assert key == :staging_dir or not (said =~ "a path")

        # As its supervisor tells it.
        {:ok, supervisor} = Supervisor.start_link([], strategy: :one_for_one)
        assert {:error, failed} = Supervisor.start_child(supervisor, {Registry, opts})
        assert Codex.Files.format_error(failed) == Codex.Files.format_error(reason)
        Supervisor.stop(supervisor)
      end

      assert files_below(context.staging_dir) == []
    end

    test "may come after one that is not known, or be there twice, and the first counts",
         context do
      registry = start_own(context.staging_dir, unknown: 1, ttl_ms: 5, ttl_ms: -1)
      assert {:ok, %{ttl_ms: 5}} = Codex.Files.stage(context.source, registry: registry)
    end

    test "a staging directory that is a file is told of where it is used", context do
      write(context.folder, "staging", "not a directory")
      registry = start_own(context.staging_dir)
      reason = {:staging_dir, context.staging_dir, :enotdir}
      opts = stage_opts(context.source, destination_path: Path.join(context.folder, "copy"))

      for call <- [
            fn -> Codex.Files.stage(context.source, registry: registry) end,
            fn -> Codex.Files.temporary(context.source, [registry: registry], & &1) end,
            fn -> GenServer.call(registry, {:stage, opts}) end
          ] do
        assert call.() == {:error, reason}
      end

      assert Codex.Files.format_error(reason) =~ "not a directory"
      assert Codex.Files.list_staged(registry) == []
      assert Codex.Files.metrics(registry).total_count == 0
      assert Codex.Files.reset!(registry) == :ok
      assert File.read!(context.staging_dir) == "not a directory"
      refute File.exists?(opts.destination_path)

      # As soon as it can be used, it is.
      File.rm!(context.staging_dir)
      assert {:ok, _attachment} = Codex.Files.stage(context.source, registry: registry)
    end
  end

  describe "two registries" do
    test "of one name are refused", context do
      for name <- [
            :"a_#{unique()}",
            {:global, unique()},
            {:via, Elixir.Registry, {via_names(), 1}}
          ] do
        [one, two] = for _ <- 1..2, do: :"t_#{unique()}"
        opts = [name: name, staging_dir: context.staging_dir]
        start_own(context.staging_dir, opts ++ [manifest_table: one])
        {:ok, attachment} = Codex.Files.stage(context.source, registry: name)

        reason = {:already_started, pid(name)}
        assert Registry.start_link(opts ++ [manifest_table: two]) == {:error, reason}
        assert Codex.Files.format_error(reason) =~ inspect(pid(name))
        assert :ets.whereis(two) == :undefined
        assert Codex.Files.list_staged(name) == [attachment]
      end
    end

    test "are kept apart if the one has lost its name and lives", context do
      name = start_own(context.staging_dir, manifest_table: :"t_#{unique()}")
      pid = pid(name)
      {:ok, attachment} = Codex.Files.stage(context.source, registry: name)
      Process.unregister(name)

      Process.flag(:trap_exit, true)
      opts = [name: name, staging_dir: context.staging_dir]
      assert Registry.start_link(opts) == {:error, {:already_started, pid}}
      assert Codex.Files.list_staged(pid) == [attachment]

      stop_supervised!(name)
      {:ok, registry} = Registry.start_link(opts)
      assert Codex.Files.list_staged(name) == []
      GenServer.stop(registry)
    end

    test "of one table are refused", context do
      one = start_own(context.staging_dir)
      reason = {:manifest_table_taken, one}
      Process.flag(:trap_exit, true)

      for opts <- [[name: :"a_#{unique()}"], [name: nil], [file_module: Copy, name: nil]] do
        opts = opts ++ [staging_dir: Path.join(context.folder, "2"), manifest_table: one]
        assert Registry.start_link(opts) == {:error, reason}
      end

      assert Codex.Files.format_error(reason) =~ "the name is taken"
      assert {:ok, _attachment} = Codex.Files.stage(context.source, registry: one)
    end

    test "may have names that are no atoms if each names its table", context do
      for name <- [{:global, unique()}, {:via, Elixir.Registry, {via_names(), 1}}, nil] do
        reason = {:missing_option, :manifest_table}
        opts = [name: name, staging_dir: context.staging_dir]
        assert Registry.start_link(opts) == {:error, reason}
      end
    end
  end

  describe "a registry with a file module" do
    test "works by its name or pid, as far as it goes, with options of its own", context do
      opts = [file_module: Copy, ttl_ms: 5, cleanup_interval_ms: 3_600_000]
      name = start_own(context.staging_dir, opts)

      for registry <- [name, pid(name)] do
        assert {:ok, %{ttl_ms: 5} = staged} =
                 Codex.Files.stage(context.source, registry: registry)

        assert staged.path == Path.join([context.staging_dir, staged.checksum, "notes.txt"])
        assert Codex.Files.list_staged(registry) == [staged]
        assert %{total_count: 1, max_bytes: nil} = Codex.Files.metrics(registry)
        assert Codex.Files.force_cleanup(registry) == :ok
        assert Codex.Files.reset!(registry) == :ok
        refute File.exists?(staged.path)

        for {name, call} <- calls(registry, context.source),
            name in [
              :stage_data,
              :stage_stream,
              :release,
              :temporary,
              :fetch,
              :unstage,
              :verify
            ] do
          assert {name, call.()} == {name, {:error, :not_supported}}
        end

        owned = Codex.Files.stage(context.source, registry: registry, owner: self())
        assert owned == {:error, :not_supported}
      end
    end

    test "cleans up as often as it was told", context do
      opts = [file_module: Copy, ttl_ms: 0, cleanup_interval_ms: 5]
      registry = start_own(context.staging_dir, opts)
      {:ok, attachment} = Codex.Files.stage(context.source, registry: registry)
      eventually(fn -> not File.exists?(attachment.path) end)
    end

    test "has no budget" do
      for {key, value} <- [max_bytes: 10, max_bytes: nil, when_full: :evict] do
        reason = {:invalid_option, key, value}
        opts = [{:name, :"a_#{unique()}"}, {:file_module, Copy}, {key, value}]
        assert Registry.start_link(opts) == {:error, reason}
        assert Codex.Files.format_error(reason) =~ "file module"
      end
    end
  end

  for opts <- registries() do
    describe "a registry with #{inspect(opts)}, stopped in the middle of each function" do
      @describetag registry_opts: opts

      @tag timeout: 120_000
      test "gives a result or an error, and never hangs", context do
        name = start_own(context.staging_dir, context.registry_opts)
        large = large_file(context.folder, "large", 3_000_000)
        pid_of = fn -> pid(name) || self() end

        workers =
          for {function, _call} <- calls(name, large), registry <- [fn -> name end, pid_of] do
            Task.async(fn -> call_until_told(function, registry, large, []) end)
          end

        for _ <- 1..15 do
          # Some calls are under way.
          pause = System.monotonic_time(:millisecond) + 20
          eventually(fn -> System.monotonic_time(:millisecond) > pause end)
          :ok = stop_supervised(name)
          start_own(context.staging_dir, [name: name] ++ context.registry_opts)
        end

        for worker <- workers, do: send(worker.pid, :end)
        results = workers |> Task.await_many(@timeout) |> Enum.concat() |> Enum.uniq()

        for {function, result} <- results do
          assert {function, legal?(result), result} == {function, true, result}
        end

        # What it was stopped in the middle of has gone, with a file module by the next start.
        assert Codex.Files.force_cleanup(start_own(context.staging_dir, context.registry_opts)) ==
                 :ok

        stop_supervised!(name)
        eventually(fn -> Path.wildcard(context.staging_dir <> "/**/large") == [] end)
      end
    end
  end

  defp call_until_told(function, registry, source, results) do
    call = calls(registry.(), source)[function]
    results = Enum.uniq([{function, generalise(call.())} | results])

    receive do
      :end -> results
    after
      0 -> call_until_told(function, registry, source, results)
    end
  end

  defp generalise({:ok, _result}), do: :ok
  defp generalise(result) when is_list(result) or is_map(result), do: :ok
  defp generalise({:error, {:invalid_option, :registry, pid}}) when is_pid(pid), do: :no_registry
  defp generalise(result), do: result

  @reasons [:noproc, :stopped, :not_staged, :not_supported, :normal, :shutdown, :killed]

  defp legal?({:error, reason}), do: reason in @reasons
  defp legal?(result), do: result in [:ok, :no_registry]
end
