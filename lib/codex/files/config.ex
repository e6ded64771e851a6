defmodule Codex.Files.Config do
  @moduledoc false
  # The settings of a registry: the options that it was started with, and else the application
  # environment of `:codex_sdk`, read at each use.

  alias Codex.Files.{Native, Options}

  # Each option with the key in the application environment, and the default.
  @settings %{
    staging_dir: {:staging_dir, nil},
    ttl_ms: {:attachment_ttl_ms, 86_400_000},
    cleanup_interval_ms: {:attachment_cleanup_interval_ms, 60_000},
    max_bytes: {:attachment_max_bytes, nil},
    when_full: {:attachment_when_full, :refuse},
    recognise_unchanged: {:attachment_recognise_unchanged, true}
  }

  # 49 days, which every timer can count.
  @longest_interval_ms 0xFFFF_FFFF

  @typedoc "The options of a registry that go before the configuration, checked."
  @type own :: %{optional(atom()) => term()}
  @type invalid :: {:error, {:invalid_config, key :: atom(), value :: term()}}

  @doc "Checks the options of a registry that go before the configuration."
  @spec own(keyword()) :: {:ok, own()} | {:error, {:invalid_option, atom(), term()}}
  def own(opts) do
    Enum.reduce_while(opts, {:ok, %{}}, fn {key, value}, {:ok, own} ->
      with true <- is_map_key(@settings, key) and not is_map_key(own, key),
           {:ok, value} <- Options.check(key, value) do
        {:cont, {:ok, Map.put(own, key, value)}}
      else
        # Another option, or what a repeated one says second.
        false -> {:cont, {:ok, own}}
        error -> {:halt, error}
      end
    end)
  end

  @doc "The staging directory, and whether it is the default one."
  @spec staging_dir(own()) :: {:ok, Native.staging_dir()} | invalid()
  def staging_dir(own \\ %{}) do
    case get(own, :staging_dir) do
      {:ok, nil} -> {:ok, {default_staging_dir(), true}}
      {:ok, dir} -> {:ok, {dir, false}}
      error -> error
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
  The TTL of a staging with these options, `nil` if that is left to its owner. The default one is
  looked at if it counts.
  """
  @spec ttl_ms(own(), keyword()) :: {:ok, term()} | {:error, {:invalid_ttl, nil}} | invalid()
  def ttl_ms(own, opts) do
    case Keyword.fetch(opts, :ttl_ms) do
      {:ok, nil} ->
        {:error, {:invalid_ttl, nil}}

      {:ok, ttl_ms} ->
        {:ok, ttl_ms}

      :error ->
        cond do
          Keyword.get(opts, :persist) == true -> {:ok, :infinity}
          Keyword.has_key?(opts, :owner) -> {:ok, nil}
          true -> get(own, :ttl_ms)
        end
    end
  end

  @spec cleanup_interval_ms(own()) :: {:ok, pos_integer()} | invalid()
  def cleanup_interval_ms(own) do
    with {:ok, interval_ms} <- get(own, :cleanup_interval_ms),
         do: {:ok, min(interval_ms, @longest_interval_ms)}
  end

  @doc "How many bytes may be stored in all, `nil` for any number, and what is done if they are."
  @spec budget(own()) :: {:ok, {pos_integer() | nil, :refuse | :evict}} | invalid()
  def budget(own) do
    with {:ok, max_bytes} <- get(own, :max_bytes),
         {:ok, when_full} <- get(own, :when_full),
         do: {:ok, {max_bytes, when_full}}
  end

  @doc "Whether unchanged files may be recognised by their times, without reading them."
  @spec recognise_unchanged(own()) :: {:ok, boolean()} | invalid()
  def recognise_unchanged(own), do: get(own, :recognise_unchanged)

  defp get(own, option) when is_map_key(own, option), do: {:ok, Map.fetch!(own, option)}

  defp get(_own, option) do
    {key, default} = Map.fetch!(@settings, option)

    with value when value != nil <- Application.get_env(:codex_sdk, key),
         {:error, _reason} <- Options.check(option, value) do
      {:error, {:invalid_config, key, value}}
    else
      nil -> {:ok, default}
      checked -> checked
    end
  end
end
