defmodule Codex.Files.FileSystems.MountsTest do
  # What the other tests of this folder stand on: a mount is what its name says.
  use Codex.Files.StagingCase

  alias Codex.Files.Mounts

  @moduletag :file_systems

  defp type(path), do: String.trim(sh!("stat", ["--file-system", "--format=%T", path]))

  for name <- [:bindfs, :sshfs] do
    test "#{name} shows what is written at the other path", %{folder: folder} do
      %{origin: origin, path: path} = apply(Mounts, unquote(name), [folder])

      File.write!(Path.join(origin, "file"), "content")
      assert File.read!(Path.join(path, "file")) == "content"
      assert type(path) == "fuseblk"
      refute type(origin) == "fuseblk"
    end
  end

  test "a tmpfs has the size that it is given", %{folder: folder} do
    path = Mounts.tmpfs(folder, "size=64k")

    assert type(path) == "tmpfs"
    assert {:error, :enospc} = File.write(Path.join(path, "file"), :binary.copy("x", 128 * 1024))
  end
end
