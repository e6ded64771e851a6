defmodule Codex.Files.TelemetryTest do
  use Codex.Files.StagingCase, async: false

  alias Codex.Files.{FakeTelemetry, PuppetFile}

  setup %{folder: folder} do
    %{source: write(folder, "source/notes.txt", "some notes")}
  end

  defp events(event) do
    receive do
      {:telemetry, [:codex, :attachment, ^event], measurements, metadata} ->
        [{measurements, metadata} | events(event)]
    after
      0 -> []
    end
  end

  defp removal_of(attachment) do
    {%{count: 1, bytes: attachment.size}, Map.take(attachment, [:checksum, :name, :ttl_ms])}
  end

  # The ways to stage the source, and to clean up: at a registry that does its own file operations,
  # by function and by call, and at one with a file module.
  defp registries(source) do
    registry = start_registry()
    puppet = start_registry(file_module: PuppetFile)

    # Each at a place of its own: a file module cannot copy over what nobody may write.
    opts = fn key, overrides ->
      place = Path.join([Path.dirname(source), "places of #{key}", "notes.txt"])
      stage_opts(source, [checksum: key, destination_path: place] ++ overrides)
    end

    [
      {"Codex.Files", &Codex.Files.stage(source, &1), &Codex.Files.force_cleanup/0},
      {"Codex.Files.Registry", &Registry.stage(opts.("1", &1)), &Registry.force_cleanup/0}
    ] ++
      for {name, registry} <- [{"a call", registry}, {"a file module", puppet}] do
        {name, &GenServer.call(registry, {:stage, opts.(name, &1)}),
         fn -> GenServer.call(registry, :force_cleanup) end}
      end
  end

  describe "without the module :telemetry" do
    test "everything works", %{source: source} do
      refute Code.ensure_loaded?(:telemetry)
      PuppetFile.start()

      for {_name, stage, force_cleanup} <- registries(source) do
        assert {:ok, attachment} = stage.(ttl_ms: 0)
        assert {:ok, _attachment} = stage.(ttl_ms: 0)
        assert force_cleanup.() == :ok
        refute File.exists?(attachment.path)
      end
    end
  end

  describe "[:codex, :attachment, :staged]" do
    setup do
      PuppetFile.start()
      FakeTelemetry.start()
    end

    test "comes once for each staging, before it returns", %{source: source} do
      for {name, stage, _force_cleanup} <- registries(source) do
        {:ok, attachment} = stage.(ttl_ms: 5_000)
        {:ok, _attachment} = stage.(ttl_ms: 7_000)
        {:ok, _attachment} = stage.(persist: true, ttl_ms: :infinity)

        expected =
          for {persist?, ttl_ms, cached?} <- [
                {false, 5_000, false},
                {false, 7_000, true},
                {true, :infinity, true}
              ] do
            {%{size_bytes: 10},
             %{
               checksum: attachment.checksum,
               name: "notes.txt",
               persist?: persist?,
               ttl_ms: ttl_ms,
               cached?: cached?
             }}
          end

        assert {name, events(:staged)} == {name, expected}
      end
    end

    test "says cached? false to one of many that stage the same", %{folder: folder} do
      for size <- [10, 1_000_000] do
        source = large_file(folder, "source/#{size}", size)

        1..30
        |> Enum.map(fn _ -> Task.async(fn -> Codex.Files.stage(source) end) end)
        |> Task.await_many()

        cached = for {_measurements, metadata} <- events(:staged), do: metadata.cached?
        assert Enum.frequencies(cached) == %{true: 29, false: 1}
      end
    end

    test "says cached? false to the one that copied a file that had gone", %{source: source} do
      {:ok, attachment} = Codex.Files.stage(source)
      File.rm!(attachment.path)
      {:ok, _attachment} = Codex.Files.stage(source)
      assert [{_, %{cached?: false}}, {_, %{cached?: false}}] = events(:staged)
    end

    test "does not come for a staging that fails", %{source: source} do
      assert {:error, :enoent} = Codex.Files.stage("/no/such/file")
      assert {:error, _reason} = Codex.Files.stage(source, name: "..")
      assert {:error, _reason} = Codex.Files.stage(source, ttl_ms: -1)

      for stage <- [&Registry.stage/1, &GenServer.call(start_registry(), {:stage, &1})] do
        assert {:error, _reason} = stage.(%{})
        assert {:error, _reason} = stage.(stage_opts(source, checksum: sha256("other")))
      end

      assert events(:staged) == []
    end
  end

  describe "[:codex, :attachment, :cleaned]" do
    setup do
      PuppetFile.start()
      FakeTelemetry.start()
    end

    test "comes once for each that force_cleanup removed, before it returns", context do
      for {name, stage, force_cleanup} <- registries(context.source) do
        {:ok, attachment} = stage.(ttl_ms: 0)
        assert force_cleanup.() == :ok
        assert {name, events(:cleaned)} == {name, [removal_of(attachment)]}
        assert force_cleanup.() == :ok
        assert events(:cleaned) == []
      end
    end

    test "comes for those that have expired only", %{folder: folder} do
      [expired, _persistent, _later] =
        for {opts, index} <- Enum.with_index([[ttl_ms: 0], [persist: true], []]) do
          {:ok, attachment} = Codex.Files.stage(write(folder, "#{index}", "#{index}"), opts)
          attachment
        end

      assert Codex.Files.force_cleanup() == :ok
      assert events(:cleaned) == [removal_of(expired)]
    end

    test "comes for what the cleanup on time removes", %{source: source} do
      configure(:attachment_cleanup_interval_ms, 20)

      for registry <- [start_default_registry(), start_registry(file_module: PuppetFile)] do
        {:ok, attachment} = GenServer.call(registry, {:stage, stage_opts(source, ttl_ms: 0)})

        assert_receive {:telemetry, [:codex, :attachment, :cleaned], measurements, metadata},
                       5_000

        assert {measurements, metadata} == removal_of(attachment)
        eventually(fn -> GenServer.call(registry, :list) == [] end)
        refute File.exists?(attachment.path)
      end
    end

    test "does not come for what a reset or the registry's end removes", %{source: source} do
      for registry <- [start_default_registry(), start_registry(file_module: PuppetFile)] do
        opts = stage_opts(source, ttl_ms: 0)
        {:ok, _attachment} = GenServer.call(registry, {:stage, opts})
        assert GenServer.call(registry, {:reset, Codex.Files.staging_dir()}) == :ok
        {:ok, attachment} = GenServer.call(registry, {:stage, opts})
        GenServer.stop(registry)
        refute File.exists?(attachment.path)
      end

      assert events(:cleaned) == []
    end
  end

  describe "[:codex, :attachment, :cleanup_failed]" do
    setup do
      PuppetFile.start()
      FakeTelemetry.start()
    end

    @tag :user
    test "comes for each file that could not be removed, with the reason", %{folder: folder} do
      [stuck, free] =
        for content <- ["stuck", "free"] do
          {:ok, attachment} = Codex.Files.stage(write(folder, content, content), ttl_ms: 0)
          attachment
        end

      undo = make_unremovable(stuck.path)
      assert {:error, {:cleanup_failed, [{path, reason}]}} = Codex.Files.force_cleanup()
      assert path == stuck.path
      assert events(:cleaned) == [removal_of(free)]

      {measurements, metadata} = removal_of(stuck)
      failure = {measurements, Map.put(metadata, :reason, reason)}
      assert events(:cleanup_failed) == [failure]

      # And again each time that it is tried.
      assert {:error, {:cleanup_failed, _}} = Codex.Files.force_cleanup()
      assert events(:cleanup_failed) == [failure]

      undo.()
      assert Codex.Files.force_cleanup() == :ok
      assert events(:cleanup_failed) == []
      assert events(:cleaned) == [removal_of(stuck)]
    end

    test "comes with the reason that a file module gave", %{source: source} do
      registry = start_registry(file_module: PuppetFile)
      opts = stage_opts(source, ttl_ms: 0)
      {:ok, attachment} = GenServer.call(registry, {:stage, opts})

      PuppetFile.tell(:rm_rf, {:return, {:error, :eacces, attachment.path}})
      assert {:error, _reason} = GenServer.call(registry, :force_cleanup)
      assert [{%{count: 1, bytes: 10}, %{reason: :eacces}}] = events(:cleanup_failed)
      assert events(:cleaned) == []
    end

    @tag :user
    test "comes for what the cleanup on time could not remove", %{source: source} do
      configure(:attachment_cleanup_interval_ms, 20)
      {:ok, attachment} = Codex.Files.stage(source, ttl_ms: 2_000)
      undo = make_unremovable(attachment.path)

      assert_receive {:telemetry, [:codex, :attachment, :cleanup_failed], %{count: 1, bytes: 10},
                      %{reason: reason, checksum: checksum}},
                     5_000

      assert checksum == attachment.checksum
      assert is_atom(reason)
      assert [%{checksum: ^checksum}] = Codex.Files.list_staged()

      undo.()

      assert_receive {:telemetry, [:codex, :attachment, :cleaned], _, %{checksum: ^checksum}},
                     5_000
    end

    @tag :user
    test "does not come for what a reset could not remove", %{source: source} do
      {:ok, attachment} = Codex.Files.stage(source)
      make_unremovable(attachment.path)
      assert {:error, {:cleanup_failed, [_]}} = Codex.Files.reset!()
      assert events(:cleanup_failed) == []
    end
  end
end
