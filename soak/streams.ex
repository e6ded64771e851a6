defmodule Soak.Streams do
  @moduledoc false
  # Sources that come piece by piece: at once, slowly, or not to their end.

  alias Soak.{Operations, Problems, Sources}

  # Bytes.
  @largest_piece 96 * 1024
  @pause_ms 3

  @doc "The content of a source; of one in four with pauses."
  def of(source) do
    pause_ms = if :rand.uniform(4) == 1, do: @pause_ms, else: 0
    source |> Sources.read() |> pieces(pause_ms)
  end

  @doc "The same, always with pauses."
  def slowly(source), do: source |> Sources.read() |> pieces(@pause_ms)

  defp pieces(content, pause_ms) do
    Stream.unfold(content, fn
      <<>> ->
        nil

      rest ->
        if pause_ms > 0, do: Process.sleep(:rand.uniform(pause_ms))
        size = min(byte_size(rest), :rand.uniform(@largest_piece))
        piece = binary_part(rest, 0, size)
        rest = binary_part(rest, size, byte_size(rest) - size)
        {Enum.random([piece, [piece], [<<>> | piece]]), rest}
    end)
  end

  @doc "A stream that fails reaches its caller as it is, and leaves nothing."
  def fail(context, source) do
    failure = {:failed, Enum.random([:error, :throw, :exit]), make_ref()}
    last = :rand.uniform(8)

    stream =
      source
      |> slowly()
      |> Stream.with_index()
      |> Stream.map(fn
        {piece, number} when number < last -> piece
        _last -> raise_it(failure)
      end)
      |> Stream.concat(Stream.map([failure], &raise_it/1))

    result = Operations.fail(context, stream, name: "failing", ttl_ms: 0)

    if result != failure and not match?({:error, _reason}, result),
      do: Problems.add(context.problems, :error, "a failing stream gave #{inspect(result)}")

    with {:ok, _attachment} <- Operations.fetch(context, source.checksum),
         do: Problems.add(context.problems, :leftover, "a stream that failed was staged")
  end

  defp raise_it({:failed, kind, reason}), do: :erlang.raise(kind, {Soak, reason}, [])
end
