defmodule Codex.Files.P23RegistriesTest do
  @moduledoc """
  P23: registries are apart: no function on one lists, counts, renews, evicts or removes what another
  holds, also in the same staging directory and of the same content.
  """

  use Codex.Files.RegistryCase, async: true

  setup %{folder: folder, staging_dir: staging_dir} do
    %{
      source: write(folder, "source/notes.txt", "some notes"),
      other: write(folder, "source/other.txt", "other notes"),
      mine: start_own(staging_dir, ttl_ms: 60_000),
      theirs: start_own(staging_dir, ttl_ms: 60_000)
    }
  end

  defp stage(registry, source, opts \\ []) do
    {:ok, attachment} = Codex.Files.stage(source, [registry: registry] ++ opts)
    attachment
  end

  defp state(registry),
    do: {Enum.sort(Codex.Files.list_staged(registry)), Codex.Files.metrics(registry)}

  # Asserts that what is done shows neither in the other registry nor in its files.
  defp assert_apart(%{theirs: theirs}, action) do
    before = state(theirs)
    action.()
    assert state(theirs) == before
    {attachments, _metrics} = before
    assert_intact(attachments)
  end

  test "the same content in two registries is two files", context do
    [mine, theirs] =
      for registry <- [context.mine, context.theirs], do: stage(registry, context.source)

    assert mine.checksum == theirs.checksum
    assert mine.path != theirs.path
    refute File.stat!(mine.path).inode == File.stat!(theirs.path).inode
    assert Enum.all?([mine, theirs], &String.starts_with?(&1.path, context.staging_dir))
    assert Codex.Files.list_staged(context.mine) == [mine]
    assert Codex.Files.list_staged_result(context.theirs) == {:ok, [theirs]}
    assert_intact([mine, theirs])
  end

  test "a file that one has recognised is not known to the other", context do
    # Long enough unchanged to be recognised.
    File.touch!(context.source, System.os_time(:second) - 60)
    mine = stage(context.mine, context.source)
    assert Codex.Files.fetch(mine.id, registry: context.theirs) == {:error, :not_staged}
    assert stage(context.theirs, context.source).path != mine.path
  end

  test "nothing that is done to one shows in the other", context do
    %{mine: mine, theirs: theirs, source: source, other: other} = context
    kept = stage(theirs, source, ttl_ms: 1_000_000, owner: self())
    stage(theirs, other, ttl_ms: 0)
    opts = [registry: mine]

    for action <- [
          fn -> stage(mine, source) end,
          fn -> stage(mine, source, persist: true) end,
          fn -> stage(mine, source, ttl_ms: :infinity) end,
          fn -> stage(mine, other, owner: self()) end,
          fn -> {:ok, _attachment} = Codex.Files.fetch(kept.id, opts) end,
          fn -> {:ok, :done} = Codex.Files.temporary(source, opts, fn _ -> :done end) end,
          fn -> :ok = Codex.Files.release(kept, opts) end,
          fn -> :ok = Codex.Files.force_cleanup(mine) end,
          fn -> :ok = Codex.Files.unstage(kept, opts) end,
          fn -> {:error, :not_staged} = Codex.Files.unstage(kept, opts) end,
          fn -> stage(mine, source, ttl_ms: 0) end,
          fn -> :ok = Codex.Files.force_cleanup(mine) end,
          fn -> stage(mine, source) end,
          fn -> :ok = Codex.Files.reset!(mine) end,
          fn -> :ok = GenServer.call(pid(mine), {:reset, context.staging_dir}) end,
          fn -> :ok = GenServer.call(pid(mine), {:reset, Path.dirname(kept.path)}) end,
          fn -> stage(mine, source) end,
          fn -> kill_own(mine) end,
          fn -> stop_supervised!(mine) end
        ] do
      assert_apart(context, action)
    end

    # What is staged there does what it would have done.
    assert Codex.Files.force_cleanup(theirs) == :ok
    assert Codex.Files.list_staged(theirs) == [kept]
    assert Codex.Files.release(kept, registry: theirs) == :ok
    assert {:ok, ^kept} = Codex.Files.fetch(kept.id, registry: theirs)
  end

  test "an owner of both that ends takes from each what only it kept there", context do
    owner = spawn(fn -> receive do: (:end -> :ok) end)
    mine = stage(context.mine, context.source, owner: owner)
    theirs = stage(context.theirs, context.source, owner: owner)
    kept = stage(context.theirs, context.source, ttl_ms: 1_000_000)
    send(owner, :end)

    eventually(fn -> Codex.Files.list_staged(context.mine) == [] end)
    eventually(fn -> Codex.Files.metrics(context.theirs).owned_count == 0 end)
    refute File.exists?(mine.path)
    assert Codex.Files.list_staged(context.theirs) == [%{kept | path: theirs.path}]
    assert_intact([theirs])
  end

  test "one that is full evicts nothing of the other's", context do
    full = start_own(context.staging_dir, max_bytes: 15, when_full: :evict)
    stage(context.theirs, context.source, ttl_ms: 1)
    stage(full, context.source)

    assert_apart(context, fn -> stage(full, context.other) end)
    assert [%{name: "other.txt"}] = Codex.Files.list_staged(full)
    refusing = start_own(context.staging_dir, max_bytes: 5)
    refused = {:error, {:over_budget, 10, 5}}
    assert Codex.Files.stage(context.source, registry: refusing) == refused
    assert {:ok, _attachment} = Codex.Files.stage(context.source, registry: context.mine)
  end

  test "what each holds is what it was told, whatever many do beside it", context do
    sources = for n <- 1..6, do: write(context.folder, "source/#{n}", "content #{n}")
    names = for _ <- 1..4, do: start_own(context.staging_dir)

    names
    |> Enum.map(&Task.async(fn -> work(&1, sources, context.staging_dir, %{}, 150) end))
    |> Task.await_many(60_000)
  end

  # Does anything to one registry, and asserts after each step that it holds what a model says.
  defp work(registry, _sources, _dir, model, 0), do: assert_holds(registry, model)

  defp work(registry, sources, dir, model, steps) do
    source = Enum.random(sources)
    id = sha256(File.read!(source))

    model =
      case :rand.uniform(8) do
        n when n in 1..3 ->
          stage(registry, source, persist: true)
          Map.put(model, id, :persistent)

        4 ->
          stage(registry, source, ttl_ms: 0)
          Map.put_new(model, id, :expired)

        5 ->
          expected = if is_map_key(model, id), do: :ok, else: {:error, :not_staged}
          assert Codex.Files.unstage(id, registry: registry) == expected
          Map.delete(model, id)

        6 ->
          assert Codex.Files.force_cleanup(registry) == :ok
          Map.filter(model, fn {_id, kept} -> kept == :persistent end)

        7 ->
          if is_map_key(model, id),
            do: assert({:ok, _attachment} = Codex.Files.fetch(id, registry: registry)),
            else: assert({:error, :not_staged} == Codex.Files.fetch(id, registry: registry))

          model

        8 ->
          assert GenServer.call(registry, {:reset, dir}) == :ok
          %{}
      end

    assert_holds(registry, model)
    work(registry, sources, dir, model, steps - 1)
  end

  defp assert_holds(registry, model) do
    attachments = Codex.Files.list_staged(registry)
    assert Enum.sort(Enum.map(attachments, & &1.id)) == Enum.sort(Map.keys(model))
    assert Codex.Files.metrics(registry).total_count == map_size(model)
    assert_intact(attachments)
  end

  test "the start of one clears its own staging directory of the dead, and no other", context do
    [ours, elsewhere] = for name <- ["ours", "elsewhere"], do: Path.join(context.folder, name)
    # The directory of a registry that has died is one that nobody has locked.
    dead = for dir <- [ours, elsewhere], do: leave_dead(dir, context)
    start_own(ours)
    [ours_left, elsewhere_left] = dead
    eventually(fn -> not File.exists?(ours_left) end)
    assert File.read!(elsewhere_left) == "some notes"
  end

  test "a reset clears its own staging directory of the dead, and no other", context do
    [ours, elsewhere] = for name <- ["ours", "elsewhere"], do: Path.join(context.folder, name)
    registry = start_own(ours)
    # The start has been through.
    assert Codex.Files.force_cleanup(registry) == :ok
    [ours_left, elsewhere_left] = for dir <- [ours, elsewhere], do: leave_dead(dir, context)
    assert Codex.Files.reset!(registry) == :ok
    refute File.exists?(ours_left)
    assert File.read!(elsewhere_left) == "some notes"
  end

  # What a killed VM leaves is what is left by a registry whose directory was copied.
  defp leave_dead(dir, context) do
    registry = start_own(dir)
    path = stage(registry, context.source).path
    area = path |> Path.relative_to(dir) |> Path.split() |> hd()
    copy = Path.join(context.folder, "copy of #{Path.basename(dir)}")
    File.cp_r!(Path.join(dir, area), copy)
    stop_supervised!(registry)
    File.mkdir_p!(dir)
    for dir <- [copy | Path.wildcard(copy <> "/*")], do: File.chmod!(dir, 0o700)
    File.rename!(copy, Path.join(dir, area))
    File.chmod!(dir, 0o700)
    path
  end

  describe "a registry that is killed" do
    test "has its files again when its supervisor has started it, by its name and new pid",
         context do
      kept = stage(context.mine, context.source, owner: self())
      killed = pid(context.mine)
      kill_own(context.mine)

      assert Codex.Files.list_staged(context.mine) == [kept]
      assert Codex.Files.list_staged(pid(context.mine)) == [kept]
      assert Codex.Files.list_staged_result(killed) == {:error, :noproc}
      assert_intact([kept])
      assert stage(context.mine, context.source, ttl_ms: 5).path == kept.path
    end

    test "leaves nothing to one of another name", context do
      stage(context.mine, context.source)
      stop_supervised!(context.mine)
      another = start_own(context.staging_dir)
      assert Codex.Files.list_staged(another) == []
    end
  end
end

defmodule Codex.Files.P23TelemetryTest do
  # The module `:telemetry` and the default registry are the VM's.
  use Codex.Files.StagingCase, async: false

  import Codex.Files.RegistryCase, only: [start_own: 2]

  alias Codex.Files.FakeTelemetry

  setup context do
    FakeTelemetry.start()

    %{
      source: write(context.folder, "source/notes.txt", "some notes"),
      mine: start_own(context.staging_dir, []),
      theirs: start_own(context.staging_dir, [])
    }
  end

  test "the events of one say nothing of what another holds", context do
    for registry <- [context.mine, Registry, context.theirs] do
      {:ok, %{checksum: checksum, name: name}} =
        Codex.Files.stage(context.source, registry: registry, ttl_ms: 0)

      # Each has copied it.
      assert_receive {:telemetry, [_, _, :staged], %{size_bytes: 10}, %{cached?: false}}
      refute_received {:telemetry, _event, _measurements, _metadata}
      assert Codex.Files.force_cleanup(context.mine) == :ok

      if registry == context.mine do
        metadata = %{checksum: checksum, name: name, ttl_ms: 0}
        assert_receive {:telemetry, [_, _, :cleaned], %{count: 1, bytes: 10}, ^metadata}
      end

      refute_received {:telemetry, _event, _measurements, _metadata}
    end

    assert Codex.Files.reset!(context.theirs) == :ok
    refute_received {:telemetry, _event, _measurements, _metadata}
    assert [_attachment] = Codex.Files.list_staged()
  end

  test "the default registry is apart from all others", context do
    {:ok, kept} = Codex.Files.stage(context.source)
    {:ok, mine} = Codex.Files.stage(context.source, registry: context.mine)
    assert mine.path != kept.path
    assert Codex.Files.reset!(context.mine) == :ok
    assert Codex.Files.list_staged() == [kept]
    assert Codex.Files.list_staged(Registry) == [kept]
    assert_intact([kept])

    {:ok, mine} = Codex.Files.stage(context.source, registry: context.mine)
    assert Codex.Files.reset!() == :ok
    stop_default_registry()
    assert Codex.Files.list_staged(context.mine) == [mine]
    assert_intact([mine])
  end
end
