defmodule Codex.Files.Source do
  @moduledoc false
  # What `Codex.Files.stage/2` takes its bytes from, and how those of many parts are gathered.

  alias Codex.Files.Options

  @typedoc """
  A path is the bytes that the file system is to see. Data that would take much memory in one piece is
  a list.
  """
  @type t() :: {:path, binary()} | {:data, binary() | list()} | {:stream, Enumerable.t()}

  @typedoc "Takes binaries, in order."
  @type write() :: ([binary()] -> :ok | {:error, term()})

  # Data up to this size becomes one binary.
  @in_one_piece 8 * 1024 * 1024

  # How many bytes are gathered before they are written.
  @chunk 512 * 1024

  # Parts below this size are copied into one binary.
  @small_part 16 * 1024

  @doc "Checks what a caller gives as a source."
  @spec check(term()) :: {:ok, t()} | {:error, term()}
  def check({:data, data} = source) do
    case size(data) do
      {:ok, size} when is_list(data) and size > @in_one_piece -> {:ok, source}
      {:ok, _size} -> {:ok, {:data, IO.iodata_to_binary(data)}}
      error -> error
    end
  end

  def check({:stream, enumerable} = source) do
    # Other functions are enumerable by their type alone.
    if Enumerable.impl_for(enumerable) == nil or
         (is_function(enumerable) and not is_function(enumerable, 2)),
       do: {:error, {:invalid_option, :source, enumerable}},
       else: {:ok, source}
  end

  # The native library checks a binary itself.
  def check(path) when is_binary(path), do: {:ok, {:path, path}}
  def check(path), do: with({:ok, path} <- Options.check(:path, path), do: {:ok, {:path, path}})

  defp size(data) do
    {:ok, :erlang.iolist_size(data)}
  rescue
    ArgumentError -> {:error, {:invalid_option, :source, data}}
  end

  @doc """
  Gives the bytes of all elements to `write`, gathered, and returns those that are left at the end: all of
  them, if they are few. Ends early with the error of `write`, or of an element that is no iodata.
  """
  @spec gather(Enumerable.t(), write()) ::
          {:ok, written? :: boolean(), [binary()]} | {:error, term()}
  def gather(elements, write) do
    # The parts in reverse, the one that small ones are appended to, the size of all, whether some have
    # been written.
    chunk = {[], <<>>, 0, false}

    gathered =
      Enum.reduce_while(elements, {:ok, chunk}, fn element, {:ok, chunk} ->
        case add_element(element, chunk, write) do
          {:ok, chunk} -> {:cont, {:ok, chunk}}
          error -> {:halt, error}
        end
      end)

    with {:ok, {parts, open, _size, written?}} <- gathered,
         do: {:ok, written?, Enum.reverse(close(parts, open))}
  end

  defp add_element(element, chunk, write) when is_binary(element), do: add(element, chunk, write)

  defp add_element(element, chunk, write) when is_list(element) do
    case size(element) do
      {:ok, size} when size <= @chunk -> add(IO.iodata_to_binary(element), chunk, write)
      {:ok, _size} -> walk(element, [], chunk, write)
      error -> error
    end
  end

  defp add_element(element, _chunk, _write), do: {:error, {:invalid_option, :source, element}}

  # In one binary, a list of many parts would be in memory twice. What comes after the list that is walked
  # is kept in `later`.
  defp walk([part | rest], later, chunk, write) when is_list(part),
    do: walk(part, [rest | later], chunk, write)

  defp walk([byte | rest], later, chunk, write) when is_integer(byte),
    do: walk([<<byte>> | rest], later, chunk, write)

  defp walk([part | rest], later, chunk, write) do
    with {:ok, chunk} <- add(part, chunk, write), do: walk(rest, later, chunk, write)
  end

  defp walk([], [], chunk, _write), do: {:ok, chunk}
  defp walk([], [list | later], chunk, write), do: walk(list, later, chunk, write)
  # The tail of an improper list.
  defp walk(part, later, chunk, write), do: walk([part], later, chunk, write)

  defp add(part, {parts, open, size, written?}, write) do
    {parts, open} =
      if byte_size(part) < @small_part,
        do: {parts, <<open::binary, part::binary>>},
        else: {[part | close(parts, open)], <<>>}

    case size + byte_size(part) do
      size when size < @chunk ->
        {:ok, {parts, open, size, written?}}

      _enough ->
        with :ok <- write.(Enum.reverse(close(parts, open))), do: {:ok, {[], <<>>, 0, true}}
    end
  end

  defp close(parts, <<>>), do: parts
  defp close(parts, open), do: [open | parts]
end
