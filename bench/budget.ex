defmodule Bench.Budget do
  @moduledoc false
  # The rows about a registry whose budget is spent, so that each new file has another one removed.

  import Bench.Measure, only: [side: 3, calls: 4]

  alias Bench.{Measure, OtherVM, Result, Row, Side, Sources}

  @names ~w(evict evict_many)

  # The files of one turn.
  @some 1_000

  def names, do: @names

  def sources_needed, do: 2 * @some

  def run(names, dirs, settings, report) do
    if "evict" in names do
      within_budget(@some, dirs, fn -> report.(measure(evict(), settings)) end)
    end

    if "evict_many" in names do
      for entries <- Enum.uniq([hd(settings.entries), settings.in_turn]) do
        within_budget(entries, dirs, fn -> evict_many(entries, settings, report) end)
      end
    end
  end

  defp measure(row, settings), do: %Result{row: row, values: Measure.rounds(row, settings)}

  # A registry that holds so many small files and no more.
  defp within_budget(files, dirs, work) do
    {:ok, registry} =
      Codex.Files.Registry.start_link(
        name: __MODULE__,
        staging_dir: dirs.ours,
        max_bytes: files * Sources.size(),
        when_full: :evict,
        cleanup_interval_ms: 3_600_000
      )

    work.()
    :ok = GenServer.stop(registry, :normal, :infinity)
  end

  # Those of a turn have been evicted by the turn before: the first one, which does not count, fills.
  defp evict do
    turns = :counters.new(1, [])

    %Row{
      name: "evict",
      title: "Files.stage, new 4 KiB, evicts one",
      entries: @some,
      operations: @some,
      disk?: true,
      sides: [
        side(
          :codex_files,
          fn first, number ->
            {:ok, _} = Codex.Files.stage(Sources.path(first + number), registry: __MODULE__)
          end,
          prepare: fn _ ->
            :counters.add(turns, 1, 1)
            rem(:counters.get(turns, 1), 2) * @some
          end
        ),
        Side.new(:new_and_cleanup, fn _, callers, count ->
          new = &({:ok, _} = Codex.Files.stage(Sources.path(&2), [ttl_ms: 0] ++ &1))
          cleanup = fn _, _ -> :ok = Codex.Files.force_cleanup() end
          calls(new, [], callers, count) + calls(cleanup, nil, 1, 1)
        end)
      ],
      bars: [{:at_most_times, 1.4, [:new_and_cleanup], "a new one and a cleanup"}]
    }
  end

  # Real ones, from memory: a million sources would take as much room once more. What is evicted was
  # staged that many stagings ago.
  defp evict_many(entries, settings, report) do
    filling = :crypto.strong_rand_bytes(Sources.size() - 8)
    staged = :counters.new(1, [])

    stage = fn first, number ->
      data = [<<first + number::64>>, filling]
      {:ok, _} = Codex.Files.stage({:data, data}, name: "data.bin", registry: __MODULE__)
    end

    next = fn operations ->
      first = :counters.get(staged, 1)
      :counters.add(staged, 1, operations)
      first
    end

    calls(stage, next.(entries), 16, entries)
    %{total_count: ^entries} = Codex.Files.metrics(__MODULE__)
    before = OtherVM.peak_from_now_on()

    row = %Row{
      name: "evict_many",
      title: "Files.stage, {:data, 4 KiB}, evicts one",
      entries: entries,
      operations: @some,
      disk?: true,
      sides: [side(:codex_files, stage, prepare: next)]
    }

    report.(measure(row, settings))
    %{total_count: ^entries} = Codex.Files.metrics(__MODULE__)
    growth = [OtherVM.peak() - before]
    stagings = :counters.get(staged, 1) - entries

    row = %Row{
      name: "evict_many",
      title: "memory that #{stagings} of these take",
      entries: entries
    }

    report.(%Result{row: row, unit: :bytes, values: %{codex_files: growth}})
  end
end
