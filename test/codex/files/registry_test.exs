defmodule Codex.Files.RegistryTest do
  use Codex.Files.StagingCase, async: false

  alias Codex.Files.FakeSdk

  @moduletag :capture_log

  doctest Codex.Files.Registry

  setup %{folder: folder} do
    %{source: write(folder, "source/notes.txt", "some notes")}
  end

  # What a registry of any name is asked by call.
  defp stage(registry, opts), do: GenServer.call(registry, {:stage, opts})
  defp list(registry), do: GenServer.call(registry, :list)

  describe "start_link/1" do
    test "takes a name and a manifest table, and defaults to those of the library" do
      {:ok, registry} = Registry.start_link([])
      assert Process.whereis(Codex.Files.Registry) == registry
      assert :ets.info(:codex_files_manifest, :owner) == registry
      assert :ets.info(:codex_files_manifest, :named_table)
      assert :ets.info(:codex_files_manifest, :protection) == :protected
      assert Registry.start_link([]) == {:error, {:already_started, registry}}
      assert Registry.start_link() == {:error, {:already_started, registry}}

      {:ok, other} = Registry.start_link(name: :another_registry, manifest_table: :another_table)
      assert Process.whereis(:another_registry) == other
      assert :ets.info(:another_table, :owner) == other

      for registry <- [registry, other], do: :ok = GenServer.stop(registry)
    end

    test "takes any kind of name", %{source: source} do
      start_supervised!({Elixir.Registry, keys: :unique, name: Names})

      for {name, table} <- [
            {{:global, :a_registry}, :table_1},
            {{:via, Elixir.Registry, {Names, "a registry"}}, :table_2}
          ] do
        {:ok, registry} = Registry.start_link(name: name, manifest_table: table)
        assert {:ok, attachment} = stage(name, stage_opts(source))
        assert list(name) == [attachment]
        :ok = GenServer.stop(registry)
      end
    end

    test "without a name gives each registry a manifest of its own", %{source: source} do
      [one, two] =
        for table <- [:table_1, :table_2] do
          {:ok, registry} = Registry.start_link(name: nil, manifest_table: table)
          registry
        end

      {:ok, attachment} = stage(one, stage_opts(source))
      assert list(one) == [attachment]
      assert list(two) == []

      :ok = GenServer.stop(two)
      assert list(one) == [attachment]
      :ok = GenServer.stop(one)
    end

    test "fails if the name of the table is taken, or an option is none" do
      Process.flag(:trap_exit, true)
      :ets.new(:a_table, [:named_table])

      assert Registry.start_link(name: :a_registry, manifest_table: :a_table) ==
               {:error, {:manifest_table_taken, :a_table}}

      assert Registry.start_link(name: :a_registry, manifest_table: "a table") ==
               {:error, {:invalid_option, :manifest_table, "a table"}}

      for opts <- [:no_list, %{}, [:name]] do
        assert Registry.start_link(opts) == {:error, {:invalid_option, :opts, opts}}
      end

      for name <- ["a name", 1, {:global}, {:via, "module", 1}] do
        assert Registry.start_link(name: name) == {:error, {:invalid_option, :name, name}}
      end

      for module <- [nil, "a module"] do
        assert Registry.start_link(name: :a_registry, file_module: module) ==
                 {:error, {:invalid_option, :file_module, module}}
      end

      refute Process.whereis(:a_registry)
    end
  end

  describe "child_spec/1" do
    test "is that of a permanent worker" do
      assert Registry.child_spec(name: :a_registry) == %{
               id: :a_registry,
               start: {Codex.Files.Registry, :start_link, [[name: :a_registry]]},
               shutdown: 300_000
             }

      assert Registry.child_spec([]).id == Registry
    end
  end

  describe "ensure_started/0, without the SDK" do
    test "starts the registry under the library's supervisor on first use" do
      refute Process.whereis(Registry)
      assert {:ok, registry} = Registry.ensure_started()
      assert Process.whereis(Registry) == registry

      assert [{Registry, ^registry, :worker, _modules}] =
               Supervisor.which_children(Codex.Files.Supervisor)
    end

    test "returns the one that runs" do
      {:ok, registry} = Registry.ensure_started()
      assert Registry.ensure_started() == {:ok, registry}
    end

    test "returns the successor of one that was killed" do
      {:ok, registry} = Registry.ensure_started()
      kill(registry)
      assert {:ok, successor} = Registry.ensure_started()
      assert successor != registry
      assert Process.alive?(successor)
    end

    test "returns the successor of one that is being killed" do
      {:ok, registry} = Registry.ensure_started()
      Process.exit(registry, :kill)
      assert {:ok, successor} = Registry.ensure_started()
      assert successor != registry
    end

    test "waits for the supervisor to hear that one was killed" do
      {:ok, registry} = Registry.ensure_started()
      assert {:ok, successor} = ask_before_supervisor_hears(Codex.Files.Supervisor, registry)
      assert successor != registry
      assert Process.alive?(successor)
    end

    test "restarts one that its supervisor has terminated" do
      {:ok, registry} = Registry.ensure_started()
      :ok = Supervisor.terminate_child(Codex.Files.Supervisor, Registry)
      assert {:ok, another} = Registry.ensure_started()
      assert another != registry
    end

    test "starts one again that its supervisor has deleted" do
      {:ok, registry} = Registry.ensure_started()
      :ok = Supervisor.terminate_child(Codex.Files.Supervisor, Registry)
      :ok = Supervisor.delete_child(Codex.Files.Supervisor, Registry)
      assert {:ok, another} = Registry.ensure_started()
      assert another != registry
    end

    test "starts the application if it has been stopped" do
      :ok = Application.stop(:codex_files)
      assert {:ok, registry} = Registry.ensure_started()
      assert Process.alive?(registry)
    end

    test "starts one, however many ask at once" do
      pids =
        1..50
        |> Enum.map(fn _ -> Task.async(&Registry.ensure_started/0) end)
        |> Task.await_many()

      assert [{:ok, _registry}] = Enum.uniq(pids)
    end

    test "returns what made the start fail, on the first and on every other attempt" do
      :ets.new(:codex_files_manifest, [:named_table])
      reason = {:manifest_table_taken, :codex_files_manifest}
      assert Registry.ensure_started() == {:error, reason}
      assert Registry.ensure_started() == {:error, reason}

      :ets.delete(:codex_files_manifest)
      {:ok, _registry} = Registry.ensure_started()
      :ok = Supervisor.terminate_child(Codex.Files.Supervisor, Registry)
      :ets.new(:codex_files_manifest, [:named_table])
      assert Registry.ensure_started() == {:error, reason}
    end
  end

  describe "ensure_started/0, with the SDK" do
    test "starts the SDK, whose child the registry is" do
      FakeSdk.load()
      assert {:ok, registry} = Registry.ensure_started()

      assert {Registry, registry, :worker, [Registry]} in Supervisor.which_children(
               Codex.Supervisor
             )

      assert Supervisor.which_children(Codex.Files.Supervisor) == []
    end

    test "is called by the functions of Codex.Files", %{source: source} do
      FakeSdk.load()
      assert {:ok, _attachment} = Codex.Files.stage(source)
      assert Process.whereis(Registry) in supervised(Codex.Supervisor)
    end

    test "returns the successor of one that was killed" do
      FakeSdk.load()
      {:ok, registry} = Registry.ensure_started()
      kill(registry)
      # The supervisor is asked, so whatever it is at comes first.
      assert {:ok, successor} = Registry.ensure_started()
      assert successor != registry
      assert successor in supervised(Codex.Supervisor)
    end

    test "waits for the supervisor to hear that one was killed" do
      FakeSdk.load()
      {:ok, registry} = Registry.ensure_started()
      assert {:ok, successor} = ask_before_supervisor_hears(Codex.Supervisor, registry)
      assert successor != registry
      assert successor in supervised(Codex.Supervisor)
    end

    test "restarts one that has been terminated there" do
      FakeSdk.load()
      {:ok, registry} = Registry.ensure_started()
      :ok = Supervisor.terminate_child(Codex.Supervisor, Registry)
      assert {:ok, another} = Registry.ensure_started()
      assert another != registry
      assert another in supervised(Codex.Supervisor)
    end

    test "restarts one, however many ask at once" do
      FakeSdk.load()
      {:ok, _registry} = Registry.ensure_started()
      :ok = Supervisor.terminate_child(Codex.Supervisor, Registry)

      pids =
        1..50
        |> Enum.map(fn _ -> Task.async(&Registry.ensure_started/0) end)
        |> Task.await_many()

      assert [{:ok, _registry}] = Enum.uniq(pids)
    end

    test "waits for one that is being restarted there" do
      Logger.configure(level: :none)
      on_exit(fn -> Logger.configure(level: :debug) end)
      FakeSdk.load(max_restarts: 1_000_000)
      {:ok, registry} = Registry.ensure_started()

      # Its attempts fail while another has the name of the table.
      :sys.suspend(Codex.Supervisor)
      kill(registry)
      :ets.new(:codex_files_manifest, [:named_table])
      :sys.resume(Codex.Supervisor)

      asking = Task.async(&Registry.ensure_started/0)
      assert Task.yield(asking, 50) == nil

      assert {Registry, :restarting, :worker, [Registry]} in Supervisor.which_children(
               Codex.Supervisor
             )

      :ets.delete(:codex_files_manifest)
      assert {:ok, successor} = Task.await(asking)
      assert successor in supervised(Codex.Supervisor)
    end

    test "does not start one that has been deleted there", %{source: source} do
      FakeSdk.load()
      {:ok, _registry} = Registry.ensure_started()
      :ok = Supervisor.terminate_child(Codex.Supervisor, Registry)
      :ok = Supervisor.delete_child(Codex.Supervisor, Registry)

      assert Registry.ensure_started() == {:error, :not_started}
      assert Codex.Files.stage(source) == {:error, :not_started}
      assert Codex.Files.list_staged_result() == {:error, :not_started}
      assert Codex.Files.list_staged() == []
      assert Codex.Files.metrics() == {:error, :not_started}
      assert Codex.Files.force_cleanup() == {:error, :not_started}
      assert Codex.Files.reset!() == {:error, :not_started}
      refute Process.whereis(Registry)
    end

    test "returns the reason if the SDK cannot be started", %{source: source} do
      FakeSdk.load()
      :ets.new(:codex_files_manifest, [:named_table])

      assert {:error, reason} = Registry.ensure_started()
      assert Codex.Files.stage(source) == {:error, reason}
      assert Codex.Files.list_staged() == []

      assert Codex.Files.format_error(reason) ==
               "could not create the ETS table :codex_files_manifest: the name is taken"
    end

    defp supervised(supervisor) do
      for {_id, pid, _type, _modules} <- Supervisor.which_children(supervisor), do: pid
    end
  end

  # The result of a call that finds no name, and asks a supervisor that takes the registry, which is
  # dead, to be running.
  defp ask_before_supervisor_hears(supervisor, registry) do
    :sys.suspend(supervisor)
    Process.unregister(Registry)
    asking = Task.async(&Registry.ensure_started/0)
    pid = Process.whereis(supervisor)
    eventually(fn -> Process.info(pid, :message_queue_len) == {:message_queue_len, 1} end)
    kill(registry)
    :sys.resume(supervisor)
    Task.await(asking)
  end

  describe "when the registry is not running" do
    test "the functions exit as GenServer.call/2 does", %{source: source} do
      opts = stage_opts(source)

      for {function, request} <- [
            {fn -> Registry.stage(opts) end, {:stage, opts}},
            {fn -> Registry.stage(%{}) end, {:stage, %{}}},
            {fn -> Registry.list() end, :list},
            {fn -> Registry.metrics() end, :metrics},
            {fn -> Registry.force_cleanup() end, :force_cleanup},
            {fn -> Registry.reset("/nowhere") end, {:reset, "/nowhere"}}
          ] do
        assert {:noproc, {GenServer, :call, [Codex.Files.Registry, ^request | _timeout]}} =
                 catch_exit(function.())
      end

      refute Process.whereis(Registry)
    end
  end

  for opts <- registries() do
    describe "stage/1 and {:stage, opts}, with #{inspect(opts)}" do
      @describetag registry_opts: opts

      setup context do
        [_default, registry] = start_registries(context)
        %{registry: registry}
      end

      test "copies a new key's file to the destination, whose parents are made", context do
        for {{_name, stage}, index} <- Enum.with_index(ways_to_stage(context.registry)) do
          destination = Path.join(context.folder, "#{index}/not/made/yet/copy")

          assert stage.(stage_opts(context.source, name: "a name", destination_path: destination)) ==
                   {:ok,
                    %Attachment{
                      id: sha256("some notes"),
                      checksum: sha256("some notes"),
                      name: "a name",
                      path: destination,
                      size: 10,
                      persist: false,
                      ttl_ms: 60_000,
                      inserted_at: hd(listed(stage, context)).inserted_at
                    }}

          assert File.read!(destination) == "some notes"
        end
      end

      test "enters exactly what it is given", %{
        registry: registry,
        folder: folder,
        source: source
      } do
        for {overrides, index} <-
              Enum.with_index([
                %{persist: true, ttl_ms: 5},
                %{persist: true, ttl_ms: :infinity},
                %{persist: false, ttl_ms: :infinity},
                %{ttl_ms: 0},
                %{size: 0},
                %{size: 123_456_789},
                %{name: "ünïcode"},
                %{name: <<255, 254>>}
              ]) do
          destination = Path.join(folder, "destination/#{index}")

          opts =
            stage_opts(source, Map.merge(overrides, %{checksum: "#{index}"}))
            |> Map.put(:destination_path, destination)

          assert {:ok, attachment} = stage(registry, opts)

          assert Map.take(attachment, Map.keys(overrides)) == overrides
          assert attachment.path == destination
          assert attachment.id == "#{index}"
          assert attachment in list(registry)
        end
      end

      test "takes any string as a key", %{registry: registry, folder: folder, source: source} do
        keys = [
          "",
          "key",
          "k/e/y",
          "..",
          "ke\0y",
          "ключ",
          <<255, 0, 128>>,
          String.duplicate("k", 10_000)
        ]

        for {key, index} <- Enum.with_index(keys) do
          opts = stage_opts(source, checksum: key, destination_path: "#{folder}/#{index}")
          assert {:ok, %{id: ^key, checksum: ^key}} = stage(registry, opts)
          assert {:ok, %{id: ^key}} = stage(registry, %{opts | destination_path: "#{folder}/no"})
          refute File.exists?("#{folder}/no")
        end

        assert registry |> list() |> Enum.map(& &1.checksum) |> Enum.sort() == Enum.sort(keys)
      end

      test "verifies a key that claims to be a digest", context do
        wrong = sha256("something else")
        destination = Path.join(context.folder, "destination/copy")

        for {_name, stage} <- ways_to_stage(context.registry) do
          opts = stage_opts(context.source, checksum: wrong, destination_path: destination)
          assert stage.(opts) == {:error, {:checksum_mismatch, sha256("some notes")}}
          assert listed(stage, context) == []
        end

        assert files_below(Path.join(context.folder, "destination")) == []
        # What else a file module has made is its affair.
        refute context.registry_opts == [] and File.exists?(Path.dirname(destination))
      end

      test "takes what only resembles a digest for a key like any other", context do
        digest = sha256("something else")

        for {key, index} <-
              Enum.with_index([
                String.upcase(digest),
                binary_part(digest, 0, 63),
                digest <> "0",
                String.replace_prefix(digest, binary_part(digest, 0, 1), "g")
              ]) do
          destination = Path.join(context.folder, "#{index}")
          opts = stage_opts(context.source, checksum: key, destination_path: destination)
          assert {:ok, %{checksum: ^key}} = stage(context.registry, opts)
        end
      end

      test "overwrites what is at the destination", context do
        destination = write(context.folder, "destination", "something else")
        opts = stage_opts(context.source, destination_path: destination)
        assert {:ok, _attachment} = stage(context.registry, opts)
        assert File.read!(destination) == "some notes"
      end

      test "does not copy a known key's file again", context do
        for {_name, stage} <- ways_to_stage(context.registry) do
          opts = stage_opts(context.source, name: "first")
          {:ok, first} = stage.(opts)

          again = %{
            opts
            | name: "second",
              size: 99,
              source_path: "/no/such/file",
              destination_path: Path.join(context.folder, "elsewhere")
          }

          assert {:ok, second} = stage.(again)
          assert %{second | inserted_at: nil} == %{first | inserted_at: nil}
          refute File.exists?(Path.join(context.folder, "elsewhere"))
          assert listed(stage, context) == [second]
        end
      end

      test "makes now the insertion time of a known key", context do
        for {_name, stage} <- ways_to_stage(context.registry) do
          opts = stage_opts(context.source)
          {:ok, first} = stage.(opts)

          eventually(fn ->
            {:ok, again} = stage.(opts)
            DateTime.compare(again.inserted_at, first.inserted_at) == :gt
          end)
        end
      end

      # Each is {persist, ttl_ms}.
      @merges [
        # old, new, merged
        {{false, 10}, {false, 20}, {false, 20}},
        {{false, 20}, {false, 10}, {false, 10}},
        {{false, 10}, {false, 0}, {false, 0}},
        {{false, 10}, {false, :infinity}, {false, :infinity}},
        {{false, :infinity}, {false, 10}, {false, :infinity}},
        {{false, :infinity}, {false, :infinity}, {false, :infinity}},
        {{false, 10}, {true, 20}, {true, :infinity}},
        {{false, 10}, {true, :infinity}, {true, :infinity}},
        {{true, 10}, {false, 20}, {true, 20}},
        {{true, 10}, {false, :infinity}, {true, :infinity}},
        {{true, 10}, {true, 20}, {true, :infinity}},
        {{true, :infinity}, {false, 10}, {true, :infinity}},
        {{true, :infinity}, {true, 10}, {true, :infinity}}
      ]

      test "merges what was asked for before with what is asked for now", context do
        for {_name, stage} <- ways_to_stage(context.registry),
            {{{old_persist, old_ttl}, {new_persist, new_ttl}, {persist, ttl}}, index} <-
              Enum.with_index(@merges) do
          opts =
            stage_opts(context.source,
              checksum: "key #{index}",
              destination_path: "#{context.folder}/#{index}"
            )

          {:ok, old} = stage.(%{opts | persist: old_persist, ttl_ms: old_ttl})
          assert {old.persist, old.ttl_ms} == {old_persist, old_ttl}

          {:ok, merged} = stage.(%{opts | persist: new_persist, ttl_ms: new_ttl})
          assert {index, merged.persist, merged.ttl_ms} == {index, persist, ttl}
          assert merged in listed(stage, context)
        end
      end

      test "gives the file system's reasons, and leaves nothing behind", context do
        destination = Path.join(context.folder, "destination/copy")
        opts = stage_opts(context.source, destination_path: destination)

        for {_name, stage} <- ways_to_stage(context.registry),
            {overrides, reason} <-
              [
                {%{source_path: "/no/such/file"}, :enoent},
                {%{source_path: ""}, :enoent},
                {%{source_path: context.folder}, :eisdir},
                {%{source_path: context.source <> "/below"}, :enotdir}
              ] ++ refused_destinations(context) do
          assert {overrides, stage.(Map.merge(opts, overrides))} == {overrides, {:error, reason}}
          assert listed(stage, context) == []
        end

        assert files_below(Path.join(context.folder, "destination")) == []
        assert File.read!(context.source) == "some notes"
      end

      @tag skip: not_on(~w(sshfs), "the names of a file have different inode numbers there")
      test "refuses to stage a file onto itself", context do
        link = Path.join(context.folder, "link")
        File.ln!(context.source, link)

        for {_name, stage} <- ways_to_stage(context.registry),
            destination <- [context.source, link] do
          opts = stage_opts(context.source, destination_path: destination)
          assert stage.(opts) == {:error, {:destination_is_source, context.source}}
          assert File.read!(context.source) == "some notes"
        end
      end

      test "gives a failure to nobody but its caller", %{registry: registry, source: source} do
        {:ok, attachment} = stage(registry, stage_opts(source))

        assert {:error, :enoent} =
                 stage(registry, stage_opts(source, checksum: "k", source_path: "no"))

        assert list(registry) == [attachment]
      end
    end
  end

  defp refused_destinations(context) do
    # A file module itself says what it cannot make: `File`, on older Elixirs, that it exists.
    not_made =
      if context.registry_opts == [],
        do: :enotdir,
        else: context.source |> File.mkdir_p() |> elem(1)

    [
      {%{destination_path: context.source <> "/below"}, not_made},
      {%{destination_path: context.folder}, {:unsupported_destination, :directory}},
      {%{destination_path: "/"}, {:unsupported_destination, :directory}}
    ]
  end

  defp listed(stage, context) do
    # The first of the two ways goes to the default registry.
    if stage == (&Registry.stage/1), do: Registry.list(), else: list(context.registry)
  end

  for opts <- registries() do
    describe "list/0 and :list, metrics/0 and :metrics, force_cleanup/0 and :force_cleanup, with #{inspect(opts)}" do
      @describetag registry_opts: opts

      test "say and do the same", %{folder: folder} = context do
        [_default, registry] = start_registries(context)

        for {stage, list, metrics, force_cleanup} <- [
              {&Registry.stage/1, &Registry.list/0, &Registry.metrics/0,
               &Registry.force_cleanup/0},
              {&stage(registry, &1), fn -> list(registry) end,
               fn -> GenServer.call(registry, :metrics) end,
               fn -> GenServer.call(registry, :force_cleanup) end}
            ] do
          assert list.() == []
          assert %{total_count: 0, next_expiry_at: nil} = metrics.()

          {:ok, kept} = stage.(stage_opts(write(folder, "kept", "12345"), persist: true))
          {:ok, expired} = stage.(stage_opts(write(folder, "expired", "123"), ttl_ms: 0))

          assert Enum.sort(list.()) == Enum.sort([kept, expired])

          assert metrics.() == %{
                   total_count: 2,
                   total_bytes: 8,
                   persistent_count: 1,
                   persistent_bytes: 5,
                   expirable_count: 1,
                   expirable_bytes: 3,
                   next_expiry_at: expired.inserted_at,
                   owned_count: 0,
                   max_bytes: nil
                 }

          assert force_cleanup.() == :ok
          assert list.() == [kept]
          assert %{total_count: 1, total_bytes: 5, expirable_bytes: 0} = metrics.()
          refute File.exists?(expired.path)
          assert_intact([kept])
        end
      end
    end
  end

  for opts <- registries() do
    describe "reset/1 and {:reset, dir}, with #{inspect(opts)}" do
      @describetag registry_opts: opts

      test "remove every entry and its file, wherever it is", context do
        [_default, registry] = start_registries(context)

        for {stage, list, reset} <- [
              {&Registry.stage/1, &Registry.list/0, &Registry.reset/1},
              {&stage(registry, &1), fn -> list(registry) end,
               &GenServer.call(registry, {:reset, &1})}
            ] do
          {:ok, one} = stage.(stage_opts(context.source, persist: true))

          elsewhere = Path.join(context.folder, "elsewhere/copy")
          opts = stage_opts(context.source, checksum: "key", destination_path: elsewhere)
          {:ok, two} = stage.(opts)

          assert reset.(context.staging_dir) == :ok
          assert list.() == []
          refute File.exists?(one.path)
          refute File.exists?(two.path)
          # What a file module has made is its affair.
          refute context.registry_opts == [] and File.exists?(Path.dirname(elsewhere))
          assert reset.(context.staging_dir) == :ok
        end
      end

      test "take any directory, be it there or not", %{folder: folder} = context do
        [_default, registry] = start_registries(context)

        for dir <- [folder, "/no/such/dir", "", ".", to_charlist(folder), [folder, ?/, "x"]],
            reset <- [&Registry.reset/1, &GenServer.call(registry, {:reset, &1})] do
          assert reset.(dir) == :ok
        end
      end
    end
  end

  describe "a registry of another name" do
    test "shares nothing with the default one", %{folder: folder, source: source} do
      {:ok, default} = Codex.Files.stage(source)
      registry = start_registry()
      assert list(registry) == []

      opts = stage_opts(source, destination_path: Path.join(folder, "copy"))
      {:ok, attachment} = stage(registry, opts)
      assert list(registry) == [attachment]

      assert GenServer.call(registry, {:reset, Codex.Files.staging_dir()}) == :ok
      assert list(registry) == []
      assert Codex.Files.list_staged() == [default]
      assert_intact([default])
    end
  end

  for opts <- registries() do
    describe "the registry process, with #{inspect(opts)}" do
      @describetag registry_opts: opts

      test "answers a request that it does not know with an error", context do
        [_default, registry] = start_registries(context)

        for request <- [:unknown, nil, {:stage}, {:stage, 1, 2}, "list", {:reset}] do
          assert GenServer.call(registry, request) == {:error, {:unknown_request, request}}
        end
      end

      test "survives casts and messages that are not for it", %{source: source} = context do
        [registry, _other] = start_registries(context)
        {:ok, attachment} = Codex.Files.stage(source)

        for message <- [
              :unknown,
              nil,
              :cleanup,
              :cleanup_tick,
              :timeout,
              {:DOWN, make_ref(), :process, self(), :normal},
              {:EXIT, self(), :boom},
              {make_ref(), :ok},
              {:codex_files, :cleaned}
            ] do
          send(registry, message)
          GenServer.cast(registry, message)
          assert GenServer.call(registry, :list) == [attachment]
        end

        assert Process.whereis(Registry) == registry
      end
    end
  end

  describe "a registry that does its own file operations" do
    test "does not get in the way: what it is asked goes past it", %{source: source} do
      {:ok, registry} = Registry.ensure_started()
      :sys.suspend(registry)

      assert {:ok, attachment} = Codex.Files.stage(source, ttl_ms: 0)
      assert {:ok, _attachment} = Registry.stage(stage_opts(source, ttl_ms: 0))
      assert [%{id: id}] = Codex.Files.list_staged()
      assert id == attachment.id
      assert %{total_count: 1} = Codex.Files.metrics()
      assert Codex.Files.force_cleanup() == :ok
      assert Codex.Files.reset!() == :ok

      :sys.resume(registry)
    end
  end

  describe "functions and types" do
    test "are these" do
      functions = Registry.__info__(:functions)

      for function <- [
            child_spec: 1,
            start_link: 0,
            start_link: 1,
            ensure_started: 0,
            stage: 1,
            list: 0,
            metrics: 0,
            force_cleanup: 0,
            reset: 1
          ] do
        assert function in functions
      end

      {:ok, types} = Code.Typespec.fetch_types(Registry)

      types =
        for {:type, type} <- types, into: %{} do
          {elem(type, 0), type |> Code.Typespec.type_to_quoted() |> Macro.to_string()}
        end

      assert types |> Map.keys() |> Enum.sort() == [:stage_opts, :stage_request, :work_item]

      assert oneline(types.stage_opts) ==
               "stage_opts() :: %{ checksum: String.t(), name: String.t(), persist: boolean(), " <>
                 "ttl_ms: :infinity | pos_integer(), size: non_neg_integer(), " <>
                 "source_path: Path.t(), destination_path: Path.t() }"

      assert oneline(types.stage_request) ==
               "stage_request() :: {GenServer.from(), stage_opts(), DateTime.t()}"

      assert oneline(types.work_item) ==
               "work_item() :: {:stage, String.t(), stage_opts()} " <>
                 "| {:force_cleanup, GenServer.from(), DateTime.t()} " <>
                 "| {:cleanup_tick, DateTime.t()} " <>
                 "| {:reset, GenServer.from(), Path.t()} | :cleanup_orphaned_staging"
    end

    test "have these specs" do
      {:ok, specs} = Code.Typespec.fetch_specs(Registry)

      specs =
        for {{name, _arity}, clauses} <- specs, clause <- clauses do
          name |> Code.Typespec.spec_to_quoted(clause) |> Macro.to_string() |> oneline()
        end

      for spec <- [
            "ensure_started() :: {:ok, pid()} | {:error, term()}",
            "force_cleanup() :: :ok | {:error, term()}",
            "list() :: [Codex.Files.Attachment.t()]",
            "metrics() :: map()",
            "reset(Path.t()) :: :ok | {:error, term()}",
            "stage(stage_opts()) :: {:ok, Codex.Files.Attachment.t()} | {:error, term()}",
            "start_link(keyword()) :: GenServer.on_start()"
          ] do
        assert spec in specs
      end
    end

    defp oneline(code), do: code |> String.split() |> Enum.join(" ")
  end
end
