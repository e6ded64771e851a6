defmodule Bench.Result do
  @moduledoc false
  # A row with its values: for each side one for every round, in nanoseconds or bytes.

  alias Bench.Row

  @mib 1024 * 1024

  @enforce_keys [:row, :values]
  defstruct [:row, :values, unit: :ns]

  @doc "The first quartile, the median and the third quartile."
  def quartiles(values) do
    sorted = values |> Enum.sort() |> List.to_tuple()
    {quantile(sorted, 0.25), quantile(sorted, 0.5), quantile(sorted, 0.75)}
  end

  def median(values), do: elem(quartiles(values), 1)

  @doc "The value below which `part` of the sorted ones are; between two of them, what is between."
  def quantile(sorted, part) do
    position = (tuple_size(sorted) - 1) * part
    below = floor(position)
    above = min(below + 1, tuple_size(sorted) - 1)
    lower = elem(sorted, below)
    lower + (elem(sorted, above) - lower) * (position - below)
  end

  @doc """
  How many times as much a side takes as the library: the quartiles over the rounds, each of which
  has measured both.
  """
  def ratios(%__MODULE__{values: values}, side) do
    case values do
      %{^side => [_ | _] = theirs, codex_files: [_ | _] = ours} ->
        Enum.zip_with(theirs, ours, &(&1 / &2)) |> quartiles()

      _ ->
        nil
    end
  end

  @doc "The bars of the row: `{what is asked, what was measured, whether that will do}`."
  def bars(%__MODULE__{row: %Row{bars: bars}} = result) do
    Enum.flat_map(bars, fn bar -> List.wrap(bar(bar, result)) end)
  end

  defp bar({:at_most, limit}, %{values: %{codex_files: ours}, unit: unit}) do
    median = median(ours)
    {"at most #{format(limit, unit)}", format(median, unit), median <= limit}
  end

  defp bar({:faster, factor}, result) do
    with {_, ratio, _} <- ratios(result, :elixir),
         do: {"#{number(factor)}x faster", "#{number(ratio)}x", ratio >= factor}
  end

  # Of several sides the slowest counts, in each round.
  defp bar({:at_most_times, factor, sides, name}, %{values: %{codex_files: ours} = values}) do
    theirs =
      for side <- sides, [_ | _] = value <- List.wrap(values[side] && [values[side]]), do: value

    if theirs != [] do
      slowest = Enum.zip_with(theirs, &Enum.max/1)
      {_, ratio, _} = Enum.zip_with(ours, slowest, &(&1 / &2)) |> quartiles()
      {"at most #{number(factor)}x #{name}", "#{number(ratio)}x", ratio <= factor}
    end
  end

  defp bar({:at_most_more, limit, side, name}, %{values: values, unit: unit}) do
    with [_ | _] = theirs <- values[side] do
      {_, more, _} = Enum.zip_with(values.codex_files, theirs, &(&1 - &2)) |> quartiles()
      {"at most #{format(limit, unit)} more than #{name}", format(more, unit), more <= limit}
    end
  end

  # Bars of figures that are not a side's time.
  defp bar({:measured, asked, measured, met?}, _result), do: {asked, measured, met?}

  defp bar(_bar, _result), do: nil

  def format(value, :bytes) when value >= @mib, do: "#{number(value / @mib)} MiB"
  def format(value, :bytes), do: "#{number(value)} B"
  def format(value, :ns) when value < 1_000, do: "#{number(value)} ns"
  def format(value, :ns) when value < 1_000_000, do: "#{number(value / 1_000)} us"
  def format(value, :ns) when value < 1_000_000_000, do: "#{number(value / 1_000_000)} ms"
  def format(value, :ns), do: "#{number(value / 1_000_000_000)} s"

  @doc "Three significant digits."
  def number(value) when is_integer(value), do: Integer.to_string(value)

  def number(value) do
    decimals =
      cond do
        abs(value) >= 100 -> 0
        abs(value) >= 10 -> 1
        true -> 2
      end

    :erlang.float_to_binary(value, decimals: decimals)
  end
end
