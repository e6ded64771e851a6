defmodule Codex.Files.FileModule do
  @moduledoc false
  # The file operations of a registry that was started with a file module of the host's. Each
  # callback runs in a process of its own, under `Codex.TaskSupervisor` where that exists: one that
  # blocks, raises or is killed harms nobody but the callers concerned. These functions themselves
  # run in workers of the registry.

  alias Codex.Files.{Attachment, Native, Registry, Telemetry}

  @type failures :: [{Path.t(), reason :: term()}]

  @doc "Removes the staging directory, as the first operation of a registry."
  @spec clear(module(), Path.t()) :: :ok | {:error, term()}
  def clear(module, dir), do: remove(module, dir)

  @doc "Stages a checksum that is known, unless its file has gone in the meantime."
  @spec stage_known(module(), Native.handle(), Registry.stage_opts()) ::
          {:ok, Attachment.t()} | {:error, term()}
  def stage_known(module, handle, opts) do
    ref = make_ref()

    case Registry.await(Native.admit_known(handle, opts, ref), ref) do
      {:copy, ticket} -> copy(module, ticket, opts)
      :retry -> stage_known(module, handle, opts)
      outcome -> Telemetry.staged(outcome)
    end
  end

  @doc "Removes what has expired."
  @spec cleanup(module(), Native.handle()) :: failures() | {:error, term()}
  def cleanup(module, handle) do
    with {cleaned, failed} = report when is_list(cleaned) <-
           remove_all(module, Native.claim_expired(handle)) do
      Telemetry.cleaned(report)
      failures(failed)
    end
  end

  @doc "Removes everything that is listed."
  @spec reset(module(), Native.handle()) :: failures() | {:error, term()}
  def reset(module, handle) do
    with {cleaned, failed} when is_list(cleaned) <- remove_all(module, Native.claim_all(handle)) do
      failures(failed)
    end
  end

  @doc "Runs `work`; whatever it fails with becomes `{:error, reason}`."
  @spec caught((... -> result)) :: result | {:error, term()} when result: term()
  def caught(work) do
    work.()
  rescue
    # What the functions of `File` raise carries a POSIX reason.
    error in [File.Error, File.CopyError, File.LinkError, File.RenameError] ->
      {:error, error.reason}

    error ->
      {:error, error}
  catch
    :throw, value -> {:error, {:nocatch, value}}
    :exit, reason -> {:error, reason}
  end

  @doc "Copies the file that a ticket is for."
  @spec copy(module(), Native.ticket(), Registry.stage_opts()) ::
          {:ok, Attachment.t()} | {:error, term()}
  def copy(module, ticket, opts) do
    case caught(fn -> put_in_place(module, ticket, opts) end) do
      :ok ->
        outcome = Native.commit_staging(ticket)
        if match?({:error, _reason}, outcome), do: undo_copy(module, opts)
        given_up(ticket, Telemetry.staged(outcome))

      {:error, _reason} = error ->
        given_up(ticket, error)
    end
  end

  defp given_up(ticket, {:error, reason} = error) do
    _ = give_up(ticket, reason)
    error
  end

  defp given_up(_ticket, outcome), do: outcome

  @doc "Tells everybody who waits for a copy that it has failed, if nobody has told them yet."
  @spec give_up(Native.ticket(), reason :: term()) :: :ok | {:error, term()}
  def give_up(ticket, reason), do: Native.fail_staging(ticket, :erlang.term_to_binary(reason))

  defp put_in_place(module, ticket, %{source_path: source, destination_path: destination} = opts) do
    with :ok <- check_source(source, destination),
         :ok <- copy_file(module, opts) do
      verify(module, ticket, opts)
    end
  end

  defp copy_file(module, %{source_path: source, destination_path: destination} = opts) do
    # A file that was there before is not ours to remove if the copy fails.
    new? = not File.exists?(destination)

    with :ok <- perform(module, :mkdir_p!, [Path.dirname(destination)]),
         :ok <- perform(module, :cp!, [source, destination]) do
      :ok
    else
      {:error, _reason} = error ->
        if new?, do: undo_copy(module, opts)
        error
    end
  end

  # Functions that raise have nothing to tell when they return.
  defp perform(module, function, args) do
    case call(module, function, args) do
      {:error, _reason} = error -> error
      _done -> :ok
    end
  end

  defp verify(module, ticket, opts) do
    ref = make_ref()

    with {:error, _reason} = error <- Registry.await(Native.verify_staging(ticket, ref), ref) do
      undo_copy(module, opts)
      error
    end
  end

  # While the ticket is held: the next one for this checksum may copy to the same place.
  defp undo_copy(module, %{checksum: checksum, destination_path: destination}) do
    _ = remove(module, destination)
    remove_checksum_dir(destination, checksum)
  end

  # What is missing is the file module's to complain of: its files may be out of our sight.
  defp check_source(source, destination) do
    case File.stat(source) do
      {:ok, %File.Stat{type: :regular} = stat} -> check_other(source, stat, destination)
      {:ok, %File.Stat{type: :directory}} -> {:error, :eisdir}
      {:ok, %File.Stat{} = stat} -> {:error, {:unsupported_file_type, file_type(stat)}}
      {:error, _reason} -> :ok
    end
  end

  # A file that is staged onto itself would be emptied by the copy, and then expire.
  defp check_other(source, %File.Stat{inode: inode, major_device: device}, destination) do
    case File.stat(destination) do
      {:ok, %File.Stat{inode: ^inode, major_device: ^device}} ->
        {:error, {:destination_is_source, source}}

      _another_or_none ->
        :ok
    end
  end

  # `File.Stat` has no type for them, but their mode tells.
  defp file_type(%File.Stat{type: :device}), do: :device

  defp file_type(%File.Stat{mode: mode}) do
    case Bitwise.band(mode, 0o170000) do
      0o010000 -> :fifo
      0o140000 -> :socket
      _another -> :other
    end
  end

  defp remove_all(_module, {:error, _reason} = error), do: error

  defp remove_all(module, claims) do
    {cleaned, failed} =
      Enum.reduce(claims, {[], []}, fn {ticket, attachment}, {cleaned, failed} ->
        case remove(module, attachment.path) do
          :ok ->
            remove_checksum_dir(attachment.path, attachment.checksum)
            _ = Native.end_removal(ticket, true)
            {[attachment | cleaned], failed}

          {:error, reason} ->
            _ = Native.end_removal(ticket, false)
            {cleaned, [{attachment, reason} | failed]}
        end
      end)

    {Enum.reverse(cleaned), Enum.reverse(failed)}
  end

  defp remove(module, path) do
    case call(module, :rm_rf, [path]) do
      {:error, reason, _path} -> {:error, reason}
      {:error, reason} -> {:error, reason}
      _removed -> :ok
    end
  end

  # A file module cannot remove a directory only if it is empty. On any other store than this
  # machine's file system there is none of that name.
  defp remove_checksum_dir(path, checksum) do
    dir = Path.dirname(path)
    _ = if Path.basename(dir) == checksum, do: File.rmdir(dir)
    :ok
  end

  defp failures(failed), do: for({attachment, reason} <- failed, do: {attachment.path, reason})

  @doc "Makes of chardata paths what the native side takes; what cannot be, it complains of."
  @spec normalise(term()) :: term()
  def normalise(%{} = opts) do
    Enum.reduce([:source_path, :destination_path], opts, fn key, opts ->
      with %{^key => path} when is_list(path) <- opts,
           {:ok, bytes} <- Registry.path_bytes(path) do
        %{opts | key => bytes}
      else
        _ -> opts
      end
    end)
  end

  def normalise(opts), do: opts

  # The callback's result, or `{:error, reason}`.
  defp call(module, function, args) do
    work = fn -> caught(fn -> apply(module, function, args) end) end

    case Process.whereis(Codex.TaskSupervisor) do
      nil -> await_process(work)
      supervisor -> await_task(supervisor, work)
    end
  end

  defp await_process(work) do
    # The result is the exit reason: nothing can come between the two.
    {_pid, monitor} = spawn_monitor(fn -> exit({__MODULE__, work.()}) end)

    receive do
      {:DOWN, ^monitor, :process, _pid, {__MODULE__, result}} -> result
      {:DOWN, ^monitor, :process, _pid, reason} -> {:error, reason}
    end
  end

  defp await_task(supervisor, work) do
    task = Task.Supervisor.async_nolink(supervisor, work)

    case Task.yield(task, :infinity) do
      {:ok, result} -> result
      {:exit, reason} -> {:error, reason}
    end
  end
end
