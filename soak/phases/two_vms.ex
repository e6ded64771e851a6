defmodule Soak.Phases.TwoVMs do
  @moduledoc false
  # Two VMs on one staging directory: both stage the same contents and different ones, sweep and
  # reset; now and then one of them stops or is killed, and another takes its place.

  alias Codex.Files.ChildVM
  alias Soak.{Outcome, Problems, Published, Sources, Station, Tally}

  @longest_life_ms 6_000

  defstruct [:work, :staging_dir, :shared, :problems, reports: [], ends: %{stop: 0, kill: 0}]

  def run(work, seconds, problems) do
    Sources.prepare()

    state = %__MODULE__{
      work: work,
      staging_dir: Path.join(work, "staging"),
      shared: Sources.write_shared(Path.join(work, "shared")),
      problems: problems
    }

    stations = for number <- 1..2, do: open(state, number)
    until = System.monotonic_time(:millisecond) + seconds * 1000
    {stations, state} = replace(stations, state, until, 3)
    state = finish(stations, state)

    %Outcome{
      counts: Tally.merge(for report <- state.reports, do: report.counts),
      checks: Enum.sum(for report <- state.reports, do: report.checks),
      figures: [
        "VMs stopped in order": state.ends.stop,
        "VMs killed": state.ends.kill,
        "VMs in all": state.ends.stop + state.ends.kill + 2
      ]
    }
  end

  defp open(state, number) do
    vm = Station.start(state.staging_dir, 20)

    Station.open(vm,
      dir: Path.join(state.work, "vm-#{number}"),
      shared: state.shared,
      problems: state.problems,
      reset_ms: 3_000
    )
  end

  defp replace(stations, state, until, number) do
    left = until - System.monotonic_time(:millisecond)

    if left > 0 do
      Process.sleep(min(:rand.uniform(@longest_life_ms), left))
      [station, other] = Enum.shuffle(stations)
      {way, state} = close(station, state)
      state = update_in(state.ends[way], &(&1 + 1))
      successor = open(state, number)
      # What the dead one left has gone, the files of the other are looked at all the time.
      areas_left(state, way, [other, successor])
      replace([other, successor], state, until, number + 1)
    else
      {stations, state}
    end
  end

  # In the middle of everything.
  defp close(station, state) do
    state = collect(station, state)

    case Enum.random([:kill, :stop]) do
      :kill -> ChildVM.kill(station.vm) && {:kill, state}
      :stop -> stop(station) && {:stop, state}
    end
  end

  defp stop(station) do
    :ok = Station.tell(station, :close)
    ChildVM.stop(station.vm)
  end

  # Nobody kills a registry here: no call may fail.
  defp collect(station, state) do
    report = Station.tell(station, :report)

    for {kind, reason, count} <- Tally.errors(report.counts) do
      Problems.add(state.problems, :error, "#{kind}: #{inspect(reason)}, #{count} times")
    end

    %{state | reports: [report | state.reports]}
  end

  defp areas_left(state, way, stations) do
    # Each has two at most, and the next cleanup comes after what a start removes.
    gone? = fn -> length(Published.areas(state.staging_dir)) <= 2 * length(stations) end

    unless Soak.Wait.until(gone?) do
      areas = inspect(Published.areas(state.staging_dir))
      Problems.add(state.problems, :leftover, "of two VMs, after a #{way}: #{areas}")
    end
  end

  # One after the other, so that the end of one is seen not to harm the other.
  defp finish([station, other], state) do
    Station.idle(station)
    state = collect(station, state)
    ChildVM.stop(station.vm)
    Station.settle(other)
    state = collect(other, state)
    :ok = Station.tell(other, :clear)
    ChildVM.stop(other.vm)
    state
  end
end
