defmodule Codex.Files.NativeRegistry do
  @moduledoc false
  # What callers do with a registry that does its own file operations: the work is the native
  # library's, in the process of the caller. The registry's own process is not in the way.

  alias Codex.Files.{Attachment, Config, Native, Options, Registry, Source, Telemetry}

  @default_table :codex_files_manifest

  @typedoc "A registry as its callers know it: the options that it was started with go along."
  @type t :: {Native.handle(), Config.own()}

  @doc "Runs what calls the native library, which may have gone: it goes when it is compiled anew."
  @spec guarded((... -> result)) :: result | {:error, :native_library_not_loaded}
        when result: term()
  def guarded(fun) do
    fun.()
  rescue
    error in [UndefinedFunctionError, ErlangError] ->
      if match?(%{module: Native}, error) or
           match?(%{original: :native_library_not_loaded}, error),
         do: {:error, :native_library_not_loaded},
         else: reraise(error, __STACKTRACE__)
  end

  @doc "Enters a registry into its table, where its callers find it."
  @spec enter(atom(), GenServer.name() | nil, t()) :: true
  def enter(table, name, {handle, own}),
    do: :ets.insert(table, for(key <- [name, self()], do: {key, handle, own}))

  @doc "The table in which a registry of this name is found, if it is not told another; it may be none."
  @spec default_table(GenServer.name() | nil) :: atom() | nil
  def default_table(Registry), do: @default_table
  def default_table(name) when is_atom(name), do: name
  def default_table(_name), do: nil

  @doc "The registry of a name or a pid, if its table is found without asking it."
  @spec find(atom() | pid()) :: {:ok, t()} | :error
  def find(name) when is_atom(name), do: name |> default_table() |> lookup(name)

  def find(pid) when is_pid(pid) do
    # Where no registry has loaded the native library, none has a handle.
    with :loaded <- :persistent_term.get(Native, :never),
         {:ok, table} <- Native.table(pid),
         do: lookup(table, pid),
         else: (_none -> :error)
  end

  # A table of that name may be somebody else's.
  defp lookup(table, key) do
    case :ets.lookup(table, key) do
      [{^key, handle, %{} = own}] when is_reference(handle) -> {:ok, {handle, own}}
      _other -> :error
    end
  rescue
    ArgumentError -> :error
  end

  @doc "Stages a source under the digest of its content."
  @spec stage(t(), Source.t(), keyword()) :: {:ok, Attachment.t()} | {:error, term()}
  def stage({handle, own} = registry, {:path, path} = source, opts) do
    name = Keyword.fetch(opts, :name)

    with {:ok, keep} <- keep(own, opts),
         miss when miss in [:new, :unseen] <- Native.refresh_file(handle, path, name, keep),
         {:ok, dir} <- Config.staging_dir(own) do
      attempt = &Native.stage_file(handle, dir, path, name, keep, miss, &1)
      finish(attempt, fn -> stage(registry, source, opts) end)
    else
      outcome -> Telemetry.staged(outcome)
    end
  end

  def stage({handle, own} = registry, {:data, data} = source, opts) when is_binary(data) do
    with {:ok, name} <- fetch_name(opts),
         {:ok, keep} <- keep(own, opts),
         :miss <- Native.refresh_data(handle, data, name, keep),
         {:ok, dir} <- Config.staging_dir(own) do
      attempt = &Native.stage_data(handle, dir, data, name, keep, &1)
      finish(attempt, fn -> stage(registry, source, opts) end)
    else
      outcome -> Telemetry.staged(outcome)
    end
  end

  def stage(registry, {:data, list}, opts) do
    # Of what is known nothing is written.
    with :new <- stage_stream(registry, [list], opts, true),
         do: stage_stream(registry, [list], opts, false)
  end

  # What the enumerable raises is its own, and not for those to see who look after the registry.
  def stage(registry, {:stream, enumerable}, opts),
    do: stage_stream(registry, enumerable, opts, false)

  defp stage_stream({handle, own} = registry, elements, opts, only_renew?) do
    with {:ok, name} <- fetch_name(opts),
         {:ok, keep} <- keep(own, opts),
         {:ok, dir} <- Config.staging_dir(own),
         stream when is_reference(stream) <-
           guarded(fn -> Native.open_stream(handle, dir, name, keep, only_renew?) end) do
      try do
        case Source.gather(elements, &write_stream(stream, &1)) do
          {:ok, true, rest} ->
            with :ok <- write_stream(stream, rest), do: commit_stream(stream)

          {:ok, false, few} ->
            guarded(fn -> stage(registry, {:data, IO.iodata_to_binary(few)}, opts) end)

          error ->
            error
        end
      after
        guarded(fn -> Native.abort_stream(stream) end)
      end
    end
  end

  defp write_stream(stream, binaries),
    do: guarded(fn -> await(&Native.write_stream(stream, binaries, &1)) end)

  defp commit_stream(stream) do
    case guarded(fn -> await(&Native.commit_stream(stream, &1)) end) do
      :retry -> commit_stream(stream)
      :new -> :new
      outcome -> Telemetry.staged(outcome)
    end
  end

  @doc "Stages a source for an owner of its own, which ends with the term that stands for it."
  @spec stage_temporary(t(), Source.t(), keyword()) ::
          {:ok, Native.temporary_owner(), Attachment.t()} | {:error, term()}
  def stage_temporary({handle, _own} = registry, source, opts) do
    with owner when is_reference(owner) <- Native.temporary_owner(handle),
         {:ok, attachment} <- stage(registry, source, Keyword.put(opts, :owner, owner)),
         do: {:ok, owner, attachment}
  end

  # What has no path has no name of its own.
  defp fetch_name(opts) do
    with :error <- Keyword.fetch(opts, :name), do: {:error, {:missing_option, :name}}
  end

  # What the native library is to know of how long to keep it.
  defp keep(own, opts) do
    with {:ok, ttl_ms} <- Config.ttl_ms(own, opts),
         do: {:ok, {Keyword.get(opts, :persist, false), ttl_ms, Keyword.get(opts, :owner)}}
  end

  @doc "Stages a file under a checksum and at a destination of the caller's choice."
  @spec stage_at(t(), Registry.stage_opts()) :: {:ok, Attachment.t()} | {:error, term()}
  def stage_at({handle, own} = registry, opts) do
    case Native.refresh_at(handle, opts) do
      :miss ->
        with {:ok, dir} <- Config.staging_dir(own) do
          attempt = &Native.stage_at(handle, dir, opts, &1)
          finish(attempt, fn -> stage_at(registry, opts) end)
        end

      {:error, {:invalid_option, key, path}}
      when key in [:source_path, :destination_path] and is_list(path) ->
        with {:ok, bytes} <- Options.check(key, path),
             do: stage_at(registry, %{opts | key => bytes})

      outcome ->
        Telemetry.staged(outcome)
    end
  end

  @spec list(t()) :: [Attachment.t()] | {:error, term()}
  def list({handle, _own}), do: Native.list(handle)

  @spec metrics(t()) :: map() | {:error, term()}
  def metrics({handle, _own}) do
    with :miss <- Native.try_metrics(handle), do: Native.metrics(handle)
  end

  @spec fetch(t(), binary()) :: {:ok, Attachment.t()} | {:error, term()}
  def fetch({handle, _own}, id) do
    with :miss <- Native.try_fetch(handle, id), do: Native.fetch(handle, id)
  end

  @spec verify(t()) :: {:ok, non_neg_integer()} | {:error, term()}
  def verify({handle, _own}), do: await(&Native.verify(handle, &1))

  @spec release(t(), binary(), pid()) :: :ok | {:error, term()}
  def release({handle, _own}, id, owner), do: Native.release(handle, id, owner)

  @spec unstage(t(), binary()) :: :ok | {:error, term()}
  def unstage({handle, _own}, id) do
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

  @spec force_cleanup(t()) :: :ok | {:error, term()}
  def force_cleanup({handle, _own}) do
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

  @spec reset(t(), Path.t()) :: :ok | {:error, term()}
  def reset({handle, _own}, dir) do
    with {:ok, bytes} <- Options.check(:dir, dir), do: await(&Native.reset(handle, bytes, &1))
  end

  @doc "Ends a registry in order, and waits until everything has been removed."
  @spec stop(t()) :: :ok | {:error, term()}
  def stop({handle, _own}), do: await(&Native.stop(handle, &1))

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
