defmodule :telemetry do
  @moduledoc false
  # In the place of the application of this name: counts what the library tells.

  @doc "Called by the library if it finds this module loaded."
  def execute([:codex, :attachment, event], _measurements, _metadata),
    do: Soak.Traffic.count({:told, event})
end
