defmodule Codex.Files.FileSystems.LeftoversTest do
  @moduledoc """
  P7 where a file that is removed while it is open only gets another name, as FUSE does it: its
  directory cannot be removed before it is closed.
  """

  use Codex.Files.StagingCase, async: false

  alias Codex.Files.Mounts

  @moduletag :file_systems

  setup %{folder: folder} do
    %{path: path} = Mounts.bindfs(folder)
    configure(:staging_dir, Path.join(path, "staging"))
    %{path: path, source: write(folder, "source", "some notes")}
  end

  test "nothing is left of a staging that fails", %{path: path, source: source} do
    {:ok, _registry} = Registry.ensure_started()

    for destination <- [Path.join(Codex.Files.staging_dir(), "made"), Path.join(path, "made")] do
      opts =
        stage_opts(source,
          checksum: sha256("something else"),
          destination_path: Path.join(destination, "copy")
        )

      assert {:error, {:checksum_mismatch, _actual}} = Registry.stage(opts)
      refute File.exists?(destination)
    end
  end
end
