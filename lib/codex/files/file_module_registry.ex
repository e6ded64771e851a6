defmodule Codex.Files.FileModuleRegistry do
  @moduledoc false
  # A registry that was started with a file module of the host's: the protocol of
  # `Codex.Files.Registry` without native code. Its manifest is the ETS table, which holds
  # `{checksum, attachment, deadline, look}`. The process itself touches no file: each staging, removal
  # or clearing has a worker (see `Codex.Files.FileModule`), and each checksum one worker at a time.
  #
  # It does not trap exits, and leaves nothing to a successor: that begins with the removal of the
  # staging directory.

  use GenServer

  alias Codex.Files.{Attachment, Config, FileModule, Registry}

  # How long a stop waits for a file operation that does not come to its end.
  @stop_timeout_ms 4_000

  @keys [:checksum, :name, :persist, :ttl_ms, :size, :source_path, :destination_path]
  @max_u64 0xFFFF_FFFF_FFFF_FFFF

  @doc "Checks the options of a staging; paths become the bytes that the file system is to see."
  @spec check(term()) :: {:ok, Registry.stage_opts()} | {:error, term()}
  def check(opts) when is_map(opts) do
    Enum.reduce_while(@keys, {:ok, opts}, fn key, {:ok, opts} ->
      with {:ok, value} <- Map.fetch(opts, key), {:ok, value} <- check(key, value) do
        {:cont, {:ok, %{opts | key => value}}}
      else
        :error -> {:halt, {:error, {:missing_option, key}}}
        error -> {:halt, error}
      end
    end)
  end

  def check(opts), do: {:error, {:invalid_option, :opts, opts}}

  defp check(:checksum, value) when is_binary(value), do: {:ok, value}
  defp check(:persist, value) when is_boolean(value), do: {:ok, value}
  defp check(:ttl_ms, :infinity), do: {:ok, :infinity}
  defp check(key, value) when key in [:ttl_ms, :size] and value in 0..@max_u64, do: {:ok, value}

  defp check(:name, name) when is_binary(name) do
    if byte_size(name) in 1..255 and name not in [".", ".."] and
         :binary.match(name, ["/", <<0>>]) == :nomatch,
       do: {:ok, name},
       else: {:error, {:invalid_name, name}}
  end

  defp check(key, value) when key in [:source_path, :destination_path, :dir] do
    with :error <- Registry.path_bytes(value), do: {:error, {:invalid_option, key, value}}
  end

  defp check(key, value), do: {:error, {:invalid_option, key, value}}

  ## The process

  @impl true
  def init(opts) do
    with {:ok, module} <- check_module(opts[:file_module]),
         {:ok, table} <- Registry.new_table(opts) do
      {dir, _default?} = Config.staging_dir()
      schedule_cleanup()

      state = %{
        module: module,
        table: table,
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

  defp check_module(module) when is_atom(module) and module != nil, do: {:ok, module}
  defp check_module(module), do: {:error, {:invalid_option, :file_module, module}}

  defp schedule_cleanup,
    do: Process.send_after(self(), :cleanup_tick, Config.cleanup_interval_ms())

  @impl true
  def handle_call({:stage, opts}, from, state) do
    case check(opts) do
      {:ok, opts} -> {:noreply, work(state, {:stage, from, opts})}
      error -> {:reply, error, state}
    end
  end

  def handle_call({:reset, dir}, from, state) do
    case check(:dir, dir) do
      {:ok, _bytes} -> {:noreply, work(state, {:reset, [from]})}
      error -> {:reply, error, state}
    end
  end

  def handle_call(:force_cleanup, from, state), do: {:noreply, work(state, {:cleanup, [from]})}
  def handle_call(:list, _from, state), do: {:reply, list(state), state}
  def handle_call(:metrics, _from, state), do: {:reply, metrics(list(state)), state}

  # For `Codex.Files`: there is no native manifest.
  def handle_call(:handle, _from, state), do: {:reply, :error, state}

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
    schedule_cleanup()
    # While something else is being removed the next time will do.
    {:noreply, if(state.remover, do: state, else: work(state, {:cleanup, []}))}
  end

  def handle_info(_message, state), do: {:noreply, state}

  # Removes everything, and has what is under way undone. Workers need answers meanwhile.
  @impl true
  def terminate(_reason, %{cleared?: false}), do: :ok

  def terminate(_reason, state) do
    state = work(%{state | stopping?: true, waiting: []}, {:reset, []})
    # The removal waits for those that are at work on what is listed.
    stop_stagings(state, &:ets.member(state.table, &1.checksum))
    state = answer_workers(state, &(&1.remover == nil))
    stop_stagings(state, fn _opts -> true end)
    answer_workers(state, &(&1.workers == %{}))
  end

  defp stop_stagings(state, which) do
    for {pid, %{opts: opts}} <- state.workers, opts != nil, which.(opts), do: tell(pid, :stop)
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

  # Nothing else before the clearing is over, and one removal at a time.
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
    due = if kind == :reset, do: [], else: [{:"=<", :"$2", System.monotonic_time()}]

    keys = :ets.select(state.table, [{{:"$1", :_, :"$2", :_}, due, [:"$1"]}])
    state = start_remover(state, callers, &FileModule.remove(&1, kind, length(keys)))
    Enum.reduce(keys, state, &enter({kind, state.remover}, &1, &2))
  end

  defp start_remover(state, callers, work) do
    pid = FileModule.start(state.module, work)
    put_in(%{state | remover: pid}.workers[pid], %{opts: nil, callers: callers})
  end

  # What works on a checksum while it is free, or waits for it.
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
    entry = entry(state, key)
    pid = FileModule.start(state.module, &FileModule.stage(&1, opts, entry))
    state = put_in(state.workers[pid], %{opts: opts, callers: [from]})
    put_in(state.busy[key], {pid, waiting})
  end

  # Anything may have happened to the entry, and to the worker, since it was to be removed.
  defp begin({kind, pid}, key, waiting, state) do
    now = System.monotonic_time()

    case entry(state, key) do
      {_key, attachment, deadline, _look}
      when is_map_key(state.workers, pid) and (kind == :reset or deadline <= now) ->
        tell(pid, {:claimed, attachment})
        put_in(state.busy[key], {pid, waiting})

      _renewed_or_gone ->
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

  # Who waits for a copy is answered as for a known checksum. Who waits for a look needs a later one.
  defp told({how, look}, pid, state) when how in [:known, :copied] do
    %{opts: %{checksum: key} = opts, callers: [from]} = state.workers[pid]
    {waiting, state} = if how == :copied, do: take_stagings(key, state), else: {[], state}
    listed = with {_key, attachment, _deadline, _look} <- entry(state, key), do: attachment
    first = staged(how, listed, opts)

    {others, last} =
      Enum.map_reduce(waiting, first, fn {:stage, _from, opts}, listed ->
        attachment = staged(:known, listed, opts)
        {{:ok, attachment, true}, attachment}
      end)

    :ets.insert(state.table, {key, last, deadline(last), look})
    tell(pid, {:staged, [{:ok, first, how == :known} | others]})
    put_in(state.workers[pid].callers, [from | callers(waiting)])
  end

  defp told({:removed, key}, _pid, state) do
    :ets.delete(state.table, key)
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

  ## Entries

  defp entry(state, key), do: state.table |> :ets.lookup(key) |> List.first()

  defp list(state), do: :ets.select(state.table, [{{:_, :"$1", :_, :_}, [], [:"$1"]}])

  defp staged(:copied, nil, opts) do
    opts
    |> Map.take([:checksum, :name, :persist, :ttl_ms, :size])
    |> Map.merge(%{id: opts.checksum, path: opts.destination_path, inserted_at: now()})
    |> then(&struct!(Attachment, &1))
  end

  # Its file had gone: what was promised holds for the new one.
  defp staged(:copied, listed, %{name: name, size: size, destination_path: path} = opts),
    do: staged(:known, %{listed | name: name, size: size, path: path}, opts)

  defp staged(:known, listed, %{persist: persist, ttl_ms: ttl_ms}) do
    ttl_ms = if persist or :infinity in [listed.ttl_ms, ttl_ms], do: :infinity, else: ttl_ms
    %{listed | persist: listed.persist or persist, ttl_ms: ttl_ms, inserted_at: now()}
  end

  defp now, do: DateTime.truncate(DateTime.utc_now(), :millisecond)

  # On the monotonic clock. The atom is greater than any number.
  defp deadline(%Attachment{persist: persist, ttl_ms: ttl_ms}) do
    if persist or ttl_ms == :infinity,
      do: :infinity,
      else: System.monotonic_time() + System.convert_time_unit(ttl_ms, :millisecond, :native)
  end

  defp metrics(attachments) do
    {persistent, expirable} = Enum.split_with(attachments, & &1.persist)
    bytes = fn attachments -> attachments |> Enum.map(& &1.size) |> Enum.sum() end
    expiries = for %{ttl_ms: ttl_ms} = it when ttl_ms != :infinity <- expirable, do: expiry_ms(it)

    # No `DateTime` is after the year 9,999.
    next_expiry_at =
      with [_ | _] <- expiries,
           {:ok, at} <- DateTime.from_unix(Enum.min(expiries), :millisecond),
           do: at,
           else: (_none -> nil)

    %{
      total_count: length(attachments),
      total_bytes: bytes.(attachments),
      persistent_count: length(persistent),
      persistent_bytes: bytes.(persistent),
      expirable_count: length(expirable),
      expirable_bytes: bytes.(expirable),
      next_expiry_at: next_expiry_at
    }
  end

  defp expiry_ms(%Attachment{inserted_at: inserted_at, ttl_ms: ttl_ms}),
    do: DateTime.to_unix(inserted_at, :millisecond) + ttl_ms
end
