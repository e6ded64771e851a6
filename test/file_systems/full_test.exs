defmodule Codex.Files.FileSystems.FullTest do
  # P20: on a disk that is full a source is an error, whatever it is, and nothing of it is left.
  use Codex.Files.StagingCase, async: false

  alias Codex.Files.Mounts

  @moduletag :file_systems

  test "what does not fit leaves nothing, and what does is staged", %{folder: folder} do
    full = Mounts.tmpfs(folder, "size=2m,mode=0700")
    configure(:staging_dir, full)
    assert {:ok, _attachment} = Codex.Files.stage({:data, "some bytes"}, name: "name")
    [area] = Path.wildcard(Path.join(full, "*"))
    before = files_below(area)

    large = :crypto.strong_rand_bytes(3_000_000)
    pieces = Stream.map(1..30, fn _number -> :crypto.strong_rand_bytes(100_000) end)

    for source <- [{:data, large}, {:stream, pieces}, write(folder, "large", large)] do
      assert Codex.Files.stage(source, name: "name") == {:error, :enospc}
      assert files_below(area) == before
    end

    fits = Stream.take(pieces, 15)
    assert {:ok, attachment} = Codex.Files.stage({:stream, fits}, name: "name")
    assert_intact([attachment])
  end
end
