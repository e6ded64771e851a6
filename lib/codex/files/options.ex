defmodule Codex.Files.Options do
  @moduledoc false
  # Checks what callers give. What reaches the native library is checked there.

  alias Codex.Files.Registry

  @keys [:checksum, :name, :persist, :ttl_ms, :size, :source_path, :destination_path]
  @max_u64 0xFFFF_FFFF_FFFF_FFFF

  @doc "Checks the options of a staging; paths become the bytes that the file system is to see."
  @spec stage_opts(term()) :: {:ok, Registry.stage_opts()} | {:error, term()}
  def stage_opts(opts) when is_map(opts) do
    Enum.reduce_while(@keys, {:ok, opts}, fn key, {:ok, opts} ->
      with {:ok, value} <- Map.fetch(opts, key), {:ok, value} <- check(key, value) do
        {:cont, {:ok, %{opts | key => value}}}
      else
        :error -> {:halt, {:error, {:missing_option, key}}}
        error -> {:halt, error}
      end
    end)
  end

  def stage_opts(opts), do: {:error, {:invalid_option, :opts, opts}}

  def check(:opts, value) do
    if Keyword.keyword?(value), do: {:ok, value}, else: {:error, {:invalid_option, :opts, value}}
  end

  def check(:checksum, value) when is_binary(value), do: {:ok, value}
  def check(:persist, value) when is_boolean(value), do: {:ok, value}
  def check(:ttl_ms, :infinity), do: {:ok, :infinity}
  def check(key, value) when key in [:ttl_ms, :size] and value in 0..@max_u64, do: {:ok, value}

  def check(:registry, value) when is_pid(value) and node(value) == node(), do: {:ok, value}

  # A name that a registry can have.
  def check(:registry, value) when is_atom(value) and value not in [nil, :undefined],
    do: {:ok, value}

  def check(:registry, {:global, _term} = value), do: {:ok, value}
  def check(:registry, {:via, module, _term} = value) when is_atom(module), do: {:ok, value}

  def check(key, value)
      when key in [:manifest_table, :file_module] and is_atom(value) and value != nil,
      do: {:ok, value}

  def check(:recognise_unchanged, value) when is_boolean(value), do: {:ok, value}
  def check(:when_full, value) when value in [:refuse, :evict], do: {:ok, value}
  def check(:max_bytes, nil), do: {:ok, nil}
  def check(:max_bytes, value) when value in 1..@max_u64, do: {:ok, value}
  def check(:cleanup_interval_ms, value) when is_integer(value) and value > 0, do: {:ok, value}

  def check(:id, value) when is_binary(value), do: {:ok, value}
  def check(:owner, value) when is_pid(value) and node(value) == node(), do: {:ok, value}
  def check(:fun, value) when is_function(value, 1), do: {:ok, value}

  def check(:name, name) when is_binary(name) do
    if byte_size(name) in 1..255 and name not in [".", ".."] and
         :binary.match(name, ["/", <<0>>]) == :nomatch,
       do: {:ok, name},
       else: {:error, {:invalid_name, name}}
  end

  def check(key, value)
      when key in [:path, :source_path, :destination_path, :dir, :staging_dir] do
    with :error <- path_bytes(value), do: {:error, {:invalid_option, key, value}}
  end

  def check(key, value), do: {:error, {:invalid_option, key, value}}

  @doc """
  Turns chardata into the bytes that the file system is to see. Binaries are taken as they are, be they
  valid UTF-8 or not.
  """
  @spec path_bytes(term()) :: {:ok, binary()} | :error
  def path_bytes(path) when is_binary(path) do
    # For the file system, a name ends at a null byte.
    if :binary.match(path, <<0>>) == :nomatch, do: {:ok, path}, else: :error
  end

  def path_bytes(path) when is_list(path) do
    case :unicode.characters_to_binary(path) do
      bytes when is_binary(bytes) -> path_bytes(bytes)
      _invalid_utf8 -> path |> IO.iodata_to_binary() |> path_bytes()
    end
  rescue
    ArgumentError -> :error
  end

  def path_bytes(_path), do: :error
end
