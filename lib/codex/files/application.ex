defmodule Codex.Files.Application do
  @moduledoc false
  # Starts no registry: inside the SDK that is its supervisor's to do. Used alone, the first call
  # starts one here (see `Codex.Files.Registry.ensure_started/0`).

  use Application

  @impl true
  def start(_type, _args),
    do: Supervisor.start_link([supervisor()], strategy: :one_for_one, name: __MODULE__)

  @doc "Starts the supervisor of the registry again, if it has gone."
  @spec start_supervisor() :: :ok
  def start_supervisor do
    _ = Supervisor.start_child(__MODULE__, supervisor())
    :ok
  end

  # What a registry that was killed holds is its successor's, so restarting is cheap and safe. One that
  # cannot be started again takes this supervisor along, but neither the application nor the VM.
  defp supervisor do
    options = [strategy: :one_for_one, max_restarts: 100, max_seconds: 1]
    start = {Supervisor, :start_link, [[], [name: Codex.Files.Supervisor] ++ options]}
    %{id: Codex.Files.Supervisor, start: start, type: :supervisor, restart: :temporary}
  end
end
