defmodule Codex.Files.P21NamesTest do
  @moduledoc """
  P21: a staging answers with the name that it was asked for.
  """

  use Codex.Files.StagingCase, async: false

  alias Codex.Files.FakeTelemetry

  # Below and above the size from which on a copier stages a file.
  @sizes [4096, 300_000]

  # What other tests do not stage.
  defp bytes(size), do: :crypto.strong_rand_bytes(size)

  defp staged(source, opts) do
    assert {:ok, attachment} = Codex.Files.stage(source, opts)
    attachment
  end

  defp inode(path), do: File.lstat!(path).inode

  # Asserts that all are one file, where the file system says so of links.
  defp assert_one_file(paths) do
    if System.get_env("CODEX_FILES_TEST_FILE_SYSTEM") != "sshfs",
      do: assert([_inode] = paths |> Enum.map(&inode/1) |> Enum.uniq())
  end

  # Asserts that it is there under the name that was asked for, whole.
  defp assert_named(attachment, name) do
    assert attachment.name == name
    assert Path.basename(attachment.path) == name
    assert File.lstat!(attachment.path).type == :regular
    assert sha256(File.read!(attachment.path)) == attachment.checksum
  end

  describe "content that is known under another name" do
    test "is found under the one that was asked for, whatever it comes from", context do
      for size <- @sizes do
        bytes = bytes(size)
        source = write(context.folder, "source/one.bin", bytes)
        other = write(context.folder, "source/other.bin", bytes)

        sources = [
          {source, [], "one.bin"},
          {source, [name: "two.bin"], "two.bin"},
          {other, [], "other.bin"},
          {{:data, bytes}, [name: "three.bin"], "three.bin"},
          {{:data, [bytes]}, [name: "two.bin"], "two.bin"},
          {{:stream, IO.binstream(File.open!(source), 1000)}, [name: "four.bin"], "four.bin"},
          {{:stream, [bytes]}, [name: "one.bin"], "one.bin"},
          {source, [], "one.bin"}
        ]

        attachments =
          for {source, opts, name} <- sources do
            attachment = staged(source, opts)
            assert_named(attachment, name)
            attachment
          end

        assert [_checksum] = Enum.uniq_by(attachments, & &1.checksum) |> Enum.map(& &1.checksum)
        assert [_dir] = attachments |> Enum.map(&Path.dirname(&1.path)) |> Enum.uniq()
        # It takes its room once.
        attachments |> Enum.map(& &1.path) |> assert_one_file()
      end
    end

    test "is listed, looked up and counted once, under its first name", %{folder: folder} do
      FakeTelemetry.start()
      source = write(folder, "first.bin", "some content")
      first = staged(source, ttl_ms: 60_000)
      second = staged(source, name: "second.bin", ttl_ms: 0)

      listed = %{second | name: first.name, path: first.path}
      assert Codex.Files.list_staged() == [listed]
      assert Codex.Files.fetch(first.id) == {:ok, listed}
      assert %{total_count: 1, total_bytes: 12} = Codex.Files.metrics()

      names =
        for _ <- 1..2 do
          assert_receive {:telemetry, [_, _, :staged], _, metadata}
          metadata
        end

      assert [%{name: "first.bin", cached?: false}, %{name: "second.bin", cached?: true}] = names

      assert Codex.Files.force_cleanup() == :ok
      assert_receive {:telemetry, [_, _, :cleaned], %{count: 1, bytes: 12}, %{name: "first.bin"}}
      refute_receive {:telemetry, [_, _, :cleaned], _, _}, 50
    end

    test "goes with its entry, under all of its names", %{folder: folder, staging_dir: dir} do
      source = write(folder, "first.bin", "some content")

      for remove <- [
            fn _id -> Codex.Files.force_cleanup() end,
            fn _id -> Codex.Files.reset!() end,
            &Codex.Files.unstage/1,
            fn _id -> stop_default_registry() end
          ] do
        %{id: id} = staged(source, ttl_ms: 60_000)
        for name <- ["second.bin", "third.bin"], do: staged(source, name: name, ttl_ms: 0)
        assert remove.(id) == :ok
        assert files_in_areas(dir) == []
        refute Enum.any?(files_below(dir), &(&1 =~ id))
      end
    end

    test "is there as long as its entry, under all of its names", %{folder: folder} do
      source = write(folder, "first.bin", "some content")
      first = staged(source, ttl_ms: 0, owner: self())
      second = staged(source, name: "second.bin", ttl_ms: 0)
      assert Codex.Files.force_cleanup() == :ok
      assert_named(first, "first.bin")
      assert_named(second, "second.bin")

      assert {:ok, "third.bin"} =
               Codex.Files.temporary(source, [name: "third.bin"], fn third ->
                 assert_named(third, "third.bin")
                 third.name
               end)

      assert_named(first, "first.bin")
      assert Codex.Files.release(second) == :ok
      eventually(fn -> Codex.Files.list_staged() == [] end)
      for %{path: path} <- [first, second], do: refute(File.exists?(path))
    end

    test "is known under all of its names to the successor of a killed registry", %{
      folder: folder
    } do
      source = write(folder, "first.bin", "some content")
      staged(source, [])
      second = staged(source, name: "second.bin")
      kill_default_registry()
      FakeTelemetry.start()
      assert staged(source, name: "second.bin").path == second.path
      assert FakeTelemetry.cached() == [true]
    end

    test "has the names of each registry apart", %{folder: folder, staging_dir: dir} do
      source = write(folder, "first.bin", "some content")
      other = start_registry(staging_dir: dir)
      first = staged(source, [])
      second = staged(source, name: "second.bin", registry: other)
      assert_named(second, "second.bin")
      assert Path.dirname(first.path) != Path.dirname(second.path)
      assert Codex.Files.reset!(other) == :ok
      assert_named(first, "first.bin")
      refute File.exists?(second.path)
    end
  end

  describe "a name" do
    test "can be any that a file has", %{folder: folder} do
      source = write(folder, "first.bin", "some content")
      staged(source, [])

      names = [
        ".staging",
        ".staging-",
        ".staging-7",
        ".elsewhere-0",
        ".hidden",
        "-rf",
        " ",
        "line\nbreak",
        "Ünïcödé 🎉",
        <<255, 254, 0xC3>>,
        String.duplicate("x", 255),
        "first.BIN"
      ]

      for _ <- 1..2, name <- names, do: assert_named(staged(source, name: name), name)
      assert [%{name: "first.bin", path: path}] = Codex.Files.list_staged()
      assert files_below(Path.dirname(path)) -- names == ["first.bin"]
    end

    test "that is none changes nothing", %{folder: folder} do
      source = write(folder, "first.bin", "some content")
      first = staged(source, [])

      for name <- ["", ".", "..", "a/b", "a\0b", String.duplicate("x", 256)] do
        assert Codex.Files.stage(source, name: name) == {:error, {:invalid_name, name}}
      end

      assert Codex.Files.list_staged() == [first]
      assert File.ls!(Path.dirname(first.path)) == ["first.bin"]
    end
  end

  describe "what somebody has removed" do
    test "is there again under the name that is asked for, linked from any other", context do
      for size <- @sizes, recognise? <- [true, false] do
        stop_default_registry()
        configure(:attachment_recognise_unchanged, recognise?)
        source = write(context.folder, "first", bytes(size))
        names = ["first", "second", "third"]
        paths = Map.new(names, &{&1, staged(source, name: &1).path})

        for lost <- names do
          File.rm!(paths[lost])
          again = staged(source, name: lost)
          assert_named(again, lost)
          assert again.path == paths[lost]
          paths |> Map.values() |> assert_one_file()
        end
      end
    end

    test "is there again under all of its names, if it was lost under all of them", context do
      for size <- @sizes,
          asked <- ["first", "second", "fourth"],
          change <- [:removed, :changed] do
        source = write(context.folder, "first", bytes(size))
        all = for name <- ["first", "second", "third"], do: staged(source, name: name)

        for %{path: path} <- all do
          if change == :removed, do: File.rm!(path)
        end

        if change == :changed do
          path = hd(all).path
          File.chmod!(path, 0o600)
          File.write!(path, "something else")
        end

        assert_named(staged(source, name: asked), asked)
        for %{path: path} = before <- all, do: assert_named(before, Path.basename(path))
        # Its first name stays the first one.
        assert {:ok, %{name: "first"}} = Codex.Files.fetch(hd(all).id)
        assert Codex.Files.reset!() == :ok
      end
    end

    test "does not hide that the first name is what a listing shows", %{folder: folder} do
      source = write(folder, "first", "some content")
      first = staged(source, [])
      second = staged(source, name: "second")
      File.rm!(first.path)
      assert Codex.Files.fetch(first.id) == {:error, :not_staged}
      assert staged(source, name: "second").path == second.path
      assert staged(source, []).path == first.path
      assert {:ok, %{name: "first"}} = Codex.Files.fetch(first.id)
    end
  end

  describe "many who ask at once" do
    test "for new content under many names have each the one they asked for", %{folder: folder} do
      for size <- @sizes do
        bytes = bytes(size)
        source = write(folder, "source", bytes)

        attachments =
          1..64
          |> Task.async_stream(
            fn number ->
              name = "name #{rem(number, 16)}"
              source = if rem(number, 3) == 0, do: {:data, bytes}, else: source
              attachment = staged(source, name: name)
              assert_named(attachment, name)
              attachment
            end,
            max_concurrency: 64,
            timeout: 60_000
          )
          |> Enum.map(fn {:ok, attachment} -> attachment end)

        attachments |> Enum.map(& &1.path) |> assert_one_file()
        assert [one] = Codex.Files.list_staged()
        assert length(File.ls!(Path.dirname(one.path))) == 16
        assert Codex.Files.reset!() == :ok
      end
    end

    test "while it is removed over and over have it under their names", %{folder: folder} do
      source = write(folder, "source", bytes(4096))

      removing =
        Task.async(fn ->
          for _ <- 1..200, do: :ok = Codex.Files.force_cleanup()
        end)

      staging =
        for number <- 1..4 do
          Task.async(fn ->
            for round <- 1..50 do
              name = "name #{number} #{rem(round, 5)}"
              # Its own staging keeps it while it is looked at.
              attachment = staged(source, name: name, owner: self())
              assert_named(attachment, name)
              assert Codex.Files.release(attachment) == :ok
            end
          end)
        end

      Task.await_many([removing | staging], 60_000)
      eventually(fn -> Codex.Files.list_staged() == [] end)
    end
  end

  describe "Registry.stage/1" do
    setup do
      {:ok, _registry} = Registry.ensure_started()
      :ok
    end

    test "keeps the first name and path, and the modes", %{folder: folder} do
      source = write(folder, "first", "some content")
      first = staged(source, [])
      staged(source, name: "second")
      File.chmod!(source, 0o755)

      opts =
        stage_opts(source, name: "third", destination_path: Path.join(folder, "elsewhere/third"))

      assert {:ok, again} = Registry.stage(opts)
      assert {again.name, again.path} == {"first", first.path}
      refute File.exists?(opts.destination_path)
      assert mode(first.path) == 0o400
    end

    @tag skip:
           not_on(
             ["sshfs"],
             "its links cannot be told from other files, so that names are copies"
           )
    test "finds its first name again if that was removed and another is there", %{folder: folder} do
      source = write(folder, "source", "some content")
      File.mkdir_p!(Path.join(folder, "elsewhere"))
      path = Path.join(folder, "elsewhere/first")
      opts = stage_opts(source, name: "first", destination_path: path)
      assert {:ok, %{path: ^path}} = Registry.stage(opts)
      second = staged(source, name: "second")
      assert_named(second, "second")
      assert_one_file([second.path, path])

      File.rm!(path)
      File.rm!(source)
      assert {:ok, %{path: ^path}} = Registry.stage(opts)
      assert File.read!(path) == "some content"
      assert Codex.Files.reset!() == :ok
      refute File.exists?(path)
    end

    test "may report a name that is not the path's, which a later staging has", %{folder: folder} do
      source = write(folder, "source", "some content")
      path = Path.join(folder, "elsewhere/copy.bin")

      assert {:ok, first} =
               Registry.stage(stage_opts(source, name: "report", destination_path: path))

      assert {first.name, first.path} == {"report", path}

      for name <- ["report", "copy.bin", "third"] do
        attachment = staged(source, name: name)
        assert_named(attachment, name)
        assert String.starts_with?(attachment.path, Codex.Files.staging_dir())
      end

      assert [%{name: "report", path: ^path}] = Codex.Files.list_staged()
    end
  end

  test "what its owner may execute can be executed under all of its names", %{folder: folder} do
    for size <- @sizes do
      bytes = bytes(size)
      plain = write(folder, "plain", bytes)
      script = write(folder, "script", bytes)
      File.chmod!(script, 0o755)
      first = staged(plain, [])
      assert mode(first.path) == 0o400
      second = staged(script, [])
      third = staged({:data, bytes}, name: "third")
      for %{path: path} <- [first, second, third], do: assert(mode(path) == 0o500)
      # As long as the content is staged.
      for %{path: path} <- [first, second, third], do: File.rm!(path)
      staged(plain, name: "third")
      for %{path: path} <- [first, second, third], do: assert(mode(path) == 0o500)
    end
  end

  test "a registry with a file module keeps the first name, as the SDK does", %{folder: folder} do
    start_default_registry(file_module: Codex.Files.Copy)
    source = write(folder, "first", "some content")
    first = staged(source, [])
    second = staged(source, name: "second")
    assert {second.name, second.path} == {"first", first.path}
  end
end
