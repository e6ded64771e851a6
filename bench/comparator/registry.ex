defmodule Comparator.Registry do
  @moduledoc false
  # A process that owns an ETS table of attachments. File operations run one after the other in a
  # task, so that the process can answer meanwhile.

  use GenServer

  alias Comparator.Attachment

  @table :comparator_manifest

  def start_link(opts \\ []), do: GenServer.start_link(__MODULE__, opts, name: __MODULE__)

  @doc "Stages; looks first, in the cheapest way, whether the file of a known checksum is still there."
  def stage(opts) do
    with [{checksum, attachment}] <- :ets.lookup(@table, opts.checksum),
         {:error, _reason} <- :file.read_link_info(attachment.path, [:raw]),
         do: GenServer.call(__MODULE__, {:forget, checksum}, :infinity)

    stage_without_looking(opts)
  end

  @doc "Stages; of a known checksum, returns a path whose file may have gone."
  def stage_without_looking(opts), do: GenServer.call(__MODULE__, {:stage, opts}, :infinity)

  def list, do: GenServer.call(__MODULE__, :list, :infinity)
  def metrics, do: GenServer.call(__MODULE__, :metrics, :infinity)
  def force_cleanup, do: GenServer.call(__MODULE__, :force_cleanup, :infinity)
  def reset(dir), do: GenServer.call(__MODULE__, {:reset, dir}, :infinity)

  @impl true
  def init(opts) do
    table = :ets.new(@table, [:set, :protected, :named_table])
    interval = Keyword.get(opts, :cleanup_interval_ms, 60_000)
    Process.send_after(self(), :cleanup_tick, interval)

    # `copying` has the callers that wait for the copy of each checksum, the last one first.
    {:ok, %{table: table, interval: interval, queue: :queue.new(), task: nil, copying: %{}}}
  end

  @impl true
  def handle_call({:stage, %{checksum: checksum} = opts}, from, state) do
    case :ets.lookup(state.table, checksum) do
      [{^checksum, attachment}] ->
        {:reply, {:ok, renew(state, attachment, opts)}, state}

      [] when is_map_key(state.copying, checksum) ->
        {:noreply, update_in(state.copying[checksum], &[{from, opts} | &1])}

      [] ->
        state = put_in(state.copying[checksum], [{from, opts}])
        {:noreply, enqueue(state, {:stage, checksum, opts})}
    end
  end

  def handle_call({:forget, checksum}, _from, state) do
    :ets.delete(state.table, checksum)
    {:reply, :ok, state}
  end

  def handle_call(:list, _from, state) do
    attachments = for {_checksum, attachment} <- :ets.tab2list(state.table), do: attachment

    {:reply, attachments, state}
  end

  def handle_call(:metrics, _from, state) do
    zero = %{
      total_count: 0,
      total_bytes: 0,
      persistent_count: 0,
      persistent_bytes: 0,
      expirable_count: 0
    }

    metrics =
      :ets.foldl(fn {_checksum, attachment}, acc -> count(attachment, acc) end, zero, state.table)

    {:reply, metrics, state}
  end

  def handle_call(:force_cleanup, from, state), do: {:noreply, enqueue(state, {:cleanup, from})}
  def handle_call({:reset, dir}, from, state), do: {:noreply, enqueue(state, {:reset, from, dir})}

  @impl true
  def handle_info(:cleanup_tick, state) do
    Process.send_after(self(), :cleanup_tick, state.interval)
    {:noreply, enqueue(state, {:cleanup, nil})}
  end

  def handle_info({ref, result}, %{task: {%Task{ref: ref}, work}} = state) do
    Process.demonitor(ref, [:flush])
    {:noreply, next(finish(%{state | task: nil}, work, result))}
  end

  def handle_info({:DOWN, ref, _, _, reason}, %{task: {%Task{ref: ref}, work}} = state) do
    {:noreply, next(finish(%{state | task: nil}, work, {:error, reason}))}
  end

  defp renew(state, attachment, opts) do
    endless? = opts.persist or :infinity in [attachment.ttl_ms, opts.ttl_ms]

    attachment = %{
      attachment
      | persist: attachment.persist or opts.persist,
        ttl_ms: if(endless?, do: :infinity, else: opts.ttl_ms),
        inserted_at: now()
    }

    :ets.insert(state.table, {attachment.checksum, attachment})
    attachment
  end

  defp count(%Attachment{size: size, persist: true}, acc) do
    %{
      acc
      | total_count: acc.total_count + 1,
        total_bytes: acc.total_bytes + size,
        persistent_count: acc.persistent_count + 1,
        persistent_bytes: acc.persistent_bytes + size
    }
  end

  defp count(%Attachment{size: size}, acc) do
    %{
      acc
      | total_count: acc.total_count + 1,
        total_bytes: acc.total_bytes + size,
        expirable_count: acc.expirable_count + 1
    }
  end

  defp enqueue(state, work), do: next(%{state | queue: :queue.in(work, state.queue)})

  defp next(%{task: nil} = state) do
    case :queue.out(state.queue) do
      {{:value, work}, queue} -> %{state | queue: queue, task: {start(work, state), work}}
      {:empty, _queue} -> state
    end
  end

  defp next(state), do: state

  defp start({:stage, _checksum, opts}, _state) do
    task(fn ->
      File.mkdir_p!(Path.dirname(opts.destination_path))
      File.cp!(opts.source_path, opts.destination_path)
    end)
  end

  defp start({:cleanup, _from}, state) do
    now = now()

    expired =
      for {_checksum, attachment} <- :ets.tab2list(state.table),
          expired?(attachment, now),
          do: attachment

    task(fn ->
      Enum.each(expired, &File.rm_rf(&1.path))
      expired
    end)
  end

  defp start({:reset, _from, dir}, _state), do: task(fn -> File.rm_rf(dir) end)

  defp task(work), do: Task.Supervisor.async_nolink(Comparator.TaskSupervisor, work)

  defp finish(state, {:stage, checksum, _opts}, {:error, reason}) do
    {waiting, state} = pop_in(state.copying[checksum])
    for {from, _opts} <- waiting, do: GenServer.reply(from, {:error, reason})
    state
  end

  defp finish(state, {:stage, checksum, opts}, :ok) do
    {waiting, state} = pop_in(state.copying[checksum])
    [{first, _opts} | others] = Enum.reverse(waiting)

    attachment = %Attachment{
      id: checksum,
      name: opts.name,
      path: opts.destination_path,
      checksum: checksum,
      size: opts.size,
      persist: opts.persist,
      inserted_at: now(),
      ttl_ms: opts.ttl_ms
    }

    :ets.insert(state.table, {checksum, attachment})
    GenServer.reply(first, {:ok, attachment})

    for {from, opts} <- others, do: GenServer.reply(from, {:ok, renew(state, attachment, opts)})
    state
  end

  defp finish(state, {:cleanup, from}, expired) do
    if is_list(expired), do: for(%{checksum: key} <- expired, do: :ets.delete(state.table, key))
    from && GenServer.reply(from, :ok)
    state
  end

  defp finish(state, {:reset, from, _dir}, _result) do
    :ets.delete_all_objects(state.table)
    GenServer.reply(from, :ok)
    state
  end

  defp expired?(%Attachment{persist: true}, _now), do: false
  defp expired?(%Attachment{ttl_ms: :infinity}, _now), do: false

  defp expired?(%Attachment{inserted_at: inserted_at, ttl_ms: ttl_ms}, now),
    do: DateTime.diff(now, inserted_at, :millisecond) >= ttl_ms

  defp now, do: DateTime.truncate(DateTime.utc_now(), :millisecond)
end
