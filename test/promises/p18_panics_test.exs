defmodule Codex.Files.P18PanicsTest do
  @moduledoc """
  P18: a panic on the native side becomes `{:error, {:native_panic, message}}`, takes neither the VM
  nor a thread down, and leaves the manifest consistent.

  Each test runs in a VM whose native library panics where it is told to: see `panics.rs`.
  """

  use Codex.Files.StagingCase, async: false

  alias Codex.Files.{ChildVM, HostProject, Native, PanickingLibrary}

  # Cargo may have to build what the tests' own library was not built from.
  @moduletag timeout: 300_000

  setup_all do
    %{ebin: PanickingLibrary.build(HostProject.temporary_folder())}
  end

  setup %{folder: folder, staging_dir: staging_dir, ebin: ebin} do
    panics = Path.join(folder, "panics")
    File.mkdir!(panics)

    vm =
      ChildVM.start(staging_dir, [{"CODEX_FILES_PANICS", panics}],
        ebin: ebin,
        stderr: Path.join(folder, "stderr")
      )

    # One whose native part hangs does not end by itself.
    on_exit(fn ->
      System.cmd("kill", ["-KILL", to_string(vm.os_pid)], stderr_to_stdout: true)
    end)

    kept = write(folder, "source/kept", "kept")

    context = %{
      vm: vm,
      panics: panics,
      kept: kept,
      small: write(folder, "source/small", "small"),
      other: write(folder, "source/other", "other"),
      # The size from which on a copier thread copies is a quarter of that.
      large: write(folder, "source/large", :binary.copy("large", 1_700_000))
    }

    {:ok, attachment} =
      ChildVM.eval(vm, quote(do: Codex.Files.stage(unquote(kept), persist: true)))

    Map.put(context, :attachment, attachment)
  end

  # Evaluates code that comes to `point`, where it panics.
  defp panicking(%{vm: vm, panics: panics}, point, quoted) do
    file = Path.join(panics, point)
    # At once: who panics removes it.
    File.write!(file, "")
    result = ChildVM.eval(vm, quoted)
    eventually(fn -> {point, File.exists?(file)} == {point, false} end)
    result
  end

  defp panicked(point), do: {:error, {:native_panic, "injected at #{point}"}}

  # Everything that was there is, and everything that can be done is done.
  defp assert_unharmed(%{vm: vm, attachment: kept} = context, after_what) do
    {staged, listed, metrics, cleanup, left} =
      ChildVM.eval(
        vm,
        quote do
          # What expired before.
          :ok = Codex.Files.force_cleanup()

          staged =
            for source <- unquote([context.small, context.large, context.kept]),
                do: Codex.Files.stage(source, ttl_ms: 0)

          {:ok, listed} = Codex.Files.list_staged_result()
          metrics = Codex.Files.metrics()

          {staged, listed, metrics, Codex.Files.force_cleanup(), Codex.Files.list_staged()}
        end
      )

    assert {after_what, [{:ok, small}, {:ok, large}, {:ok, again}]} = {after_what, staged}
    assert {after_what, again.path, again.persist} == {after_what, kept.path, true}
    assert {after_what, Enum.sort(listed)} == {after_what, Enum.sort([small, large, again])}
    bytes = small.size + large.size + again.size

    assert {after_what, %{total_count: 3, total_bytes: ^bytes, persistent_count: 1}} =
             {after_what, metrics}

    assert {after_what, cleanup, left} == {after_what, :ok, [again]}
    assert_intact([again])
    refute File.exists?(small.path)
    refute File.exists?(large.path)
  end

  defp stage_stream(path) do
    quote do
      Codex.Files.stage({:stream, [File.read!(unquote(path))]}, name: "large", ttl_ms: 0)
    end
  end

  # Kills the default registry, and waits for its successor.
  defp kill_registry do
    quote do
      {:ok, registry} = Codex.Files.Registry.ensure_started()
      monitor = Process.monitor(registry)
      Process.exit(registry, :kill)
      receive do: ({:DOWN, ^monitor, :process, _pid, _reason} -> :ok)

      fn -> Process.whereis(Codex.Files.Registry) end
      |> Stream.repeatedly()
      |> Enum.find(&(&1 not in [nil, registry]))
    end
  end

  test "at a NIF is the error of this call, and of no other", context do
    opts = Macro.escape(stage_opts(context.small, checksum: "key"))

    {nifs, first, second} =
      ChildVM.eval(
        context.vm,
        quote do
          alias Codex.Files.{Native, Registry}

          opts = unquote(opts)
          {:ok, dir} = Codex.Files.Config.staging_dir()
          small = unquote(context.small)
          # One that no other code of the library comes to.
          {:ok, handle} = Native.open("another", :a_table, 60_000, {nil, :refuse}, true)

          stream = Native.open_stream(handle, dir, "name", {false, 0, nil}, false)

          nifs = [
            open: ["a third", :a_table, 60_000, {nil, :refuse}, true],
            table: [self()],
            purge: [handle, dir],
            refresh_at: [handle, opts],
            refresh_file: [handle, small, :error, {false, 0, nil}],
            stage_at: [handle, dir, opts, make_ref()],
            stage_file: [handle, dir, small, :error, {false, 0, nil}, :unseen, make_ref()],
            refresh_data: [handle, "some bytes", "name", {false, 0, nil}],
            stage_data: [handle, dir, "some bytes", "name", {false, 0, nil}, make_ref()],
            open_stream: [handle, dir, "name", {false, 0, nil}, false],
            write_stream: [stream, ["some bytes"], make_ref()],
            commit_stream: [stream, make_ref()],
            abort_stream: [stream],
            list: [handle],
            metrics: [handle],
            try_metrics: [handle],
            fetch: [handle, "id"],
            try_fetch: [handle, "id"],
            verify: [handle, make_ref()],
            release: [handle, "id", self()],
            temporary_owner: [handle],
            end_owner: [Native.temporary_owner(handle)],
            unstage: [handle, "id", make_ref()],
            force_cleanup: [handle, make_ref()],
            reset: [handle, unquote(context.folder), make_ref()],
            stop: [handle, make_ref()]
          ]

          call = fn {name, args} -> {name, apply(Native, name, args)} end

          first =
            for {name, _args} = nif <- nifs do
              File.touch!(Path.join(unquote(context.panics), "nif-#{name}"))
              call.(nif)
            end

          {for({name, args} <- nifs, do: {name, length(args)}), first, Enum.map(nifs, call)}
        end
      )

    # All there are.
    assert Enum.sort(nifs) ==
             Enum.sort(Native.__info__(:functions) -- [load: 0, load_from: 1, available?: 0])

    assert first == for({name, _arity} <- nifs, do: {name, panicked("nif-#{name}")})
    for {name, result} <- second, do: refute({name, result} == {name, panicked("nif-#{name}")})
    assert {:ok, _attachment, false} = second[:stage_at]
    assert :wait = second[:stop]
    assert_unharmed(context, "all")
  end

  test "is what the callers of the public functions are told of", context do
    %{small: small, large: large} = context
    opts = Macro.escape(stage_opts(small, checksum: "key", ttl_ms: 0))
    stage_stream = stage_stream(large)

    for {nif, call} <- [
          {"refresh_file", quote(do: Codex.Files.stage(unquote(small)))},
          {"stage_file", quote(do: Codex.Files.stage(unquote(small)))},
          {"refresh_data", quote(do: Codex.Files.stage({:data, "some bytes"}, name: "n"))},
          {"stage_data", quote(do: Codex.Files.stage({:data, "some bytes"}, name: "n"))},
          {"open_stream", stage_stream},
          {"write_stream", stage_stream},
          {"commit_stream", stage_stream},
          {"refresh_at", quote(do: Codex.Files.Registry.stage(unquote(opts)))},
          {"stage_at", quote(do: Codex.Files.Registry.stage(unquote(opts)))},
          {"list", quote(do: Codex.Files.list_staged_result())},
          {"try_metrics", quote(do: Codex.Files.metrics())},
          {"try_fetch", quote(do: Codex.Files.fetch("id"))},
          {"verify", quote(do: Codex.Files.verify())},
          {"release", quote(do: Codex.Files.release("id"))},
          {"temporary_owner", quote(do: Codex.Files.temporary(unquote(small), & &1))},
          {"unstage", quote(do: Codex.Files.unstage("id"))},
          {"force_cleanup", quote(do: Codex.Files.force_cleanup())},
          {"reset", quote(do: Codex.Files.reset!())}
        ] do
      assert {nif, panicking(context, "nif-" <> nif, call)} == {nif, panicked("nif-" <> nif)}
      assert_unharmed(context, nif)
    end

    assert panicking(context, "nif-list", quote(do: Codex.Files.list_staged())) == []

    # One that cannot be stopped in order leaves what it holds to a successor, as a killed one does.
    terminate =
      quote(do: Supervisor.terminate_child(Codex.Files.Supervisor, Codex.Files.Registry))

    assert panicking(context, "nif-stop", terminate) == :ok
    start = quote(do: Codex.Files.Registry.ensure_started())
    assert panicking(context, "nif-open", start) == panicked("nif-open")
    assert_unharmed(context, "open and stop")
  end

  test "in a thread is the answer to who waits for it, and the thread goes on", context do
    %{small: small, other: other, large: large} = context
    cleanup = quote(do: Codex.Files.force_cleanup())
    stage_small = quote(do: Codex.Files.stage(unquote(small), ttl_ms: 0))
    stage_large = quote(do: Codex.Files.stage(unquote(large), ttl_ms: 0))

    stage_data =
      quote do
        Codex.Files.stage({:data, File.read!(unquote(large))}, name: "large", ttl_ms: 0)
      end

    stage_and_cleanup =
      quote do
        for source <- unquote([small, other]), do: Codex.Files.stage(source, ttl_ms: 0)
        Codex.Files.force_cleanup()
      end

    for {point, call} <- [
          {"sweep", cleanup},
          {"remove", stage_and_cleanup},
          {"removed", stage_and_cleanup},
          {"remove_all", quote(do: Codex.Files.reset!())},
          {"reply", cleanup},
          {"copier", stage_large},
          {"read", stage_large},
          {"write", stage_large},
          # More often than there are copiers.
          {"reply", stage_large},
          {"reply", stage_large},
          {"reply", stage_large},
          {"published", stage_small},
          {"published", stage_large},
          {"copier", stage_data},
          {"published", stage_data},
          {"hash", stage_stream(large)},
          {"write", stage_stream(large)},
          # More often than there are threads for it.
          {"verify", quote(do: Codex.Files.verify())},
          {"verify", quote(do: Codex.Files.verify())},
          {"verify", quote(do: Codex.Files.verify())},
          {"reply", quote(do: Codex.Files.verify())},
          {"published", stage_stream(large)},
          {"link", quote(do: Codex.Files.stage(unquote(context.kept), name: "another"))}
        ],
        {point, call} not in [{"read", stage_large}, {"write", stage_large}] or
          !not_on(~w(xfs btrfs), "a copy there shares what it is a copy of: none is made") do
      assert {point, panicking(context, point, call)} == {point, panicked(point)}
      assert_unharmed(context, point)
    end

    # Nobody waits for it.
    purge =
      quote do
        {:ok, {handle, _own}} = Codex.Files.NativeRegistry.find(Codex.Files.Registry)
        # Once for each directory.
        Codex.Files.Native.purge(handle, {unquote(context.folder), false})
      end

    assert panicking(context, "purge", purge) == :ok
    assert_unharmed(context, "purge")

    # No large copy has left a part of it.
    assert ChildVM.eval(context.vm, quote(do: Codex.Files.reset!())) == :ok
    assert Path.wildcard(context.staging_dir <> "/*/.*") == []
  end

  test "of a cleanup on time is not the end of those to come", context do
    for point <- ["sweep", "remove", "tell"] do
      interval = quote(do: Application.put_env(:codex_sdk, :attachment_cleanup_interval_ms, 10))

      ChildVM.eval(context.vm, interval)
      ChildVM.eval(context.vm, kill_registry())
      stage = quote(do: Codex.Files.stage(unquote(context.other), ttl_ms: 0))
      assert {:ok, attachment} = panicking(context, point, stage)
      eventually(fn -> not File.exists?(attachment.path) end)
      ChildVM.eval(context.vm, stage)
      eventually(fn -> not File.exists?(attachment.path) end)
      list = quote(do: Codex.Files.list_staged())
      eventually(fn -> ChildVM.eval(context.vm, list) == [context.attachment] end)
    end
  end

  test "of the thread that sends for the schedulers is the answer that it sends", context do
    opts = Macro.escape(stage_opts(context.large, checksum: "key"))

    # A registry is stopped on a scheduler thread, which has an answer for whoever waits for a copy.
    wait =
      quote do
        alias Codex.Files.Native

        {:ok, dir} = Codex.Files.Config.staging_dir()
        {:ok, handle} = Native.open("another", :a_table, 60_000, {nil, :refuse}, true)
        # Until the answer is on its way neither the copy ends nor the stop.
        for point <- ["copier", "remove_all"],
            do: File.write!(Path.join(unquote(context.panics), point), "1000")

        :wait = Native.stage_at(handle, dir, unquote(opts), make_ref())
        waits = make_ref()
        :wait = Native.stage_at(handle, dir, unquote(opts), waits)
        stops = make_ref()
        :wait = Native.stop(handle, stops)
        answer = receive do: ({^waits, answer} -> answer), after: (20_000 -> :none)
        receive do: ({^stops, stopped} -> {answer, stopped}), after: (20_000 -> :none)
      end

    for _ <- 1..3 do
      assert panicking(context, "reply", wait) == {panicked("reply"), :ok}
      assert ChildVM.eval(context.vm, wait) == {{:error, :stopped}, :ok}
    end

    assert_unharmed(context, "reply")
  end

  test "when the registry process ends leaves what it holds to its successor", context do
    for _ <- 1..3 do
      panicking(context, "down", kill_registry())
      assert_unharmed(context, "down")
    end
  end

  test "when an owner ends loses nothing of what it leaves", context do
    # Where it is met by the removal of one file, the next cleanup has that one.
    points = [
      {"owner-down", :at_once},
      {"manifest-take_owned", :at_once},
      {"manifest-disown", :at_once},
      {"tell", :at_once},
      {"remove", :with_a_cleanup},
      {"removed", :with_a_cleanup},
      {"manifest-end", :with_a_cleanup}
    ]

    for {point, goes} <- points do
      end_owner =
        quote do
          owner = spawn(fn -> receive do: (:never -> :ok) end)

          [{:ok, small}, {:ok, other}, {:ok, _kept}] =
            for source <- unquote([context.small, context.other, context.kept]),
                do: Codex.Files.stage(source, owner: owner)

          File.touch!(Path.join(unquote(context.panics), unquote(point)))
          Process.exit(owner, :kill)
          [small.path, other.path]
        end

      paths = ChildVM.eval(context.vm, end_owner)
      panicked = Path.join(context.panics, point)
      eventually(fn -> {point, File.exists?(panicked)} == {point, false} end)
      there = fn -> Enum.filter(paths, &File.exists?/1) end

      case goes do
        :at_once -> eventually(fn -> {point, there.()} == {point, []} end)
        :with_a_cleanup -> eventually(fn -> {point, length(there.()) < 2} == {point, true} end)
      end

      assert_unharmed(context, point)
      assert {point, there.()} == {point, []}
      metrics = ChildVM.eval(context.vm, quote(do: Codex.Files.metrics()))
      assert {point, metrics.owned_count} == {point, 0}
    end
  end

  test "under the lock of the manifest releases it, and changes nothing", context do
    %{kept: kept, small: small, other: other, large: large} = context
    known = Macro.escape(stage_opts(kept))

    stage_and = fn call ->
      quote do
        for source <- unquote([small, other, large]), do: Codex.Files.stage(source, ttl_ms: 0)
        unquote(call)
      end
    end

    cleanup = stage_and.(quote(do: Codex.Files.force_cleanup()))
    reset = stage_and.(quote(do: Codex.Files.reset!()))

    release =
      quote do
        {:ok, attachment} = Codex.Files.stage(unquote(small), owner: self())
        Codex.Files.release(attachment)
      end

    for {access, call} <- [
          {"lookup", quote(do: Codex.Files.Registry.stage(unquote(known)))},
          {"admit", quote(do: Codex.Files.stage(unquote(small)))},
          {"admit", quote(do: Codex.Files.stage(unquote(large)))},
          {"refresh", quote(do: Codex.Files.stage(unquote(kept)))},
          {"wanted", quote(do: Codex.Files.stage(unquote(small)))},
          {"commit", quote(do: Codex.Files.stage(unquote(small)))},
          {"commit", quote(do: Codex.Files.stage(unquote(large)))},
          {"list", quote(do: Codex.Files.list_staged_result())},
          {"try_metrics", quote(do: Codex.Files.metrics())},
          {"get", quote(do: Codex.Files.fetch("id"))},
          {"entry", quote(do: Codex.Files.unstage("id"))},
          {"release", release},
          {"claim_expired", cleanup},
          {"claimed", cleanup},
          {"end", cleanup},
          {"claim", reset},
          {"claimed", reset},
          {"list", reset}
        ] do
      point = "manifest-" <> access
      assert {point, panicking(context, point, call)} == {point, panicked(point)}
      assert_unharmed(context, point)
    end

    stop =
      quote do
        alias Codex.Files.Native

        {:ok, handle} = Native.open("another", :a_table, 60_000, {nil, :refuse}, true)
        ref = make_ref()
        first = Native.stop(handle, make_ref())
        :wait = Native.stop(handle, ref)
        receive do: ({^ref, answer} -> {first, answer}), after: (20_000 -> :none)
      end

    assert panicking(context, "manifest-stop", stop) == {panicked("manifest-stop"), :ok}
    assert_unharmed(context, "manifest-stop")
  end
end
