defmodule Codex.Files.P04PublishTest do
  @moduledoc """
  P4: a file is published whole or not at all; a crash at any instant leaves no partial file at a
  staged path.
  """

  use Codex.Files.StagingCase, async: false

  alias Codex.Files.ChildVM

  @kills 5

  @tag timeout: 120_000
  test "no partial file is at a staged path when the VM is killed", context do
    %{folder: folder, staging_dir: staging_dir} = context

    # A neighbour on the same staging directory, that lives.
    {:ok, neighbour} = Codex.Files.stage(write(folder, "neighbour", "of this VM"))
    destinations = Path.join(folder, "destinations")

    for round <- 1..@kills do
      vm = ChildVM.start(staging_dir)
      ChildVM.request(vm, stage_for_ever(folder, destinations, round))
      wait_for_files(staging_dir, 10 + :rand.uniform(20))
      ChildVM.kill(vm)

      [dead] = areas(staging_dir) -- [area(neighbour)]
      staged = staged_in(dead)
      assert length(staged) > 5
      for {checksum, path} <- staged, do: assert(sha256(File.read!(path)) == checksum)

      # The library makes it, which may not have come to that.
      for name <- names_in(destinations), not String.starts_with?(name, ".") do
        assert sha256(File.read!(Path.join(destinations, name))) == name
      end

      # The next start takes away what the dead one has left, wherever it is, and nothing else.
      restarted = ChildVM.start(staging_dir)
      ChildVM.eval(restarted, quote(do: Codex.Files.list_staged()))
      eventually(fn -> areas(staging_dir) == [area(neighbour)] end)
      assert files_below(destinations) == []
      assert_intact([neighbour])
      ChildVM.stop(restarted)
    end

    assert Codex.Files.list_staged() == [neighbour]
  end

  defp names_in(dir), do: if(File.dir?(dir), do: File.ls!(dir), else: [])

  # Small files and large ones, bytes and streams, to places of the library's choice and of the caller's.
  defp stage_for_ever(folder, destinations, round) do
    quote do
      large = :binary.copy("0123456789abcdef", 200_000)

      for worker <- 1..4 do
        spawn(fn ->
          for number <- Stream.iterate(0, &(&1 + 1)) do
            body = if rem(number, 2) == 0, do: large, else: "small"
            content = "#{unquote(round)} #{worker} #{number} #{body}"
            source = Path.join(unquote(folder), "source #{worker}")
            File.write!(source, content)

            if rem(number, 4) < 2 do
              {:ok, _attachment} = Codex.Files.stage(source)
              halves = Tuple.to_list(String.split_at(content, div(byte_size(content), 2)))
              {:ok, _attachment} = Codex.Files.stage({:data, "data " <> content}, name: "data")
              {:ok, _attachment} = Codex.Files.stage({:stream, ["s" | halves]}, name: "stream")
            else
              checksum = Base.encode16(:crypto.hash(:sha256, content), case: :lower)

              {:ok, _attachment} =
                Codex.Files.Registry.stage(%{
                  checksum: checksum,
                  name: "name",
                  persist: false,
                  ttl_ms: 60_000,
                  size: byte_size(content),
                  source_path: source,
                  destination_path: Path.join(unquote(destinations), checksum)
                })
            end
          end
        end)
      end

      # The registry has to be there before the first call of `Registry`.
      :ok
    end
    |> then(
      &quote(
        do:
          (
            Codex.Files.list_staged()
            unquote(&1)
          )
      )
    )
  end

  defp wait_for_files(staging_dir, count) do
    eventually(fn -> Enum.count(areas(staging_dir), &(length(staged_in(&1)) >= count)) > 0 end)
  end

  defp areas(staging_dir), do: Path.wildcard(Path.join(staging_dir, "codex_files-*"))

  defp area(attachment), do: attachment.path |> Path.dirname() |> Path.dirname()

  # What is at the paths that an attachment of this area can have. `Path.wildcard/1` leaves out
  # what is on its way in, since its name begins with a dot.
  defp staged_in(area) do
    for path <- Path.wildcard(Path.join(area, "*/*")),
        do: {Path.basename(Path.dirname(path)), path}
  end
end
