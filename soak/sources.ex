defmodule Soak.Sources do
  @moduledoc false
  # The files that are staged. Every content is random, so that no two are the same unless they are
  # meant to be.

  defstruct [:path, :checksum, :size]

  @kib 1024
  @mib 1024 * @kib

  # The larger ones are copied by threads of their own; the small ones are not.
  @small 1..(16 * @kib)
  @medium (257 * @kib)..(600 * @kib)
  @large @mib..(6 * @mib)

  # Of these, by many callers at once.
  @shared 32

  @doc "What random contents are cut from, drawn once in the life of a VM."
  def prepare do
    :persistent_term.put(__MODULE__, :crypto.strong_rand_bytes(@large.last))
  end

  @doc "Whether a copier's thread copies it."
  def large?(%__MODULE__{size: size}), do: size >= @medium.first

  @doc "Writes a new content, of a random size unless it is said, over whatever is at `path`."
  def write(path, size \\ random_size()) do
    filling = binary_part(:persistent_term.get(__MODULE__), 0, size)
    content = [:crypto.strong_rand_bytes(16), filling]
    # Raw: otherwise all callers wait for the one process that opens the files of a VM.
    File.write!(path, content, [:raw])
    %__MODULE__{path: path, checksum: digest(content), size: size + 16}
  end

  @doc "One that is not large."
  def write_small(path), do: write(path, Enum.random(@small))

  @doc "The content of a source."
  def read(%__MODULE__{path: path}) do
    {:ok, pieces} = pieces(path)
    IO.iodata_to_binary(pieces)
  end

  @doc "Writes files that stay as they are, for everybody to stage again and again."
  def write_shared(dir) do
    File.mkdir_p!(dir)
    for number <- 1..@shared, do: write(Path.join(dir, "shared-#{number}"))
  end

  def large_size, do: Enum.random(@large)

  @doc "The digest of what is at `path`, or why it cannot be read."
  def digest_of_file(path) do
    with {:ok, pieces} <- pieces(path), do: {:ok, digest(pieces)}
  end

  defp pieces(path) do
    with {:ok, file} <- :file.open(path, [:read, :raw, :binary]) do
      pieces = read(file, [])
      :ok = :file.close(file)
      {:ok, pieces}
    end
  end

  defp read(file, pieces) do
    case :file.read(file, @mib) do
      {:ok, piece} -> read(file, [pieces, piece])
      :eof -> pieces
    end
  end

  defp digest(content), do: Base.encode16(:crypto.hash(:sha256, content), case: :lower)

  defp random_size do
    case :rand.uniform(100) do
      percent when percent <= 90 -> Enum.random(@small)
      percent when percent <= 98 -> Enum.random(@medium)
      _rest -> large_size()
    end
  end
end
