defmodule Codex.Files.P12NoTimeLimitTest do
  @moduledoc """
  P12: `reset` and `force_cleanup` take as long as they need; no call fails on a 5 s limit.
  """

  use Codex.Files.StagingCase, async: false

  alias Codex.Files.{ChildVM, PuppetFile}

  @files 10_000

  # More than the time that a call waits unless it is told otherwise.
  @long_ms 5_300

  # A library that is loaded before the C library, and in which no file is put in place or removed
  # for as long as another file is there.
  @shim """
  #define _GNU_SOURCE
  #include <dlfcn.h>
  #include <stdlib.h>
  #include <unistd.h>

  static void wait(void) {
    while (access(getenv("WAIT_FOR_IT"), F_OK) == 0) usleep(1000);
  }

  int renameat(int from, const char *old, int to, const char *new) {
    int (*real)(int, const char *, int, const char *) =
        (int (*)(int, const char *, int, const char *))dlsym(RTLD_NEXT, "renameat");
    wait();
    return real(from, old, to, new);
  }

  int unlinkat(int dir, const char *path, int flags) {
    int (*real)(int, const char *, int) =
        (int (*)(int, const char *, int))dlsym(RTLD_NEXT, "unlinkat");
    wait();
    return real(dir, path, flags);
  }
  """

  @compiler System.find_executable("cc")

  defp stage_files(folder, opts) do
    1..@files
    |> Enum.chunk_every(div(@files, 4))
    |> Enum.map(fn numbers ->
      Task.async(fn ->
        for number <- numbers do
          source = write(folder, "source #{hd(numbers)}", "#{number}")
          {:ok, _attachment} = Codex.Files.stage(source, opts)
        end
      end)
    end)
    |> Task.await_many(:infinity)

    assert %{total_count: @files} = Codex.Files.metrics()
  end

  @tag timeout: 180_000
  test "#{@files} files are reset, and cleaned up", %{folder: folder, staging_dir: staging_dir} do
    # However long the stagings take, nothing but the calls below removes them.
    configure(:attachment_cleanup_interval_ms, 86_400_000)
    stage_files(folder, persist: true)
    assert Codex.Files.reset!() == :ok
    assert Codex.Files.list_staged() == []
    assert files_below(staging_dir) == []

    stage_files(folder, ttl_ms: 0)
    assert Codex.Files.force_cleanup() == :ok
    assert Codex.Files.list_staged() == []
    assert Path.wildcard(Path.join(staging_dir, "*/*")) == []
  end

  test "a reset, a cleanup and a staging that take more than 5 s succeed", %{folder: folder} do
    PuppetFile.start()
    registry = start_default_registry(file_module: PuppetFile)
    sources = for name <- ["one", "two"], do: write(folder, "source/#{name}", name)
    for source <- sources, do: {:ok, _attachment} = Codex.Files.stage(source, ttl_ms: 0)

    # One after the other has to wait, for one that is blocked.
    PuppetFile.tell(:rm_rf, :block)
    PuppetFile.tell(:cp!, :block)

    calls = [
      Task.async(&Codex.Files.force_cleanup/0),
      Task.async(&Registry.force_cleanup/0),
      Task.async(&Codex.Files.reset!/0),
      Task.async(fn -> Registry.reset(Codex.Files.staging_dir()) end)
    ]

    stagings = [
      Task.async(fn -> Codex.Files.stage(write(folder, "source/three", "three")) end),
      Task.async(fn -> Registry.stage(stage_opts(write(folder, "source/four", "four"))) end)
    ]

    assert Enum.all?(Task.yield_many(calls ++ stagings, @long_ms), &match?({_task, nil}, &1))

    PuppetFile.tell(:rm_rf, :run)
    PuppetFile.tell(:cp!, :run)
    release_all()
    assert Task.await_many(calls) == [:ok, :ok, :ok, :ok]
    assert [{:ok, _}, {:ok, _}] = Task.await_many(stagings)
    assert Process.whereis(Registry) == registry
  end

  @tag skip: if(@compiler, do: false, else: "needs a C compiler")
  test "so they do where the file system takes more than 5 s", context do
    %{folder: folder, staging_dir: staging_dir} = context
    shim = Path.join(folder, "shim.so")
    sh!(@compiler, ["-shared", "-fPIC", "-o", shim, write(folder, "shim.c", @shim), "-ldl"])
    wait = Path.join(folder, "wait")
    vm = ChildVM.start(staging_dir, [{"LD_PRELOAD", shim}, {"WAIT_FOR_IT", wait}])

    [one, two, three, four, five] =
      for name <- ~w(one two three four five), do: write(folder, "source/#{name}", name)

    large = large_file(folder, "source/large", 1_000_000)
    [four, five] = for source <- [four, five], do: Macro.escape(stage_opts(source))

    {waiting, results} =
      ChildVM.eval(
        vm,
        quote do
          alias Codex.Files.Registry

          # A call that exits is to be seen among the results.
          Process.flag(:trap_exit, true)

          for source <- unquote([one, two]), do: {:ok, _} = Codex.Files.stage(source, ttl_ms: 0)
          File.touch!(unquote(wait))

          tasks =
            Enum.map(
              [
                &Codex.Files.force_cleanup/0,
                &Registry.force_cleanup/0,
                &Codex.Files.reset!/0,
                fn -> Registry.reset(Codex.Files.staging_dir()) end,
                fn -> GenServer.call(Registry, :force_cleanup, :infinity) end,
                fn -> Codex.Files.stage(unquote(three)) end,
                fn -> Codex.Files.stage(unquote(large)) end,
                fn -> Registry.stage(unquote(four)) end,
                fn -> GenServer.call(Registry, {:stage, unquote(five)}, :infinity) end
              ],
              &Task.async/1
            )

          waiting = tasks |> Task.yield_many(unquote(@long_ms)) |> Enum.map(&elem(&1, 1))
          File.rm!(unquote(wait))
          {waiting, Task.await_many(tasks, :infinity)}
        end
      )

    assert waiting == List.duplicate(nil, 9)
    assert {[:ok, :ok, :ok, :ok, :ok], staged} = Enum.split(results, 5)
    assert [{:ok, _}, {:ok, _}, {:ok, _}, {:ok, _}] = staged
  end

  defp release_all do
    receive do
      {:callback, pid, _function, _args} ->
        PuppetFile.release(pid)
        release_all()
    after
      0 -> :ok
    end
  end
end
