defmodule Codex.Files.FileSystems.FuseTest do
  @moduledoc """
  P3 where another program says what a file's times are: a staging never answers with an older content
  than the file had when it was called.
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

  defp copying?(staging_dir) do
    staging_dir |> files_below() |> Enum.any?(&(Path.basename(&1) =~ ~r/^\.staging-/))
  end
end
