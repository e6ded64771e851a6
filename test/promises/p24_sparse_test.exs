defmodule Codex.Files.P24SparseTest do
  @moduledoc """
  P24: holes of a sparse file stay holes.
  """

  use Codex.Files.StagingCase, async: false

  @mib 1024 * 1024

  @moduletag skip:
               not_on(
                 ["bindfs", "sshfs"],
                 "what another program answers for is not asked where it has holes"
               )

  defp write_at(path, position, content) do
    {:ok, file} = :file.open(path, [:read, :write, :raw])
    :ok = :file.pwrite(file, position, content)
    :ok = :file.close(file)
  end

  for {name, data} <- [
        {"nothing but a hole", []},
        {"data between two holes", [{20 * @mib, 5 * @mib}]},
        {"data at both ends", [{0, @mib}, {63 * @mib, @mib}]},
        {"a hole at the end, and one in odd places", [{0, @mib + 1}, {9 * @mib + 333, 77}]}
      ] do
    test "a copy of #{name} takes no more room than its source", %{folder: folder} do
      source = sparse_file(folder, "source", 64 * @mib)

      for {position, size} <- unquote(data),
          do: write_at(source, position, :crypto.strong_rand_bytes(size))

      content = File.read!(source)
      {:ok, attachment} = Codex.Files.stage(source)
      assert attachment.checksum == sha256(content)
      assert attachment.size == 64 * @mib

      opts = stage_opts(source, checksum: "key", destination_path: Path.join(folder, "copy"))
      {:ok, elsewhere} = Registry.stage(opts)

      for %{path: copy} <- [attachment, elsewhere] do
        assert File.read!(copy) == content
        assert room(copy) <= room(source) + @mib
      end
    end
  end

  test "a hole that is filled later is staged as what it has become", %{folder: folder} do
    source = sparse_file(folder, "source", 8 * @mib)
    {:ok, before} = Codex.Files.stage(source)

    for position <- [5 * @mib, 0, 8 * @mib - 1] do
      write_at(source, position, "no zeros")
      {:ok, attachment} = Codex.Files.stage(source)
      assert attachment.checksum == sha256(File.read!(source))
      assert File.read!(attachment.path) == File.read!(source)
    end

    assert File.read!(before.path) == :binary.copy(<<0>>, 8 * @mib)
  end

  test "a copy counts as many bytes as it seems to have", %{folder: folder} do
    {:ok, _attachment} = Codex.Files.stage(sparse_file(folder, "source", 8 * @mib))
    assert %{total_bytes: bytes} = Codex.Files.metrics()
    assert bytes == 8 * @mib
  end
end
