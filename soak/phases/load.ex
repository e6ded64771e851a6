defmodule Soak.Phases.Load do
  @moduledoc false
  # One VM in which everything happens: callers stage, renew, expire, reset and are killed, and so
  # are the registry and its supervisor.

  alias Codex.Files.ChildVM
  alias Soak.{Outcome, Sources, Station}

  # Before the memory is measured first, until it is what it is under load.
  @warm_up 0.1

  def run(work, seconds, problems) do
    Sources.prepare()
    shared = Sources.write_shared(Path.join(work, "shared"))
    vm = Station.start(Path.join(work, "staging"), 20)

    station =
      Station.open(vm,
        dir: Path.join(work, "vm"),
        shared: shared,
        problems: problems,
        reset_ms: 10_000,
        registry_ms: 1_000,
        limited_ms: 1_500,
        supervisor_ms: 8_000
      )

    Process.sleep(round(seconds * @warm_up * 1000))
    :ok = Station.idle(station)
    from = Station.start_resources(station)
    Station.tell(station, :resume)
    Process.sleep(round(seconds * (1 - @warm_up) * 1000))
    :ok = Station.idle(station)
    till = Station.end_resources(station, from)
    report = Station.tell(station, :report)
    ChildVM.stop(vm)
    %Outcome{counts: report.counts, checks: report.checks, resources: {from, till}}
  end
end
