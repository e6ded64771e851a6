defmodule Codex.Files.FileSystems.NamesTest do
  @moduledoc """
  P21 where the file system has no hard links, or gives each of them a number of its own: a staging
  answers with the name that it was asked for.
  """

  use Codex.Files.StagingCase, async: false

  alias Codex.Files.Mounts

  @moduletag :file_systems

  @mounts [bindfs: [], sshfs: [], sshfs: ["-o", "disable_hardlink"]]

  for {name, options} <- @mounts, size <- [4096, 300_000] do
    test "#{name} #{Enum.join(options, " ")}: #{size} bytes are found under each name", context do
      %{path: path} = apply(Mounts, unquote(name), [context.folder, unquote(options)])
      dir = Path.join(path, "staging")
      configure(:staging_dir, dir)
      bytes = :crypto.strong_rand_bytes(unquote(size))
      source = write(context.folder, "first", bytes)
      names = ["first", "second", "third", ".staging"]

      staged = fn ->
        for name <- names do
          assert {:ok, attachment} = Codex.Files.stage(source, name: name)
          assert Path.basename(attachment.path) == name
          assert File.read!(attachment.path) == bytes
          attachment.path
        end
      end

      paths = staged.()
      # Each is known for what it is: none is made anew.
      inodes = Enum.map(paths, &File.lstat!(&1).inode)
      assert staged.() == paths
      assert Enum.map(paths, &File.lstat!(&1).inode) == inodes

      for lost <- paths do
        File.rm!(lost)
        assert staged.() == paths
      end

      assert [%{name: "first"}] = Codex.Files.list_staged()
      assert {:ok, 1} = Codex.Files.verify()
      assert Codex.Files.reset!() == :ok
      assert files_in_areas(dir) == []
    end
  end

  test "a name on another file system than its caller's destination is a copy", context do
    dir = Mounts.tmpfs(context.folder)
    configure(:staging_dir, Path.join(dir, "staging"))
    source = write(context.folder, "source", "some content")
    destination = Path.join(context.folder, "elsewhere/first")
    {:ok, _registry} = Registry.ensure_started()
    assert {:ok, first} = Registry.stage(stage_opts(source, destination_path: destination))
    assert {:ok, second} = Codex.Files.stage(source, name: "second")
    assert first.path == destination
    assert String.starts_with?(second.path, dir)
    assert_intact([first, second])
    assert Codex.Files.reset!() == :ok
    refute File.exists?(destination)
    assert files_in_areas(dir) == []
  end
end
