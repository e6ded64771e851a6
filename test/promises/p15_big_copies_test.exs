defmodule Codex.Files.P15BigCopiesTest do
  @moduledoc """
  P15: a big copy delays nobody else: small stagings, `list` and `metrics` go on beside it.
  """

  use Codex.Files.StagingCase, async: false

  # More copies than are made at once.
  @copies 4
  @size 96 * 1024 * 1024

  test "small stagings, list, metrics, cleanups and known keys go on", %{folder: folder} do
    known = write(folder, "known", "known")
    {:ok, known_attachment} = Codex.Files.stage(known)
    sources = for n <- 1..@copies, do: sparse_file(folder, "large #{n}", @size + n)
    copies = for source <- sources, do: Task.async(fn -> Codex.Files.stage(source) end)

    for round <- 1..10 do
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
    end

    # All of that took place while most of the copies were still to be made.
    # A task tells its result once: it is not to be asked again.
    unfinished = for {task, nil} <- Task.yield_many(copies, 0), do: task
    assert unfinished != []
    for result <- Task.await_many(unfinished, 60_000), do: assert({:ok, %{size: _}} = result)
    assert length(Codex.Files.list_staged()) == @copies + 2
    assert known_attachment.path in Enum.map(Codex.Files.list_staged(), & &1.path)
  end

  test "so they do when the big copies are asked for by call", %{folder: folder} do
    {:ok, registry} = Registry.ensure_started()

    copies =
      for n <- 1..@copies do
        opts = %{
          checksum: "large #{n}",
          name: "large",
          persist: false,
          ttl_ms: 60_000,
          size: @size,
          source_path: sparse_file(folder, "large #{n}", @size + n),
          destination_path: Path.join(folder, "copies/#{n}")
        }

        Task.async(fn -> GenServer.call(registry, {:stage, opts}, :infinity) end)
      end

    for round <- 1..10 do
      small = write(folder, "small #{round}", "#{round}")
      assert {:ok, attachment} = GenServer.call(registry, {:stage, stage_opts(small)})
      assert attachment in GenServer.call(registry, :list)
      assert %{total_count: _} = GenServer.call(registry, :metrics)
    end

    unfinished = for {task, nil} <- Task.yield_many(copies, 0), do: task
    assert unfinished != []
    for result <- Task.await_many(unfinished, 60_000), do: assert({:ok, _attachment} = result)
  end
end
