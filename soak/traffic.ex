defmodule Soak.Traffic do
  @moduledoc false
  # The load in one VM: callers, those who check, and what disturbs them. Started there by `start/1`,
  # and told from outside to go on, to pause and to report.

  use GenServer

  alias Codex.Files.Registry

  alias Soak.{
    Account,
    Checker,
    Client,
    Context,
    Damage,
    Disturber,
    Limited,
    Problems,
    Tally,
    Watch
  }

  @clients 24

  # Of the registry with a budget.
  @limited_cleanup_ms 20
  @limited_reset_ms 3_000

  @doc """
  Starts the traffic.

    * `:dir` - a folder of this VM's own
    * `:shared` - what everybody stages
    * `:problems` - the file that problems go to
    * `:reset_ms`, `:registry_ms`, `:supervisor_ms` - the longest pause between two resets, and
      between two kills of the registry or of its supervisor; without it there are none
    * `:limited_ms` - between two kills of the registry with a budget. It is reset in any case
  """
  def start(opts) do
    # What a killed process reports is no news here.
    :logger.set_primary_config(:level, :none)
    Application.put_env(:codex_files, :soak_elsewhere, Path.join(opts[:dir], "elsewhere"))
    {:ok, _pid} = GenServer.start(__MODULE__, opts, name: __MODULE__)
    {:module, :telemetry} = :code.ensure_loaded(:telemetry)
    :ok
  end

  @doc "Lets everybody come to an end; whoever does not is a problem."
  def pause, do: GenServer.call(__MODULE__, :pause, :infinity)

  def resume, do: GenServer.call(__MODULE__, :resume, :infinity)

  @doc "What was counted, and how many checks were made, after one of all there is."
  def report do
    context = context()
    accounts = [context.account, context.limited.account]
    Enum.each(accounts, &Account.check_all/1)
    checks = accounts |> Enum.map(&Account.checks/1) |> Enum.sum()
    %{counts: Tally.counts(context.tally), checks: checks}
  end

  @doc "With the traffic paused. See `Soak.Checker`."
  def settle do
    context = context()
    Checker.settle(context) + Checker.settle(context.limited)
  end

  def clear do
    context = context()
    Checker.clear(context, [Application.fetch_env!(:codex_files, :soak_elsewhere)])
    Checker.clear(context.limited, [])
  end

  @doc "Before the VM is stopped under load. See `Soak.Account.close/1`."
  def close do
    Account.close(context().account)
    Account.close(context().limited.account)
  end

  def kill_registry(count), do: Disturber.kill_registry(context(), count)

  @doc "Collects the garbage of all processes, before the memory is measured."
  def collect_garbage, do: Enum.each(Process.list(), &:erlang.garbage_collect/1)

  @doc "Counts an event."
  def count(event), do: Tally.add_event(context().tally, event)

  defp context, do: :persistent_term.get(__MODULE__)

  @impl true
  def init(opts) do
    context = Context.new(opts[:dir], opts[:shared], opts[:problems])
    :persistent_term.put(__MODULE__, context)
    {:ok, _attachments} = Codex.Files.list_staged_result()
    Limited.start_link(@limited_cleanup_ms)
    watch()
    {:ok, go(%{context: context, opts: opts, workers: %{}})}
  end

  @impl true
  def handle_call(:resume, _from, state), do: {:reply, :ok, go(state)}

  def handle_call(:pause, _from, %{context: context} = state) do
    Context.stop(context)
    latest = System.monotonic_time(:millisecond) + Watch.limit_ms()
    for {monitor, pid} <- state.workers, do: await(context, monitor, pid, latest)
    {:reply, :ok, %{state | workers: %{}}}
  end

  defp await(context, monitor, pid, latest) do
    receive do
      {:DOWN, ^monitor, :process, ^pid, reason} -> ended(context, reason)
    after
      max(latest - System.monotonic_time(:millisecond), 0) ->
        Problems.add(context.problems, :hanging, "a process, at #{Watch.where(pid)}")
        Process.demonitor(monitor, [:flush])
        Process.exit(pid, :kill)
    end
  end

  @impl true
  def handle_info({:DOWN, monitor, :process, _pid, reason}, state) do
    ended(state.context, reason)
    {:noreply, %{state | workers: Map.delete(state.workers, monitor)}}
  end

  def handle_info(:watch, state) do
    for hanging <- Watch.hanging(state.context.watch),
        do: Problems.add(state.context.problems, :hanging, hanging)

    watch()
    {:noreply, state}
  end

  defp ended(_context, :normal), do: :ok

  defp ended(context, reason),
    do: Problems.add(context.problems, :crash, "a process of the soak: #{inspect(reason)}")

  defp go(%{context: context, opts: opts} = state) do
    Context.resume(context)

    works =
      for(number <- 1..@clients, do: fn -> Client.run(context, number) end) ++
        [
          fn -> Checker.run(context) end,
          fn -> Damage.watch(context) end,
          fn -> Damage.watch(context.limited) end,
          fn -> Limited.watch(context.limited) end,
          fn -> Disturber.reset(context.limited, @limited_reset_ms) end
        ] ++
        for({key, work} <- disturbances(context), pause = opts[key], do: fn -> work.(pause) end)

    %{state | workers: Map.new(works, &start_worker/1)}
  end

  defp disturbances(context) do
    [
      reset_ms: &Disturber.reset(context, &1),
      registry_ms: &Disturber.kill(context, Registry, :registry_killed, &1),
      limited_ms: &Disturber.kill(context, Limited, :limited_killed, &1),
      supervisor_ms: &Disturber.kill(context, Codex.Files.Supervisor, :supervisor_killed, &1)
    ]
  end

  defp start_worker(work) do
    {pid, monitor} = spawn_monitor(work)
    {monitor, pid}
  end

  defp watch, do: Process.send_after(self(), :watch, Watch.limit_ms())
end
