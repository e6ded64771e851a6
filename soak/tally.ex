defmodule Soak.Tally do
  @moduledoc false
  # How often each operation was done and how long it took, and how often each error came. The times
  # are counted in steps of a 16th of a power of two: a percentile is right to 4 percent.

  @steps 16

  def new, do: :ets.new(__MODULE__, [:public, write_concurrency: true])

  def add(tally, kind, microseconds) do
    count(tally, {:took, kind, round(:math.log2(max(microseconds, 1)) * @steps)})
  end

  def add_error(tally, kind, reason), do: count(tally, {:error, kind, reason})

  def add_event(tally, event), do: count(tally, {:event, event})

  defp count(tally, key), do: :ets.update_counter(tally, key, 1, {key, 0})

  ## Of what was counted

  def counts(tally), do: Map.new(:ets.tab2list(tally))

  def merge(counts), do: Enum.reduce(counts, %{}, &Map.merge(&1, &2, fn _key, a, b -> a + b end))

  @doc "`{kind, count, microseconds}` of each operation; the times are those of the percentiles."
  def operations(counts, percentiles) do
    took = for {{:took, kind, step}, count} <- counts, do: {kind, {step, count}}

    for {kind, steps} <- took |> Enum.group_by(&elem(&1, 0), &elem(&1, 1)) |> Enum.sort() do
      steps = Enum.sort(steps)
      total = steps |> Enum.map(&elem(&1, 1)) |> Enum.sum()
      {kind, total, for(percentile <- percentiles, do: quantile(steps, total * percentile / 100))}
    end
  end

  defp quantile(steps, rank) do
    {step, _below} =
      Enum.reduce_while(steps, {0, 0}, fn {step, count}, {_step, below} ->
        if below + count >= rank, do: {:halt, {step, below}}, else: {:cont, {step, below + count}}
      end)

    round(:math.pow(2, step / @steps))
  end

  @doc "How many operations there were in all."
  def total(counts), do: Enum.sum(for {{:took, _kind, _step}, count} <- counts, do: count)

  @doc "How often each error came."
  def errors(counts) do
    Enum.sort(for {{:error, kind, reason}, count} <- counts, do: {kind, reason, count})
  end

  def event(counts, event), do: Map.get(counts, {:event, event}, 0)
end
