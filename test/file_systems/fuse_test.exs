defmodule Codex.Files.FileSystems.FuseTest do
  @moduledoc """
  P3 where another program says what a file's times are: a staging never answers with an older content
  than the file had when it was called. P15 where it says nothing at all.
  """

  use Codex.Files.StagingCase, async: false

  alias Codex.Files.Mounts

  @moduletag :file_systems

  # Below and above the size from which on a file is copied in pieces.
  @sizes [20_000, 1_000_000]

  @large 64 * 1024 * 1024

  # The change time is the modification time, which anybody may set. Nothing is kept of a former look.
  @bindfs ["--ctime-from-mtime", "-o", "attr_timeout=0,entry_timeout=0"]
  @sshfs ["-o", "dcache_timeout=0,attr_timeout=0,entry_timeout=0"]

  # Far enough in the past to be believed.
  @times ~N[2020-01-02 03:04:05] |> NaiveDateTime.to_erl()

  defp rewrite(path, content) do
    File.write!(path, content)
    File.touch!(path, @times)
  end

  defp assert_staged(path, content) do
    assert {:ok, attachment} = Codex.Files.stage(path)
    assert attachment.checksum == sha256(content)
    assert File.read!(attachment.path) == content
  end

  for {name, options} <- [bindfs: @bindfs, sshfs: @sshfs],
      at <- [:path, :origin],
      size <- @sizes do
    test "#{name}: #{size} bytes rewritten at the #{at} with the same size and times", context do
      mount = apply(Mounts, unquote(name), [context.folder, unquote(options)])
      path = Path.join(mount.path, "source")

      for byte <- ["a", "b", "a", "c"] do
        content = :binary.copy(byte, unquote(size))
        rewrite(Path.join(mount.unquote(at), "source"), content)
        assert File.stat!(path).mtime == @times
        # The second time it may be recognised.
        assert_staged(path, content)
        assert_staged(path, content)
      end
    end
  end

  test "of a file that is rewritten while it is copied the new content is staged", context do
    %{path: path} = Mounts.bindfs(context.folder, @bindfs)
    source = Path.join(path, "source")
    rewrite(source, :binary.copy("a", @large))

    copying = Task.async(fn -> Codex.Files.stage(source) end)
    eventually(fn -> copying?(context.staging_dir) end)
    content = :binary.copy("b", @large)
    rewrite(source, content)
    assert_staged(source, content)
    # As it was read, perhaps in between.
    assert {:ok, attachment} = Task.await(copying, 60_000)
    assert_intact([attachment])
  end

  test "to verify what lies on one that hangs holds up no copy, and alone no other verification",
       context do
    mount = Mounts.bindfs_that_may_hang(context.folder)
    hanging = start_registry(staging_dir: Path.join(mount.path, "staging"))
    {:ok, attachment} = Codex.Files.stage({:data, "notes"}, name: "notes", registry: hanging)
    assert Codex.Files.verify(hanging) == {:ok, 1}

    mount.hang.()
    verify = fn -> Task.async(fn -> Codex.Files.verify(hanging) end) end
    first = verify.()
    assert Codex.Files.verify() == {:ok, 0}

    # As many as there are threads that verify, and more.
    others = for _ <- 1..4, do: verify.()

    for size <- [1_000_000, @large] do
      source = write(context.folder, "source", :binary.copy("a", size))
      assert {:ok, _attachment} = Codex.Files.stage(source)
    end

    assert Task.yield_many([first | others], 0) |> Enum.all?(&match?({_task, nil}, &1))
    mount.go_on.()
    assert Task.await_many([first | others], 60_000) == List.duplicate({:ok, 1}, 5)
    assert Codex.Files.verify() == {:ok, 2}
    assert_intact([attachment])
  end

  defp copying?(staging_dir) do
    staging_dir |> files_below() |> Enum.any?(&(Path.basename(&1) =~ ~r/^\.staging-/))
  end
end
