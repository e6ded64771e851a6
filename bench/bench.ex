defmodule Bench do
  @moduledoc false
  # Measures the library beside the same work in plain Elixir, the bare system calls, `cp` and
  # `openssl`. See bin/bench.

  alias Bench.{Bare, BareNif, Budget, Chart, Fairness, InMemory, Kept, Large, OtherVM}
  alias Bench.{Report, Scale, Scene, Sources}

  # Whose rows are measured once, whatever the sizes.
  @once [InMemory, Kept, Budget, Large, OtherVM]

  @names Scene.names() ++
           Scene.names_in_turn() ++
           Enum.flat_map(@once, & &1.names()) ++ Scale.names() ++ Fairness.names()

  @usage """
  bin/bench [OPTION...]

    --quick            a few seconds for each row, fewer sizes, smaller large files
    --rows A,B,...     only these: #{Enum.join(@names, ", ")}
    --entries A,B,...  the sizes; 1000,20000,100000 if not said otherwise
    --in-turn N        how many files again_in_turn and evict_many have there; 200,000 if not said
                       otherwise
    --seconds N        how long to measure each row
    --dir DIR          where to put the files, on the file system to be measured
    --output DIR       where to put results.csv, fairness.csv and chart.svg
  """

  @options [
    quick: :boolean,
    rows: :string,
    entries: :string,
    in_turn: :integer,
    seconds: :integer,
    dir: :string,
    output: :string,
    help: :boolean
  ]

  def main(args) do
    case OptionParser.parse(args, strict: @options) do
      {opts, [], []} ->
        opts |> Map.new() |> run()

      {_, rest, invalid} ->
        fail("expected other arguments than #{inspect(rest ++ invalid)}\n\n" <> @usage)
    end
  end

  defp run(%{help: true}), do: IO.puts(@usage)

  defp run(opts) do
    settings = settings(opts)
    dirs = start(settings)

    try do
      measure(settings, dirs)
    after
      File.rm_rf!(dirs.work)
    end
  end

  defp settings(opts) do
    quick? = Map.get(opts, :quick, false)
    rows = if opts[:rows], do: String.split(opts.rows, ","), else: @names
    if rows -- @names != [], do: fail("expected rows of #{Enum.join(@names, ", ")}")

    if Enum.any?(Large.names(), &(&1 in rows)) and System.find_executable("openssl") == nil,
      do: fail("expected openssl on the PATH: large files are measured beside it")

    entries =
      cond do
        opts[:entries] -> opts.entries |> String.split(",") |> Enum.map(&String.to_integer/1)
        quick? -> [1_000, 20_000]
        true -> [1_000, 20_000, 100_000]
      end

    # A part of the rows, or a quick look, is not what the README shows.
    whole? = not quick? and opts[:rows] == nil and opts[:entries] == nil

    %{
      mode: if(quick?, do: :quick, else: :full),
      rows: rows,
      entries: Enum.sort(entries),
      in_turn: opts[:in_turn] || if(quick?, do: 20_000, else: 200_000),
      many: if(quick?, do: 100_000, else: 1_000_000),
      seconds: opts[:seconds] || if(quick?, do: 2, else: 12),
      large_mib: if(quick?, do: 128, else: 512),
      fairness_mib: if(quick?, do: 32, else: 128),
      fairness_seconds: if(quick?, do: 3, else: 15),
      fairness_rounds: if(quick?, do: 1, else: 2),
      dir: opts[:dir] || System.tmp_dir!(),
      output: opts[:output] || if(whole?, do: "bench/results", else: "_build/bench")
    }
  end

  defp start(settings) do
    work = Path.join(Path.expand(settings.dir), "codex_files_bench_#{System.pid()}")

    dirs = %{
      work: work,
      ours: Path.join(work, "ours"),
      elixir: Path.join(work, "elixir"),
      bare: Path.join(work, "bare")
    }

    Enum.each([dirs.ours, dirs.elixir, dirs.bare], &File.mkdir_p!/1)

    hour = 3_600_000
    Application.put_env(:codex_sdk, :staging_dir, dirs.ours)
    Application.put_env(:codex_sdk, :attachment_cleanup_interval_ms, hour)
    Application.put_env(:comparator, :staging_dir, dirs.elixir)
    {:ok, _} = Codex.Files.Registry.ensure_started()
    {:ok, _} = Task.Supervisor.start_link(name: Comparator.TaskSupervisor)
    {:ok, _} = Comparator.Registry.start_link(cleanup_interval_ms: hour)
    Bare.start()
    true = BareNif.open(dirs.bare)
    dirs
  end

  defp measure(settings, dirs) do
    scenes = Enum.filter(Scene.names(), &(&1 in settings.rows))
    rows = settings.rows
    IO.puts(environment(settings, dirs))
    sources(settings, dirs, scenes)

    Report.header()
    Process.put(:results, [])

    report = fn result ->
      Report.row(result)
      Process.put(:results, [result | Process.get(:results)])
    end

    # First, before the memory of the VM has grown for another reason.
    memory = if "memory" in rows, do: Scale.memory(List.last(settings.entries)), else: %{}

    if scenes != [],
      do: Enum.each(settings.entries, &Scene.run(&1, scenes, dirs, settings, report))

    if "again_in_turn" in rows,
      do: Scene.run_in_turn(settings.in_turn, dirs, settings, report)

    for {module, names} <- once(rows), do: module.run(names, dirs, settings, report)
    sizes = settings.entries ++ [settings.many]
    if "memory" in rows or "core" in rows, do: Scale.core(sizes, rows, memory, report)
    if "list_all" in rows, do: Scale.list_all(sizes, dirs, settings, report)
    fairness = if "fairness" in rows, do: Fairness.run(settings.fairness_mib, dirs, settings)
    if fairness, do: Report.fairness(fairness)

    results = Enum.reverse(Process.get(:results))
    Report.summary(results)
    write(settings.output, results, fairness)
  end

  defp once(rows) do
    for module <- @once,
        names = Enum.filter(module.names(), &(&1 in rows)),
        names != [],
        do: {module, names}
  end

  defp sources(settings, dirs, scenes) do
    most = List.last(settings.entries)

    needed = [
      if(scenes != [], do: Scene.sources_needed(most), else: 0),
      if("again_in_turn" in settings.rows, do: settings.in_turn, else: 0),
      if("memory" in settings.rows, do: most, else: 0),
      if("fairness" in settings.rows, do: Fairness.sources_needed(), else: 0)
    ]

    needed = needed ++ for({module, _names} <- once(settings.rows), do: module.sources_needed())
    count = Enum.max(needed)
    if count > 0, do: Sources.make(Path.join(dirs.work, "sources"), count)
  end

  defp write(dir, results, fairness) do
    File.mkdir_p!(dir)

    files = [
      {"results.csv", results != [] && Report.csv(results)},
      {"fairness.csv", fairness && Report.fairness_csv(fairness)},
      {"chart.svg", Chart.svg(results)}
    ]

    for {name, content} <- files, content do
      File.write!(Path.join(dir, name), content)
      IO.puts("wrote #{Path.join(dir, name)}")
    end
  end

  defp environment(settings, dirs) do
    {file_system, 0} = System.cmd("stat", ["-f", "-c", "%T", dirs.work])

    "#{System.schedulers_online()} cores, #{String.trim(file_system)}, Erlang/OTP #{System.otp_release()}, " <>
      "Elixir #{System.version()}; medians (quartiles) over rounds of turns in random order" <>
      if(settings.mode == :quick, do: "; quick", else: "") <> "\n"
  end

  defp fail(message) do
    IO.puts(:stderr, message)
    exit({:shutdown, 1})
  end
end
