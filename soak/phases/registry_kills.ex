defmodule Soak.Phases.RegistryKills do
  @moduledoc false
  # The registry is killed under load, again as soon as its successor has shown that it works.

  alias Codex.Files.ChildVM
  alias Soak.{Outcome, Sources, Station}

  # Before the memory is measured first, until it is what it is under load.
  @warm_up 100
  @batch 100

  def run(work, seconds, minimum, problems) do
    until = System.monotonic_time(:millisecond) + seconds * 1000
    Sources.prepare()
    shared = Sources.write_shared(Path.join(work, "shared"))
    vm = Station.start(Path.join(work, "staging"), 5)

    # There are no resets but those that keep the disk from filling up.
    station =
      Station.open(vm,
        dir: Path.join(work, "vm"),
        shared: shared,
        problems: problems,
        reset_ms: 3_600_000
      )

    Station.tell(station, :kill_registry, [@warm_up])
    :ok = Station.idle(station)
    from = Station.start_resources(station)
    Station.tell(station, :resume)
    {kills, answered} = kill(station, until, minimum, {0, 0})
    :ok = Station.idle(station)
    till = Station.end_resources(station, from)
    report = Station.tell(station, :report)
    ChildVM.stop(vm)

    %Outcome{
      counts: report.counts,
      checks: report.checks,
      resources: {from, till},
      figures: [kills: kills, "successors that staged at once": answered]
    }
  end

  defp kill(station, until, minimum, {kills, answered}) do
    if kills < minimum or System.monotonic_time(:millisecond) < until do
      answered = answered + Station.tell(station, :kill_registry, [@batch])
      kill(station, until, minimum, {kills + @batch, answered})
    else
      {kills, answered}
    end
  end
end
