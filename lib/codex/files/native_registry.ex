defmodule Codex.Files.NativeRegistry do
  @moduledoc false
  # What callers do with a registry that does its own file operations: the work is the native
  # library's, in the process of the caller. The registry's own process is not in the way.

  alias Codex.Files.{Attachment, Config, Native, Options, Registry, Telemetry}

  @table :codex_files_manifest

  @doc "The handle of the default registry, if it runs and does its own file operations."
  @spec handle() :: {:ok, Native.handle()} | :error
  def handle do
    case :ets.lookup(@table, Registry) do
      [{_name, handle}] -> {:ok, handle}
      [] -> :error
    end
  rescue
    ArgumentError -> :error
  end

  @doc "Stages a file under the digest of its content."
  @spec stage_file(Native.handle(), binary(), keyword()) ::
          {:ok, Attachment.t()} | {:error, term()}
  def stage_file(handle, path, opts) do
    name = Keyword.fetch(opts, :name)

    with {:ok, keep} <- keep(opts),
         miss when miss in [:new, :unseen] <- Native.refresh_file(handle, path, name, keep),
         {:ok, dir} <- Config.staging_dir() do
      attempt = &Native.stage_file(handle, dir, path, name, keep, miss, &1)
      finish(attempt, fn -> stage_file(handle, path, opts) end)
    else
      outcome -> Telemetry.staged(outcome)
    end
  end

  @doc "Stages a file for an owner of its own, which ends with the term that stands for it."
  @spec stage_temporary(Native.handle(), binary(), keyword()) ::
          {:ok, Native.temporary_owner(), Attachment.t()} | {:error, term()}
  def stage_temporary(handle, path, opts) do
    with owner when is_reference(owner) <- Native.temporary_owner(handle),
         {:ok, attachment} <- stage_file(handle, path, Keyword.put(opts, :owner, owner)),
         do: {:ok, owner, attachment}
  end

  # What the native library is to know of how long to keep it.
  defp keep(opts) do
    with {:ok, ttl_ms} <- Config.ttl_ms(opts),
         do: {:ok, {Keyword.get(opts, :persist, false), ttl_ms, Keyword.get(opts, :owner)}}
  end

  @doc "Stages a file under a checksum and at a destination of the caller's choice."
  @spec stage_at(Native.handle(), Registry.stage_opts()) ::
          {:ok, Attachment.t()} | {:error, term()}
  def stage_at(handle, opts) do
    case Native.refresh_at(handle, opts) do
      :miss ->
        with {:ok, dir} <- Config.staging_dir(),
             do: finish(&Native.stage_at(handle, dir, opts, &1), fn -> stage_at(handle, opts) end)

      {:error, {:invalid_option, key, path}}
      when key in [:source_path, :destination_path] and is_list(path) ->
        with {:ok, bytes} <- Options.check(key, path),
             do: stage_at(handle, %{opts | key => bytes})

      outcome ->
        Telemetry.staged(outcome)
    end
  end

  @spec list(Native.handle()) :: [Attachment.t()] | {:error, term()}
  def list(handle), do: Native.list(handle)

  @spec metrics(Native.handle()) :: map() | {:error, term()}
  def metrics(handle) do
    with :miss <- Native.try_metrics(handle), do: Native.metrics(handle)
  end

  @spec fetch(Native.handle(), binary()) :: {:ok, Attachment.t()} | {:error, term()}
  def fetch(handle, id) do
    with :miss <- Native.try_fetch(handle, id), do: Native.fetch(handle, id)
  end

  @spec release(Native.handle(), binary(), pid()) :: :ok | {:error, term()}
  def release(handle, id, owner), do: Native.release(handle, id, owner)

  @spec unstage(Native.handle(), binary()) :: :ok | {:error, term()}
  def unstage(handle, id) do
    case await(&Native.unstage(handle, id, &1)) do
      {:ok, {[], []}} ->
        {:error, :not_staged}

      {:ok, {unstaged, failed}} ->
        Telemetry.unstaged(unstaged)
        removal_result(failed)

      error ->
        error
    end
  end

  @spec force_cleanup(Native.handle()) :: :ok | {:error, term()}
  def force_cleanup(handle) do
    case await(&Native.force_cleanup(handle, &1)) do
      {:ok, {_cleaned, failed} = report} ->
        Telemetry.cleaned(report)
        removal_result(failed)

      {:error, _reason} = error ->
        error
    end
  end

  defp removal_result([]), do: :ok

  defp removal_result(failed) do
    failed = for {attachment, reason} <- failed, do: {attachment.path, reason}
    {:error, {:cleanup_failed, failed}}
  end

  @spec reset(Native.handle(), Path.t()) :: :ok | {:error, term()}
  def reset(handle, dir) do
    with {:ok, bytes} <- Options.check(:dir, dir), do: await(&Native.reset(handle, bytes, &1))
  end

  @doc "Ends a registry in order, and waits until everything has been removed."
  @spec stop(Native.handle()) :: :ok | {:error, term()}
  def stop(handle), do: await(&Native.stop(handle, &1))

  # A caller that waited for another's staging is told to try again if that was given up, or has made
  # what can be recognised now. It begins with a new look.
  defp finish(attempt, again) do
    case await(attempt) do
      :retry -> again.()
      outcome -> Telemetry.staged(outcome)
    end
  end

  # The result of a native function, which may come as a message with the reference that it is given.
  # The reference is made in the function that receives: then the VM skips what is in the mailbox already.
  defp await(native) do
    ref = make_ref()

    case native.(ref) do
      :wait ->
        receive do
          {^ref, result} -> result
        end

      result ->
        result
    end
  end
end
