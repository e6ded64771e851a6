defmodule Bench.Report do
  @moduledoc false
  # The results as text, one line as soon as it is there, and as data.

  alias Bench.{Fairness, Result}

  @columns [
    {"operation", 54},
    {"entries", 9},
    {"callers", 7},
    {"codex_files", 26},
    {"plain Elixir", 26},
    {"faster", 8},
    {"bare", 76},
    {"bar", 60}
  ]

  # The last column but one has the sides that are there for comparison alone.
  @names [
    bare: "",
    scheduled: "by a dirty NIF ",
    as_file: "the same as a file ",
    no_owner: "without an owner ",
    new_and_cleanup: "a new one and a cleanup ",
    not_looking: "plain Elixir that does not look ",
    copying: "a copy of the list ",
    cp: "cp ",
    openssl: "openssl ",
    one_call: "one first call ",
    no_flag: "without the flag "
  ]

  def header do
    IO.puts(line(Enum.map(@columns, &elem(&1, 0))))
    IO.puts(line(for {_title, width} <- @columns, do: String.duplicate("-", width)))
  end

  def row(%Result{row: row} = result) do
    faster =
      case Result.ratios(result, :elixir) do
        nil -> ""
        {_, ratio, _} -> "#{Result.number(ratio)}x"
      end

    bare =
      for {side, name} <- @names,
          Map.has_key?(result.values, side),
          do: name <> spread(result, side)

    bars =
      for {asked, measured, met?} <- Result.bars(result),
          do: "#{if met?, do: "met", else: "MISSED"}: #{asked}, is #{measured}"

    IO.puts(
      line([
        row.title,
        grouped(row.entries),
        if(row.entries, do: Integer.to_string(row.callers), else: ""),
        spread(result, :codex_files),
        spread(result, :elixir),
        faster,
        Enum.join(bare, ", "),
        Enum.join(bars, "; ")
      ])
    )
  end

  defp spread(result, side) do
    case result.values do
      %{^side => [value]} ->
        Result.format(value, result.unit)

      %{^side => values} ->
        {low, median, high} = Result.quartiles(values)
        unit = result.unit
        "#{Result.format(median, unit)} (#{range(low, high, unit)})"

      _ ->
        ""
    end
  end

  # "12.1-13.0 us" in the unit of the higher one.
  defp range(low, high, unit) do
    [high_number, high_unit] = high |> Result.format(unit) |> String.split(" ")

    scale =
      %{
        "B" => 1,
        "MiB" => 1024 * 1024,
        "ns" => 1,
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000
      }[high_unit]

    low = Result.number(low / scale)
    if low == high_number, do: low, else: "#{low}-#{high_number}"
  end

  defp line(texts) do
    @columns
    |> Enum.zip_with(texts, fn {_title, width}, text ->
      String.pad_trailing(text, width)
    end)
    |> Enum.join("  ")
    |> String.trim_trailing()
  end

  def fairness(by_load) do
    IO.puts("\nBeside 16 large copies: latencies, median / 99th percentile / longest\n")
    widths = [27, 36, 36]

    print = fn texts ->
      IO.puts(Enum.zip_with(texts, widths, &String.pad_trailing/2) |> Enum.join("  "))
    end

    for {side, name} <- [codex_files: "codex_files", elixir: "plain Elixir"] do
      [none, copies] = for load <- [:none, :copies], do: find(by_load, side, load)
      {idle, _} = none
      {busy, rate} = copies
      print.([name, "alone", "beside the copies (#{Result.number(rate)} MiB/s)"])

      Enum.zip_with(idle, busy, fn idle, busy ->
        print.(["  " <> idle.title, percentiles(idle), percentiles(busy)])
      end)
    end
  end

  defp find(by_load, side, load) do
    Enum.find(by_load, fn {[%Fairness{} = first | _], _rate} ->
      {first.side, first.load} == {side, load}
    end)
  end

  defp percentiles(%Fairness{percentiles: percentiles}),
    do: Enum.map_join(percentiles, " / ", &Result.format(&1, :ns))

  def summary(results) do
    bars = Enum.flat_map(results, &for(bar <- Result.bars(&1), do: {&1.row, bar}))
    missed = for {row, {asked, measured, false}} <- bars, do: {row, asked, measured}
    IO.puts("\n#{length(bars) - length(missed)} of #{length(bars)} bars met")

    for {row, asked, measured} <- missed do
      place =
        if row.entries, do: " (#{grouped(row.entries)} entries, #{row.callers} callers)", else: ""

      IO.puts("  missed: #{row.title}#{place}: #{asked}, is #{measured}")
    end
  end

  @doc """
  One line for each side of each row: the median and quartiles over the rounds, and how many times as
  much as the library's that is.
  """
  def csv(results) do
    header =
      ~w(row operation entries callers side unit first_quartile median third_quartile rounds
                ratio_first_quartile ratio ratio_third_quartile bars)

    rows =
      for %Result{row: row} = result <- results, {side, values} <- Enum.sort(result.values) do
        {low, median, high} = Result.quartiles(values)
        {ratio_low, ratio, ratio_high} = Result.ratios(result, side) || {"", "", ""}

        bars =
          if side == :codex_files,
            do:
              Enum.map_join(Result.bars(result), "; ", fn {asked, measured, met?} ->
                "#{asked}: #{measured}, #{if met?, do: "met", else: "missed"}"
              end),
            else: ""

        [row.name, row.title, row.entries, row.callers, side, result.unit, low, median, high] ++
          [length(values), ratio_low, ratio, ratio_high, bars]
      end

    [header | rows] |> Enum.map(&csv_line/1)
  end

  def fairness_csv(by_load) do
    header = ~w(operation side load unit median percentile_99 longest calls copied_mib_per_s)

    rows =
      for {probes, rate} <- by_load, probe <- probes do
        [probe.title, probe.side, probe.load, :ns] ++ probe.percentiles ++ [probe.count, rate]
      end

    [header | rows] |> Enum.map(&csv_line/1)
  end

  defp csv_line(values), do: [Enum.map_intersperse(values, ",", &csv_value/1), "\n"]

  defp csv_value(nil), do: ""
  defp csv_value(value) when is_float(value), do: :erlang.float_to_binary(value, [:short])

  defp csv_value(value) do
    text = to_string(value)

    if String.contains?(text, [",", "\""]),
      do: ["\"", String.replace(text, "\"", "\"\""), "\""],
      else: text
  end

  def grouped(nil), do: ""

  def grouped(number) do
    number
    |> Integer.to_charlist()
    |> Enum.reverse()
    |> Enum.chunk_every(3)
    |> Enum.map_join(",", & &1)
    |> String.reverse()
  end
end
