defmodule Codex.Files.P19ReleasesTest do
  @moduledoc """
  P19: an owner that gives an attachment up leaves it as if it had ended; and what is no owner changes
  nothing.
  """

  use Codex.Files.StagingCase, async: false

  import Codex.Files.OwnerProcess
  import Codex.Files.RegistryCase, only: [foreign_pid: 0]

  alias Codex.Files.FakeTelemetry

  @moduletag :capture_log

  setup %{folder: folder} do
    %{source: write(folder, "source/notes.txt", "some notes")}
  end

  describe "a release" do
    test "ends an ownership at once", %{source: source} do
      {:ok, attachment} = Codex.Files.stage(source, owner: self())
      {:ok, _attachment} = Codex.Files.stage(source, owner: self())
      assert Codex.Files.release(attachment) == :ok
      assert_gone(attachment)
      assert Codex.Files.release(attachment) == :ok

      # By the id, and for another process.
      owner = start_owner()
      {:ok, attachment} = Codex.Files.stage(source, owner: owner)
      assert Codex.Files.release(attachment.id, owner: owner) == :ok
      assert_gone(attachment)
      end_owner(owner, :return)
    end

    test "leaves what something else keeps", %{source: source} do
      owner = start_owner()
      {:ok, attachment} = Codex.Files.stage(source, owner: owner)
      {:ok, _attachment} = Codex.Files.stage(source, owner: self())
      assert Codex.Files.release(attachment) == :ok
      assert_kept(attachment)
      assert owned_count() == 1

      {:ok, attachment} = Codex.Files.stage(source, ttl_ms: 600_000)
      assert Codex.Files.release(attachment, owner: owner) == :ok
      assert_kept(attachment)
      assert owned_count() == 0
    end

    test "of what one does not own changes nothing", %{source: source} do
      [owner, stranger] = for _ <- 1..2, do: start_owner()
      {:ok, attachment} = Codex.Files.stage(source, owner: owner)
      end_owner(start_owner(), :return)
      ended = start_owner()
      end_owner(ended, :kill)

      for stranger <- [self(), stranger, ended] do
        assert Codex.Files.release(attachment, owner: stranger) == :ok
        assert Codex.Files.release("no such id", owner: stranger) == :ok
      end

      assert_kept(attachment)
      assert owned_count() == 1
    end

    test "counts for the stagings that were answered before it", context do
      owner = start_owner()
      {source, id} = {large_file(context.folder), large_id()}
      staging = Task.async(fn -> Codex.Files.stage(source, owner: owner) end)
      await_copy(context.staging_dir)
      assert Codex.Files.release(id, owner: owner) == :ok
      assert Task.yield(staging, 0) == nil
      assert {:ok, %{id: ^id} = attachment} = Task.await(staging, 60_000)
      assert_kept(attachment)
      end_owner(owner, :return)
      assert_gone(attachment)
    end
  end

  describe "telemetry" do
    setup do
      FakeTelemetry.start()
    end

    test "tells of what an owner left as of what a cleanup removed", %{source: source} do
      for let_go <- [&end_owner(&1, :kill), &Codex.Files.release(&2, owner: &1)] do
        owner = start_owner()
        {:ok, attachment} = Codex.Files.stage(source, owner: owner)
        assert_receive {:telemetry, [:codex, :attachment, :staged], _, %{ttl_ms: 0}}
        if is_function(let_go, 1), do: let_go.(owner), else: let_go.(owner, attachment)
        assert_receive {:telemetry, [_, _, :cleaned], measurements, metadata}, 5_000
        assert measurements == %{count: 1, bytes: 10}
        assert metadata == Map.take(attachment, [:checksum, :name, :ttl_ms])
        refute_received {:telemetry, _event, _measurements, _metadata}
      end
    end

    @tag :user
    test "tells of what could not be removed", %{source: source} do
      owner = start_owner()
      {:ok, attachment} = Codex.Files.stage(source, owner: owner)
      make_unremovable(attachment.path)
      end_owner(owner, :kill)

      assert_receive {:telemetry, [_, _, :cleanup_failed], %{count: 1, bytes: 10}, metadata},
                     5_000

      assert %{checksum: checksum, reason: reason} = metadata
      assert checksum == attachment.checksum
      assert reason in [:eperm, :eacces, :ebusy]
    end
  end

  test "what is no living process of this node is no owner, and nothing changes", context do
    %{source: source, staging_dir: staging_dir} = context
    {:ok, kept} = Codex.Files.stage(source, owner: self())
    before = {Codex.Files.list_staged(), Codex.Files.metrics(), files_below(staging_dir)}
    ended = start_owner()
    end_owner(ended, :return)
    other = write(context.folder, "source/other", "other")
    # It must not matter that there is a process of that name.
    true = Process.register(start_owner(), :an_owner)

    for owner <-
          [nil, :an_owner, "owner", make_ref(), [self()], {:an_owner, node()}] ++
            [hd(Port.list()), foreign_pid(), ended] do
      reason = {:invalid_option, :owner, owner}

      for source <- [source, other, {:data, "other"}, {:stream, ["other"]}],
          opts <- [[], [persist: true], [ttl_ms: 1_000]] do
        assert Codex.Files.stage(source, [name: "n", owner: owner] ++ opts) == {:error, reason}
      end

      assert Codex.Files.format_error(reason) =~ "the pid of a living process of this node"

      # A process that has ended is none now, but may have been one.
      released = Codex.Files.release(kept, owner: owner)
      assert released == if(owner == ended, do: :ok, else: {:error, reason})
    end

    assert {Codex.Files.list_staged(), Codex.Files.metrics(), files_below(staging_dir)} == before
  end
end
