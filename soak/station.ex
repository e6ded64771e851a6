defmodule Soak.Station do
  @moduledoc false
  # A VM with traffic in it, seen from outside.

  alias Codex.Files.ChildVM
  alias Soak.{Problems, Resources, Traffic}

  defstruct [:vm, :opts]

  # Beyond what there was at the start. Memory that the allocators keep goes up and down.
  @spare %{threads: 2, descriptors: 4, rss_kib: 48 * 1024}

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
    :ok = ChildVM.eval(vm, quote(do: Traffic.start(unquote(Macro.escape(opts)))))
    %__MODULE__{vm: vm, opts: opts}
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

  @doc "Once more, then removes everything: what the VM holds when it is idle, as `resources/1`."
  def idle(station) do
    settle(station)
    :ok = tell(station, :clear)
    resources(station)
  end

  defp resources(%__MODULE__{vm: vm} = station) do
    tell(station, :collect_garbage)
    Resources.of(vm.os_pid)
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
