defmodule Codex.Files.Source do
  @moduledoc false
  # What `Codex.Files.stage/2` takes its bytes from.

  alias Codex.Files.Options

  @typedoc "A path is the bytes that the file system is to see."
  @type t() :: {:path, binary()} | {:data, binary()}

  @doc "Checks what a caller gives as a source."
  @spec check(term()) :: {:ok, t()} | {:error, term()}
  def check({:data, data}) do
    with {:ok, _size} <- size(data), do: {:ok, {:data, IO.iodata_to_binary(data)}}
  end

  # The native library checks a binary itself.
  def check(path) when is_binary(path), do: {:ok, {:path, path}}
  def check(path), do: with({:ok, path} <- Options.check(:path, path), do: {:ok, {:path, path}})

  defp size(data) do
    {:ok, :erlang.iolist_size(data)}
  rescue
    ArgumentError -> {:error, {:invalid_option, :source, data}}
  end
end
