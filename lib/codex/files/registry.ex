defmodule Codex.Files.Registry do
  @moduledoc """
  Owns the manifest of staged files, and removes the expired ones.

  Most programs use `Codex.Files`, which starts the registry when it is needed.

  The manifest lives in native code. Callers of this module's functions work on it in their own
  process; the registry process only owns it. When that process is killed, its successor takes over
  the manifest and the files. When it is stopped in order, by its supervisor for instance, they are
  removed.

  A host can have any number of registries in its supervision tree, each apart from the others, and give
  their names to the functions of `Codex.Files`:

      {Codex.Files.Registry, name: MyApp.Uploads, staging_dir: "/var/lib/my_app", ttl_ms: 600_000}

  The functions below are for the registry of the default name. Any other is asked by
  `GenServer.call/3`, with `{:stage, opts}`, `:list`, `:metrics`, `:force_cleanup` or `{:reset, dir}`,
  and gives the results of the function of that name. The registry process answers other calls while
  file operations run. `stage/1`, `list/0`, `metrics/0`, `force_cleanup/0` and `reset/1` exit as
  `GenServer.call/2` does if the registry is not running.

  ## Options of `start_link/1`

    * `:name` - an atom, `{:global, term}` or `{:via, module, term}`; by default `Codex.Files.Registry`
    * `:manifest_table` - the name of the ETS table that the process creates. By default it is the
      registry's, for the default registry `:codex_files_manifest`; one whose name is no atom needs this
      option. If the name is taken, the start fails with `{:manifest_table_taken, name}`
    * `:staging_dir`, `:ttl_ms`, `:cleanup_interval_ms`, `:recognise_unchanged` - what is configured as
      `:staging_dir`, `:attachment_ttl_ms`, `:attachment_cleanup_interval_ms` and
      `:attachment_recognise_unchanged`, for this registry
    * `:max_bytes` - how many bytes its files, and the copies that are under way, may have together;
      `nil` for any number. Configured as `:attachment_max_bytes`
    * `:when_full` - what is done where there is no room for a copy: with `:refuse` the staging fails with
      `{:over_budget, size, max_bytes}`, with `:evict` attachments go that would expire soonest.
      Configured as `:attachment_when_full`
    * `:file_module` - `File` by default. Any other module gets every file operation of this
      registry, each in a process of its own, and needs `mkdir_p!/1`, `cp!/2` and `rm_rf/1` with the
      results of `File`'s. The first of them, at the start, is to remove the whole staging directory:
      such a registry leaves nothing to a successor. What permissions a copy has, and whether it
      appears whole, is up to the module. The registry does not trap exits: it is gone as soon as its
      supervisor stops it, or a process that it is linked to ends with another reason than `:normal`,
      and with it the file operations that are under way. `GenServer.stop/1` undoes them, and removes
      the files. It has no budget, and needs a staging directory that no other registry uses

  Other options are ignored, as the SDK's registry does: mind how they are written.

  ## Errors

  Malformed options give `{:error, {:missing_option, key}}`, `{:error, {:invalid_option, key, value}}`
  or `{:error, {:invalid_name, name}}`, and change nothing. `stage/1` and `force_cleanup/0` say what
  else they can fail with, and `Codex.Files` what every function can.

  A call with another request gives `{:error, {:unknown_request, request}}`. One that the end of the
  registry interrupts exits, or gives `{:error, :stopped}`; `stage/1`, `force_cleanup/0` and `reset/1`
  then exit with `{:stopped, _}`.

  `start_link/1` fails with `{:already_started, pid}`, `{:manifest_table_taken, name}`,
  `{:missing_option, :manifest_table}`, `{:invalid_option, key, value}`, `{:invalid_config, key, value}`, `:eagain` if the system has no thread
  left, and `:native_library_not_loaded`, when standard error says why.

  What a file module fails with is the reason as it is: the one that its function returns, the POSIX
  reason of an exception of `File`'s, any other exception, `{:nocatch, value}` for what it throws, or
  what it exits with.

  `Codex.Files.format_error/1` has the English of them all.
  """

  # An orderly stop removes the files, however many there are.
  use GenServer, shutdown: 300_000

  alias Codex.Files.{
    Attachment,
    Config,
    FileModuleRegistry,
    ManifestTable,
    Native,
    NativeRegistry,
    Options,
    Telemetry
  }

  @typedoc "What `stage/1` takes."
  @type stage_opts() :: %{
          checksum: String.t(),
          name: String.t(),
          persist: boolean(),
          ttl_ms: :infinity | pos_integer(),
          size: non_neg_integer(),
          source_path: Path.t(),
          destination_path: Path.t()
        }
  @typedoc "A caller that waits for a staging. Declared for the sake of specs that name it."
  @type stage_request() :: {GenServer.from(), stage_opts(), DateTime.t()}
  @typedoc "A file operation that is due. Declared for the sake of specs that name it."
  @type work_item() ::
          {:stage, String.t(), stage_opts()}
          | {:force_cleanup, GenServer.from(), DateTime.t()}
          | {:cleanup_tick, DateTime.t()}
          | {:reset, GenServer.from(), Path.t()}
          | :cleanup_orphaned_staging

  @doc """
  The specification of a registry as a supervisor's child, with its name as the id.

  Its supervisor waits five minutes for an orderly stop, which removes all files.
  """
  @spec child_spec(keyword()) :: Supervisor.child_spec()
  def child_spec(opts), do: opts |> super() |> Map.put(:id, Keyword.get(opts, :name, __MODULE__))

  @doc """
  Starts a registry linked to the calling process. See the module documentation for the options.

  ## Examples

      iex> {:ok, registry} = Codex.Files.Registry.start_link(name: MyRegistry, ttl_ms: 5_000)
      iex> path = Path.join(System.tmp_dir!(), "start_example.txt")
      iex> File.write!(path, "mine")
      iex> {:ok, attachment} = Codex.Files.stage(path, registry: MyRegistry)
      iex> attachment.ttl_ms
      5000
      iex> Codex.Files.list_staged(MyRegistry) == [attachment]
      true
      iex> attachment in Codex.Files.list_staged()
      false
      iex> GenServer.stop(registry)
      :ok

  """
  @spec start_link() :: GenServer.on_start()
  @spec start_link(keyword()) :: GenServer.on_start()
  def start_link(opts \\ []) do
    with {:ok, opts} <- Options.check(:opts, opts),
         {:ok, name} <- check_name(Keyword.get(opts, :name, __MODULE__)),
         {:ok, table} <- check_table(Keyword.fetch(opts, :manifest_table), name),
         {:ok, module} <- Options.check(:file_module, Keyword.get(opts, :file_module, File)),
         {:ok, own} <- Config.own(opts) do
      # What `File` would do is done natively. Any other module does its work itself.
      if module == File,
        do: GenServer.start_link(__MODULE__, {name, table, own}, name: name),
        else: FileModuleRegistry.start_link(module, name, table, own)
    end
  end

  # A process may go without a name.
  defp check_name(nil), do: {:ok, nil}

  defp check_name(name) do
    with false <- is_pid(name),
         {:ok, name} <- Options.check(:registry, name),
         do: {:ok, name},
         else: (_none -> {:error, {:invalid_option, :name, name}})
  end

  defp check_table({:ok, table}, _name), do: Options.check(:manifest_table, table)

  defp check_table(:error, name) do
    case NativeRegistry.default_table(name) do
      nil -> {:error, {:missing_option, :manifest_table}}
      table -> {:ok, table}
    end
  end

  @doc """
  Makes sure that the registry runs, and returns its pid.

  If the application `:codex_sdk` is there it is started, and the registry is its
  `Codex.Supervisor`'s child: one that is down is restarted there, one that has been deleted gives
  `{:error, :not_started}`. Otherwise the registry runs under this library's own supervisor.

  However many processes call it at once, one of them starts the registry, and the others wait for
  that one. If the registry does not run while applications or the VM are being stopped, or while one
  of these supervisors waits for the end of a child, the result is `{:error, :not_started}` at once.

  ## Examples

      iex> {:ok, registry} = Codex.Files.Registry.ensure_started()
      iex> Process.whereis(Codex.Files.Registry) == registry
      true

  """
  @spec ensure_started() :: {:ok, pid()} | {:error, term()}
  defdelegate ensure_started(), to: Codex.Files.Startup

  @doc """
  Stages a file under a checksum and at a destination of the caller's choice.

  A new checksum: `:source_path` is copied to `:destination_path`, whose parents are made, and
  listed with the given name, size and TTL. A known checksum: nothing is copied; its insertion time
  becomes now, and its TTL the new one, unless either is `:infinity`. A checksum in the form of a
  SHA-256 digest must be the content's, or the result is
  `{:error, {:checksum_mismatch, actual}}`.

  The destination is the caller's affair: a regular file that is there is replaced, that of another
  checksum too. Anything else stays, and gives `{:error, {:unsupported_destination, type}}`, where the
  type is `:directory`, `:symlink`, `:fifo`, `:socket`, `:device` or `:other`; links above it are
  followed. One that is the source itself gives `{:error, {:destination_is_source, path}}`, and one in a
  registry's own directory can be removed by that registry. Otherwise it fails with the file system's
  reasons, `{:unsupported_file_type, type}`, `{:staging_dir, path, reason}` and
  `{:insecure_staging_dir, path, reason}`, as `Codex.Files.stage/2` does.

  What is staged there is removed as long as it is the same file, and was not changed so that it can be
  written.

  ## Examples

      iex> {:ok, _registry} = Codex.Files.Registry.ensure_started()
      iex> source = Path.join(System.tmp_dir!(), "registry_example.txt")
      iex> File.write!(source, "hello")
      iex> opts = %{
      ...>   checksum: "a key of my own",
      ...>   name: "example.txt",
      ...>   persist: false,
      ...>   ttl_ms: 60_000,
      ...>   size: 5,
      ...>   source_path: source,
      ...>   destination_path: source <> ".staged"
      ...> }
      iex> {:ok, attachment} = Codex.Files.Registry.stage(opts)
      iex> File.read!(attachment.path)
      "hello"
      iex> Codex.Files.Registry.stage(Map.delete(opts, :size))
      {:error, {:missing_option, :size}}
      iex> Codex.Files.Registry.stage(%{opts | checksum: String.duplicate("0", 64)})
      {:error,
       {:checksum_mismatch, "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"}}

  """
  @spec stage(stage_opts()) :: {:ok, Attachment.t()} | {:error, term()}
  def stage(opts), do: run(&NativeRegistry.stage_at(&1, opts), {:stage, opts})

  @doc """
  Lists the attachments, in no particular order; those being removed right now are among them.

  ## Examples

      iex> {:ok, _registry} = Codex.Files.Registry.ensure_started()
      iex> Codex.Files.Registry.list()
      []

  """
  @spec list() :: [Attachment.t()]
  def list, do: run(&NativeRegistry.list/1, :list)

  @doc """
  Counts the attachments and their bytes, in constant time. See `Codex.Files.metrics/0`.
  """
  @spec metrics() :: map()
  def metrics, do: run(&NativeRegistry.metrics/1, :metrics)

  @doc """
  Removes the files and entries that have expired, however long it takes.

  Those whose file could not be removed stay, are reported as
  `{:error, {:cleanup_failed, [{path, reason}]}}`, and are tried again.
  """
  @spec force_cleanup() :: :ok | {:error, term()}
  def force_cleanup, do: run(&NativeRegistry.force_cleanup/1, :force_cleanup)

  @doc """
  Removes every entry and its file, and what dead registries of this library left in `dir`.

  What this library did not write stays. Fails as `force_cleanup/0` does.
  """
  @spec reset(Path.t()) :: :ok | {:error, term()}
  def reset(dir), do: run(&NativeRegistry.reset(&1, dir), {:reset, dir})

  # The work is done in the calling process, unless that is up to a file module.
  defp run(by_handle, request) do
    case NativeRegistry.find(__MODULE__) do
      {:ok, native} -> exit_if_stopped(by_handle.(native))
      :error -> GenServer.call(__MODULE__, request, :infinity)
    end
  end

  # What the stop of the registry interrupts exits, as a call to it does.
  defp exit_if_stopped({:error, :stopped}), do: exit({:stopped, {__MODULE__, :call, []}})
  defp exit_if_stopped(result), do: result

  ## The process

  @impl true
  def init({name, table, own}) do
    # Otherwise `terminate/2` would not run when the supervisor stops this process.
    Process.flag(:trap_exit, true)

    with {:ok, interval_ms} <- Config.cleanup_interval_ms(own),
         {:ok, recognise?} <- Config.recognise_unchanged(own),
         {:ok, budget} <- Config.budget(own),
         :ok <- check_native(),
         {:ok, table} <- ManifestTable.new(table),
         {:ok, handle} <- open_native(name, table, interval_ms, budget, recognise?) do
      # What dead registries left goes in the background, before the cleanup thread does anything else.
      with {:ok, dir} <- Config.staging_dir(own), do: Native.purge(handle, dir)
      native = {handle, own}
      NativeRegistry.enter(table, name, native)
      {:ok, %{native: native, workers: %{}}}
    else
      {:error, reason} -> {:stop, reason}
    end
  end

  # The module says on standard error why its library is not loaded.
  defp check_native do
    if Code.ensure_loaded?(Native) and Native.available?(),
      do: :ok,
      else: {:error, :native_library_not_loaded}
  end

  defp open_native(name, table, interval_ms, budget, recognise?) do
    # A registry without a name has no successor: it is kept under a name that nobody else has.
    name = if name == nil, do: make_ref(), else: name
    Native.open(:erlang.term_to_binary(name), table, interval_ms, budget, recognise?)
  end

  # Whatever may take long is done by a worker, which the caller waits for and this process does
  # not.
  @impl true
  def handle_call(:metrics, _from, state),
    do: {:reply, NativeRegistry.metrics(state.native), state}

  # `Codex.Files` asks when it does not find it in its table: that may not have been there yet.
  def handle_call(:registry, _from, state), do: {:reply, {:native, state.native}, state}

  # A large answer must not pass through this process. The worker is linked to it instead: when it is
  # killed, no late answer reaches the caller.
  def handle_call(:list, from, %{native: native} = state) do
    registry = self()

    start_worker(state, from, fn ->
      Process.link(registry)
      GenServer.reply(from, NativeRegistry.list(native))
    end)
  end

  def handle_call({:stage, opts}, from, state),
    do: start_answerer(state, from, &NativeRegistry.stage_at(&1, opts))

  def handle_call(:force_cleanup, from, state),
    do: start_answerer(state, from, &NativeRegistry.force_cleanup/1)

  def handle_call({:reset, dir}, from, state),
    do: start_answerer(state, from, &NativeRegistry.reset(&1, dir))

  def handle_call(request, _from, state),
    do: {:reply, {:error, {:unknown_request, request}}, state}

  @impl true
  def handle_cast(_request, state), do: {:noreply, state}

  @impl true
  def handle_info({:codex_files, :answer, from, answer}, state) do
    GenServer.reply(from, answer)
    {:noreply, state}
  end

  def handle_info({:DOWN, monitor, :process, _pid, reason}, state) do
    {from, workers} = Map.pop(state.workers, monitor)
    if from && reason != :normal, do: GenServer.reply(from, {:error, reason})
    {:noreply, %{state | workers: workers}}
  end

  # The native cleanup thread tells what it has done. This process lives long: it would keep the
  # memory that reports and the handlers of events take.
  def handle_info({:codex_files, :cleaned, report}, state) do
    _pid = spawn(fn -> Telemetry.cleaned(report) end)
    {:noreply, state, :hibernate}
  end

  def handle_info({:codex_files, :evicted, report}, state) do
    _pid = spawn(fn -> Telemetry.evicted(report) end)
    {:noreply, state, :hibernate}
  end

  def handle_info(_message, state), do: {:noreply, state}

  @impl true
  def terminate({:shutdown, _detail}, state), do: terminate(:shutdown, state)

  def terminate(reason, state) when reason in [:normal, :shutdown],
    do: NativeRegistry.stop(state.native)

  # Anything else leaves the manifest to the successor.
  def terminate(_reason, _state), do: :ok

  ## Workers

  # The answer goes through this process: if that is killed before, the caller exits, and an answer of
  # the worker's own would be a stray message in the caller's mailbox. The work goes on, and has its
  # events.
  defp start_answerer(%{native: native} = state, from, work) do
    registry = self()

    start_worker(state, from, fn ->
      send(registry, {:codex_files, :answer, from, work.(native)})
    end)
  end

  defp start_worker(state, from, work) do
    {_pid, monitor} = spawn_monitor(work)
    {:noreply, put_in(state.workers[monitor], from)}
  end
end
