defmodule Codex.Files.Telemetry do
  @moduledoc false
  # Events through the `:telemetry` application, if the host has brought and loaded it.

  @compile {:no_warn_undefined, :telemetry}

  alias Codex.Files.Attachment

  @doc "Tells of a staging that was successful; the result for its caller."
  @spec staged({:ok, Attachment.t(), cached? :: boolean()} | {:error, reason}) ::
          {:ok, Attachment.t()} | {:error, reason}
        when reason: term()
  def staged({:ok, attachment, cached?}) do
    execute(:staged, %{size_bytes: attachment.size}, fn ->
      %{
        checksum: attachment.checksum,
        name: attachment.name,
        persist?: attachment.persist,
        ttl_ms: attachment.ttl_ms,
        cached?: cached?
      }
    end)

    {:ok, attachment}
  end

  def staged({:error, _reason} = error), do: error

  @doc "What one cleanup did: one event for each attachment."
  @spec cleaned(Codex.Files.Native.report()) :: :ok
  def cleaned({cleaned, failed}) do
    for attachment <- cleaned do
      execute(:cleaned, measurements(attachment), fn -> metadata(attachment) end)
    end

    for {attachment, reason} <- failed do
      execute(:cleanup_failed, measurements(attachment), fn ->
        Map.put(metadata(attachment), :reason, reason)
      end)
    end

    :ok
  end

  defp measurements(attachment), do: %{count: 1, bytes: attachment.size}

  defp metadata(attachment), do: Map.take(attachment, [:checksum, :name, :ttl_ms])

  defp execute(event, measurements, metadata) do
    if :erlang.function_exported(:telemetry, :execute, 3) do
      :telemetry.execute([:codex, :attachment, event], measurements, metadata.())
    end

    :ok
  end
end
