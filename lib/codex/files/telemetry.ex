defmodule Codex.Files.Telemetry do
  @moduledoc false
  # Events through the `:telemetry` application, if the host has brought and loaded it.

  @compile {:no_warn_undefined, :telemetry}

  alias Codex.Files.Attachment

  @doc "Emits the event of a successful staging, and returns the result for its caller."
  @spec staged({:ok, Attachment.t(), cached? :: boolean()} | {:error, reason}) ::
          {:ok, Attachment.t()} | {:error, reason}
        when reason: term()
  def staged({:ok, attachment, cached?}) do
    if loaded?() do
      execute(:staged, %{size_bytes: attachment.size}, %{
        checksum: attachment.checksum,
        name: attachment.name,
        persist?: attachment.persist,
        ttl_ms: attachment.ttl_ms,
        cached?: cached?
      })
    end

    {:ok, attachment}
  end

  def staged({:error, _reason} = error), do: error

  @doc "Emits an event for each attachment that a cleanup has removed, or could not remove."
  @spec cleaned(Codex.Files.Native.report()) :: :ok
  def cleaned(report), do: removed(:cleaned, report)

  @doc "Emits an event for each attachment that made room for another, or could not be removed for it."
  @spec evicted(Codex.Files.Native.report()) :: :ok
  def evicted(report), do: removed(:evicted, report)

  @doc "Emits an event for each attachment that was unstaged."
  @spec unstaged([Attachment.t()]) :: :ok
  def unstaged(attachments), do: removed(:unstaged, {attachments, []})

  defp removed(event, {removed, failed}) do
    if loaded?() do
      Enum.each(removed, &execute(event, measurements(&1), metadata(&1)))

      Enum.each(failed, fn {attachment, reason} ->
        metadata = Map.put(metadata(attachment), :reason, reason)
        execute(:cleanup_failed, measurements(attachment), metadata)
      end)
    end

    :ok
  end

  defp measurements(attachment), do: %{count: 1, bytes: attachment.size}

  defp metadata(attachment), do: Map.take(attachment, [:checksum, :name, :ttl_ms])

  defp loaded?, do: :erlang.function_exported(:telemetry, :execute, 3)

  defp execute(event, measurements, metadata),
    do: :telemetry.execute([:codex, :attachment, event], measurements, metadata)
end
