defmodule Codex.Files.P20DataTest do
  @moduledoc """
  P20: a source can be a path, bytes in memory or a stream, with the same guarantees: whole or not at
  all, constant memory, nothing left behind when the caller dies in the middle. Here: bytes in memory.
  """

  use Codex.Files.StagingCase, async: false

  alias Codex.Files.FakeTelemetry

  @small 4096
  # From here on a copier stages it.
  @large 256 * 1024 + 1

  defp stage(source, opts \\ []),
    do: Codex.Files.stage(source, Keyword.put_new(opts, :name, "name.bin"))

  # That no other test stages, and that differ from place to place.
  defp bytes(size), do: :crypto.strong_rand_bytes(size)

  describe "bytes in memory" do
    test "are staged under their checksum, private to their owner", context do
      for size <- [0, 1, @small, @large - 1, @large, 3_000_000] do
        bytes = bytes(size)
        assert {:ok, attachment} = stage({:data, bytes}, name: "image.png", ttl_ms: 60_000)
        assert %Attachment{name: "image.png", size: ^size, ttl_ms: 60_000} = attachment
        assert attachment.checksum == sha256(bytes)
        assert attachment.id == attachment.checksum
        assert Path.basename(attachment.path) == "image.png"
        assert File.read!(attachment.path) == bytes
        assert mode(attachment.path) == 0o400
        assert attachment in Codex.Files.list_staged()
      end

      assert Codex.Files.reset!() == :ok
      assert files_in_areas(context.staging_dir) == []
    end

    test "can be any iodata", %{folder: folder} do
      for iodata <- [
            [],
            ["a", ~c"bc", [?d, ["e" | "f"]], <<0, 255>>],
            List.duplicate(["many ", ?s, ["mall ", []]], 20_000),
            Enum.reduce(1..100_000, [], &[&2 | <<&1::32>>]),
            [bytes(@large), "and a little"]
          ] do
        bytes = IO.iodata_to_binary(iodata)
        assert {:ok, attachment} = stage({:data, iodata})
        assert File.read!(attachment.path) == bytes
        assert {:ok, same} = stage(write(folder, "file", bytes), name: "name.bin")
        assert same.path == attachment.path
      end
    end

    test "may be a part of a binary", _context do
      whole = bytes(2 * @large)

      for size <- [10, @small, @large] do
        part = binary_part(whole, 7, size)
        assert {:ok, attachment} = stage({:data, part})
        assert File.read!(attachment.path) == part
      end
    end

    @tag skip: not_on(~w(sshfs), "the times of directories are whole seconds there")
    test "that are known are renewed, and nothing is written", _context do
      for size <- [0, @small, @large] do
        bytes = bytes(size)
        {:ok, first} = stage({:data, bytes}, ttl_ms: 60_000)
        %{inode: inode} = File.stat!(first.path)
        area = first.path |> Path.dirname() |> Path.dirname()
        changed = last_change(area)
        assert {:ok, again} = stage({:data, bytes}, ttl_ms: 120_000)
        assert last_change(area) == changed
        {:ok, _another} = stage({:data, bytes(size + 1)})
        refute last_change(area) == changed

        assert again.path == first.path
        assert again.ttl_ms == 120_000
        assert File.stat!(again.path).inode == inode
        assert DateTime.compare(again.inserted_at, first.inserted_at) != :lt
      end
    end

    test "whose file was lost or changed are written again", _context do
      for size <- [@small, @large], disturb <- [&File.rm!/1, &overwrite/1] do
        bytes = bytes(size)
        {:ok, first} = stage({:data, bytes})
        disturb.(first.path)
        assert {:ok, again} = stage({:data, bytes})
        assert_intact([again])
      end
    end

    test "that many stage at once are written once", context do
      FakeTelemetry.start()

      for size <- [@small, @large] do
        bytes = bytes(size)
        tasks = for _ <- 1..20, do: Task.async(fn -> stage({:data, bytes}) end)
        attachments = for {:ok, attachment} <- Task.await_many(tasks, 30_000), do: attachment
        assert [_] = attachments |> Enum.map(& &1.path) |> Enum.uniq()
        assert length(attachments) == 20
        assert Enum.count(FakeTelemetry.cached(), &(not &1)) == 1
      end

      assert length(files_in_areas(context.staging_dir)) == 2
    end

    test "are kept as long as their owner lives", _context do
      for size <- [@small, @large] do
        owner = spawn(fn -> receive(do: (:never -> :ok)) end)
        assert {:ok, attachment} = stage({:data, bytes(size)}, owner: owner)
        assert Codex.Files.force_cleanup() == :ok
        assert File.exists?(attachment.path)
        kill(owner)
        eventually(fn -> not File.exists?(attachment.path) end)

        bytes = bytes(size)
        result = Codex.Files.temporary({:data, bytes}, [name: "n"], &File.read!(&1.path))
        assert result == {:ok, bytes}
        eventually(fn -> Codex.Files.list_staged() == [] end)
      end
    end

    test "leave nothing when their caller is killed", context do
      {:ok, _known} = stage({:data, "something"})

      for _ <- 1..10 do
        bytes = bytes(3_000_000)
        caller = spawn(fn -> stage({:data, bytes}, ttl_ms: 0) end)
        Process.exit(caller, :kill)
      end

      # Whole, or not at all.
      eventually(fn ->
        Codex.Files.force_cleanup()
        files_in_areas(context.staging_dir) == ["name.bin"]
      end)
    end

    test "give clear errors when they cannot be staged, and change nothing", context do
      {:ok, kept} = stage({:data, "kept"}, persist: true)
      metrics = Codex.Files.metrics()

      for {source, opts, reason} <- [
            {{:data, "x"}, [], {:missing_option, :name}},
            {{:data, "x"}, [name: nil], {:invalid_option, :name, nil}},
            {{:data, "x"}, [name: ""], {:invalid_name, ""}},
            {{:data, "x"}, [name: "a/b"], {:invalid_name, "a/b"}},
            {{:data, "x"}, [name: ".."], {:invalid_name, ".."}},
            {{:data, "x"}, [name: "n", ttl_ms: -1], {:invalid_ttl, -1}},
            {{:data, "x"}, [name: "n", persist: 1], {:invalid_option, :persist, 1}},
            {{:data, "x"}, [name: "n", owner: nil], {:invalid_option, :owner, nil}},
            {{:data, "x"}, nil, {:invalid_option, :opts, nil}},
            {{:data, [256]}, [name: "n"], {:invalid_option, :source, [256]}},
            {{:data, [-1]}, [name: "n"], {:invalid_option, :source, [-1]}},
            {{:data, ["a" | 98]}, [name: "n"], {:invalid_option, :source, ["a" | 98]}},
            {{:data, [:a]}, [name: "n"], {:invalid_option, :source, [:a]}},
            {{:data, nil}, [name: "n"], {:invalid_option, :source, nil}},
            {{:data, 65}, [name: "n"], {:invalid_option, :source, 65}},
            {{:data, <<1::3>>}, [name: "n"], {:invalid_option, :source, <<1::3>>}},
            {{:data, %{}}, [name: "n"], {:invalid_option, :source, %{}}},
            {{:data, "x", "y"}, [name: "n"], {:invalid_option, :path, {:data, "x", "y"}}},
            {{:bytes, "x"}, [name: "n"], {:invalid_option, :path, {:bytes, "x"}}},
            {:data, [name: "n"], {:invalid_option, :path, :data}}
          ] do
        assert {source, Codex.Files.stage(source, opts)} == {source, {:error, reason}}
        assert {source, Codex.Files.temporary(source, opts, & &1)} == {source, {:error, reason}}
        assert Codex.Files.format_error(reason) =~ "expected"
      end

      assert Codex.Files.metrics() == metrics
      assert Codex.Files.list_staged() == [kept]
      assert files_in_areas(context.staging_dir) == ["name.bin"]
    end

    test "need a registry that does its own file operations", _context do
      stop_default_registry()
      start_default_registry(file_module: Codex.Files.Copy)
      assert stage({:data, "x"}) == {:error, :not_supported}
      assert Codex.Files.temporary({:data, "x"}, [name: "n"], & &1) == {:error, :not_supported}
    end
  end

  describe "a long list of bytes in memory" do
    test "is staged, and written only if it is new", _context do
      # More than 8 MiB.
      list = List.duplicate([bytes(100), [?b, "yte" | "s"]], 90_000)
      bytes = IO.iodata_to_binary(list)
      {:ok, known} = stage({:data, "something"})
      area = known.path |> Path.dirname() |> Path.dirname()
      assert {:ok, first} = stage({:data, list}, ttl_ms: 60_000)
      assert File.read!(first.path) == bytes
      changed = last_change(area)

      assert {:ok, again} = stage({:data, list}, ttl_ms: 120_000)
      assert {again.path, again.ttl_ms} == {first.path, 120_000}
      assert {:ok, ^again} = Codex.Files.fetch(first.id)
      assert last_change(area) == changed

      File.rm!(first.path)
      assert {:ok, lost} = stage({:data, list})
      assert File.read!(lost.path) == bytes
      assert Codex.Files.temporary({:data, list}, [name: "n"], & &1.name) == {:ok, "n"}
    end

    test "is refused as a short one is", context do
      long = List.duplicate("0123456789abcdef", 600_000)

      for tail <- [[256], 98, [:a], [nil], [<<1::3>>]] do
        list = long ++ tail
        assert stage({:data, list}) == {:error, {:invalid_option, :source, list}}
      end

      for {opts, reason} <- [
            {[], {:missing_option, :name}},
            {[name: ".."], {:invalid_name, ".."}},
            {[name: "n", ttl_ms: 1.5], {:invalid_ttl, 1.5}}
          ] do
        assert Codex.Files.stage({:data, long}, opts) == {:error, reason}
      end

      assert files_in_areas(context.staging_dir) == []
    end
  end

  defp overwrite(path) do
    File.chmod!(path, 0o600)
    File.write!(path, "changed")
  end

  # When something was last made or removed in a directory, in nanoseconds.
  defp last_change(dir), do: sh!("stat", ["-c", "%y", dir])
end
