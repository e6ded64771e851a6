defmodule Codex.Files.FileModuleTest do
  use Codex.Files.StagingCase, async: false

  alias Codex.Files.PuppetFile

  @moduletag :capture_log

  # How a callback can fail, and what its caller is told.
  @failures [
    {{:raise, %File.Error{reason: :eacces, action: "copy", path: "/a"}}, :eacces},
    {{:raise, %File.CopyError{reason: :enospc, action: "copy", source: "/a", destination: "/b"}},
     :enospc},
    {{:raise, %RuntimeError{message: "boom"}}, %RuntimeError{message: "boom"}},
    {{:exit, :boom}, :boom},
    {{:exit, :normal}, :normal},
    {{:throw, :boom}, {:nocatch, :boom}}
  ]

  setup %{folder: folder} do
    PuppetFile.start()
    %{source: write(folder, "source/notes.txt", "some notes")}
  end

  # A registry that has cleared the staging directory.
  defp started(_context) do
    %{registry: start_registry_with_file_module()}
  end

  defp list(registry), do: GenServer.call(registry, :list)
  defp metrics(registry), do: GenServer.call(registry, :metrics)
  defp stage(registry, opts), do: GenServer.call(registry, {:stage, opts})

  defp async_call(registry, request) do
    Task.async(fn -> GenServer.call(registry, request, :infinity) end)
  end

  # Waits until a callback has been called, and returns the process that it runs in.
  defp callback(function) do
    assert_receive {:callback, pid, ^function, _args}, 5_000
    pid
  end

  defp callbacks do
    receive do
      {:callback, _pid, function, args} -> [{function, args} | callbacks()]
    after
      0 -> []
    end
  end

  # As a process does that asks many times without waiting for an answer.
  defp send_request(registry, request, tag) do
    send(registry, {:"$gen_call", {self(), tag}, request})
  end

  describe "the start" do
    test "clears the staging directory by rm_rf, before any other callback", context do
      write(context.staging_dir, "left/by/a/predecessor", "")
      PuppetFile.tell(:rm_rf, :block)
      registry = start_registry(file_module: PuppetFile)
      staging_dir = context.staging_dir

      assert_receive {:callback, clearing, :rm_rf, [^staging_dir]}, 5_000
      staging = async_call(registry, {:stage, stage_opts(context.source)})
      cleaning = async_call(registry, :force_cleanup)

      assert list(registry) == []
      assert %{total_count: 0} = metrics(registry)
      assert Task.yield_many([staging, cleaning], 50) == [{staging, nil}, {cleaning, nil}]
      assert callbacks() == []

      PuppetFile.release(clearing)
      assert {:ok, attachment} = Task.await(staging)
      assert Task.await(cleaning) == :ok
      assert File.read!(attachment.path) == "some notes"
      refute File.exists?(Path.join(context.staging_dir, "left"))
    end

    for {behaviour, _reason} <- @failures do
      test "goes on when that fails with #{inspect(behaviour)}", context do
        PuppetFile.tell(:rm_rf, unquote(Macro.escape(behaviour)))
        registry = start_registry(file_module: PuppetFile)
        assert {:ok, attachment} = stage(registry, stage_opts(context.source))
        assert list(registry) == [attachment]
      end
    end

    test "of a successor clears it again", context do
      start_default_registry(file_module: PuppetFile)
      {:ok, attachment} = Registry.stage(stage_opts(context.source))
      callbacks()

      successor = kill_default_registry()
      assert GenServer.call(successor, :force_cleanup) == :ok
      assert callbacks() == [rm_rf: [context.staging_dir]]
      assert list(successor) == []
      refute File.exists?(attachment.path)
    end
  end

  describe "staging" do
    setup :started

    test "makes the parents, then copies", %{registry: registry, source: source} do
      opts = stage_opts(source)
      assert {:ok, attachment} = stage(registry, opts)

      assert callbacks() == [
               mkdir_p!: [Path.dirname(opts.destination_path)],
               cp!: [source, opts.destination_path]
             ]

      assert attachment.path == opts.destination_path
      assert File.read!(attachment.path) == "some notes"
    end

    test "of a known key makes no callback", %{registry: registry, source: source} do
      {:ok, _attachment} = stage(registry, stage_opts(source))
      callbacks()
      assert {:ok, again} = stage(registry, stage_opts(source, ttl_ms: 5, source_path: "/no"))
      assert again.ttl_ms == 5
      assert callbacks() == []
    end

    for function <- [:mkdir_p!, :cp!] do
      test "blocked in #{function} holds up nobody else", context do
        %{registry: registry, source: source, folder: folder} = context
        {:ok, earlier} = stage(registry, stage_opts(write(folder, "source/earlier", "earlier")))
        callbacks()

        function = unquote(function)
        PuppetFile.tell(function, :block)
        staging = async_call(registry, {:stage, stage_opts(source)})
        blocked = callback(function)

        assert list(registry) == [earlier]
        assert %{total_count: 1} = metrics(registry)
        assert {:ok, _again} = stage(registry, stage_opts(earlier.path, ttl_ms: 0))
        assert GenServer.call(registry, :force_cleanup) == :ok
        assert GenServer.call(registry, {:reset, folder}) == :ok

        PuppetFile.tell(function, :run)
        other = stage_opts(write(folder, "source/other", "other"))
        assert {:ok, other} = stage(registry, other)
        assert list(registry) == [other]

        PuppetFile.release(blocked)
        assert {:ok, attachment} = Task.await(staging)
        assert Enum.sort(list(registry)) == Enum.sort([attachment, other])
      end

      for {behaviour, reason} <- @failures do
        test "tells its caller when #{function} fails with #{inspect(behaviour)}", context do
          %{registry: registry, source: source, folder: folder} = context
          {:ok, earlier} = stage(registry, stage_opts(write(folder, "source/earlier", "earlier")))

          PuppetFile.tell(unquote(function), unquote(Macro.escape(behaviour)))
          opts = stage_opts(source)
          assert stage(registry, opts) == {:error, unquote(Macro.escape(reason))}
          assert list(registry) == [earlier]
          assert_intact([earlier])

          PuppetFile.tell(unquote(function), :run)
          assert {:ok, _attachment} = stage(registry, opts)
        end
      end

      test "tells its caller when the process of #{function} is killed", context do
        %{registry: registry, source: source} = context
        function = unquote(function)
        PuppetFile.tell(function, :block)
        staging = async_call(registry, {:stage, stage_opts(source)})
        function |> callback() |> Process.exit(:kill)

        assert Task.await(staging) == {:error, :killed}
        assert list(registry) == []
        PuppetFile.tell(function, :run)
        assert {:ok, _attachment} = stage(registry, stage_opts(source))
      end
    end

    test "that fails leaves nothing behind", %{registry: registry, source: source} = context do
      opts = stage_opts(source)
      assert {:error, :enoent} = stage(registry, %{opts | source_path: "/no/such/file"})

      assert {:error, {:checksum_mismatch, _}} =
               stage(registry, stage_opts(source, checksum: sha256("something else")))

      # A copy that broke off.
      callbacks()
      PuppetFile.tell(:cp!, :block)
      staging = async_call(registry, {:stage, opts})
      copying = callback(:cp!)
      File.write!(opts.destination_path, "some")
      PuppetFile.release(copying, {:raise, %File.CopyError{reason: :enospc}})
      assert Task.await(staging) == {:error, :enospc}

      assert files_below(context.staging_dir) == []
    end

    test "that fails leaves what was at the destination before", context do
      destination = write(context.folder, "destination", "of somebody else")
      PuppetFile.tell(:cp!, {:exit, :boom})
      opts = stage_opts(context.source, destination_path: destination)
      assert stage(context.registry, opts) == {:error, :boom}
      assert File.read!(destination) == "of somebody else"
    end

    test "of a file onto itself is refused before any callback", context do
      opts = stage_opts(context.source, destination_path: context.source)
      assert stage(context.registry, opts) == {:error, {:destination_is_source, context.source}}
      assert callbacks() == []
      assert File.read!(context.source) == "some notes"
    end

    @tag skip: not_on(~w(sshfs), "SFTP makes no FIFO")
    test "to what is no regular file is refused, and leaves it untouched", context do
      %{registry: registry, source: source, folder: folder} = context

      # Nodes of the test's own, never the system's.
      [fifo, socket, device, link] =
        for name <- ~w(fifo socket device link), do: Path.join(folder, name)

      sh!("mkfifo", [fifo])
      {:ok, listening} = :gen_tcp.listen(0, ifaddr: {:local, socket})
      on_exit(fn -> :gen_tcp.close(listening) end)
      target = write(folder, "target", "of somebody else")
      File.ln_s!(target, link)
      # A device without a driver: nobody can do harm with it.
      device? = root?() and match?({_, 0}, System.cmd("mknod", [device, "c", "250", "250"]))

      for {path, type} <-
            [{folder, :directory}, {link, :symlink}, {socket, :socket}, {fifo, :fifo}] ++
              if(device?, do: [{device, :device}], else: []) do
        # A look at a link is an access.
        look = fn -> %{File.lstat!(path) | atime: nil} end
        before = look.()
        opts = stage_opts(source, destination_path: path)
        assert stage(registry, opts) == {:error, {:unsupported_destination, type}}
        assert GenServer.call(registry, {:reset, folder}) == :ok
        assert look.() == before
      end

      assert callbacks() == []
      assert File.read!(target) == "of somebody else"
    end

    test "goes on when its caller dies", %{registry: registry, source: source} do
      PuppetFile.tell(:cp!, :block)
      {caller, monitor} = spawn_monitor(fn -> stage(registry, stage_opts(source)) end)
      copying = callback(:cp!)
      Process.exit(caller, :kill)
      assert_receive {:DOWN, ^monitor, :process, ^caller, :killed}
      PuppetFile.release(copying)
      assert [%{name: "notes.txt"}] = eventually(fn -> list(registry) != [] && list(registry) end)
    end

    test "ends with the registry, and what its callback does then harms no successor", context do
      for supervised? <- [false, true] do
        if supervised?, do: start_supervised!({Task.Supervisor, name: Codex.TaskSupervisor})
        # A copy that goes on would fail, and be undone.
        opts = stage_opts(context.source, destination_path: Path.join(context.folder, "copy"))
        PuppetFile.tell(:cp!, :block)
        start_default_registry(file_module: PuppetFile)
        send_request(Registry, {:stage, opts}, 1)
        copying = callback(:cp!)
        monitor = Process.monitor(copying)

        successor = kill_default_registry()
        assert_receive {:DOWN, ^monitor, :process, ^copying, _reason}, 5_000
        PuppetFile.tell(:cp!, :run)
        assert {:ok, attachment} = stage(successor, opts)
        callbacks()
        PuppetFile.release(copying, {:raise, %File.CopyError{reason: :enospc}})
        assert {:ok, _again} = stage(successor, opts)
        assert callbacks() == []
        assert list(successor) != []
        assert_intact([attachment])
        stop_default_registry()
      end
    end

    test "checks the digest of what was copied", %{registry: registry, source: source} do
      PuppetFile.tell(:cp!, :block)
      opts = stage_opts(source)
      staging = async_call(registry, {:stage, opts})
      copying = callback(:cp!)
      File.write!(source, "changed on the way")
      PuppetFile.release(copying)
      assert Task.await(staging) == {:error, {:checksum_mismatch, sha256("changed on the way")}}
      refute File.exists?(opts.destination_path)
    end
  end

  describe "stagings of one key" do
    setup :started

    test "copy once; who comes later is answered as for a known key, in order", context do
      %{registry: registry, source: source} = context
      opts = stage_opts(source, ttl_ms: 1_000)
      PuppetFile.tell(:cp!, :block)
      send_request(registry, {:stage, opts}, 0)
      copying = callback(:cp!)

      for number <- 1..50 do
        later = %{opts | ttl_ms: 1_000 + number, name: "#{number}", source_path: "/no/such/file"}
        send_request(registry, {:stage, later}, number)
      end

      assert list(registry) == []
      PuppetFile.release(copying)

      assert_receive {0, {:ok, %{ttl_ms: 1_000, name: "notes.txt"}}}, 5_000

      answers =
        for _ <- 1..50 do
          assert_receive {number, {:ok, attachment}} when is_integer(number), 5_000
          {number, attachment.ttl_ms, attachment.name}
        end

      assert answers == for(number <- 1..50, do: {number, 1_000 + number, "notes.txt"})
      assert [%{ttl_ms: 1_050}] = list(registry)
      assert [] == for({:cp!, _args} = call <- callbacks(), do: call)
    end

    test "all get the error if the copy fails", %{registry: registry, source: source} do
      PuppetFile.tell(:cp!, :block)
      opts = stage_opts(source)
      first = async_call(registry, {:stage, opts})
      copying = callback(:cp!)
      for number <- 1..10, do: send_request(registry, {:stage, opts}, number)

      # It answers this one after it has taken in those.
      assert list(registry) == []
      PuppetFile.release(copying, {:raise, %File.CopyError{reason: :enospc}})
      assert Task.await(first) == {:error, :enospc}
      for number <- 1..10, do: assert_receive({^number, {:error, :enospc}}, 5_000)

      assert [] == for({:cp!, _args} = call <- callbacks(), do: call)
      assert list(registry) == []
    end

    test "all get the error if the supervisor of the callbacks goes", context do
      %{registry: registry, source: source} = context
      start_supervised!({Task.Supervisor, name: Codex.TaskSupervisor})
      PuppetFile.tell(:mkdir_p!, :block)
      for number <- 0..10, do: send_request(registry, {:stage, stage_opts(source)}, number)
      callback(:mkdir_p!)

      # It answers this one after it has taken in all of those.
      assert list(registry) == []
      PuppetFile.tell(:mkdir_p!, :run)
      stop_supervised!(Codex.TaskSupervisor)
      for number <- 0..10, do: assert_receive({^number, {:error, _reason}}, 5_000)
      assert {:ok, _attachment} = stage(registry, stage_opts(source))
    end

    test "all get the error if the process at work on them is killed", context do
      %{registry: registry, source: source} = context
      opts = stage_opts(source)
      PuppetFile.tell(:mkdir_p!, :block)
      send_request(registry, {:stage, opts}, 0)
      making = callback(:mkdir_p!)
      for number <- 1..10, do: send_request(registry, {:stage, opts}, number)

      # It answers this one after it has taken in all of those.
      assert list(registry) == []

      # The process that waits for the callback, on behalf of the first caller.
      [worker] =
        for pid <- Process.list(),
            {:monitors, monitors} = Process.info(pid, :monitors),
            {:process, making} in monitors,
            do: pid

      monitor = Process.monitor(making)
      PuppetFile.tell(:mkdir_p!, :run)
      kill(worker)
      # It could write over what somebody stages later.
      assert_receive {:DOWN, ^monitor, :process, ^making, _reason}, 5_000
      assert_receive {0, {:error, :killed}}, 5_000
      for number <- 1..10, do: assert_receive({^number, {:error, :killed}}, 5_000)
      assert {:ok, _attachment} = stage(registry, opts)
    end
  end

  describe "cleanup and reset" do
    setup :started

    setup %{registry: registry, folder: folder} do
      for content <- ["one", "two", "three"] do
        opts = stage_opts(write(folder, "source/#{content}", content), ttl_ms: 0)
        {:ok, _attachment} = stage(registry, opts)
      end

      callbacks()
      %{attachments: Enum.sort(list(registry))}
    end

    @removals [:force_cleanup, {:reset, "/nowhere"}]

    test "remove each file by rm_rf, and leave no directory", context do
      %{registry: registry, attachments: attachments} = context

      for request <- @removals do
        assert GenServer.call(registry, request) == :ok
        assert list(registry) == []
        assert files_below(context.staging_dir) == []

        assert Enum.sort(callbacks()) ==
                 Enum.sort(for(attachment <- attachments, do: {:rm_rf, [attachment.path]}))

        for %{name: name} <- attachments do
          opts = stage_opts(Path.join(context.folder, "source/#{name}"), ttl_ms: 0)
          {:ok, _attachment} = stage(registry, opts)
        end

        callbacks()
      end
    end

    for request <- @removals do
      test "#{inspect(request)} lists what it is deleting until it is gone", context do
        %{registry: registry, attachments: attachments} = context
        PuppetFile.tell(:rm_rf, :block)
        removing = async_call(registry, unquote(Macro.escape(request)))

        for left <- [3, 2, 1] do
          blocked = callback(:rm_rf)
          assert length(list(registry)) == left
          assert list(registry) -- attachments == []
          assert %{total_count: ^left} = metrics(registry)
          PuppetFile.release(blocked)
          if left > 1, do: eventually(fn -> length(list(registry)) < left end)
        end

        assert Task.await(removing) == :ok
        assert list(registry) == []
        assert files_below(context.staging_dir) == []
      end

      for {behaviour, reason} <-
            [{{:return, {:error, :eacces, "/a"}}, :eacces}] ++
              [{{:return, {:error, :eacces}}, :eacces}] ++ @failures do
        test "#{inspect(request)} keeps what rm_rf fails for with #{inspect(behaviour)}",
             context do
          %{registry: registry, attachments: attachments} = context
          request = unquote(Macro.escape(request))
          PuppetFile.tell(:rm_rf, :block)
          removing = async_call(registry, request)
          assert_receive {:callback, stuck, :rm_rf, [path]}, 5_000
          PuppetFile.tell(:rm_rf, :run)
          PuppetFile.release(stuck, unquote(Macro.escape(behaviour)))

          reason = unquote(Macro.escape(reason))
          assert Task.await(removing) == {:error, {:cleanup_failed, [{path, reason}]}}

          # The others are gone all the same.
          assert [%{path: ^path} = kept] = list(registry)
          assert kept in attachments
          assert_intact([kept])

          assert GenServer.call(registry, request) == :ok
          assert list(registry) == []
          refute File.exists?(path)
        end
      end
    end

    test "report it when the process of rm_rf is killed", %{registry: registry} do
      PuppetFile.tell(:rm_rf, :block)
      removing = async_call(registry, :force_cleanup)
      assert_receive {:callback, blocked, :rm_rf, [path]}, 5_000
      PuppetFile.tell(:rm_rf, :run)
      Process.exit(blocked, :kill)
      assert Task.await(removing) == {:error, {:cleanup_failed, [{path, :killed}]}}
      assert [%{path: ^path}] = list(registry)
      assert GenServer.call(registry, :force_cleanup) == :ok
    end

    test "let nobody have a file that they are deleting: it is copied anew", context do
      %{registry: registry} = context
      PuppetFile.tell(:rm_rf, :block)
      removing = async_call(registry, :force_cleanup)
      assert_receive {:callback, blocked, :rm_rf, [path]}, 5_000
      PuppetFile.tell(:rm_rf, :run)

      source = Path.join([context.folder, "source", Path.basename(path)])
      staging = async_call(registry, {:stage, stage_opts(source, ttl_ms: 60_000)})
      assert Task.yield(staging, 50) == nil

      PuppetFile.release(blocked)
      assert Task.await(removing) == :ok
      assert {:ok, attachment} = Task.await(staging)
      assert list(registry) == [attachment]
      assert_intact([attachment])
    end

    for request <- @removals do
      test "#{inspect(request)} waits for who is at work on an entry, and looks again", context do
        %{registry: registry, attachments: [lost | others]} = context
        File.rm!(lost.path)
        opts = stage_opts(Path.join([context.folder, "source", lost.name]), ttl_ms: 60_000)
        PuppetFile.tell(:cp!, :block)
        staging = async_call(registry, {:stage, opts})
        copying = callback(:cp!)

        removing = async_call(registry, unquote(Macro.escape(request)))
        # The others go meanwhile.
        for _ <- others, do: callback(:rm_rf)
        assert [%{id: id}] = eventually(fn -> length(list(registry)) == 1 && list(registry) end)
        assert id == lost.id
        assert Task.yield(removing, 50) == nil

        PuppetFile.release(copying)
        assert {:ok, again} = Task.await(staging)
        assert Task.await(removing) == :ok
        # It has not expired any more.
        left = if unquote(request == :force_cleanup), do: [again], else: []
        assert list(registry) == left
        assert_intact(left)
        assert File.exists?(again.path) == (left != [])
      end
    end

    test "wait for each other", %{registry: registry} do
      PuppetFile.tell(:rm_rf, :block)
      first = async_call(registry, :force_cleanup)
      blocked = callback(:rm_rf)
      second = async_call(registry, {:reset, "/nowhere"})
      assert Task.yield(second, 50) == nil

      PuppetFile.tell(:rm_rf, :run)
      PuppetFile.release(blocked)
      assert [:ok, :ok] = Task.await_many([first, second])
      assert list(registry) == []
    end

    test "remove only what has expired, or everything", %{registry: registry, source: source} do
      {:ok, kept} = stage(registry, stage_opts(source, persist: true))
      assert GenServer.call(registry, :force_cleanup) == :ok
      assert list(registry) == [kept]
      assert GenServer.call(registry, {:reset, "/nowhere"}) == :ok
      assert list(registry) == []
    end

    test "run on time too", context do
      configure(:attachment_cleanup_interval_ms, 20)
      registry = start_registry(file_module: PuppetFile)
      source = write(context.folder, "source/four", "four")
      {:ok, %{path: path}} = stage(registry, stage_opts(source, ttl_ms: 0))
      assert_receive {:callback, _pid, :rm_rf, [^path]}, 5_000
      eventually(fn -> list(registry) == [] end)
    end

    test "happen at an orderly stop, by rm_rf", %{registry: registry} = context do
      GenServer.stop(registry)
      # Its supervisor may have started a successor already, which clears the staging directory.
      removed = for {:rm_rf, [path]} <- callbacks(), path != context.staging_dir, do: path
      assert Enum.sort(removed) == Enum.sort(for(%{path: path} <- context.attachments, do: path))
      assert files_below(context.staging_dir) == []
    end

    test "undo at an orderly stop what is blocked, without waiting for it", context do
      %{registry: registry, folder: folder} = context
      source = write(folder, "late", "late")
      PuppetFile.tell(:cp!, :block)

      # A new one, and one that copies again what has gone.
      [lost | _others] = context.attachments
      File.rm!(lost.path)
      new = stage_opts(source, destination_path: Path.join(folder, "new"))
      again = stage_opts(Path.join([folder, "source", lost.name]))

      copying =
        for opts <- [new, again] do
          send_request(registry, {:stage, opts}, opts.name)
          copying = callback(:cp!)
          write(folder, Path.relative_to(opts.destination_path, folder), "part")
          {copying, Process.monitor(copying)}
        end

      callbacks()
      GenServer.stop(registry)
      for {pid, monitor} <- copying, do: assert_received({:DOWN, ^monitor, _, ^pid, :killed})
      for name <- ["late", lost.name], do: assert_receive({^name, {:error, :stopped}})
      refute File.exists?(new.destination_path)
      assert files_below(context.staging_dir) == []
    end

    test "happen at an orderly stop to a copy that ends meanwhile, too", context do
      %{registry: registry, folder: folder} = context
      destination = Path.join(folder, "elsewhere/late")
      opts = stage_opts(write(folder, "late", "late"), destination_path: destination)
      PuppetFile.tell(:cp!, :block)
      staging = async_call(registry, {:stage, opts})
      Process.unlink(staging.pid)
      copying = callback(:cp!)

      PuppetFile.tell(:rm_rf, :block)
      stopping = Task.async(fn -> GenServer.stop(registry) end)
      removing = callback(:rm_rf)
      PuppetFile.tell(:rm_rf, :run)
      PuppetFile.release(copying)
      assert_receive {:callback, _pid, :rm_rf, [^destination]}, 5_000
      PuppetFile.release(removing)
      assert Task.await(stopping) == :ok
      eventually(fn -> not File.exists?(destination) end)
    end
  end

  describe "a registry that the test process is linked to" do
    # What hosts do: the test links a registry, whose callback blocks for ever, and comes to its end,
    # with `:shutdown`. What is to happen on exit finds the registry by its name.
    test "is gone with it, and can be stopped by its name on exit", %{source: source} do
      PuppetFile.tell(:cp!, :block)
      name = :a_hosts_registry

      {:ok, registry} =
        Registry.start_link(name: name, manifest_table: :a_table, file_module: PuppetFile)

      send_request(registry, {:stage, stage_opts(source)}, 1)
      callback(:cp!)

      on_exit(fn ->
        # It may go between the two, as any process that is linked to a test.
        with pid when is_pid(pid) <- Process.whereis(name) do
          try do
            GenServer.stop(pid, :normal)
          catch
            :exit, {:noproc, _call} -> :ok
          end
        end
      end)
    end
  end

  describe "callbacks" do
    test "run in processes of their own, never in the registry's", context do
      for supervised? <- [false, true] do
        if supervised?, do: start_supervised!({Task.Supervisor, name: Codex.TaskSupervisor})
        registry = start_registry(file_module: PuppetFile)
        for function <- [:mkdir_p!, :cp!, :rm_rf], do: PuppetFile.tell(function, :block)

        clearing = assert_own_process(:rm_rf, registry, supervised?)
        staging = async_call(registry, {:stage, stage_opts(context.source, ttl_ms: 0)})
        making = assert_own_process(:mkdir_p!, registry, supervised?)
        copying = assert_own_process(:cp!, registry, supervised?)
        assert {:ok, _attachment} = Task.await(staging)
        cleaning = async_call(registry, :force_cleanup)
        removing = assert_own_process(:rm_rf, registry, supervised?)
        assert Task.await(cleaning) == :ok

        pids = [clearing, making, copying, removing]
        assert Enum.uniq(pids) == pids
      end
    end

    defp assert_own_process(function, registry, supervised?) do
      pid = callback(function)
      assert pid not in [registry, self()]

      if supervised? do
        assert pid in Task.Supervisor.children(Codex.TaskSupervisor)
      end

      PuppetFile.release(pid)
      pid
    end

    test "that are missing are errors of their callers", %{source: source} = context do
      for module <- [NoSuchModule, Enum] do
        registry = start_registry(file_module: module)
        assert {:error, _reason} = stage(registry, stage_opts(source))
        assert list(registry) == []
        assert GenServer.call(registry, :force_cleanup) == :ok
        assert GenServer.call(registry, {:reset, context.staging_dir}) == :ok
        assert Process.alive?(registry)
      end
    end
  end

  describe "a default registry with a file module" do
    setup do
      %{registry: start_default_registry(file_module: PuppetFile)}
    end

    test "is what Codex.Files works with", context do
      %{registry: registry, source: source, staging_dir: staging_dir} = context
      assert {:ok, attachment} = Codex.Files.stage(source, ttl_ms: 5_000)
      path = Path.join([staging_dir, sha256("some notes"), "notes.txt"])

      assert %Attachment{
               name: "notes.txt",
               path: ^path,
               size: 10,
               persist: false,
               ttl_ms: 5_000
             } = attachment

      assert attachment.checksum == sha256("some notes")

      assert callbacks() == [
               rm_rf: [staging_dir],
               mkdir_p!: [Path.dirname(path)],
               cp!: [source, path]
             ]

      assert {:ok, %{persist: true, ttl_ms: :infinity, name: "notes.txt"} = again} =
               Codex.Files.stage(source, persist: true, name: "another")

      assert Codex.Files.list_staged() == [again]
      assert Codex.Files.list_staged_result() == {:ok, [again]}
      assert Registry.list() == [again]
      assert %{total_count: 1, persistent_bytes: 10} = Codex.Files.metrics()
      assert Codex.Files.force_cleanup() == :ok
      assert callbacks() == []

      assert Codex.Files.reset!() == :ok
      assert callbacks() == [rm_rf: [path]]
      assert Codex.Files.list_staged() == []
      assert files_below(staging_dir) == []
      assert Process.whereis(Registry) == registry
    end

    @tag skip: not_on(~w(sshfs), "SFTP makes no FIFO")
    test "fails as any other for what it is asked wrongly", context do
      %{source: source, folder: folder} = context
      fifo = Path.join(folder, "fifo")
      sh!("mkfifo", [fifo])

      for {path, opts, reason} <- [
            {"/no/such/file", [], :enoent},
            {folder, [], :eisdir},
            {fifo, [], {:unsupported_file_type, :fifo}},
            {42, [], {:invalid_option, :path, 42}},
            {source, [name: ".."], {:invalid_name, ".."}},
            {source, [name: 1], {:invalid_option, :name, 1}},
            {source, [persist: 1], {:invalid_option, :persist, 1}},
            {source, [ttl_ms: -1], {:invalid_ttl, -1}},
            {source, :not_a_list, {:invalid_option, :opts, :not_a_list}}
          ] do
        assert {path, opts, Codex.Files.stage(path, opts)} == {path, opts, {:error, reason}}
      end

      assert [{:rm_rf, _args}] = callbacks()
      assert Codex.Files.list_staged() == []
    end

    test "says if its staging directory cannot be one", %{source: source} do
      for dir <- [:oops, 5, "a\0b", [:a]] do
        Application.put_env(:codex_sdk, :staging_dir, dir)
        reason = {:invalid_config, :staging_dir, dir}
        assert Codex.Files.stage(source) == {:error, reason}

        assert Codex.Files.format_error(reason) =~
                 "expected the configured :staging_dir to be a path"
      end

      assert [{:rm_rf, _args}] = callbacks()
    end

    test "gives Codex.Files the reasons of the file module", %{source: source} do
      PuppetFile.tell(:cp!, {:raise, %RuntimeError{message: "boom"}})
      assert {:error, reason} = Codex.Files.stage(source)
      assert Codex.Files.format_error(reason) == "boom"

      PuppetFile.tell(:cp!, :run)
      {:ok, attachment} = Codex.Files.stage(source, ttl_ms: 0)
      PuppetFile.tell(:rm_rf, {:return, {:error, :eacces, attachment.path}})
      error = {:error, {:cleanup_failed, [{attachment.path, :eacces}]}}
      assert Codex.Files.force_cleanup() == error
      assert Codex.Files.reset!() == error
      assert Codex.Files.list_staged() == [attachment]
    end

    test "answers Codex.Files while a callback is blocked", %{source: source, folder: folder} do
      PuppetFile.tell(:cp!, :block)
      staging = Task.async(fn -> Codex.Files.stage(source) end)
      blocked = callback(:cp!)
      PuppetFile.tell(:cp!, :run)

      assert Codex.Files.list_staged() == []
      assert %{total_count: 0} = Codex.Files.metrics()
      assert {:ok, other} = Codex.Files.stage(write(folder, "other", "other"))
      assert Codex.Files.list_staged() == [other]

      PuppetFile.release(blocked)
      assert {:ok, _attachment} = Task.await(staging)
    end

    test "stages a file again that was removed from outside", %{source: source} do
      {:ok, attachment} = Codex.Files.stage(source)
      File.rm!(attachment.path)
      assert {:ok, again} = Codex.Files.stage(source)
      assert_intact([again])
    end
  end
end
