defmodule Codex.Files.Config do
  @moduledoc false
  # The application environment of `:codex_sdk`, read at each use.

  @ttl_ms 86_400_000
  @cleanup_interval_ms 60_000
  @max_u64 0xFFFF_FFFF_FFFF_FFFF

  # 49 days, which every timer can count.
  @longest_interval_ms 0xFFFF_FFFF

  @type invalid :: {:error, {:invalid_config, key :: atom(), value :: term()}}

  @doc "The staging directory, and whether it is the default one."
  @spec staging_dir() :: {:ok, Codex.Files.Native.staging_dir()} | invalid()
  def staging_dir do
    with dir when dir != nil <- get(:staging_dir),
         {:ok, bytes} <- Codex.Files.Options.path_bytes(dir) do
      {:ok, {bytes, false}}
    else
      nil -> {:ok, {default_staging_dir(), true}}
      :error -> {:error, {:invalid_config, :staging_dir, get(:staging_dir)}}
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

  @doc """
  The TTL of a staging with these options, `nil` if that is left to its owner. The configured one is
  looked at if it counts.
  """
  @spec ttl_ms(keyword()) :: {:ok, term()} | {:error, {:invalid_ttl, nil}} | invalid()
  def ttl_ms(opts) do
    case Keyword.fetch(opts, :ttl_ms) do
      {:ok, nil} ->
        {:error, {:invalid_ttl, nil}}

      {:ok, ttl_ms} ->
        {:ok, ttl_ms}

      :error ->
        cond do
          Keyword.get(opts, :persist) == true -> {:ok, :infinity}
          Keyword.has_key?(opts, :owner) -> {:ok, nil}
          true -> checked(:attachment_ttl_ms, @ttl_ms, &(&1 == :infinity or &1 in 0..@max_u64))
        end
    end
  end

  @spec cleanup_interval_ms() :: {:ok, pos_integer()} | invalid()
  def cleanup_interval_ms do
    with {:ok, interval_ms} <-
           checked(
             :attachment_cleanup_interval_ms,
             @cleanup_interval_ms,
             &(is_integer(&1) and &1 > 0)
           ),
         do: {:ok, min(interval_ms, @longest_interval_ms)}
  end

  @doc "Whether unchanged files may be recognised by their times, without reading them."
  @spec recognise_unchanged() :: {:ok, boolean()} | invalid()
  def recognise_unchanged, do: checked(:attachment_recognise_unchanged, true, &is_boolean/1)

  defp checked(key, default, valid?) do
    case get(key) do
      nil -> {:ok, default}
      value -> if valid?.(value), do: {:ok, value}, else: {:error, {:invalid_config, key, value}}
    end
  end

  defp get(key), do: Application.get_env(:codex_sdk, key)
end
