defmodule Codex.Files.P05KeptTest do
  @moduledoc """
  P5: after `{:ok, attachment}` its file is there until its TTL ends or somebody resets: a sweep
  that began earlier cannot take it.
  """

  use Codex.Files.StagingCase, async: false

  alias Codex.Files.PuppetFile

  @files 400
  @rounds 3

  defp sources(folder, count),
    do: for(number <- 1..count, do: write(folder, "source/#{number}", "#{number}"))

  # Whatever expires goes while it is staged again by several at once.
  defp during_a_cleanup(sources, stage) do
    cleaning = Task.async(&Codex.Files.force_cleanup/0)

    staged =
      sources
      |> Enum.chunk_every(div(length(sources), 4))
      |> Enum.map(fn sources -> Task.async(fn -> Enum.map(sources, stage) end) end)
      |> Task.await_many(60_000)
      |> Enum.concat()

    assert Task.await(cleaning, 60_000) == :ok
    for result <- staged, do: with({:ok, attachment} <- result, do: attachment)
  end

  test "what is staged again during a cleanup stays", %{folder: folder} do
    sources = sources(folder, @files)

    for round <- 1..@rounds do
      for source <- sources do
        {:ok, _attachment} = Codex.Files.stage(source, ttl_ms: 0)
      end

      kept = during_a_cleanup(sources, &Codex.Files.stage(&1, ttl_ms: 600_000))
      assert {round, length(kept)} == {round, @files}
      assert [] == for(%{path: path} <- kept, not File.exists?(path), do: path)

      # The entry that each belongs to says so too.
      listed = Map.new(Codex.Files.list_staged(), &{&1.checksum, &1})
      assert map_size(listed) == @files
      for %{checksum: checksum} <- kept, do: assert(%{ttl_ms: 600_000} = listed[checksum])
      assert_intact(kept)
      assert Codex.Files.reset!() == :ok
    end
  end

  test "so does what is staged again under a checksum by the registry", %{folder: folder} do
    {:ok, registry} = Registry.ensure_started()
    sources = sources(folder, 200)
    opts = Map.new(sources, &{&1, stage_opts(&1)})

    for stage <- [&Registry.stage/1, &GenServer.call(registry, {:stage, &1}, :infinity)] do
      for source <- sources, do: {:ok, _attachment} = stage.(%{opts[source] | ttl_ms: 0})
      kept = during_a_cleanup(sources, &stage.(%{opts[&1] | ttl_ms: 600_000}))
      assert length(kept) == 200
      assert_intact(kept)
      assert Codex.Files.reset!() == :ok
    end
  end

  test "what is being removed right now is copied anew", %{folder: folder} do
    PuppetFile.start()
    registry = start_registry_with_file_module()
    opts = stage_opts(write(folder, "source", "content"), ttl_ms: 0)
    {:ok, %{path: path}} = GenServer.call(registry, {:stage, opts})

    PuppetFile.tell(:rm_rf, :block)
    cleaning = Task.async(fn -> GenServer.call(registry, :force_cleanup) end)
    assert_receive {:callback, removing, :rm_rf, [^path]}, 5_000

    staging = Task.async(fn -> GenServer.call(registry, {:stage, %{opts | ttl_ms: 60_000}}) end)
    assert Task.yield(staging, 50) == nil
    PuppetFile.release(removing)
    assert Task.await(cleaning) == :ok
    assert {:ok, attachment} = Task.await(staging)
    assert_intact([attachment])
  end

  test "what is renewed in time is not taken by the cleanup on time", %{folder: folder} do
    configure(:attachment_cleanup_interval_ms, 5)
    source = write(folder, "source", "content")
    {:ok, first} = Codex.Files.stage(source, ttl_ms: 200)
    until = System.monotonic_time(:millisecond) + 600

    # Renewed all the time, for three times its TTL.
    eventually(fn ->
      {:ok, again} = Codex.Files.stage(source, ttl_ms: 200)
      assert again.path == first.path
      assert File.exists?(again.path)
      System.monotonic_time(:millisecond) > until
    end)

    eventually(fn -> Codex.Files.list_staged() == [] end)
    refute File.exists?(first.path)
  end
end
