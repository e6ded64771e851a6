defmodule Bench.Chart do
  @moduledoc false
  # The results as one picture: how many times faster than plain Elixir each operation is, on a
  # logarithmic scale. No background and medium colours, to be read on light and on dark pages.

  alias Bench.{Report, Result}

  @title "How many times faster than the same work in plain Elixir (figures: 20,000 entries)"

  @left 290
  @right 70
  @width 888
  @top 64
  # Of a group, whether it has one bar or three.
  @group 24
  @thickest 12
  @gap 14

  @ink "#7d8590"
  @grid "#7d859033"
  @limit "#db6d28"
  @shades %{0 => "#79b8ff", 1 => "#388bfd", 2 => "#1f6feb"}

  @doc "An SVG document, or `nil` if there is nothing to compare."
  def svg(results) do
    groups = groups(results)
    sizes = for {_title, bars} <- groups, bar <- bars, bar.entries, uniq: true, do: bar.entries
    sizes = Enum.sort(sizes)

    if groups != [] do
      decades = decades(groups)
      {drawn, height} = Enum.map_reduce(groups, @top, &group(&1, &2, decades, sizes))
      height = height + 20

      [
        ~s(<svg xmlns="http://www.w3.org/2000/svg" width="#{@width}" height="#{height}" ),
        ~s(viewBox="0 0 #{@width} #{height}" font-size="13" ),
        ~s(font-family="system-ui, 'Segoe UI', 'Liberation Sans', sans-serif">\n),
        "<title>#{@title}</title>\n",
        text(0, 18, @title, size: 16, weight: 600),
        legend(sizes),
        for(decade <- decades, do: line(decade, decades, height)),
        drawn,
        "</svg>\n"
      ]
    end
  end

  # The powers of ten on the axis.
  defp decades(groups) do
    ratios =
      for {_title, bars} <- groups, bar <- bars, ratio <- [bar.ratio, bar.limit || 1], do: ratio

    lowest = floor(:math.log10(Enum.min([1 | ratios])))
    lowest..max(ceil(:math.log10(Enum.max(ratios))), 1)
  end

  # A group of bars for each operation and number of callers, in the order of the results.
  defp groups(results) do
    comparable =
      for %Result{row: row} = result <- results,
          {_, ratio, _} <- [Result.ratios(result, :elixir)] do
        {title(row), %{entries: row.entries, ratio: ratio, limit: limit(result)}}
      end

    for title <- comparable |> Enum.map(&elem(&1, 0)) |> Enum.uniq() do
      bars = for {^title, bar} <- comparable, do: bar
      {title, Enum.sort_by(bars, & &1.entries)}
    end
  end

  defp title(%{callers: 1, title: title}), do: title
  defp title(%{callers: callers, title: title}), do: "#{title}, #{callers} callers"

  # How many times faster the bare calls are: what nobody can beat.
  defp limit(result) do
    bare = for side <- [:bare, :cp, :openssl], values = result.values[side], do: values

    if bare != [] do
      slowest = Enum.zip_with(bare, &Enum.max/1)
      Result.median(Enum.zip_with(result.values.elixir, slowest, &(&1 / &2)))
    end
  end

  defp group({title, bars}, top, decades, sizes) do
    middle = Enum.at(bars, div(length(bars), 2))
    thickness = min(div(@group, length(bars)), @thickest)
    first = top + (@group - thickness * length(bars)) / 2
    baseline = top + @group / 2 + 4.5
    values = for bar <- bars, value <- [1, bar.ratio, bar.limit || 1], do: x(value, decades)

    drawn = [
      text(@left - 10, baseline, title, anchor: "end"),
      for {bar, index} <- Enum.with_index(bars) do
        shade = @shades[Enum.find_index(sizes, &(&1 == bar.entries)) || 1]
        bar(bar, first + index * thickness, thickness, shade, decades)
      end,
      # The one in the middle speaks for all of them.
      text(Enum.max(values) + 7, baseline, "#{ratio(middle.ratio)}x", weight: 600)
    ]

    {drawn, top + @group + @gap}
  end

  defp bar(%{ratio: ratio, limit: limit}, y, thickness, shade, decades) do
    [from, to] = Enum.sort([x(1, decades), x(ratio, decades)])

    [
      rect(from, y, to - from, thickness - 1, shade),
      if(limit, do: rect(x(limit, decades) - 1, y - 1, 2, thickness + 1, @limit), else: [])
    ]
  end

  defp legend(sizes) do
    {drawn, x} =
      sizes
      |> Enum.with_index()
      |> Enum.map_reduce(0, fn {size, index}, x ->
        label = "#{Report.grouped(size)} entries"
        square = rect(x, 31, 10, 10, @shades[index])
        {[square, text(x + 15, 41, label)], x + 32 + 7 * String.length(label)}
      end)

    [
      drawn,
      rect(x, 30, 2, 12, @limit),
      text(x + 8, 41, "the bare system calls, or the slower of cp and openssl")
    ]
  end

  defp line(decade, decades, height) do
    x = x(:math.pow(10, decade), decades)
    label = if decade < 0, do: :math.pow(10, decade), else: Integer.pow(10, decade)

    [
      ~s(<line x1="#{decimal(x)}" x2="#{decimal(x)}" y1="#{@top - 6}" y2="#{height - 20}" ),
      ~s(stroke="#{@grid}"/>\n),
      text(x, height - 5, "#{ratio(label)}x", anchor: "middle")
    ]
  end

  defp ratio(ratio) when ratio >= 1_000, do: Report.grouped(round(ratio))
  defp ratio(ratio), do: Result.number(ratio)

  defp x(ratio, first..last) do
    @left + (:math.log10(ratio) - first) / (last - first) * (@width - @left - @right)
  end

  defp rect(x, y, width, height, fill) do
    ~s(<rect x="#{decimal(x)}" y="#{decimal(y)}" width="#{decimal(width)}" ) <>
      ~s(height="#{decimal(height)}" fill="#{fill}"/>\n)
  end

  defp text(x, y, text, opts \\ []) do
    ~s(<text x="#{decimal(x)}" y="#{decimal(y)}" fill="#{@ink}" ) <>
      ~s(text-anchor="#{opts[:anchor] || "start"}" font-size="#{opts[:size] || 13}" ) <>
      ~s(font-weight="#{opts[:weight] || 400}">#{text}</text>\n)
  end

  defp decimal(number), do: :erlang.float_to_binary(number / 1, decimals: 1)
end
