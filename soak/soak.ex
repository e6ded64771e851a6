defmodule Soak do
  @moduledoc false
  # Everything that can go wrong in the life of this library, for as long as one likes. See bin/soak.

  alias Soak.{Outcome, Phases, Problems, Report}

  @usage """
  bin/soak [MINUTES [PHASE...]]

  A minute if not said otherwise. The phases and their shares of it:

    load        a third: everything at once in one VM
    two_vms     a third: two VMs on one staging directory
    crashes     a sixth, and 10 a minute at least, 100 from 10 minutes on
    kills       a sixth, and 200 of the registry a minute at least, 1,000 from 5 minutes on

  CODEX_FILES_SOAK_DIR is the folder to work in, by default one in the system's temporary directory.
  """

  def main(args) do
    with [minutes | names] <- if(args == [], do: ["1"], else: args),
         {minutes, ""} when minutes > 0 <- Float.parse(minutes),
         [] <- names -- Map.keys(phases(minutes)) do
      names = if names == [], do: ~w(load two_vms crashes kills), else: names
      unless run(minutes, names), do: exit({:shutdown, 1})
    else
      _ ->
        IO.puts(:stderr, @usage)
        exit({:shutdown, 1})
    end
  end

  defp run(minutes, names) do
    # Of the children only: nothing is staged in this VM.
    work = Path.join(folder(), "codex_files_soak_#{System.pid()}")
    IO.puts("#{minutes} minutes below #{work}: #{environment()}")

    try do
      outcomes =
        for name <- names, {title, run} = phases(minutes)[name], do: phase(work, name, title, run)

      Report.summary(outcomes)
    after
      File.rm_rf!(work)
    end
  end

  defp folder, do: Path.expand(System.get_env("CODEX_FILES_SOAK_DIR", System.tmp_dir!()))

  defp phases(minutes) do
    third = round(minutes * 20)
    sixth = round(minutes * 10)

    %{
      "load" => {"load", &Phases.Load.run(&1, third, &2)},
      "two_vms" => {"two VMs", &Phases.TwoVMs.run(&1, third, &2)},
      "crashes" => {"crashes", &Phases.Crashes.run(&1, sixth, at_least(minutes, 10, 100), &2)},
      "kills" =>
        {"kills", &Phases.RegistryKills.run(&1, sixth, at_least(minutes, 200, 1_000), &2)}
    }
  end

  defp at_least(minutes, a_minute, most),
    do: (minutes * a_minute) |> round() |> max(a_minute) |> min(most)

  defp phase(work, name, title, run) do
    dir = Path.join(work, name)
    File.mkdir_p!(dir)
    problems = Path.join(work, "#{name}.problems")
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

    %{outcome | title: title, seconds: seconds, problems: Problems.all(problems)}
    |> tap(&Report.phase/1)
    |> tap(fn _outcome -> File.rm_rf!(dir) end)
  end

  defp environment do
    {uname, 0} = System.cmd("uname", ["-sr"])

    "#{System.schedulers_online()} cores, #{String.trim(uname)}, Erlang/OTP #{System.otp_release()}, " <>
      "Elixir #{System.version()}"
  end
end
