defmodule Soak do
  @moduledoc false
  # Everything that can go wrong in the life of this library, for as long as one likes. See bin/soak.

  alias Soak.{Outcome, Phases, Problems, Report}

  @usage """
  bin/soak [MINUTES]

  The load and two VMs on one staging directory get a third of the time each, crashes and kills of
  the registry a sixth. There are at least 10 crashes a minute, up to 100, and 1,000 kills, however
  long they take. A minute if not said otherwise.

  CODEX_FILES_SOAK_DIR is the folder to work in, by default one in the system's temporary directory.
  """

  def main(args) do
    with [minutes] <- if(args == [], do: ["1"], else: args),
         {minutes, ""} when minutes > 0 <- Float.parse(minutes) do
      unless run(minutes), do: exit({:shutdown, 1})
    else
      _ ->
        IO.puts(:stderr, @usage)
        exit({:shutdown, 1})
    end
  end

  defp run(minutes) do
    # Of the children only: nothing is staged in this VM.
    work = Path.join(folder(), "codex_files_soak_#{System.pid()}")
    IO.puts("#{minutes} minutes below #{work}: #{environment()}")

    try do
      outcomes = for {module, run} <- phases(minutes), do: phase(work, module, run)
      Report.summary(outcomes)
    after
      File.rm_rf!(work)
    end
  end

  defp folder, do: Path.expand(System.get_env("CODEX_FILES_SOAK_DIR", System.tmp_dir!()))

  defp phases(minutes) do
    third = round(minutes * 20)
    sixth = round(minutes * 10)
    crashes = minutes |> Kernel.*(10) |> round() |> max(10) |> min(100)

    [
      {Phases.Load, &Phases.Load.run(&1, third, &2)},
      {Phases.TwoVMs, &Phases.TwoVMs.run(&1, third, &2)},
      {Phases.Crashes, &Phases.Crashes.run(&1, sixth, crashes, &2)},
      {Phases.RegistryKills, &Phases.RegistryKills.run(&1, sixth, &2)}
    ]
  end

  defp phase(work, module, run) do
    dir = Path.join(work, module.title() |> String.replace(" ", "_"))
    File.mkdir_p!(dir)
    problems = Path.join(work, "problems of #{module.title()}")
    started = System.monotonic_time(:millisecond)

    outcome =
      try do
        run.(dir, problems)
      rescue
        # A VM that ends by itself, or gives no answer.
        error ->
          Problems.add(problems, :crash, Exception.format(:error, error, __STACKTRACE__))
          %Outcome{}
      end

    seconds = (System.monotonic_time(:millisecond) - started) / 1000

    %{outcome | title: module.title(), seconds: seconds, problems: Problems.all(problems)}
    |> tap(&Report.phase/1)
    |> tap(fn _outcome -> File.rm_rf!(dir) end)
  end

  defp environment do
    {uname, 0} = System.cmd("uname", ["-sr"])

    "#{System.schedulers_online()} cores, #{String.trim(uname)}, Erlang/OTP #{System.otp_release()}, " <>
      "Elixir #{System.version()}"
  end
end
