defmodule Codex.Files.Verification do
  @moduledoc false
  # What a registry with a file module sees of files: it changes none here. What is missing is for the
  # file module to complain of, since it may keep its files out of our sight.

  alias Codex.Files.ManifestTable

  @typedoc """
  What a changed file differs in, and whether its times were old when its content was verified: they
  are in seconds, so that a change within the same second does not show. `nil` for a file that is not
  to be seen.
  """
  @type look :: {identity :: tuple(), settled? :: boolean()} | nil

  @settled_after_s 2
  @chunk_bytes 262_144

  @doc "Whether a file can be copied there, and there is none yet."
  @spec check_places(Path.t(), Path.t()) :: {:ok, new? :: boolean()} | {:error, term()}
  def check_places(source, destination) do
    {source_stat, destination_stat} = {File.stat(source), File.lstat(destination)}

    with :ok <- check_type(:unsupported_file_type, source_stat),
         :ok <- check_type(:unsupported_destination, destination_stat),
         :ok <- check_apart(source, source_stat, destination_stat),
         do: {:ok, destination_stat == {:error, :enoent}}
  end

  # A file that is staged onto itself would be emptied by the copy, and then expire.
  defp check_apart(source, {:ok, one}, {:ok, other})
       when {one.major_device, one.inode} == {other.major_device, other.inode},
       do: {:error, {:destination_is_source, source}}

  defp check_apart(_source, _source_stat, _destination_stat), do: :ok

  defp check_type(_kind, {:error, _reason}), do: :ok
  defp check_type(_kind, {:ok, %File.Stat{type: :regular}}), do: :ok

  defp check_type(:unsupported_file_type, {:ok, %File.Stat{type: :directory}}),
    do: {:error, :eisdir}

  # `File.Stat` has no type for some, but their mode tells.
  defp check_type(kind, {:ok, %File.Stat{type: :other, mode: mode}}) do
    case Bitwise.band(mode, 0o170000) do
      0o010000 -> {:error, {kind, :fifo}}
      0o140000 -> {:error, {kind, :socket}}
      _another -> {:error, {kind, :other}}
    end
  end

  defp check_type(kind, {:ok, %File.Stat{type: type}}), do: {:error, {kind, type}}

  @doc "Checks that a file has the content that its checksum claims, if that has the form of a digest."
  @spec check_content(String.t(), Path.t()) :: :ok | {:error, term()}
  def check_content(checksum, path) do
    with true <- byte_size(checksum) == 64 and checksum =~ ~r/\A[0-9a-f]+\z/,
         {:ok, {actual, _size}} when actual != checksum <- digest(path) do
      {:error, {:checksum_mismatch, actual}}
    else
      {:error, _reason} = error -> error
      _right_or_no_digest -> :ok
    end
  end

  @doc "The SHA-256 digest of a regular file, and its size. Takes constant memory."
  @spec digest(Path.t()) :: {:ok, {String.t(), non_neg_integer()}} | {:error, term()}
  def digest(path) do
    hash = :crypto.hash_init(:sha256)

    with :ok <- check_type(:unsupported_file_type, File.stat(path)),
         {:ok, result} <- File.open(path, [:read, :raw], &digest(&1, hash, 0)),
         do: result
  end

  defp digest(file, hash, size) do
    case :file.read(file, @chunk_bytes) do
      {:ok, bytes} -> digest(file, :crypto.hash_update(hash, bytes), size + byte_size(bytes))
      :eof -> {:ok, {Base.encode16(:crypto.hash_final(hash), case: :lower), size}}
      {:error, _reason} = error -> error
    end
  end

  @doc "Looks at a file that is in place. What changes while it is read afterwards shows later."
  @spec look(Path.t()) :: look()
  def look(path) do
    case File.lstat(path, time: :posix) do
      {:ok, stat} ->
        settled? = System.os_time(:second) - max(stat.mtime, stat.ctime) >= @settled_after_s
        {{stat.major_device, stat.inode, stat.size, stat.mtime, stat.ctime}, settled?}

      {:error, _reason} ->
        nil
    end
  end

  @doc "Whether an entry's file is there, unchanged."
  @spec look_again(ManifestTable.entry() | nil) :: {:known, look()} | :lost
  def look_again(nil), do: :lost
  def look_again({_checksum, _attachment, _deadline, nil}), do: {:known, nil}

  def look_again({checksum, attachment, _deadline, {identity, settled?}}) do
    with {^identity, _settled?} = now <- look(attachment.path),
         true <- settled? or check_content(checksum, attachment.path) == :ok do
      {:known, now}
    else
      _changed_or_gone -> :lost
    end
  end
end
