defmodule Codex.Files.Startup do
  @moduledoc false
  # Starts the registry: one process does it, and all others wait for that one. While applications
  # or the VM are being stopped nobody waits.
  #
  # The application controller serves one request after the other, and does not take those back whose
  # sender has been killed: callers that give up and try again must not ask it themselves. While it
  # stops applications, on some versions of OTP, it answers nobody, nor does a supervisor that waits
  # for the end of a child. The application or the child may be the one that asks.

  alias Codex.Files.Registry

  # How often the starter looks whether what it waits for is being stopped.
  @look_ms 20

  # How often a supervisor is asked that has yet to restart the registry: for five seconds.
  @attempts 1_000

  @doc "See `Codex.Files.Registry.ensure_started/0`."
  @spec ensure_started() :: {:ok, pid()} | {:error, term()}
  def ensure_started do
    with :none <- running(), do: await_starter()
  end

  defp running do
    pid = Process.whereis(Registry)
    # A process that is being killed may still have its name.
    if pid != nil and Process.alive?(pid), do: {:ok, pid}, else: :none
  end

  # The result is what the starter exits with: nothing is left in the mailbox of a caller that was
  # killed, and no other process has to remember who waits.
  defp await_starter do
    case await_result(Process.monitor(__MODULE__)) do
      :noproc -> become_starter()
      result -> result
    end
  end

  defp become_starter do
    # It has a high priority, so that those who ask in the same moment find it.
    {_pid, monitor} = Process.spawn(&run/0, [:monitor, priority: :high])

    case await_result(monitor) do
      :another_starts -> ensure_started()
      result -> result
    end
  end

  defp await_result(monitor) do
    receive do
      {:DOWN, ^monitor, :process, _starter, reason} -> result(reason)
    end
  end

  defp result({:shutdown, {__MODULE__, result}}), do: result
  defp result(:noproc), do: :noproc
  defp result(reason), do: {:error, reason}

  ## The starter

  @spec run() :: no_return()
  defp run do
    exit_with(if registered?(), do: ensure_started_alone(), else: :another_starts)
  end

  defp exit_with(result), do: exit({:shutdown, {__MODULE__, result}})

  defp registered? do
    Process.register(self(), __MODULE__)
  rescue
    ArgumentError -> false
  end

  # Another starter may have started the registry just before.
  defp ensure_started_alone do
    with :none <- running() do
      if stopping?() do
        {:error, :not_started}
      else
        {pid, monitor} = spawn_monitor(&run_start/0)
        watch(pid, monitor)
      end
    end
  end

  @spec run_start() :: no_return()
  defp run_start, do: exit_with(start(@attempts))

  defp watch(pid, monitor) do
    receive do
      {:DOWN, ^monitor, :process, ^pid, reason} -> result(reason)
    after
      @look_ms ->
        if stopping?() do
          Process.exit(pid, :kill)
          {:error, :not_started}
        else
          watch(pid, monitor)
        end
    end
  end

  ## What is being stopped

  # This is seen from outside, since the processes that stop something do not answer.
  defp stopping? do
    case Process.whereis(:application_controller) do
      nil -> true
      controller -> stops_applications?(controller) or Enum.any?(supervisors(), &ends_child?/1)
    end
  end

  # The application controller ends itself, or waits for the master of an application. Since OTP 29 it
  # does not wait any more: then the master, which is linked to it, is seen to end the application.
  defp stops_applications?(controller) do
    in_any?(controller, [{:application_controller, :terminate}, {:application_master, :call}]) or
      Enum.any?(links(controller), &in_any?(&1, [{:application_master, :terminate}]))
  end

  defp ends_child?(supervisor),
    do: in_any?(supervisor, [{:supervisor, :shutdown}, {:gen_server, :try_terminate}])

  defp supervisors do
    for name <- [Codex.Supervisor, Codex.Files.Supervisor], pid = Process.whereis(name), do: pid
  end

  defp links(pid) do
    case Process.info(pid, :links) do
      {:links, links} -> Enum.filter(links, &is_pid/1)
      nil -> []
    end
  end

  defp in_any?(pid, functions) do
    case Process.info(pid, :current_stacktrace) do
      {:current_stacktrace, stack} ->
        Enum.any?(stack, fn {module, function, _, _} -> {module, function} in functions end)

      nil ->
        false
    end
  end

  ## Starting

  defp start(attempts) do
    cond do
      Process.whereis(Codex.Supervisor) ->
        ensure_child(Codex.Supervisor, attempts)

      sdk?() ->
        with {:ok, _started} <- Application.ensure_all_started(:codex_sdk),
             do: ensure_child(Codex.Supervisor, attempts)

      Process.whereis(Codex.Files.Supervisor) ->
        start_child()

      true ->
        with {:ok, _started} <- Application.ensure_all_started(:codex_files),
             :ok <- Codex.Files.Application.start_supervisor(),
             do: start_child()
    end
  end

  # Whether the SDK is there, be it started or not.
  defp sdk? do
    match?({:ok, _version}, :application.get_key(:codex_sdk, :vsn)) or
      is_list(:code.where_is_file(~c"codex_sdk.app"))
  end

  defp start_child do
    case Supervisor.start_child(Codex.Files.Supervisor, {Registry, []}) do
      {:error, {:already_started, _pid}} -> ensure_child(Codex.Files.Supervisor, @attempts)
      {:error, :already_present} -> ensure_child(Codex.Files.Supervisor, @attempts)
      # The supervisor adds the child to the reason.
      {:error, {reason, child}} when elem(child, 0) == :child -> {:error, reason}
      result -> result
    end
  catch
    :exit, _reason -> {:error, :not_started}
  end

  defp ensure_child(supervisor, attempts) do
    children = Supervisor.which_children(supervisor)

    case List.keyfind(children, Registry, 0) do
      {_id, pid, _type, _modules} when is_pid(pid) ->
        # The supervisor may not have heard yet that it was killed.
        if Process.alive?(pid), do: {:ok, pid}, else: look_again(supervisor, attempts)

      {_id, :undefined, _type, _modules} ->
        restart_child(supervisor, attempts)

      {_id, :restarting, _type, _modules} ->
        look_again(supervisor, attempts)

      nil ->
        {:error, :not_started}
    end
  catch
    :exit, _reason -> {:error, :not_started}
  end

  # The supervisor is restarting the registry: once it has tried, there is another state to see.
  defp look_again(_supervisor, 0), do: {:error, :not_started}

  defp look_again(supervisor, attempts) do
    Process.sleep(5)
    ensure_child(supervisor, attempts - 1)
  end

  defp restart_child(supervisor, attempts) do
    case Supervisor.restart_child(supervisor, Registry) do
      {:ok, pid, _info} ->
        {:ok, pid}

      {:error, reason} when reason in [:running, :restarting] and attempts > 0 ->
        ensure_child(supervisor, attempts - 1)

      {:error, :not_found} ->
        {:error, :not_started}

      result ->
        result
    end
  end
end
