defmodule Codex.Files.UnstageTest do
  use Codex.Files.StagingCase, async: false

  import Codex.Files.OwnerProcess

  alias Codex.Files.FakeTelemetry

  setup %{folder: folder} do
    %{source: write(folder, "source/notes.txt", "some notes")}
  end

  test "removes an attachment, whatever keeps it", context do
    %{source: source, folder: folder, staging_dir: staging_dir} = context
    {:ok, kept} = Codex.Files.stage(write(folder, "source/kept", "kept"), persist: true)
    before = files_below(staging_dir)

    for opts <- [[], [persist: true], [ttl_ms: :infinity], [ttl_ms: 0], [owner: self()]],
        unstage <- [&Codex.Files.unstage/1, &Codex.Files.unstage(&1.id)] do
      {:ok, attachment} = Codex.Files.stage(source, opts)
      {:ok, _second_name} = Codex.Files.stage(source, [name: "another.txt"] ++ opts)
      assert unstage.(attachment) == :ok
      assert files_below(staging_dir) == before
      assert Codex.Files.list_staged() == [kept]
      assert unstage.(attachment) == {:error, :not_staged}
      assert %{total_count: 1, owned_count: 0} = Codex.Files.metrics()
    end

    # One at a destination of the caller's.
    destination = Path.join(folder, "copy")
    opts = stage_opts(source, checksum: "a key", destination_path: destination)
    {:ok, _attachment} = Registry.stage(opts)
    assert Codex.Files.unstage("a key") == :ok
    refute File.exists?(destination)
  end

  test "removes what has lost its file", %{source: source} do
    {:ok, attachment} = Codex.Files.stage(source)
    File.rm!(attachment.path)
    assert Codex.Files.unstage(attachment) == :ok
    assert Codex.Files.list_staged() == []
  end

  test "is done once when many ask for it", %{source: source} do
    for _ <- 1..20 do
      {:ok, attachment} = Codex.Files.stage(source)
      unstagings = for _ <- 1..8, do: Task.async(fn -> Codex.Files.unstage(attachment) end)
      results = Task.await_many(unstagings)
      assert Enum.frequencies(results) == %{:ok => 1, {:error, :not_staged} => 7}
    end
  end

  test "waits for the work on the attachment that is under way", context do
    {:ok, _registry} = Registry.ensure_started()
    source = large_file(context.folder)
    destination = Path.join(context.folder, "places/large")

    opts = %{
      checksum: "a key",
      name: "large",
      persist: true,
      ttl_ms: :infinity,
      size: 1,
      source_path: source,
      destination_path: destination
    }

    {:ok, lost} = Registry.stage(opts)
    File.rm!(lost.path)
    staging = Task.async(fn -> Registry.stage(opts) end)
    # It is being written.
    eventually(fn -> destination |> Path.dirname() |> files_below() != [] end)
    assert Codex.Files.fetch("a key") == {:error, :not_staged}

    assert Codex.Files.unstage("a key") == :ok
    refute File.exists?(destination)
    assert Codex.Files.list_staged() == []
    assert {:ok, _attachment} = Task.await(staging)
    assert Codex.Files.list_staged() == []
  end

  test "takes nothing that is staged after it", %{source: source} do
    configure(:attachment_cleanup_interval_ms, 5)
    owner = start_owner()

    for _ <- 1..100 do
      {:ok, attachment} = Codex.Files.stage(source, owner: owner)
      unstaging = Task.async(fn -> Codex.Files.unstage(attachment) end)
      {:ok, _meanwhile} = Codex.Files.stage(source, owner: owner)
      assert Task.await(unstaging) in [:ok, {:error, :not_staged}]
      {:ok, after_it} = Codex.Files.stage(source, owner: owner)
      assert_intact([after_it])
      assert Codex.Files.fetch(after_it.id) == {:ok, after_it}
    end

    {:ok, attachment} = Codex.Files.fetch(sha256("some notes"))
    end_owner(owner, :kill)
    assert_gone(attachment)
  end

  @tag :user
  test "tells what it cannot remove, which stays", %{source: source} do
    FakeTelemetry.start()
    {:ok, attachment} = Codex.Files.stage(source, ttl_ms: 600_000)
    undo = make_unremovable(attachment.path)
    assert {:error, {:cleanup_failed, [{path, reason}]}} = Codex.Files.unstage(attachment)
    assert path == attachment.path
    assert reason in [:eperm, :eacces, :ebusy]
    assert Codex.Files.fetch(attachment.id) == {:ok, attachment}
    refute_received {:telemetry, [:codex, :attachment, :unstaged], _, _}
    undo.()
    assert Codex.Files.unstage(attachment) == :ok
    assert_received {:telemetry, [:codex, :attachment, :unstaged], %{count: 1}, _}
  end

  test "has an event of its own, before it returns", %{source: source} do
    FakeTelemetry.start()
    {:ok, attachment} = Codex.Files.stage(source, owner: self())
    assert_received {:telemetry, [:codex, :attachment, :staged], _, _}
    assert Codex.Files.unstage(attachment) == :ok
    assert_received {:telemetry, [:codex, :attachment, :unstaged], measurements, metadata}
    assert measurements == %{count: 1, bytes: 10}
    assert metadata == Map.take(attachment, [:checksum, :name, :ttl_ms])
    assert Codex.Files.unstage(attachment) == {:error, :not_staged}
    refute_received {:telemetry, _event, _measurements, _metadata}
  end

  test "refuses what is no attachment, and no id", %{source: source} do
    {:ok, kept} = Codex.Files.stage(source, persist: true)

    for function <- [&Codex.Files.unstage/1, &Codex.Files.release/1] do
      for id <- [nil, :id, 1, ~c"id", [kept.id], %{id: kept.id}, {:ok, kept}, <<1::3>>] do
        reason = {:invalid_option, :id, id}
        assert function.(id) == {:error, reason}
        assert Codex.Files.format_error(reason) =~ "the id of an attachment"
      end

      assert function.(%{kept | id: nil}) == {:error, {:invalid_option, :id, nil}}
    end

    for id <- ["", "no such id", String.upcase(kept.id), String.duplicate("0", 64), <<255>>] do
      assert Codex.Files.unstage(id) == {:error, :not_staged}
      assert Codex.Files.release(id) == :ok
    end

    for opts <- [nil, :opts, %{}, [1]] do
      reason = {:invalid_option, :opts, opts}
      assert Codex.Files.unstage(kept, opts) == {:error, reason}
      assert Codex.Files.release(kept, opts) == {:error, reason}
    end

    assert Codex.Files.list_staged() == [kept]
    assert_intact([kept])
  end
end
