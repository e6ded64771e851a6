defmodule Soak.Station do
  @moduledoc false
  # A VM with traffic in it, seen from outside.

  alias Codex.Files.ChildVM
  alias Soak.{Problems, Resources, Traffic}

  defstruct [:vm, :opts, :first]

  # Beyond what there was at the start: threads that are started when they are first needed, and
  # memory that the allocators keep, which goes up and down.
  @spare %{
    threads: 4 + System.schedulers_online(),
    descriptors: 4,
    processes: 4,
    rss_kib: 48 * 1024
  }

  @doc "Starts a VM on a staging directory, without traffic."
  def start(staging_dir, cleanup_interval_ms) do
    vm = ChildVM.start(staging_dir)
    configure(vm, :attachment_cleanup_interval_ms, cleanup_interval_ms)
    vm
  end

  defp configure(vm, key, value),
    do: ChildVM.eval(vm, quote(do: Application.put_env(:codex_sdk, unquote(key), unquote(value))))

  @doc "Starts the traffic in a VM."
  def open(vm, opts) do
    {:ok, _attachments} = ChildVM.eval(vm, quote(do: Codex.Files.list_staged_result()))
    first = Resources.of(vm)
    :ok = ChildVM.eval(vm, quote(do: Traffic.start(unquote(Macro.escape(opts)))))
    %__MODULE__{vm: vm, opts: opts, first: first}
  end

  @doc "Calls a function of `Soak.Traffic` in the VM."
  def tell(%__MODULE__{vm: vm}, function, args \\ []) do
    ChildVM.eval(vm, quote(do: apply(Traffic, unquote(function), unquote(args))))
  end

  @doc "Pauses the traffic and checks everything; the number of files checked."
  def settle(station) do
    :ok = tell(station, :pause)
    tell(station, :settle)
  end

  @doc "The same, and removes everything."
  def idle(station) do
    settle(station)
    tell(station, :clear)
  end

  @doc """
  What the VM held at the start: threads and open files before there was any traffic, memory and
  processes after some of it, with the VM idle.
  """
  def start_resources(%__MODULE__{first: first} = station) do
    idle = resources(station)
    %{first | rss_kib: idle.rss_kib, processes: idle.processes}
  end

  defp resources(%__MODULE__{vm: vm} = station) do
    tell(station, :collect_garbage)
    Resources.of(vm)
  end

  @doc "Measures the idle VM again, until it has no more than at the start, or reports a leak."
  def end_resources(station, from) do
    Soak.Wait.until(fn -> over(resources(station), from) == [] end)
    till = resources(station)

    for {key, more} <- over(till, from),
        do: Problems.add(station.opts[:problems], :leak, "#{key}: #{more} more than at the start")

    till
  end

  defp over(till, from) do
    for {key, spare} <- @spare,
        more = Map.fetch!(till, key) - Map.fetch!(from, key),
        more > spare do
      {key, more}
    end
  end
end
