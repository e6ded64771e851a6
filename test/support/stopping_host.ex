defmodule Codex.Files.StoppingHost do
  @moduledoc false
  # An application that calls every function wherever a host can while it stops, and writes down what
  # each call gave. For other VMs, which it may keep from ending.

  use Application

  alias Codex.Files.Registry

  defmodule Child do
    @moduledoc false
    use GenServer, shutdown: :infinity

    def start_link({place, folder}), do: GenServer.start_link(__MODULE__, {place, folder})

    @impl true
    def init(place_and_folder) do
      Process.flag(:trap_exit, true)
      {:ok, place_and_folder}
    end

    @impl true
    def terminate(_reason, {place, folder}),
      do: Codex.Files.StoppingHost.call_everything(place, folder)
  end

  @doc "Starts the application, which writes to `folder`."
  def start(folder) do
    :ok =
      :application.load(
        {:application, :stopping_host,
         [
           description: ~c"a stand-in",
           vsn: ~c"1.0.0",
           modules: [],
           registered: [],
           applications: [:kernel, :stdlib, :elixir],
           mod: {__MODULE__, folder}
         ]}
      )

    {:ok, _started} = Application.ensure_all_started(:stopping_host)
    :ok
  end

  @doc "What each call gave in that place, and how many milliseconds it took."
  def calls(folder, place),
    do: folder |> Path.join(place) |> File.read!() |> :erlang.binary_to_term()

  @impl true
  def start(_type, folder) do
    {:ok, supervisor} =
      Supervisor.start_link([{Child, {"terminate", folder}}], strategy: :one_for_one)

    {:ok, supervisor, folder}
  end

  @impl true
  def prep_stop(folder) do
    call_everything("prep_stop", folder)
    folder
  end

  @impl true
  def stop(folder), do: call_everything("stop", folder)

  @doc "Calls every function, and writes down what each call gave."
  def call_everything(place, folder) do
    calls =
      for {name, call} <- [
            ensure_started: &Registry.ensure_started/0,
            stage: fn -> Codex.Files.stage("/dev/null") end,
            list_staged: &Codex.Files.list_staged/0,
            list_staged_result: &Codex.Files.list_staged_result/0,
            force_cleanup: &Codex.Files.force_cleanup/0,
            reset!: &Codex.Files.reset!/0,
            metrics: &Codex.Files.metrics/0
          ] do
        called_at = System.monotonic_time(:millisecond)
        result = call.()
        {name, result, System.monotonic_time(:millisecond) - called_at}
      end

    # It works to the very end, when no other process can be asked any more.
    :ok = :prim_file.write_file(Path.join(folder, place), :erlang.term_to_binary(calls))
  end
end
