defmodule Bench.Scale do
  @moduledoc false
  # What entries cost when there are very many of them: in memory, and in time. A million real files
  # take too long to stage, so the entries of the rows of a million have no files: they are made in
  # the core (native/codex_files/examples/manifest_at_scale.rs), and in a registry of a library that
  # can also enter what is not there (native/codex_files_nif/examples/entries_nif.rs).

  import Bench.Measure, only: [side: 2]

  alias Bench.{EntriesNif, Measure, Report, Result, Row, Scene, Sources}

  @names ~w(memory core list_all)

  def names, do: @names

  # Bytes an entry, its strings aside.
  @memory_limit 400

  # By how much a listing may cost more among very many entries than among fewer, in copies of it: the
  # more memory a term takes, the more of it the system has to find, and no cache holds it.
  @linear 1.5
  @linear_from 20_000

  @operations [
    {"insert", "manifest: insert", nil},
    {"refresh", "manifest: refresh", nil},
    {"metrics", "manifest: metrics", nil},
    {"snapshot", "manifest: list, the snapshot", nil},
    {"walk", "manifest: list, a walk over all", nil},
    {"sweep of nothing", "manifest: sweep, nothing expired", nil},
    {"sweep", "manifest: sweep of 1,000, an entry", 1_000}
  ]

  @doc "What the core says at each of the sizes, with what `memory/1` said."
  def core(sizes, names, memory, report) do
    figures = core_figures(sizes)

    if "memory" in names, do: Enum.each(sizes, &core_memory(figures, &1, memory, report))

    if "core" in names do
      for {operation, title, _} <- @operations, entries <- sizes do
        row = %Row{name: "core", title: title, entries: entries}
        report.(%Result{row: row, values: %{codex_files: figures[{entries, operation}]}})
      end
    end
  end

  defp core_figures(sizes) do
    args =
      ~w(run --quiet --release --locked --package codex_files --example manifest_at_scale --) ++
        Enum.map(sizes, &Integer.to_string/1)

    {output, 0} = System.cmd(System.get_env("CARGO", "cargo"), args)

    for line <- String.split(output, "\n", trim: true), into: %{} do
      [entries, operation, _unit | values] = String.split(line, ",")
      {{String.to_integer(entries), operation}, Enum.map(values, &elem(Float.parse(&1), 0))}
    end
  end

  defp core_memory(figures, entries, memory, report) do
    [strings] = figures[{entries, "strings"}]
    [allocated] = figures[{entries, "memory"}]
    own = allocated - strings

    bar =
      {:measured, "at most #{@memory_limit} B and the strings",
       "#{Result.number(own)} B and #{Result.number(strings)} B", own <= @memory_limit}

    row = %Row{
      name: "memory",
      title: "memory of an entry",
      entries: entries,
      bars: [bar]
    }

    values = Map.merge(%{codex_files: [allocated]}, Map.get(memory, entries, %{}))
    report.(%Result{row: row, unit: :bytes, values: values})

    row = %Row{
      name: "memory",
      title: "memory of an entry, resident set of the core",
      entries: entries
    }

    report.(%Result{
      row: row,
      unit: :bytes,
      values: %{codex_files: figures[{entries, "resident"}]}
    })
  end

  @doc """
  How much the VM grows with each entry in plain Elixir, with real files. Of the library the VM does
  not know what it allocates; its core counts that itself.
  """
  def memory(entries) do
    # What is there once and for all.
    Scene.fill(&Comparator.Files.stage/1, 100)
    :ok = Comparator.Files.reset!()

    before = collected()
    Scene.fill(&Comparator.Files.stage/1, entries)
    growth = (collected() - before) / entries
    :ok = Comparator.Files.reset!()
    %{entries => %{elixir: [growth]}}
  end

  defp collected do
    for pid <- Process.list(), do: :erlang.garbage_collect(pid)
    :erlang.memory(:total)
  end

  @doc "`list`, `metrics` and a cleanup of nothing at each of the sizes, through the VM, no files."
  def list_all(sizes, dirs, settings, report) do
    results =
      for entries <- sizes do
        handle = registry(entries, dirs)
        {:ok, holder} = Agent.start_link(fn -> EntriesNif.list(handle) end, timeout: :infinity)
        rows = list_rows(handle, holder, entries)
        results = for row <- rows, do: %Result{row: row, values: Measure.rounds(row, settings)}
        :ok = Agent.stop(holder)
        stop(handle)
        results
      end

    base = Enum.find(results, fn [list | _] -> list.row.entries >= @linear_from end)

    for [list | others] <- results do
      bars = if base, do: linear(list, hd(base)), else: []
      Enum.each([%{list | row: %{list.row | bars: bars}} | others], report)
    end
  end

  defp linear(%{row: %{entries: entries}}, %{row: %{entries: fewest}}) when entries <= fewest,
    do: []

  defp linear(list, base) do
    growth = copies(list) / copies(base)

    asked =
      "linear: at most #{@linear}x as many copies of the list " <>
        "as at #{Report.grouped(base.row.entries)}"

    [{:measured, asked, "#{Result.number(growth)}x", growth <= @linear}]
  end

  # How many times the VM could copy the list meanwhile from one process to another.
  defp copies(%{values: %{codex_files: values, copying: copies}}),
    do: Result.median(values) / Result.median(copies)

  defp list_rows(handle, holder, entries) do
    [
      %Row{
        name: "list_all",
        title: "list, entries without files",
        entries: entries,
        sides: [
          side(:codex_files, fn _, _ -> EntriesNif.list(handle) end),
          side(:copying, fn _, _ -> Agent.get(holder, & &1, :infinity) end)
        ]
      },
      %Row{
        name: "list_all",
        title: "metrics, entries without files",
        entries: entries,
        sides: [side(:codex_files, fn _, _ -> metrics(handle) end)],
        bars: [{:at_most, 5_000}]
      },
      %Row{
        name: "list_all",
        title: "force_cleanup, nothing expired, entries without files",
        entries: entries,
        sides: [side(:codex_files, fn _, _ -> cleanup(handle) end)],
        bars: [{:at_most, 50_000}]
      }
    ]
  end

  defp registry(entries, dirs) do
    {:ok, handle} =
      EntriesNif.open(
        :erlang.term_to_binary({__MODULE__, entries}),
        __MODULE__,
        3_600_000,
        {nil, :refuse},
        false
      )

    source = Path.join(dirs.work, "a real one")
    File.write!(source, :binary.copy("x", Sources.size()))
    opts = [{dirs.ours, false}, source, :error, {false, 86_400_000, nil}, :new, make_ref()]
    {:ok, _attachment, false} = apply(EntriesNif, :stage_file, [handle | opts])
    :ok = EntriesNif.enter(handle, entries - 1)
    %{total_count: ^entries} = metrics(handle)
    handle
  end

  defp metrics(handle) do
    with :miss <- EntriesNif.try_metrics(handle), do: EntriesNif.metrics(handle)
  end

  defp cleanup(handle) do
    ref = make_ref()
    :wait = EntriesNif.force_cleanup(handle, ref)
    receive do: ({^ref, {:ok, {[], []}}} -> :ok)
  end

  defp stop(handle) do
    ref = make_ref()
    :wait = EntriesNif.stop(handle, ref)
    receive do: ({^ref, _result} -> :ok)
  end
end
