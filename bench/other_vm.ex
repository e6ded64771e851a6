defmodule Bench.OtherVM do
  @moduledoc false
  # The rows that need a VM of their own: one in which nobody has called the library yet, and one that
  # was started with other flags.

  alias Bench.{Measure, Report, Result, Row, Side, Sources}
  alias Codex.Files.FirstCalls

  @names ~w(first_calls new_spinning peak)

  # As many as a host with many dependencies has.
  @folders 150

  # The files of one turn.
  @some 1_000

  @mib 1024 * 1024
  @piece 64 * 1024

  # What a staging may take.
  @most_memory 16 * @mib

  def names, do: @names

  def sources_needed, do: @some

  def run(names, dirs, settings, report) do
    if "first_calls" in names, do: measure(first_calls(dirs), settings, report)

    if "peak" in names do
      report.(peak(:stream, 2 * settings.large_mib, dirs))
      report.(peak(:data, div(settings.large_mib, 2), dirs))
    end

    if "new_spinning" in names do
      spinning = start('+sbwtdio very_long', Path.join(dirs.work, "spinning"))
      no_flag = start('', Path.join(dirs.work, "no_flag"))
      measure(new_spinning(spinning, no_flag), settings, report)
      Enum.each([spinning, no_flag], &:peer.stop/1)
    end
  end

  defp measure(row, settings, report),
    do: report.(%Result{row: row, values: Measure.rounds(row, settings)})

  defp first_calls(dirs) do
    dir = Path.join(dirs.work, "first_calls")

    folders =
      for number <- 1..@folders do
        folder = Path.join(dir, "lib/#{number}/ebin")
        File.mkdir_p!(folder)
        to_charlist(folder)
      end

    side = fn name, callers ->
      Side.new(name, fn vm, 1, 1 -> 1_000 * call(vm, FirstCalls, :at_once, [callers]) end,
        prepare: fn _ ->
          vm = start('', Path.join(dir, "staged"))
          :ok = call(vm, :code, :add_pathsz, [folders])
          vm
        end,
        tidy: &:peer.stop/1
      )
    end

    %Row{
      name: "first_calls",
      title: "first call, of 2,000 processes at once",
      operations: 1,
      sides: [side.(:codex_files, 2_000), side.(:one_call, 1)],
      bars: [{:at_most_times, 3, [:one_call], "one first call"}]
    }
  end

  defp new_spinning(spinning, no_flag) do
    paths = List.to_tuple(for number <- 0..(@some - 1), do: Sources.path(number))

    side = fn name, vm ->
      Side.new(
        name,
        fn _, callers, count ->
          call(vm, Measure, :calls, [&__MODULE__.stage/2, paths, callers, count])
        end,
        tidy: fn _ -> :ok = call(vm, Codex.Files, :force_cleanup, []) end
      )
    end

    %Row{
      name: "new_spinning",
      title: "Files.stage, new 4 KiB, VM with +sbwtdio very_long",
      operations: @some,
      disk?: true,
      sides: [side.(:codex_files, spinning), side.(:no_flag, no_flag)]
    }
  end

  @doc false
  def stage(paths, number), do: {:ok, _} = Codex.Files.stage(elem(paths, number), ttl_ms: 0)

  defp peak(kind, mib, dirs) do
    vm = start('', Path.join(dirs.work, "peak"))
    growth = call(vm, __MODULE__, :growth, [kind, mib])
    :peer.stop(vm)

    row = %Row{
      name: "peak",
      title: "peak memory of {:#{kind}} of #{Report.grouped(mib)} MiB, beyond #{beyond(kind)}",
      bars: [{:at_most, @most_memory}]
    }

    %Result{row: row, unit: :bytes, values: %{codex_files: [growth]}}
  end

  defp beyond(:stream), do: "the idle VM"
  defp beyond(:data), do: "the binary"

  @doc false
  def growth(kind, mib) do
    # The library is loaded, and a registry runs.
    {:ok, _} = Codex.Files.stage({:data, "some notes"}, name: "notes.txt")
    source = source(kind, mib)
    before = peak_from_now_on()
    {:ok, _} = Codex.Files.stage(source, name: "large.bin")
    peak() - before
  end

  # What makes the pieces keeps none of them.
  defp source(:stream, mib) do
    {:stream, Stream.map(1..(div(@mib, @piece) * mib), &:binary.copy(<<&1::64>>, div(@piece, 8)))}
  end

  defp source(:data, mib), do: {:data, :binary.copy("0123456789abcdef", div(@mib, 16) * mib)}

  @doc "The most memory that this VM has had in use, in bytes."
  def peak do
    status = File.read!("/proc/self/status")
    [kib] = Regex.run(~r/^VmHWM:\s+(\d+) kB$/m, status, capture: :all_but_first)

    1024 * String.to_integer(kib)
  end

  @doc "Forgets the peaks before, and gives what is in use."
  def peak_from_now_on do
    for pid <- Process.list(), do: :erlang.garbage_collect(pid)
    File.write!("/proc/self/clear_refs", "5")
    peak()
  end

  # A VM with all modules of the library loaded, as in a release.
  defp start(flags, staging_dir) do
    # Its own library it finds itself.
    folders = Enum.reject(:code.get_path(), &List.starts_with?(&1, :code.lib_dir()))
    args = :string.lexemes(flags, ' ') ++ Enum.flat_map(folders, &['-pa', &1])
    {:ok, vm, _node} = :peer.start_link(%{connection: :standard_io, args: args})
    {:ok, _} = call(vm, :application, :ensure_all_started, [:elixir])
    :ok = call(vm, Application, :load, [:codex_files])
    {:ok, modules} = call(vm, :application, :get_key, [:codex_files, :modules])
    :ok = call(vm, :code, :ensure_modules_loaded, [[FirstCalls | modules]])
    :ok = call(vm, Application, :put_env, [:codex_sdk, :staging_dir, staging_dir])
    vm
  end

  defp call(vm, module, function, args), do: :peer.call(vm, module, function, args, :infinity)
end
