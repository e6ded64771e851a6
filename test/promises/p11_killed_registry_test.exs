defmodule Codex.Files.P11KilledRegistryTest do
  @moduledoc """
  P11: the registry process may be killed at any time: the manifest and the files live on in its
  restarted successor (an orderly stop ends them). Callers in flight get an answer or an exit, none
  hangs.
  """

  use Codex.Files.StagingCase, async: false

  alias Codex.Files.{ChildVM, PanickingLibrary, PuppetFile}

  @moduletag :capture_log

  @kills 200

  setup %{folder: folder} do
    %{source: write(folder, "source/notes.txt", "some notes")}
  end

  describe "the successor of a registry that was killed" do
    test "has its manifest, and the files are there", %{folder: folder, source: source} do
      {:ok, one} = Codex.Files.stage(source, persist: true)

      opts = stage_opts(source, checksum: "key", destination_path: Path.join(folder, "copy"))
      {:ok, two} = Registry.stage(opts)
      metrics = Codex.Files.metrics()

      for _ <- 1..3 do
        successor = kill_default_registry()
        assert Enum.sort(Codex.Files.list_staged()) == Enum.sort([one, two])
        assert Enum.sort(GenServer.call(successor, :list)) == Enum.sort([one, two])
        assert Codex.Files.metrics() == metrics
        assert File.read!(one.path) == "some notes"
        assert File.read!(two.path) == "some notes"
      end

      # It goes on as if nothing had been.
      assert {:ok, %{path: path}} = Codex.Files.stage(source)
      assert path == one.path
      assert Codex.Files.reset!() == :ok
      refute File.exists?(one.path)
      refute File.exists?(two.path)
    end

    test "cleans up what expired before it came", %{source: source} do
      configure(:attachment_cleanup_interval_ms, 20)
      {:ok, attachment} = Codex.Files.stage(source, ttl_ms: 100)
      kill_default_registry()
      eventually(fn -> not File.exists?(attachment.path) end)
      eventually(fn -> Codex.Files.list_staged() == [] end)
    end

    test "has the manifest of a registry of any name", %{folder: folder, source: source} do
      registry = start_registry(name: :a_registry, manifest_table: :a_table)
      opts = stage_opts(source, destination_path: Path.join(folder, "copy"))
      {:ok, attachment} = GenServer.call(:a_registry, {:stage, opts})
      kill(registry)

      eventually(fn -> Process.whereis(:a_registry) not in [nil, registry] end)
      assert GenServer.call(:a_registry, :list) == [attachment]
      assert_intact([attachment])
    end

    test "is there after the supervisor was killed too", %{source: source} do
      {:ok, attachment} = Codex.Files.stage(source)
      registry = Process.whereis(Registry)
      kill(Process.whereis(Codex.Files.Supervisor))

      # The next use starts the application again, once it has come to its end.
      eventually(fn ->
        Codex.Files.list_staged()
        Process.whereis(Registry) not in [nil, registry]
      end)

      assert Codex.Files.list_staged() == [attachment]
      assert_intact([attachment])
    end
  end

  describe "an orderly stop" do
    test "ends the manifest and the files", %{source: source} do
      for stop <- [
            fn -> GenServer.stop(Registry) end,
            fn -> GenServer.stop(Registry, :shutdown) end,
            fn -> GenServer.stop(Registry, {:shutdown, :reason}) end,
            fn -> Supervisor.terminate_child(Codex.Files.Supervisor, Registry) end,
            fn -> Application.stop(:codex_files) end
          ] do
        {:ok, attachment} = Codex.Files.stage(source, persist: true)
        assert stop.() == :ok
        refute File.exists?(attachment.path)
        assert Codex.Files.list_staged() == []
      end
    end

    @tag timeout: 300_000
    test "takes the time that it needs, at the end of the VM too", context do
      %{folder: folder, staging_dir: staging_dir, source: source} = context
      delays = Path.join(folder, "delays")
      File.mkdir!(delays)
      ebin = PanickingLibrary.build(folder)
      vm = ChildVM.start(staging_dir, [{"CODEX_FILES_PANICS", delays}], ebin: ebin)
      {:ok, attachment} = ChildVM.eval(vm, quote(do: Codex.Files.stage(unquote(source))))
      assert File.exists?(attachment.path)

      # Twice as long as a supervisor waits for a worker of which it knows nothing else.
      File.write!(Path.join(delays, "remove_all"), "10000")
      ChildVM.stop(vm)
      assert files_below(delays) == []
      assert files_below(staging_dir) == []
    end

    test "is not what a crash is", %{source: source} do
      {:ok, attachment} = Codex.Files.stage(source)
      registry = Process.whereis(Registry)
      assert :ok = GenServer.stop(Registry, :crashed)
      eventually(fn -> Process.whereis(Registry) not in [nil, registry] end)
      assert Codex.Files.list_staged() == [attachment]
      assert_intact([attachment])
    end

    test "answers those whose copy it stops", %{folder: folder} do
      sources = for number <- 1..6, do: large_file(folder, "large #{number}", 30_000_000 + number)

      {:ok, _registry} = Registry.ensure_started()
      tasks = for source <- sources, do: Task.async(fn -> Codex.Files.stage(source) end)
      # The first one is there, so they are at it.
      eventually(fn -> Codex.Files.list_staged() != [] end)
      stop_default_registry()

      for result <- Task.await_many(tasks, 30_000) do
        assert match?({:ok, _attachment}, result) or match?({:error, _reason}, result)
        with {:error, reason} <- result, do: assert(Codex.Files.format_error(reason) =~ "stopped")
      end

      eventually(fn -> Path.wildcard(Codex.Files.staging_dir() <> "/*/*/*") == [] end)
    end
  end

  test "a caller that has got an exit gets no late answer besides", context do
    PuppetFile.start()
    registry = start_registry_with_file_module()
    {:registered_name, name} = Process.info(registry, :registered_name)
    PuppetFile.tell(:cp!, :block)
    opts = stage_opts(context.source, destination_path: Path.join(context.folder, "copy"))
    test = self()

    spawn_link(fn ->
      send(
        test,
        {:result, or_exit(fn -> GenServer.call(registry, {:stage, opts}, :infinity) end)}
      )

      receive do: (late -> send(test, {:late, late}))
    end)

    assert_receive {:callback, copier, :cp!, _args}, 5_000
    kill(registry)
    assert_receive {:result, {:exit, {:killed, _call}}}, 5_000

    # Its successor works.
    eventually(fn -> Process.whereis(name) not in [nil, registry] end)
    PuppetFile.release(copier)
    assert GenServer.call(name, :list) == []
    refute_receive {:late, _message}, 200
  end

  test "a caller that has got an exit gets no answer from the work that goes on", context do
    {:ok, registry} = Registry.ensure_started()
    large = large_file(context.folder, "large", 200_000_000)
    opts = stage_opts(large, destination_path: Path.join(context.folder, "copy"))

    call = fn -> or_exit(fn -> GenServer.call(registry, {:stage, opts}, :infinity) end) end
    caller = Task.async(fn -> {call.(), received_until_told()} end)
    {:monitors, [process: worker]} = eventually(fn -> working(registry) end)
    monitor = Process.monitor(worker)
    kill_default_registry()

    # The copy goes on.
    eventually(fn -> match?([_attachment], Codex.Files.list_staged()) end)
    assert_receive {:DOWN, ^monitor, :process, ^worker, _reason}, 20_000
    send(caller.pid, :told)
    assert {{:exit, {:killed, _call}}, []} = Task.await(caller)
  end

  @tag timeout: 120_000
  test "killed #{@kills} times under load, it loses nothing and nobody hangs", context do
    configure(:attachment_cleanup_interval_ms, 5)
    {:ok, _registry} = Registry.ensure_started()
    before = resources()
    workers = for number <- 1..4, do: Task.async(fn -> work(context.folder, number, []) end)

    for kill <- 1..@kills do
      kill_default_registry()
      # Its supervisor lets it be restarted so many times a second. The staging shows that the
      # successor works.
      pause = System.monotonic_time(:millisecond) + 15
      eventually(fn -> System.monotonic_time(:millisecond) > pause end)
      marker = write(context.folder, "marker", "#{kill}")
      assert {:ok, _attachment} = eventually(fn -> ok(Codex.Files.stage(marker)) end)
    end

    for worker <- workers, do: send(worker.pid, :end)
    staged = workers |> Task.await_many(20_000) |> Enum.concat()
    assert length(staged) > @kills

    listed = MapSet.new(Codex.Files.list_staged(), & &1.path)
    assert [] == for(%{path: path} <- staged, path not in listed, do: path)
    assert_intact(staged)
    assert %{total_count: count} = Codex.Files.metrics()
    assert count == MapSet.size(listed)

    # Nor does it leave threads or open files behind.
    eventually(fn ->
      Enum.all?(resources(), fn {name, count} -> count <= before[name] + 10 end)
    end)
  end

  # What is to stay, in every way there is; each call must come to an end.
  defp work(folder, number, staged) do
    source = write(folder, "worker #{number}", "#{number} #{length(staged)}")

    results = [
      Codex.Files.stage(source),
      or_exit(fn -> Registry.stage(stage_opts(source)) end),
      or_exit(fn -> GenServer.call(Registry, {:stage, stage_opts(source)}, 20_000) end)
    ]

    count = length(staged)
    data = {:data, "data #{number} #{count}"}
    # A few that are not gathered in one piece, too.
    size = if rem(count, 100) < 5, do: 600_000, else: 10
    stream = {:stream, ["stream #{number} #{count}", :binary.copy("a", size)]}
    results = for(source <- [data, stream], do: Codex.Files.stage(source, name: "n")) ++ results

    # What expires at once, and everything else that can be asked.
    Codex.Files.stage(write(folder, "worker #{number}", "gone #{length(staged)}"), ttl_ms: 0)
    Codex.Files.force_cleanup()
    or_exit(fn -> GenServer.call(Registry, :list, 20_000) end)
    or_exit(fn -> GenServer.call(Registry, :metrics, 20_000) end)

    staged = for({:ok, attachment} <- results, do: attachment) ++ staged

    receive do
      :end -> staged
    after
      0 -> work(folder, number, staged)
    end
  end

  defp or_exit(call) do
    call.()
  catch
    :exit, reason -> {:exit, reason}
  end

  defp working(registry) do
    with {:monitors, []} <- Process.info(registry, :monitors), do: nil
  end

  defp received_until_told do
    receive do
      :told -> []
      message -> [message | received_until_told()]
    end
  end

  defp ok(result), do: match?({:ok, _attachment}, result) && result

  defp resources do
    for name <- ["task", "fd"], into: %{} do
      {name, length(File.ls!("/proc/#{System.pid()}/#{name}"))}
    end
  end
end
