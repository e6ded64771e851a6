defmodule Codex.Files.Application do
  @moduledoc false
  # Starts no registry: inside the SDK that is its supervisor's to do. Used alone, the first call
  # starts one here (see `Codex.Files.Registry.ensure_started/0`).

  use Application

  @impl true
  def start(_type, _args) do
    # What a registry that was killed holds is its successor's, so restarting is cheap and safe.
    Supervisor.start_link([],
      strategy: :one_for_one,
      max_restarts: 100,
      max_seconds: 1,
      name: Codex.Files.Supervisor
    )
  end
end
