defmodule Codex.Files.FakeTelemetry do
  @moduledoc false
  # A module `:telemetry` that sends each event to the test, as `{:telemetry, event, measurements,
  # metadata}`. The library runs without that module, so it is made at run time, and removed again.

  @doc "Loads the module until the test ends."
  def start do
    :persistent_term.put(__MODULE__, self())

    Module.create(
      :telemetry,
      quote do
        def execute(event, measurements, metadata) do
          test = :persistent_term.get(unquote(__MODULE__))
          send(test, {:telemetry, event, measurements, metadata})
          :ok
        end
      end,
      Macro.Env.location(__ENV__)
    )

    ExUnit.Callbacks.on_exit(fn ->
      :code.purge(:telemetry)
      :code.delete(:telemetry)
      :code.purge(:telemetry)
      :persistent_term.erase(__MODULE__)
    end)
  end

  @doc "Whether each staging since the last call found its content known, in order."
  def cached do
    receive do
      {:telemetry, [:codex, :attachment, :staged], _, %{cached?: cached?}} -> [cached? | cached()]
    after
      0 -> []
    end
  end
end
