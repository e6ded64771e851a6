defmodule Codex.Files.P12NoTimeLimitTest do
  @moduledoc """
  P12: `reset` and `force_cleanup` take as long as they need; no call fails on a 5 s limit.
  """

  use Codex.Files.StagingCase, async: false

  alias Codex.Files.PuppetFile

  @files 10_000

  # More than the time that a call waits unless it is told otherwise.
  @long_ms 5_300

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
