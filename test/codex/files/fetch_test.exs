defmodule Codex.Files.FetchTest do
  use Codex.Files.StagingCase, async: false

  import Codex.Files.OwnerProcess

  setup %{folder: folder} do
    %{source: write(folder, "source/notes.txt", "some notes")}
  end

  defp overwrite(path) do
    File.chmod!(path, 0o600)
    File.write!(path, "something else")
  end

  test "finds what is staged, as it is listed", %{folder: folder, source: source} do
    owner = start_owner()

    for opts <- [[], [ttl_ms: 0], [persist: true], [ttl_ms: :infinity], [owner: owner]] do
      {:ok, attachment} = Codex.Files.stage(source, opts)
      assert Codex.Files.fetch(attachment.id) == {:ok, attachment}
      assert Codex.Files.list_staged() == [attachment]
    end

    # Under any key, and wherever it lies.
    opts = stage_opts(source, checksum: "a key", destination_path: Path.join(folder, "copy"))
    {:ok, attachment} = Registry.stage(opts)
    assert Codex.Files.fetch("a key") == {:ok, attachment}

    for _ <- 1..3 do
      kill_default_registry()
      assert Codex.Files.fetch("a key") == {:ok, attachment}
    end
  end

  test "finds nothing else", %{source: source} do
    {:ok, attachment} = Codex.Files.stage(source)
    <<_first, rest::binary>> = attachment.id

    for id <-
          ["", "no such id", rest, "0" <> attachment.id, String.upcase(attachment.id)] ++
            [sha256("another"), <<255>>, String.duplicate("0", 100_000)] do
      assert Codex.Files.fetch(id) == {:error, :not_staged}
    end

    assert Codex.Files.unstage(attachment) == :ok
    assert Codex.Files.fetch(attachment.id) == {:error, :not_staged}
    {:ok, attachment} = Codex.Files.stage(source, ttl_ms: 0)
    assert Codex.Files.force_cleanup() == :ok
    assert Codex.Files.fetch(attachment.id) == {:error, :not_staged}
    stop_default_registry()
    assert Codex.Files.fetch(attachment.id) == {:error, :not_staged}
  end

  test "does not find what was lost or changed, and does find what is staged anew", context do
    for disturb <- [&File.rm!/1, &File.rm_rf!(Path.dirname(&1)), &overwrite/1] do
      {:ok, attachment} = Codex.Files.stage(context.source)
      disturb.(attachment.path)
      assert Codex.Files.fetch(attachment.id) == {:error, :not_staged}
      assert [_listed] = Codex.Files.list_staged()
      {:ok, again} = Codex.Files.stage(context.source)
      assert Codex.Files.fetch(attachment.id) == {:ok, again}
    end
  end

  test "renews nothing", %{source: source} do
    configure(:attachment_cleanup_interval_ms, 5)
    {:ok, attachment} = Codex.Files.stage(source, ttl_ms: 300)
    # Looked up all the time, it goes as if it had not been.
    eventually(fn ->
      case Codex.Files.fetch(attachment.id) do
        {:error, :not_staged} ->
          true

        found ->
          assert found == {:ok, attachment}
          false
      end
    end)

    staged_for = DateTime.diff(DateTime.utc_now(), attachment.inserted_at, :millisecond)
    assert staged_for >= 300
    eventually(fn -> Codex.Files.list_staged() == [] end)
  end

  test "does not wait for a copy of what it is to find", context do
    {source, id} = {large_file(context.folder), large_id()}

    for lose? <- [false, true] do
      with true <- lose?, {:ok, lost} <- Codex.Files.fetch(id), do: File.rm!(lost.path)
      staging = Task.async(fn -> Codex.Files.stage(source) end)
      # As often as it is asked, until the copy is there.
      found = Stream.repeatedly(fn -> {Codex.Files.fetch(id), Task.yield(staging, 0)} end)
      answers = Enum.take_while(found, fn {_fetched, staged} -> staged == nil end)
      assert length(answers) > 10
      assert {{:error, :not_staged}, nil} = hd(answers)
      assert {:ok, %{id: ^id}} = Codex.Files.fetch(id)
    end
  end

  test "finds it while others stage, lose and release it", %{source: source} do
    owner = start_owner()
    {:ok, attachment} = Codex.Files.stage(source, owner: owner)

    others =
      for _ <- 1..4 do
        Task.async(fn ->
          for _ <- 1..100 do
            {:ok, _attachment} = Codex.Files.stage(source, owner: self())
            :ok = Codex.Files.release(attachment)
            {:ok, _attachment} = Codex.Files.stage(source, name: "another.txt", owner: self())
            :ok = Codex.Files.release(attachment)
          end
        end)
      end

    for _ <- 1..500, do: assert({:ok, %{}} = Codex.Files.fetch(attachment.id))
    Task.await_many(others, 60_000)
    assert {:ok, %{}} = Codex.Files.fetch(attachment.id)
    end_owner(owner, :return)
    assert_gone(attachment)
  end

  test "refuses what is no id", %{source: source} do
    {:ok, attachment} = Codex.Files.stage(source)

    for id <- [nil, :id, 1, ~c"id", attachment, [attachment.id], %{}, <<1::3>>] do
      reason = {:invalid_option, :id, id}
      assert Codex.Files.fetch(id) == {:error, reason}
      assert Codex.Files.format_error(reason) =~ "the id of an attachment"
    end

    for opts <- [nil, :opts, %{}, [1]] do
      assert Codex.Files.fetch(attachment.id, opts) == {:error, {:invalid_option, :opts, opts}}
    end
  end
end
