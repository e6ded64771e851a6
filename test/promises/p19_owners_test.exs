defmodule Codex.Files.P19OwnersTest do
  @moduledoc """
  P19: unless it is reset or unstaged, an attachment lives at least as long as each of its owners,
  however these end, and what only they kept is gone within a second of the last one's end, whatever
  else the cleanup thread is doing.
  """

  use Codex.Files.StagingCase, async: false

  import Codex.Files.OwnerProcess

  @moduletag :capture_log

  setup %{folder: folder} do
    %{source: write(folder, "source/notes.txt", "some notes")}
  end

  # What is below the staging directory but the registry's own directory.
  defp left_in(staging_dir) do
    for path <- files_below(staging_dir), not (path =~ ~r"\Acodex_files-[^/]*/\z"), do: path
  end

  describe "an attachment" do
    test "stays as long as its owner lives, and goes however that ends", %{source: source} do
      configure(:attachment_cleanup_interval_ms, 5)

      for how <- ways_to_end() do
        owner = start_owner()
        assert {:ok, attachment} = Codex.Files.stage(source, owner: owner)
        assert %{ttl_ms: 0, persist: false} = attachment
        assert %{owned_count: 1, total_count: 1, expirable_count: 1} = Codex.Files.metrics()
        assert Codex.Files.metrics().next_expiry_at == nil
        assert_kept(attachment)

        end_owner(owner, how)
        assert_gone(attachment)
        assert %{owned_count: 0, total_count: 0} = Codex.Files.metrics()
      end
    end

    test "goes with the last of its owners, each of which counts once", %{source: source} do
      owners = for _ <- 1..3, do: start_owner()

      for owner <- owners ++ owners do
        assert {:ok, _attachment} = Codex.Files.stage(source, owner: owner)
      end

      {:ok, attachment} = Codex.Files.stage(source, owner: hd(owners))
      assert owned_count() == 1

      for {owner, how} <- Enum.zip(owners, [:kill, :return, :raise]) do
        assert_kept(attachment)
        end_owner(owner, how)
      end

      assert_gone(attachment)
    end

    test "stays for the TTL of its staging, too", %{source: source} do
      owner = start_owner()
      assert {:ok, attachment} = Codex.Files.stage(source, owner: owner, ttl_ms: 600_000)
      assert attachment.ttl_ms == 600_000
      end_owner(owner, :kill)
      eventually(fn -> owned_count() == 0 end)
      assert_kept(attachment)
      assert %{next_expiry_at: %DateTime{}} = Codex.Files.metrics()
    end

    test "stays beyond that TTL if its owner lives", %{source: source} do
      owner = start_owner()
      {:ok, attachment} = Codex.Files.stage(source, owner: owner, ttl_ms: 50)
      until = System.monotonic_time(:millisecond) + 150
      eventually(fn -> System.monotonic_time(:millisecond) > until end)
      assert_kept(attachment)
      end_owner(owner, :return)
      assert_gone(attachment)
    end

    test "keeps its TTL and its insertion time when an owner comes without one", context do
      for opts <- [[], [ttl_ms: 600_000], [ttl_ms: :infinity], [persist: true]] do
        {:ok, first} = Codex.Files.stage(context.source, opts)
        later(first.inserted_at)
        owner = start_owner()
        assert {:ok, ^first} = Codex.Files.stage(context.source, owner: owner)
        assert Codex.Files.fetch(first.id) == {:ok, first}
        end_owner(owner, :return)
        eventually(fn -> owned_count() == 0 end)
        assert_kept(first)
        assert Codex.Files.reset!() == :ok
      end
    end

    test "takes the TTL that another staging gives it while it has an owner", context do
      owner = start_owner()
      {:ok, %{ttl_ms: 0} = owned} = Codex.Files.stage(context.source, owner: owner)
      later(owned.inserted_at)
      {:ok, attachment} = Codex.Files.stage(context.source)
      assert attachment.ttl_ms == 86_400_000
      assert DateTime.compare(attachment.inserted_at, owned.inserted_at) == :gt
      end_owner(owner, :kill)
      eventually(fn -> owned_count() == 0 end)
      assert_kept(attachment)

      # One of 0 would take it from who wants it longer, but for its owner.
      owner = start_owner()
      {:ok, _attachment} = Codex.Files.stage(context.source, owner: owner)
      {:ok, %{ttl_ms: 0}} = Codex.Files.stage(context.source, ttl_ms: 0)
      assert_kept(attachment)
      end_owner(owner, :kill)
      assert_gone(attachment)
    end

    test "is not changed by an owner if it is persistent", %{source: source} do
      owner = start_owner()
      {:ok, attachment} = Codex.Files.stage(source, owner: owner, persist: true)
      assert %{persist: true, ttl_ms: :infinity} = attachment
      assert owned_count() == 0
      assert Codex.Files.release(attachment, owner: owner) == :ok
      end_owner(owner, :kill)
      assert_kept(attachment)
    end

    test "keeps its owners when its file is lost, and staged anew", %{source: source} do
      [one, two] = for _ <- 1..2, do: start_owner()
      {:ok, attachment} = Codex.Files.stage(source, owner: one)
      File.rm!(attachment.path)
      assert {:ok, again} = Codex.Files.stage(source, owner: two)
      assert again.inserted_at == attachment.inserted_at
      end_owner(two, :return)
      assert_kept(again)
      assert owned_count() == 1

      File.rm!(again.path)
      assert {:ok, anew} = Codex.Files.stage(source, ttl_ms: 0)
      assert_kept(anew)
      end_owner(one, :return)
      assert_gone(anew)
    end

    @tag :user
    test "keeps its owners when it cannot be removed", %{source: source} do
      owner = start_owner()
      {:ok, attachment} = Codex.Files.stage(source, owner: owner)
      undo = make_unremovable(attachment.path)
      assert {:error, {:cleanup_failed, [{_, _}]}} = Codex.Files.unstage(attachment)
      assert {:error, {:cleanup_failed, [{_, _}]}} = Codex.Files.reset!()
      undo.()
      assert owned_count() == 1
      assert_kept(attachment)
      end_owner(owner, :return)
      assert_gone(attachment)
    end

    @tag :user
    test "that cannot be removed when its owner ends goes with a cleanup", %{source: source} do
      owner = start_owner()
      {:ok, attachment} = Codex.Files.stage(source, owner: owner)
      undo = make_unremovable(attachment.path)
      end_owner(owner, :kill)
      eventually(fn -> owned_count() == 0 end)
      # The cleanup thread has tried it by now.
      assert {:error, {:cleanup_failed, [{_, _}]}} = Codex.Files.force_cleanup()
      assert [%{id: id}] = Codex.Files.list_staged()
      assert id == attachment.id
      undo.()
      assert Codex.Files.force_cleanup() == :ok
      assert_gone(attachment)
    end

    test "has no owner any more after a reset, or when it is unstaged", %{source: source} do
      for remove <- [fn _ -> Codex.Files.reset!() end, &Codex.Files.unstage/1] do
        owner = start_owner()
        {:ok, attachment} = Codex.Files.stage(source, owner: owner)
        assert remove.(attachment) == :ok
        refute File.exists?(attachment.path)

        # What is staged then is another one, which the owner does not keep.
        {:ok, again} = Codex.Files.stage(source, ttl_ms: 600_000)
        assert owned_count() == 0
        end_owner(owner, :kill)
        assert_kept(again)
        assert Codex.Files.unstage(again) == :ok
      end
    end
  end

  describe "an owner that ends while its file is being staged" do
    test "leaves nothing, and the staging succeeds", context do
      owner = start_owner()
      source = large_file(context.folder)
      staging = Task.async(fn -> Codex.Files.stage(source, owner: owner) end)
      await_copy(context.staging_dir)
      end_owner(owner, :kill)
      assert {:ok, attachment} = Task.await(staging, 60_000)
      assert_gone(attachment)
      assert Codex.Files.metrics().total_bytes == 0
    end

    test "leaves nothing if it is the caller", context do
      source = large_file(context.folder)
      caller = spawn(fn -> Codex.Files.stage(source, owner: self()) end)
      await_copy(context.staging_dir)
      kill(caller)
      # Nobody is told when the copy has come to its end.
      eventually(fn -> left_in(context.staging_dir) == [] end)
      assert Codex.Files.list_staged() == []
    end

    test "leaves it to the others who wait for it", context do
      source = large_file(context.folder)
      owners = for _ <- 1..6, do: start_owner()
      {dying, living} = Enum.split(owners, 3)

      stagings =
        for owner <- owners, do: Task.async(fn -> Codex.Files.stage(source, owner: owner) end)

      await_copy(context.staging_dir)
      for owner <- dying, do: end_owner(owner, :kill)
      results = Task.await_many(stagings, 60_000)
      assert length(for({:ok, attachment} <- results, do: attachment)) == 6
      # A copy that is made for one that has ended may go before the others ask for it.
      assert [{:ok, attachment}] = results |> Enum.drop(3) |> Enum.uniq()
      assert_kept(attachment)
      assert owned_count() == 1
      for owner <- living, do: end_owner(owner, :return)
      assert_gone(attachment)
    end
  end

  describe "whatever else there is to do:" do
    test "what an owner leaves goes during a long cleanup", context do
      sources = for number <- 1..2_000, do: write(context.folder, "many/#{number}", "#{number}")
      for source <- sources, do: {:ok, _attachment} = Codex.Files.stage(source, ttl_ms: 0)
      owner = start_owner()
      {:ok, attachment} = Codex.Files.stage(context.source, owner: owner)
      cleanup = Task.async(&Codex.Files.force_cleanup/0)
      end_owner(owner, :kill)
      assert_gone(attachment)
      assert Task.await(cleanup, 60_000) == :ok
    end

    test "many owners may end at once", context do
      owners = for _ <- 1..500, do: start_owner()

      attachments =
        for {owner, number} <- Enum.with_index(owners) do
          {:ok, shared} = Codex.Files.stage(context.source, owner: owner)
          source = write(context.folder, "many/#{number}", "#{number}")
          {:ok, own} = Codex.Files.stage(source, owner: owner)
          assert shared.path != own.path
          shared
        end

      assert owned_count() == 501
      last = start_owner()
      {:ok, shared} = Codex.Files.stage(context.source, owner: last)
      assert Enum.uniq(attachments) == [shared]
      for owner <- owners, do: Process.exit(owner, :kill)
      eventually(fn -> Codex.Files.metrics().total_count == 1 end)
      assert_kept(shared)
      end_owner(last, :kill)
      assert_gone(shared)
    end

    test "owners count while the registry is killed and has a successor", context do
      sources = for number <- 1..20, do: write(context.folder, "many/#{number}", "#{number}")

      for {source, round} <- Enum.with_index(sources) do
        [dying, living] = for _ <- 1..2, do: start_owner()
        {:ok, left} = Codex.Files.stage(context.source, owner: dying)
        {:ok, kept} = Codex.Files.stage(source, owner: living)
        {:ok, _kept} = Codex.Files.stage(source, owner: dying)
        registry = Process.whereis(Registry)

        # Before, at the same time as, and after the end of the registry.
        case rem(round, 3) do
          0 -> for pid <- [dying, registry], do: Process.exit(pid, :kill)
          1 -> for pid <- [registry, dying], do: Process.exit(pid, :kill)
          2 -> kill(registry)
        end

        eventually(fn -> Process.whereis(Registry) not in [nil, registry] end)
        end_owner(dying, :kill)
        assert_gone(left)
        assert_kept(kept)
        end_owner(living, :kill)
        assert_gone(kept)
        assert owned_count() == 0
      end
    end

    test "an owner has nothing to do with a registry that was stopped", %{source: source} do
      owner = start_owner()
      {:ok, attachment} = Codex.Files.stage(source, owner: owner)
      stop_default_registry()
      refute File.exists?(attachment.path)
      assert owned_count() == 0

      # It may own what the next one has.
      {:ok, again} = Codex.Files.stage(source, ttl_ms: 0)
      assert owned_count() == 0
      {:ok, ^again} = Codex.Files.stage(source, owner: owner)
      assert_kept(again)
      end_owner(owner, :return)
      assert_gone(again)
    end
  end

  # Waits until the clock says something later.
  defp later(time) do
    eventually(fn ->
      DateTime.compare(DateTime.utc_now(), DateTime.add(time, 2, :millisecond)) == :gt
    end)
  end
end
