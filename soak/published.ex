defmodule Soak.Published do
  @moduledoc false
  # What is on the disk at staged paths, whoever put it there.

  alias Soak.{Damage, Problems, Sources}

  @doc "The directories of registries, living or dead."
  def areas(staging_dir), do: Path.wildcard(Path.join(staging_dir, "codex_files-*"))

  @doc """
  Checks that each file at a staged path of an area, or at a destination, has the digest that it is
  there under. Returns the number of files, and that of copies on their way in.
  """
  def check(areas, elsewhere, problems) do
    staged =
      for area <- areas,
          path <- Path.wildcard(Path.join(area, "*/*")),
          do: {Path.basename(Path.dirname(path)), path}

    destinations =
      for path <- Path.wildcard(Path.join(elsewhere, "*")), do: {Path.basename(path), path}

    for {checksum, path} <- staged ++ destinations, not Damage.on_purpose?(path) do
      case Sources.digest_of_file(path) do
        {:ok, ^checksum} ->
          :ok

        other ->
          Problems.add(problems, :wrong_content, "partial file at #{path}: #{inspect(other)}")
      end
    end

    {length(staged) + length(destinations), length(scratch(areas, elsewhere))}
  end

  defp scratch(areas, elsewhere) do
    below = Enum.flat_map(areas, &[Path.join(&1, ".staging-*"), Path.join(&1, "*/.staging")])

    Enum.flat_map([Path.join(elsewhere, ".*") | below], fn pattern ->
      pattern |> Path.wildcard(match_dot: true) |> Enum.filter(&File.regular?/1)
    end)
  end
end
