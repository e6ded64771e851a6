defmodule Codex.Files.FileModule do
  @moduledoc false
  # The file operations of a `Codex.Files.FileModuleRegistry`. The functions below that take a worker
  # run in a process that the registry has started for this one staging or removal.
  #
  # Whatever changes files is a callback of the host's module, and runs in a process of its own, under
  # `Codex.TaskSupervisor` where that exists. The worker is linked to it and traps exits: a callback
  # that raises or is killed is an error of the worker's, and one whose worker ends is ended with it,
  # so that it cannot write over what somebody stages later.
  #
  # A worker whose registry is gone ends and undoes nothing: the place may be the successor's by then.

  alias Codex.Files.{Attachment, ManifestTable, Registry, Telemetry, Verification}

  @typedoc "What a worker works with: the host's module, the registry, and a monitor of that."
  @type worker :: %{module: module(), registry: pid(), monitor: reference()}

  @doc "Starts a worker, which the calling registry monitors from then on."
  @spec start(module(), (worker() -> term())) :: pid()
  def start(module, work) do
    registry = self()

    {pid, _monitor} =
      spawn_monitor(fn ->
        Process.flag(:trap_exit, true)
        work.(%{module: module, registry: registry, monitor: Process.monitor(registry)})
      end)

    pid
  end

  @doc "Removes the staging directory, as the first operation of a registry."
  @spec clear(worker(), Path.t()) :: :ok | {:error, term()}
  def clear(worker, dir), do: call(worker, :rm_rf, [dir])

  @doc """
  Copies a file, unless `entry` says that its content is known and a look finds that file unchanged.

  Tells the registry `{:known, look}` or `{:copied, look}`, and what it answers the callers. Exits with
  `{:failed, reason}` if the file cannot be staged.
  """
  @spec stage(worker(), Registry.stage_opts(), ManifestTable.entry() | nil) :: term()
  def stage(worker, opts, entry) do
    staged = with :lost <- Verification.look_again(entry), do: copy(worker, opts)
    with {:error, reason} <- staged, do: exit({:failed, reason})
    tell(worker, staged)

    case await_registry(worker) do
      {:staged, outcomes} ->
        tell(worker, {:answers, Enum.map(outcomes, &Telemetry.staged/1)})

      :refused ->
        with {:copied, _look} <- staged, do: undo(worker, opts)
        exit({:failed, :stopped})
    end
  end

  @doc """
  Removes the files that the registry claims for this worker, one after the other.

  It answers `count` times with `{:claimed, attachment}` or `:unclaimed`, and is told of each file as
  soon as it is gone.
  """
  @spec remove(worker(), :cleanup | :reset, count :: non_neg_integer()) :: term()
  def remove(worker, kind, count) do
    results =
      for _ <- 1..count//1, {:claimed, it} <- [await_registry(worker)], do: remove(worker, it)

    {cleaned, failed} = Enum.split_with(results, &is_struct/1)
    if kind == :cleanup, do: Telemetry.cleaned({cleaned, failed})
    failures = for {attachment, reason} <- failed, do: {attachment.path, reason}
    result = if failures == [], do: :ok, else: {:error, {:cleanup_failed, failures}}
    tell(worker, {:answers, [result]})
  end

  defp remove(worker, %Attachment{checksum: checksum, path: path} = attachment) do
    case call(worker, :rm_rf, [path]) do
      :ok ->
        remove_checksum_dir(path, checksum)
        tell(worker, {:removed, checksum})
        attachment

      {:error, reason} ->
        tell(worker, {:kept, checksum})
        {attachment, reason}
    end
  end

  ## Staging

  defp copy(worker, %{source_path: source, destination_path: destination} = opts) do
    # A file that was there before is not ours to remove if the copy fails.
    with {:ok, new?} <- Verification.check_places(source, destination) do
      with :ok <- call(worker, :mkdir_p!, [Path.dirname(destination)]),
           :ok <- call(worker, :cp!, [source, destination]) do
        verify(worker, opts)
      else
        {:error, _reason} = error ->
          if new?, do: undo(worker, opts)
          error
      end
    end
  end

  defp verify(worker, %{checksum: checksum, destination_path: destination} = opts) do
    # The look comes first, so that a later one sees what changes while the file is read.
    look = Verification.look(destination)

    with {:error, _reason} = error <- Verification.check_content(checksum, destination) do
      undo(worker, opts)
      error
    else
      :ok -> {:copied, look}
    end
  end

  defp undo(worker, %{checksum: checksum, destination_path: destination}) do
    _ = call(worker, :rm_rf, [destination])
    remove_checksum_dir(destination, checksum)
  end

  # No function of a file module removes a directory only if it is empty, so this is done here. If the
  # module keeps its files elsewhere, there is no such directory.
  defp remove_checksum_dir(path, checksum) do
    dir = Path.dirname(path)
    _ = if Path.basename(dir) == checksum, do: File.rmdir(dir)
    :ok
  end

  ## The registry

  defp tell(%{registry: registry}, event), do: send(registry, {:worker, self(), event})

  defp await_registry(%{monitor: monitor}) do
    receive do
      {:registry, answer} -> answer
      {:DOWN, ^monitor, :process, _registry, _reason} -> exit(:shutdown)
    end
  end

  ## Callbacks

  defp call(%{module: module, monitor: monitor} = worker, function, args) do
    receive do
      {:DOWN, ^monitor, :process, _registry, _reason} -> exit(:shutdown)
    after
      0 -> :ok
    end

    work = fn -> caught(fn -> apply(module, function, args) end) end

    with {:ok, task} <-
           caught(fn -> {:ok, start_task(Process.whereis(Codex.TaskSupervisor), work)} end) do
      # Removing has to come to its end: it is what undoes.
      result = await_task(worker, task, function != :rm_rf)
      # The task is linked to this process, which traps exits: its end comes as a message, too.
      receive do: ({:EXIT, pid, _reason} when pid == task.pid -> :ok)
      as_result(result)
    end
  end

  defp start_task(nil, work), do: Task.async(work)
  defp start_task(supervisor, work), do: Task.Supervisor.async(supervisor, work)

  defp await_task(%{monitor: monitor} = worker, %Task{ref: ref, pid: pid} = task, stoppable?) do
    receive do
      {^ref, result} ->
        Process.demonitor(ref, [:flush])
        result

      {:DOWN, ^ref, :process, _pid, reason} ->
        {:error, reason}

      {:DOWN, ^monitor, :process, _registry, _reason} ->
        exit(:shutdown)

      :stop when stoppable? ->
        Process.exit(pid, :kill)
        with {:error, :killed} <- await_task(worker, task, false), do: {:error, :stopped}
    end
  end

  # What `mkdir_p!/1` and `cp!/2` return says nothing, since they raise when they fail.
  defp as_result({:error, reason, _path}), do: {:error, reason}
  defp as_result({:error, _reason} = error), do: error
  defp as_result(_done), do: :ok

  # The result of `work`, or what it fails with.
  defp caught(work) do
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
end
