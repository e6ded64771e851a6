defmodule Comparator.Files do
  @moduledoc false
  # The same work in plain Elixir, as one would write it without the library: what the benchmark
  # compares it with. It does the same as the original, and looks whether the file of a known checksum
  # is still there, as the library does. It hashes the source and then copies it, one file operation
  # at a time, and leaves an expired file's directory behind.

  alias Comparator.Registry

  def staging_dir, do: Application.fetch_env!(:comparator, :staging_dir)

  def stage(path, opts \\ []) do
    with {:ok, %File.Stat{type: :regular, size: size}} <- File.stat(path),
         {:ok, content} <- File.read(path) do
      checksum = Base.encode16(:crypto.hash(:sha256, content), case: :lower)
      name = Keyword.get(opts, :name, Path.basename(path))
      persist = Keyword.get(opts, :persist, false)

      Registry.stage(%{
        checksum: checksum,
        name: name,
        persist: persist,
        ttl_ms: if(persist, do: :infinity, else: Keyword.get(opts, :ttl_ms, 86_400_000)),
        size: size,
        source_path: path,
        destination_path: Path.join([staging_dir(), checksum, name])
      })
    else
      {:ok, %File.Stat{type: :directory}} -> {:error, :eisdir}
      {:ok, %File.Stat{type: type}} -> {:error, {:unsupported_file_type, type}}
      {:error, reason} -> {:error, reason}
    end
  end

  @doc """
  Writes what a stream gives below `dir`, under its checksum, in one pass. It is only written: nobody is
  told of it, and nothing removes it.
  """
  def write_stream(stream, dir) do
    scratch = Path.join(dir, ".scratch")
    File.mkdir_p!(dir)

    checksum =
      File.open!(scratch, [:write, :raw, :exclusive], fn file ->
        stream
        |> Enum.reduce(:crypto.hash_init(:sha256), fn piece, hash ->
          :ok = :file.write(file, piece)
          :crypto.hash_update(hash, piece)
        end)
        |> :crypto.hash_final()
        |> Base.encode16(case: :lower)
      end)

    File.mkdir_p!(Path.join(dir, checksum))
    File.rename!(scratch, Path.join([dir, checksum, "stream.bin"]))
  end

  defdelegate list_staged, to: Registry, as: :list
  defdelegate metrics, to: Registry
  defdelegate force_cleanup, to: Registry

  def reset!, do: Registry.reset(staging_dir())
end
