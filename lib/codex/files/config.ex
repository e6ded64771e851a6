defmodule Codex.Files.Config do
  @moduledoc false
  # The application environment of `:codex_sdk`, read at each use.

  @ttl_ms 86_400_000
  @cleanup_interval_ms 60_000

  # 49 days, which every timer can count.
  @longest_interval_ms 0xFFFF_FFFF

  @doc "The staging directory, and whether it is the default one."
  @spec staging_dir() :: Codex.Files.Native.staging_dir()
  def staging_dir do
    case Application.get_env(:codex_sdk, :staging_dir) do
      nil ->
        {default_staging_dir(), true}

      dir ->
        case Codex.Files.Options.path_bytes(dir) do
          {:ok, bytes} -> {bytes, false}
          # Whoever uses it gets an error that shows it.
          :error -> {dir, false}
        end
    end
  end

  # `System.tmp_dir!/0` goes to the disk, which costs more than to stage an unchanged file: its
  # result is kept for as long as the variables that it depends on stay the same.
  defp default_staging_dir do
    variables = Enum.map(["TMPDIR", "TMP", "TEMP"], &System.get_env/1)

    case :persistent_term.get(__MODULE__, nil) do
      {^variables, dir} ->
        dir

      _other ->
        dir = Path.join(System.tmp_dir!(), "codex_files")
        :persistent_term.put(__MODULE__, {variables, dir})
        dir
    end
  end

  @spec ttl_ms() :: :infinity | non_neg_integer()
  def ttl_ms, do: Application.get_env(:codex_sdk, :attachment_ttl_ms, @ttl_ms)

  @spec cleanup_interval_ms() :: pos_integer()
  def cleanup_interval_ms do
    case Application.get_env(:codex_sdk, :attachment_cleanup_interval_ms) do
      interval when is_integer(interval) and interval > 0 -> min(interval, @longest_interval_ms)
      _ -> @cleanup_interval_ms
    end
  end

  @doc "Whether unchanged files may be recognised by their times, without reading them."
  @spec recognise_unchanged?() :: boolean()
  def recognise_unchanged?,
    do: Application.get_env(:codex_sdk, :attachment_recognise_unchanged, true) == true
end
