defmodule Bench.Fairness do
  @moduledoc false
  # What everybody else waits for while 16 large copies are under way: other stagings, reads, and an
  # Elixir process that has nothing to do with any of it, and only wants to be woken by a timer.

  alias Bench.{Measure, Result, Scene, Sources}

  @copies 16
  # These are listed; the small stagings take the files after them.
  @entries 1_000
  @small 3_000

  # The time between two calls of a probe.
  @pauses_ms %{small: 5, metrics: 2, list: 20, timer: 1}

  @titles %{
    small: "Files.stage, new 4 KiB",
    metrics: "metrics",
    list: "list, #{@entries} entries",
    timer: "a timer of 1 ms, how late"
  }

  def names, do: ["fairness"]

  def sources_needed, do: @entries + @small

  defstruct [:probe, :title, :side, :load, :percentiles, :count]

  @doc "The latencies of each probe: `{results, MiB/s copied}` under each load."
  def run(mib, dirs, settings) do
    larges =
      for number <- 1..@copies,
          do: Sources.make_large(Path.join(dirs.work, "large-#{number}.bin"), mib)

    latencies =
      for _round <- 1..settings.fairness_rounds,
          {side, module} <- [codex_files: Codex.Files, elixir: Comparator.Files],
          load <- Enum.shuffle([:none, :copies]) do
        {latencies, copied} = measure(module, load, larges, settings)
        {{side, load}, latencies, copied * mib / settings.fairness_seconds}
      end

    Enum.each(larges, &File.rm!/1)
    for {key, of_key} <- Enum.group_by(latencies, &elem(&1, 0)), do: results(key, of_key)
  end

  defp results({side, load}, measured) do
    probes =
      for probe <- [:small, :metrics, :list, :timer] do
        values = Enum.flat_map(measured, fn {_key, latencies, _rate} -> latencies[probe] end)
        sorted = values |> Enum.sort() |> List.to_tuple()

        %__MODULE__{
          probe: probe,
          title: @titles[probe],
          side: side,
          load: load,
          percentiles: for(part <- [0.5, 0.99, 1.0], do: Result.quantile(sorted, part)),
          count: tuple_size(sorted)
        }
      end

    {probes, Result.median(for {_key, _latencies, rate} <- measured, do: rate)}
  end

  defp measure(module, load, larges, settings) do
    Scene.fill(&module.stage/1, @entries)
    # What the copies before have left in the page cache to be written.
    {"", 0} = System.cmd("sync", [])
    for pid <- Process.list(), do: :erlang.garbage_collect(pid)

    stop = :atomics.new(2, [])
    larges = if load == :copies, do: larges, else: []
    copiers = for large <- larges, do: Task.async(fn -> copy(module, large, stop) end)
    cleaner = Task.async(fn -> clean(module, stop) end)
    Process.sleep(1_000)
    :atomics.put(stop, 2, 0)

    deadline = Measure.now() + settings.fairness_seconds * 1_000_000_000

    probes =
      for probe <- [:small, :metrics, :list, :timer] do
        {probe, Task.async(fn -> probe(probe, module, deadline, 0, []) end)}
      end

    latencies = for {probe, task} <- probes, into: %{}, do: {probe, Task.await(task, :infinity)}
    copied = :atomics.get(stop, 2)
    :atomics.put(stop, 1, 1)
    Task.await_many([cleaner | copiers], :infinity)
    :ok = module.reset!()
    {latencies, copied}
  end

  # Always another content: a copy each time.
  defp copy(module, large, stop) do
    if :atomics.get(stop, 1) == 0 do
      Sources.change(large)
      {:ok, _} = module.stage(large, ttl_ms: 0)
      :atomics.add(stop, 2, 1)
      copy(module, large, stop)
    end
  end

  defp clean(module, stop) do
    if :atomics.get(stop, 1) == 0 do
      :ok = module.force_cleanup()
      Process.sleep(200)
      clean(module, stop)
    end
  end

  defp probe(probe, module, deadline, number, latencies) do
    if Measure.now() >= deadline do
      latencies
    else
      latency = latency(probe, module, number)
      if probe != :timer, do: Process.sleep(@pauses_ms[probe])
      probe(probe, module, deadline, number + 1, [latency | latencies])
    end
  end

  defp latency(:timer, _module, _number) do
    pause = @pauses_ms.timer
    max(timed(fn -> Process.sleep(pause) end) - pause * 1_000_000, 0)
  end

  defp latency(:small, module, number) do
    path = Sources.path(@entries + rem(number, @small))
    timed(fn -> {:ok, _} = module.stage(path, ttl_ms: 0) end)
  end

  defp latency(:metrics, module, _number), do: timed(fn -> %{} = module.metrics() end)
  defp latency(:list, module, _number), do: timed(fn -> [_ | _] = module.list_staged() end)

  defp timed(work) do
    start = Measure.now()
    work.()
    Measure.now() - start
  end
end
