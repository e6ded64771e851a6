defmodule Codex.Files.FileModuleRegistry do
  @moduledoc false
  # A registry that was started with a file module of the host's: the protocol of
  # `Codex.Files.Registry` without native code. Its manifest is the ETS table. The process touches no
  # file: each staging, removal or clearing has a worker (see `Codex.Files.FileModule`), and each
  # checksum has one worker at a time.
  #
  # It does not trap exits, and leaves nothing to a successor: that begins with the removal of the
  # staging directory.

  use GenServer

  alias Codex.Files.{
    Attachment,
    Config,
    FileModule,
    ManifestTable,
    Options,
    Verification
  }

  # How long a stop waits for a file operation that does not come to its end.
  @stop_timeout_ms 4_000

  @doc "Starts such a registry. It knows no budget."
  @spec start_link(module(), GenServer.name() | nil, atom(), Config.own()) :: GenServer.on_start()
  def start_link(module, name, table, own) do
    case Enum.find([:max_bytes, :when_full], &is_map_key(own, &1)) do
      nil -> GenServer.start_link(__MODULE__, {module, table, own}, name: name)
      key -> {:error, {:invalid_option, key, own[key]}}
    end
  end

  @doc """
  Stages a file under the digest of its content. The file is read before: a file module copies as it is
  told.
  """
  @spec stage_file({pid(), Config.own()}, binary(), keyword()) ::
          {:ok, Attachment.t()} | {:error, term()}
  def stage_file({registry, own}, path, opts) do
    # The last component of a path needs no check: unless it is a name, the path is not a file's.
    given_name = Keyword.get(opts, :name, "valid")

    with {:ok, ttl_ms} <- Config.ttl_ms(own, opts),
         {:ok, {dir, _default?}} <- Config.staging_dir(own),
         {:ok, _name} <- Options.check(:name, given_name),
         {:ok, persist} <- Options.check(:persist, Keyword.get(opts, :persist, false)),
         {:ok, ttl_ms} <- Options.check(:ttl_ms, ttl_ms),
         {:ok, path} <- Options.check(:path, path),
         {:ok, {checksum, size}} <- Verification.digest(path) do
      name = Keyword.get_lazy(opts, :name, fn -> Path.basename(path) end)

      staging = %{
        checksum: checksum,
        name: name,
        persist: persist,
        ttl_ms: if(persist, do: :infinity, else: ttl_ms),
        size: size,
        source_path: path,
        destination_path: Path.join([dir, checksum, name])
      }

      GenServer.call(registry, {:stage, staging}, :infinity)
    else
      {:error, {:invalid_option, :ttl_ms, ttl_ms}} -> {:error, {:invalid_ttl, ttl_ms}}
      error -> error
    end
  end

  ## The process

  @impl true
  def init({module, table, own}) do
    with {:ok, interval_ms} <- Config.cleanup_interval_ms(own),
         {:ok, {dir, _default?}} <- Config.staging_dir(own),
         {:ok, table} <- ManifestTable.new(table) do
      schedule_cleanup(interval_ms)

      state = %{
        module: module,
        own: own,
        table: table,
        interval_ms: interval_ms,
        # pid => the options that it stages, if it does, and the callers that it is to answer
        workers: %{},
        # checksum => the worker that has it, and what waits for it
        busy: %{},
        # The worker that removes or clears: there is one at a time.
        remover: nil,
        cleared?: false,
        # What waits for that, the latest first.
        waiting: [],
        stopping?: false
      }

      {:ok, start_remover(state, [], &FileModule.clear(&1, dir))}
    else
      {:error, reason} -> {:stop, reason}
    end
  end

  defp schedule_cleanup(interval_ms),
    do: Process.send_after(self(), :cleanup_tick, interval_ms)

  @impl true
  def handle_call({:stage, opts}, from, state) do
    case Options.stage_opts(opts) do
      {:ok, opts} -> {:noreply, work(state, {:stage, from, opts})}
      error -> {:reply, error, state}
    end
  end

  def handle_call({:reset, dir}, from, state) do
    case Options.check(:dir, dir) do
      {:ok, _bytes} -> {:noreply, work(state, {:reset, [from]})}
      error -> {:reply, error, state}
    end
  end

  def handle_call(:force_cleanup, from, state), do: {:noreply, work(state, {:cleanup, [from]})}
  def handle_call(:list, _from, state), do: {:reply, ManifestTable.list(state.table), state}
  def handle_call(:metrics, _from, state), do: {:reply, ManifestTable.metrics(state.table), state}

  # `Codex.Files` asks. There is no native manifest: it is to make its requests by call.
  def handle_call(:registry, _from, state),
    do: {:reply, {:file_module, self(), state.own}, state}

  def handle_call(request, _from, state),
    do: {:reply, {:error, {:unknown_request, request}}, state}

  @impl true
  def handle_cast(_request, state), do: {:noreply, state}

  @impl true
  def handle_info({:worker, pid, event}, state) when is_map_key(state.workers, pid),
    do: {:noreply, told(event, pid, state)}

  def handle_info({:DOWN, _, _, pid, reason}, state) when is_map_key(state.workers, pid),
    do: {:noreply, ended(pid, reason, state)}

  def handle_info(:cleanup_tick, state) do
    schedule_cleanup(state.interval_ms)
    # If something is being removed already, the next tick will do.
    {:noreply, if(state.remover, do: state, else: work(state, {:cleanup, []}))}
  end

  def handle_info(_message, state), do: {:noreply, state}

  # Removes everything, and has what is under way undone. Workers need answers meanwhile.
  @impl true
  def terminate(_reason, %{cleared?: false}), do: :ok

  def terminate(_reason, state) do
    # From now on the end of a linked process does not interrupt this one.
    Process.flag(:trap_exit, true)
    state = work(%{state | stopping?: true, waiting: []}, {:reset, []})
    # The removal waits for those that are at work on what is listed.
    stop_stagings(state, &ManifestTable.get(state.table, &1.checksum))
    state = answer_workers(state, &(&1.remover == nil))
    stop_stagings(state, fn _opts -> true end)
    answer_workers(state, &(&1.workers == %{}))
  end

  defp stop_stagings(state, which) do
    Enum.each(state.workers, fn {pid, %{opts: opts}} ->
      if opts != nil and which.(opts), do: send(pid, :stop)
    end)
  end

  defp answer_workers(state, done?) do
    if done?.(state) do
      state
    else
      receive do
        message when elem(message, 0) in [:worker, :DOWN] ->
          {:noreply, state} = handle_info(message, state)
          answer_workers(state, done?)
      after
        @stop_timeout_ms -> state
      end
    end
  end

  ## What is to be done

  # Nothing else begins before the clearing is over, and there is one removal at a time.
  defp work(state, item) do
    cond do
      not state.cleared? or (elem(item, 0) != :stage and state.remover != nil) ->
        %{state | waiting: [item | state.waiting]}

      match?({:stage, _from, _opts}, item) ->
        enter(item, elem(item, 2).checksum, state)

      true ->
        remove(item, state)
    end
  end

  defp remove({kind, callers}, state) do
    keys = ManifestTable.checksums(state.table, kind)
    state = start_remover(state, callers, &FileModule.remove(&1, kind, length(keys)))
    Enum.reduce(keys, state, &enter({kind, state.remover}, &1, &2))
  end

  defp start_remover(state, callers, work) do
    pid = FileModule.start(state.module, work)
    put_in(%{state | remover: pid}.workers[pid], %{opts: nil, callers: callers})
  end

  # Begins with what is to be done for a checksum, or has it wait until that is free.
  defp enter(item, key, state) do
    case state.busy do
      %{^key => {pid, waiting}} -> put_in(state.busy[key], {pid, :queue.in(item, waiting)})
      _free -> begin(item, key, :queue.new(), state)
    end
  end

  defp begin({:stage, from, _opts}, key, waiting, %{stopping?: true} = state) do
    GenServer.reply(from, {:error, :stopped})
    next(key, waiting, state)
  end

  defp begin({:stage, from, opts}, key, waiting, state) do
    entry = ManifestTable.get(state.table, key)
    pid = FileModule.start(state.module, &FileModule.stage(&1, opts, entry))
    state = put_in(state.workers[pid], %{opts: opts, callers: [from]})
    put_in(state.busy[key], {pid, waiting})
  end

  # Anything may have happened to the entry, and to the worker, since it was to be removed.
  defp begin({kind, pid}, key, waiting, state) do
    entry = ManifestTable.get(state.table, key)
    due? = entry != nil and (kind == :reset or ManifestTable.expired?(entry))

    if due? and is_map_key(state.workers, pid) do
      tell(pid, {:claimed, elem(entry, 1)})
      put_in(state.busy[key], {pid, waiting})
    else
      tell(pid, :unclaimed)
      next(key, waiting, state)
    end
  end

  defp next(key, waiting, state) do
    case :queue.out(waiting) do
      {{:value, item}, waiting} -> begin(item, key, waiting, state)
      {:empty, _waiting} -> %{state | busy: Map.delete(state.busy, key)}
    end
  end

  defp free(key, state), do: next(key, state.busy[key] |> elem(1), state)

  # The stagings that are next in line for a checksum.
  defp take_stagings(key, state) do
    {pid, waiting} = state.busy[key]
    {stagings, others} = waiting |> :queue.to_list() |> Enum.split_while(&(elem(&1, 0) == :stage))
    {stagings, put_in(state.busy[key], {pid, :queue.from_list(others)})}
  end

  ## What workers tell

  defp told({how, _look}, pid, %{stopping?: true} = state) when how in [:known, :copied] do
    tell(pid, :refused)
    state
  end

  # Callers that wait for a copy are answered as for a known checksum. Those that wait while a known file
  # is looked at need a later look.
  defp told({how, look}, pid, state) when how in [:known, :copied] do
    %{opts: %{checksum: key} = opts, callers: [from]} = state.workers[pid]
    {waiting, state} = if how == :copied, do: take_stagings(key, state), else: {[], state}
    stagings = [opts | for({:stage, _from, opts} <- waiting, do: opts)]
    tell(pid, {:staged, ManifestTable.stage(state.table, how, stagings, look)})
    put_in(state.workers[pid].callers, [from | callers(waiting)])
  end

  defp told({:removed, key}, _pid, state) do
    ManifestTable.delete(state.table, key)
    free(key, state)
  end

  defp told({:kept, key}, _pid, state), do: free(key, state)

  # A worker's own answer would be a stray message to a caller that has seen the registry's end.
  defp told({:answers, answers}, pid, state) do
    for {from, answer} <- Enum.zip(state.workers[pid].callers, answers),
        do: GenServer.reply(from, answer)

    put_in(state.workers[pid].callers, [])
  end

  defp ended(pid, reason, %{remover: pid} = state) do
    {%{callers: callers}, state} = pop_in(state.workers[pid])
    reply(callers, reason)
    keys = for {key, {^pid, _waiting}} <- state.busy, do: key
    state = Enum.reduce(keys, %{state | remover: nil, cleared?: true}, &free/2)
    Enum.reduce(Enum.reverse(state.waiting), %{state | waiting: []}, &work(&2, &1))
  end

  defp ended(pid, reason, state) do
    {%{opts: %{checksum: key}, callers: callers}, state} = pop_in(state.workers[pid])
    {waiting, state} = if reason != :normal, do: take_stagings(key, state), else: {[], state}
    reply(callers ++ callers(waiting), with({:failed, reason} <- reason, do: reason))
    free(key, state)
  end

  defp callers(stagings), do: for({:stage, from, _opts} <- stagings, do: from)
  defp reply(callers, reason), do: Enum.each(callers, &GenServer.reply(&1, {:error, reason}))
  defp tell(pid, answer), do: send(pid, {:registry, answer})
end
