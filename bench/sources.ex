defmodule Bench.Sources do
  @moduledoc false
  # The files that are staged: small ones, all different, and a large one. Made once, and in the
  # page cache from then on.

  @size 4096
  @per_dir 1_000

  @doc "The size of a small one."
  def size, do: @size

  @doc "Makes `count` small files below `dir`."
  def make(dir, count) do
    filling = :crypto.strong_rand_bytes(@size - 8)

    sources =
      for number <- 0..(count - 1) do
        subdir = Path.join(dir, Integer.to_string(div(number, @per_dir)))
        if rem(number, @per_dir) == 0, do: File.mkdir_p!(subdir)
        name = "file-#{String.pad_leading(Integer.to_string(number), 7, "0")}.bin"
        path = Path.join(subdir, name)
        content = [<<number::64>>, filling]
        File.write!(path, content)
        {path, name, Base.encode16(:crypto.hash(:sha256, content), case: :lower)}
      end

    # Not copied into every process that calls.
    :persistent_term.put(__MODULE__, List.to_tuple(sources))
    # Until then their times do not show every change, and they are read each time.
    Process.sleep(2_100)
  end

  @doc "The path of a small file."
  def path(number), do: elem(elem(:persistent_term.get(__MODULE__), number), 0)

  def checksum(number), do: elem(elem(:persistent_term.get(__MODULE__), number), 2)

  @doc "What `Registry.stage/1` wants to know of a small file."
  def stage_opts(number, staging_dir) do
    {path, name, checksum} = elem(:persistent_term.get(__MODULE__), number)

    %{
      checksum: checksum,
      name: name,
      persist: false,
      ttl_ms: 86_400_000,
      size: @size,
      source_path: path,
      destination_path: Path.join([staging_dir, checksum, name])
    }
  end

  @doc "Makes a file of so many MiB."
  def make_large(path, mib) do
    piece = :crypto.strong_rand_bytes(1024 * 1024)

    File.open!(path, [:write, :raw], fn file ->
      for number <- 1..mib,
          do: :ok = :file.write(file, [<<number::64>>, binary_part(piece, 0, 1024 * 1024 - 8)])
    end)

    path
  end

  @doc "Makes a file of so many MiB without data anew."
  def make_sparse(path, mib) do
    File.rm(path)

    File.open!(path, [:write, :raw], fn file ->
      {:ok, _} = :file.position(file, mib * 1024 * 1024)
      :ok = :file.truncate(file)
    end)
  end

  @doc "Gives a file a content that it has not had, of the same size."
  def change(path) do
    {:ok, file} = :file.open(path, [:read, :write, :raw])
    :ok = :file.pwrite(file, 0, <<System.unique_integer([:positive])::64, System.os_time()::64>>)
    :ok = :file.close(file)
  end
end
