defmodule Bench.Scene do
  @moduledoc false
  # The rows that are measured with so many small files staged: by the library, by plain Elixir, and
  # by the bare system calls, each in a directory of its own on the same file system.

  import Bench.Measure, only: [side: 2, side: 3, calls: 4]

  alias Bench.{Bare, BareNif, Measure, Report, Result, Row, Side, Sources}

  # The files of one turn of a row that writes or removes some.
  @some 1_000

  # How many different ones are staged again.
  @again 1_000

  @names ~w(metrics list cleanup_idle known again new cleanup reset)

  def names, do: @names

  def names_in_turn, do: ["again_in_turn"]

  @doc "How many small files there have to be."
  def sources_needed(entries), do: entries + @some

  @doc "Measures the rows chosen; the files are gone in the end."
  def run(entries, names, dirs, settings, report) do
    bare? = Enum.any?(["known", "new", "cleanup", "reset"], &(&1 in names))
    fill(entries, dirs, bare?)

    for row <- rows(entries, dirs), row.name in names do
      report.(%Result{row: row, values: Measure.rounds(row, settings)})
    end

    :ok = Codex.Files.reset!()
    :ok = Comparator.Files.reset!()
    if bare?, do: Bare.remove(dirs.bare, 0, entries)
  end

  @doc """
  Measures unchanged files, so many that they are recognised only if as many are remembered as are
  staged: each is staged again in its turn.
  """
  def run_in_turn(count, dirs, settings, report) do
    fill(count, dirs, false)

    row = %Row{
      name: "again_in_turn",
      title: "Files.stage, unchanged 4 KiB, #{Report.grouped(count)} in turn",
      sides: [
        in_turn(:codex_files, count, &Codex.Files.stage/1),
        in_turn(:elixir, count, &Comparator.Files.stage/1)
      ],
      bars: [{:faster, 8}]
    }

    report.(%Result{row: row, values: Measure.rounds(row, settings)})
    :ok = Codex.Files.reset!()
    :ok = Comparator.Files.reset!()
  end

  # Every turn goes on where the one before has ended.
  defp in_turn(name, count, stage) do
    done = :counters.new(1, [])

    side(
      name,
      fn first, number -> {:ok, _} = stage.(Sources.path(rem(first + number, count))) end,
      prepare: fn operations ->
        first = :counters.get(done, 1)
        :counters.add(done, 1, operations)
        first
      end
    )
  end

  defp fill(entries, dirs, bare?) do
    fill(&Codex.Files.stage/1, entries)
    fill(&Comparator.Files.stage/1, entries)
    if bare?, do: Bare.publish(dirs.bare, 16, 0, entries, Sources.size())
  end

  @doc "Stages the small files from the first to the last."
  def fill(stage, entries) do
    calls(fn _context, number -> {:ok, _} = stage.(Sources.path(number)) end, nil, 16, entries)
  end

  defp rows(entries, dirs) do
    [
      %Row{
        name: "metrics",
        title: "metrics",
        entries: entries,
        sides: [
          side(:codex_files, fn _, _ -> Codex.Files.metrics() end),
          side(:elixir, fn _, _ -> Comparator.Files.metrics() end)
        ],
        bars: [{:at_most, 5_000}]
      },
      %Row{
        name: "list",
        title: "list",
        entries: entries,
        sides: [
          side(:codex_files, fn _, _ -> Codex.Files.list_staged() end),
          side(:elixir, fn _, _ -> Comparator.Files.list_staged() end)
        ],
        # Of fewer, what the call and its memory cost counts more than the attachments.
        bars: if(entries >= 20_000, do: [{:faster, 7}], else: [])
      },
      %Row{
        name: "cleanup_idle",
        title: "force_cleanup, nothing expired",
        entries: entries,
        sides: [
          side(:codex_files, fn _, _ -> :ok = Codex.Files.force_cleanup() end),
          side(:elixir, fn _, _ -> :ok = Comparator.Files.force_cleanup() end)
        ],
        bars: [{:at_most, 50_000}]
      }
    ] ++
      Enum.flat_map([1, 16], &callers_rows(entries, &1, dirs)) ++
      [cleanup(entries, dirs), reset(entries, dirs)]
  end

  defp callers_rows(entries, callers, dirs) do
    [
      %Row{
        name: "known",
        title: "Registry.stage, known key",
        entries: entries,
        callers: callers,
        sides: [
          again(
            :codex_files,
            entries,
            &Sources.stage_opts(&1, dirs.ours),
            &Codex.Files.Registry.stage/1
          ),
          again(
            :elixir,
            entries,
            &Sources.stage_opts(&1, dirs.elixir),
            &Comparator.Registry.stage/1
          ),
          # What the look is of it.
          again(
            :not_looking,
            entries,
            &Sources.stage_opts(&1, dirs.elixir),
            &Comparator.Registry.stage_without_looking/1
          ),
          # The look alone.
          Side.new(:bare, fn _, callers, count ->
            Bare.look(dirs.bare, callers, entries, @again, count)
          end)
        ],
        bars: [
          {:faster, if(callers == 1, do: 2, else: 4)},
          {:at_most_times, 3, [:bare], "the bare look"}
        ]
      },
      %Row{
        name: "again",
        title: "Files.stage, unchanged 4 KiB",
        entries: entries,
        callers: callers,
        sides: [
          again(:codex_files, entries, &Sources.path/1, &Codex.Files.stage/1),
          again(:elixir, entries, &Sources.path/1, &Comparator.Files.stage/1)
        ],
        bars: [{:faster, 8}]
      },
      %Row{
        name: "new",
        title: "Files.stage, new 4 KiB",
        entries: entries,
        callers: callers,
        operations: @some,
        disk?: true,
        sides: [
          side(
            :codex_files,
            fn _, number ->
              {:ok, _} = Codex.Files.stage(Sources.path(entries + number), ttl_ms: 0)
            end,
            tidy: fn _ -> :ok = Codex.Files.force_cleanup() end
          ),
          side(
            :elixir,
            fn _, number ->
              {:ok, _} = Comparator.Files.stage(Sources.path(entries + number), ttl_ms: 0)
            end,
            tidy: fn _ -> clean_elixir(entries, dirs) end
          ),
          Side.new(
            :bare,
            fn _, callers, count ->
              Bare.publish(dirs.bare, callers, entries, count, Sources.size())
            end,
            tidy: fn _ -> Bare.remove(dirs.bare, entries, @some) end
          ),
          # What the way to a dirty scheduler and back costs belongs to every staging.
          side(
            :scheduled,
            fn _, number -> true = BareNif.publish(entries + number, Sources.size()) end,
            tidy: fn _ -> Bare.remove(dirs.bare, entries, @some) end
          )
        ],
        bars: [
          {:faster, 3},
          {:at_most_times, 1.6, [:scheduled], "the bare calls by a dirty NIF"}
        ]
      }
    ]
  end

  defp again(name, entries, argument, stage) do
    # The same ones for every side.
    :rand.seed(:exsss, {entries, 0, 0})
    arguments = for _ <- 1..@again, do: argument.(:rand.uniform(entries) - 1)
    key = {__MODULE__, name}

    side(
      name,
      fn _, number ->
        {:ok, _} = stage.(elem(:persistent_term.get(key), rem(number, @again)))
      end,
      # Not copied into every process that calls, which would move them at every collection.
      prepare: fn _operations -> :persistent_term.put(key, List.to_tuple(arguments)) end
    )
  end

  defp cleanup(entries, dirs) do
    stage_some = fn stage ->
      calls(
        fn _, number -> {:ok, _} = stage.(Sources.path(entries + number), ttl_ms: 0) end,
        nil,
        1,
        @some
      )
    end

    %Row{
      name: "cleanup",
      title: "cleanup, an expired file",
      entries: entries,
      operations: @some,
      disk?: true,
      sides: [
        once(:codex_files, &Codex.Files.force_cleanup/0,
          prepare: fn _ -> stage_some.(&Codex.Files.stage/2) end
        ),
        once(:elixir, &Comparator.Files.force_cleanup/0,
          prepare: fn _ -> stage_some.(&Comparator.Files.stage/2) end,
          tidy: fn _ -> clean_elixir(entries, dirs) end
        ),
        Side.new(:bare, fn _, _, count -> Bare.remove(dirs.bare, entries, count) end,
          prepare: fn count -> Bare.publish(dirs.bare, 1, entries, count, Sources.size()) end
        )
      ],
      bars: [{:at_most_times, 1.4, [:bare], "unlink and rmdir"}]
    }
  end

  # Every turn fills anew, with what the turn before has removed.
  defp reset(entries, dirs) do
    %Row{
      name: "reset",
      title: "reset, a file",
      entries: entries,
      operations: entries,
      disk?: true,
      sides: [
        once(:codex_files, &Codex.Files.reset!/0,
          tidy: fn _ -> fill(&Codex.Files.stage/1, entries) end
        ),
        once(:elixir, &Comparator.Files.reset!/0,
          tidy: fn _ -> fill(&Comparator.Files.stage/1, entries) end
        ),
        Side.new(:bare, fn _, _, count -> Bare.remove(dirs.bare, 0, count) end,
          tidy: fn _ -> Bare.publish(dirs.bare, 16, 0, entries, Sources.size()) end
        )
      ],
      bars: [{:at_most_times, 1.4, [:bare], "unlink and rmdir"}]
    }
  end

  # One call does all the operations.
  defp once(name, work, opts) do
    run = fn _context, 1, _operations -> calls(fn _, _ -> :ok = work.() end, nil, 1, 1) end
    Side.new(name, run, opts)
  end

  # It leaves the directories behind, and would find them again.
  defp clean_elixir(entries, dirs) do
    :ok = Comparator.Files.force_cleanup()

    for number <- entries..(entries + @some - 1),
        do: File.rmdir(Path.join(dirs.elixir, Sources.checksum(number)))
  end
end
