defmodule Codex.Files do
  @moduledoc """
  Stages file attachments for the Codex agent.

  A staged file is a private copy, kept under the SHA-256 checksum of its content. Staging a content
  again renews the time to live of the copy that is there. That costs next to nothing if the file had
  been left alone for two seconds and has not changed since. Otherwise it is read, and one of more than
  256 KiB may be copied on the way, if there is room. A copy is removed when its time to live has ended and
  no process owns it any more, by `unstage/2` and `reset!/0`, or when the registry or the system is stopped
  in order. What is staged can be a file, bytes that are in memory, or what an enumerable gives.

  None of these functions exits or raises because of a file or the registry: they return
  `{:error, reason}`, and `format_error/1` says what that means.

  ## Configuration

  In the application environment of `:codex_sdk`:

    * `:staging_dir` - where the copies are kept, by default `codex_files` in `System.tmp_dir!/0`. On a
      file system that keeps no permissions, others may read them
    * `:attachment_ttl_ms` - the default time to live in milliseconds, or `:infinity`; 86_400_000 (a
      day) by default
    * `:attachment_cleanup_interval_ms` - the time between two cleanups, 60_000 (a minute) by default
    * `:attachment_max_bytes` - how many bytes may be stored at once, those included that are being written;
      by default any number
    * `:attachment_when_full` - what becomes of a staging that has no room then: `:refuse`, the default, or
      `:evict` what would expire soonest
    * `:attachment_recognise_unchanged` - `false` to read every file again, instead of recognising
      those whose device, inode, size and times have not changed since they were staged. That is done
      only where the file system keeps these times honestly: ext2 to ext4, XFS, btrfs, F2FS, bcachefs,
      ZFS, tmpfs, and overlayfs if nobody changes its layers beside it. A program that writes through
      a shared memory mapping (`mmap`) need not change the times each time: if files written in this
      way are staged, it has to be `false`

  The first two are read at each use, the others when the registry starts; but the successor of a
  killed registry keeps `:attachment_recognise_unchanged` as it was. A malformed value gives
  `{:error, {:invalid_config, key, value}}` where it is used: one of the last four keeps the registry
  from starting. The guide "Configuration" has more.

  ## Registries

  The functions below work on the registry that the first call starts. A host can have any number of
  others in its supervision tree, each apart from the rest and with settings of its own:

      {Codex.Files.Registry, name: MyApp.Uploads, staging_dir: "/var/lib/my_app", ttl_ms: 600_000}

  Functions with options take the name or the pid of one as `:registry`, the others as their last
  argument. The guide "Registries" has more.

  ## Errors

  `stage/2` and `force_cleanup/0` say what each of them can fail with. Besides, any function that
  returns errors may give one of these reasons:

    * `:stopped`, `:noproc`, `:normal`, `:shutdown`, `{:shutdown, detail}`, `:killed` - the registry
      ended before it had answered. Call again, which waits for its successor or starts one. Only
      `:noproc` is said of a registry that was named and does not run: its supervisor is to start it
    * `{:invalid_option, :registry, value}` - that is neither the name nor the pid of a registry, or it
      is another node's
    * `:not_started` - applications or the VM are being stopped; or `Codex.Supervisor` is not running,
      or the registry is not among its children or has not been restarted in five seconds: let that
      supervisor start `{Codex.Files.Registry, []}`
    * `{:manifest_table_taken, table}` - the registry could not start, because there is an ETS table
      of this name. `:ets.info(table, :owner)` says whose it is: rename that one
    * `:not_supported` - the registry has a file module: it stages files and nothing else
    * `{:invalid_config, key, value}` - a configured value is not what it has to be
    * `:native_library_not_loaded` - standard error says why, and what to do
    * `:eagain` - the system has no thread left for the registry
    * `{:native_panic, message}` - a bug of this library. Nothing else is harmed; please report it
    * `{application, reason}` - the SDK, or an application that it needs, could not be started,
      perhaps because the registry could not: `format_error/1` tells

  With a registry that has a file module, `stage/2` also fails with the reasons of
  `Codex.Files.Registry.stage/1`, such as `{:checksum_mismatch, actual}` for a file that is written to
  meanwhile, and any function with what the module's functions return or raise.

  ## Examples

      iex> path = Path.join(System.tmp_dir!(), "files_example.txt")
      iex> File.write!(path, "some notes")
      iex> {:ok, attachment} = Codex.Files.stage(path, name: "notes.txt")
      iex> attachment.name
      "notes.txt"
      iex> attachment in Codex.Files.list_staged()
      true
      iex> Codex.Files.stage("no-such-file")
      {:error, :enoent}

  """

  import Codex.Files.Dispatch, only: [with_registry: 3]

  alias Codex.Files.{
    Attachment,
    Config,
    FileModuleRegistry,
    Native,
    NativeRegistry,
    Options,
    Registry,
    Source
  }

  @typedoc "What can be staged: a file, bytes that are in memory, or iodata that comes piece by piece."
  @type source() :: Path.t() | {:data, iodata()} | {:stream, Enumerable.t()}

  @typedoc "A registry of this node: its name, as `Codex.Files.Registry.start_link/1` takes it, or its pid."
  @type registry() :: GenServer.name() | pid()

  @doc """
  Returns the directory below which files are staged.

  Each registry has a directory of its own in it. If the directory is not configured and belongs to
  another user, or is no directory, the one that is used has the user id appended to its name: the
  `path` of an attachment says where it is. A malformed configured value is returned as it is.

  ## Examples

      iex> Codex.Files.staging_dir() |> Path.type()
      :absolute

  """
  @spec staging_dir() :: Path.t()
  def staging_dir do
    case Config.staging_dir() do
      {:ok, {dir, _default?}} -> dir
      {:error, {:invalid_config, :staging_dir, value}} -> value
    end
  end

  @doc """
  Stages a source: the file at a path, bytes that are in memory, as `{:data, iodata}`, or what an enumerable
  gives, as `{:stream, enumerable}`.

  Bytes in memory are hashed before they are written: those that are known already need no room.

  The elements of an enumerable are iodata. They are written and hashed as they come, in one pass and in the
  calling process, so that it may give more than the memory holds. What it raises, throws or exits with reaches
  the caller as it is. If it does, or the caller is killed, nothing is left of the stream within a second.

  The attachment has the name that is asked for, and so has its path, also where the content is known under
  another one: it is a second name of the same copy. `list_staged/1` and `fetch/2` show the first.

  ## Options

    * `:name` - one path component, by default the last one of the path. Bytes in memory and streams need
      one, or the result is `{:error, {:missing_option, :name}}`
    * `:persist` - `true` exempts it from expiry; its `ttl_ms` is then `:infinity`
    * `:ttl_ms` - how many milliseconds to keep it, or `:infinity`. With 0 it expires at the next
      cleanup. By default as configured, and 0 for one with an `:owner`
    * `:owner` - the pid of a process of this node. As long as it lives, the attachment stays; see
      `release/2`. With `persist: true` it changes nothing
    * `:registry` - the name or the pid of another registry than the default one

  Other options are ignored.

  ## Errors

    * `:enoent`, `:eacces`, `:enospc` and the like - what the file system says; `:eisdir` for a
      directory
    * `{:unsupported_file_type, type}` - not a regular file but a `:fifo`, `:socket`, `:device` or
      `:other`
    * `{:invalid_name, name}`, `{:invalid_ttl, ttl_ms}`, `{:invalid_option, key, value}`, where the key
      is `:source` and the value what is no iodata or cannot be enumerated
    * `{:invalid_option, :owner, pid}` - it has ended, or is of another node
    * `{:over_budget, size, max_bytes}` - the registry has no room for so many bytes
    * `{:staging_dir, path, reason}` - the staging directory cannot be made, opened or locked: what the
      file system says is `:enotdir`, `:erofs` or the like
    * `{:insecure_staging_dir, path, reason}` - the staging directory belongs to another user
      (`:foreign_owner`), or is a symbolic link of another user's (`:foreign_link`)

  ## Examples

      iex> path = Path.join(System.tmp_dir!(), "stage_example.txt")
      iex> File.write!(path, "hello")
      iex> {:ok, attachment} = Codex.Files.stage(path, persist: true)
      iex> {attachment.size, attachment.ttl_ms}
      {5, :infinity}
      iex> Codex.Files.stage(path, ttl_ms: -1)
      {:error, {:invalid_ttl, -1}}
      iex> {:ok, attachment} = Codex.Files.stage({:data, ["some ", "bytes"]}, name: "bytes.txt")
      iex> {attachment.name, File.read!(attachment.path)}
      {"bytes.txt", "some bytes"}
      iex> Codex.Files.stage({:data, [256]}, name: "bytes.txt")
      {:error, {:invalid_option, :source, [256]}}
      iex> lines = Stream.map(1..3, fn number -> [Integer.to_string(number), ?\\n] end)
      iex> {:ok, attachment} = Codex.Files.stage({:stream, lines}, name: "lines.txt")
      iex> File.read!(attachment.path)
      "1\\n2\\n3\\n"
      iex> Codex.Files.stage({:stream, ["iodata", :an_atom]}, name: "lines.txt")
      {:error, {:invalid_option, :source, :an_atom}}

  """
  @spec stage(source(), keyword()) :: {:ok, Attachment.t()} | {:error, term()}
  def stage(source, opts \\ []) do
    with {:ok, opts} <- Options.check(:opts, opts),
         :ok <- check_owner(opts),
         {:ok, source} <- Source.check(source),
         do: stage_source(source, opts, &NativeRegistry.stage/3, &stage_by_file_module/3)
  end

  # A stream is read elsewhere than where exits and errors are taken for those of the registry.
  defp stage_source({:stream, _enumerable} = source, opts, stage, _by_file_module) do
    with {:ok, native} <- with_registry(registry(opts), &{:ok, &1}, &not_supported/1),
         do: stage.(native, source, opts)
  end

  defp stage_source(source, opts, stage, by_file_module) do
    with_registry(registry(opts), &stage.(&1, source, opts), &by_file_module.(&1, source, opts))
  end

  # It stages files, and knows no owners.
  defp stage_by_file_module(server, {:path, path}, opts) do
    if Keyword.has_key?(opts, :owner),
      do: not_supported(server),
      else: FileModuleRegistry.stage_file(server, path, opts)
  end

  defp stage_by_file_module(server, source, opts), do: not_supported(server, source, opts)

  # The native library watches it from then on.
  defp check_owner(opts) do
    with {:ok, owner} <- Keyword.fetch(opts, :owner),
         {:ok, pid} <- Options.check(:owner, owner) do
      if Process.alive?(pid), do: :ok, else: {:error, {:invalid_option, :owner, pid}}
    else
      :error -> :ok
      error -> error
    end
  end

  @doc """
  Gives up an ownership early. What nothing else keeps is removed within a second.

  A process becomes an owner with the option `:owner` of `stage/2`, once for each attachment however often
  it stages it, and ceases to be one here, or when it ends.

  ## Options

    * `:owner` - whose ownership to end, by default the calling process's
    * `:registry` - as for `stage/2`

  The result is `:ok` also if there was no such ownership.

  ## Examples

      iex> {:ok, attachment} = Codex.Files.stage({:data, "mine"}, name: "mine.txt", owner: self())
      iex> Codex.Files.force_cleanup()
      iex> File.read!(attachment.path)
      "mine"
      iex> Codex.Files.release(attachment)
      :ok
      iex> Codex.Files.release(attachment, owner: :me)
      {:error, {:invalid_option, :owner, :me}}

  """
  @spec release(Attachment.t() | String.t(), keyword()) :: :ok | {:error, term()}
  def release(attachment_or_id, opts \\ []) do
    with {:ok, opts} <- Options.check(:opts, opts),
         {:ok, id} <- id(attachment_or_id),
         {:ok, owner} <- Options.check(:owner, Keyword.get(opts, :owner, self())),
         do:
           with_registry(registry(opts), &NativeRegistry.release(&1, id, owner), &not_supported/1)
  end

  @doc """
  Stages a source, runs `fun` with the attachment, and releases that however `fun` ends.

  Returns `{:ok, result}` with what `fun` returns, or the error of the staging. What `fun` raises, throws or
  exits with reaches the caller. The copy is there as long as `fun` runs, unless it is unstaged or all are reset,
  and gone within a second after it, unless something else keeps it: another staging, or the `:ttl_ms` of this
  one.

  It takes the options of `stage/2` but `:owner`: each call is an owner of its own. Besides the errors of
  `stage/2` there is `{:invalid_option, :fun, value}`.

  ## Examples

      iex> Codex.Files.temporary({:data, "some text"}, [name: "text.txt"], fn attachment ->
      ...>   File.read!(attachment.path)
      ...> end)
      {:ok, "some text"}
      iex> Codex.Files.temporary("no-such-file", fn attachment -> attachment end)
      {:error, :enoent}

  """
  @spec temporary(source(), keyword(), (Attachment.t() -> result)) ::
          {:ok, result} | {:error, term()}
        when result: term()
  def temporary(source, opts \\ [], fun) do
    with {:ok, opts} <- Options.check(:opts, opts),
         {:ok, fun} <- Options.check(:fun, fun),
         :ok <- check_no_owner(opts),
         {:ok, source} <- Source.check(source),
         {:ok, owner, attachment} <-
           stage_source(source, opts, &NativeRegistry.stage_temporary/3, &not_supported/3) do
      try do
        {:ok, fun.(attachment)}
      after
        Native.end_owner(owner)
      end
    end
  end

  defp check_no_owner(opts) do
    case Keyword.fetch(opts, :owner) do
      {:ok, owner} -> {:error, {:invalid_option, :owner, owner}}
      :error -> :ok
    end
  end

  @doc """
  Looks a staged attachment up by its id, and renews nothing.

  It is as `list_staged/1` has it, under the name it was first staged under. One that is being removed, or
  whose file has gone or was changed, or was found damaged by `verify/1`, is not staged. It waits for nobody
  who is at work on it. Takes the option `:registry`, as `stage/2`.

  ## Examples

      iex> {:ok, attachment} = Codex.Files.stage({:data, "looked up"}, name: "up.txt")
      iex> Codex.Files.fetch(attachment.id) == {:ok, attachment}
      true
      iex> Codex.Files.fetch("no such id")
      {:error, :not_staged}

  """
  @spec fetch(String.t(), keyword()) :: {:ok, Attachment.t()} | {:error, term()}
  def fetch(id, opts \\ []) do
    with {:ok, opts} <- Options.check(:opts, opts),
         {:ok, id} <- Options.check(:id, id),
         do: with_registry(registry(opts), &NativeRegistry.fetch(&1, id), &not_supported/1)
  end

  @doc """
  Removes an attachment now, whoever keeps it.

  It waits for work on the attachment that is under way; what is being staged for the first time is not
  staged yet. It fails as `force_cleanup/0` does if the file cannot be removed, and the attachment stays;
  and with `:not_staged`. Takes the option `:registry`, as `stage/2`.

  ## Examples

      iex> {:ok, attachment} = Codex.Files.stage({:data, "gone"}, name: "gone.txt", persist: true)
      iex> Codex.Files.unstage(attachment)
      :ok
      iex> File.exists?(attachment.path)
      false
      iex> Codex.Files.unstage(attachment)
      {:error, :not_staged}

  """
  @spec unstage(Attachment.t() | String.t(), keyword()) :: :ok | {:error, term()}
  def unstage(attachment_or_id, opts \\ []) do
    with {:ok, opts} <- Options.check(:opts, opts),
         {:ok, id} <- id(attachment_or_id),
         do: with_registry(registry(opts), &NativeRegistry.unstage(&1, id), &not_supported/1)
  end

  defp id(%Attachment{id: id}), do: Options.check(:id, id)
  defp id(id), do: Options.check(:id, id)

  defp registry(opts), do: Keyword.get(opts, :registry, Registry)

  defp not_supported(_server), do: {:error, :not_supported}
  defp not_supported(server, _source, _opts), do: not_supported(server)

  defp by_call(request), do: fn {pid, _own} -> GenServer.call(pid, request, :infinity) end

  @doc """
  Lists the staged attachments, in no particular order; `[]` if the registry cannot be had.
  """
  @spec list_staged(registry()) :: [Attachment.t()]
  def list_staged(registry \\ Registry) do
    case list_staged_result(registry) do
      {:ok, attachments} -> attachments
      {:error, _reason} -> []
    end
  end

  @doc """
  Lists the staged attachments, or tells why it cannot.

  ## Examples

      iex> {:ok, attachments} = Codex.Files.list_staged_result()
      iex> is_list(attachments)
      true

  """
  @spec list_staged_result(registry()) :: {:ok, [Attachment.t()]} | {:error, term()}
  def list_staged_result(registry \\ Registry) do
    listed = with_registry(registry, &NativeRegistry.list/1, by_call(:list))
    with attachments when is_list(attachments) <- listed, do: {:ok, attachments}
  end

  @doc """
  Reads every staged file, and tells which are not what they were when they were staged.

  Returns `{:ok, count}`, or `{:error, {:damaged, [{path, reason}]}}` with these reasons:

    * `{:checksum_mismatch, actual}` - the content is another, of the digest `actual`
    * `:enoent` - it has gone; another name of what is there may be gone, it is made anew when it is
      asked for
    * `:changed` - its size or its times are others. Only what was staged under a key that is no digest has
      this reason: it is looked at and not read
    * `:eacces`, `:eio` and the like - it cannot be read; `:eloop`, `:eisdir` or
      `{:unsupported_file_type, type}` - something else is in its place

  What is damaged stays listed, is not staged to `fetch/2`, and is copied anew when its content is next staged.
  Staging goes on meanwhile; what is staged after the beginning may not be read, and what is removed is not
  damaged. Fails with `:emfile`, `:enfile` or `:enomem` if the system does not let it read.

  ## Examples

      iex> {:ok, attachment} = Codex.Files.stage({:data, "some notes"}, name: "notes.txt")
      iex> {:ok, count} = Codex.Files.verify()
      iex> count > 0
      true
      iex> File.rm!(attachment.path)
      iex> Codex.Files.verify()
      {:error, {:damaged, [{attachment.path, :enoent}]}}
      iex> {:ok, _attachment} = Codex.Files.stage({:data, "some notes"}, name: "notes.txt")
      iex> Codex.Files.verify() == {:ok, count}
      true

  """
  @spec verify(registry()) ::
          {:ok, count :: non_neg_integer()}
          | {:error, {:damaged, [{Path.t(), reason :: term()}]} | term()}
  def verify(registry \\ Registry),
    do: with_registry(registry, &NativeRegistry.verify/1, &not_supported/1)

  @doc """
  Removes the attachments that have expired now, instead of at the next cleanup.

  An attachment whose file cannot be removed stays listed, and the result is
  `{:error, {:cleanup_failed, [{path, reason}]}}`.

  ## Examples

      iex> path = Path.join(System.tmp_dir!(), "cleanup_example.txt")
      iex> File.write!(path, "soon gone")
      iex> {:ok, attachment} = Codex.Files.stage(path, ttl_ms: 0)
      iex> Codex.Files.force_cleanup()
      :ok
      iex> File.exists?(attachment.path)
      false

  """
  @spec force_cleanup(registry()) :: :ok | {:error, term()}
  def force_cleanup(registry \\ Registry),
    do: with_registry(registry, &NativeRegistry.force_cleanup/1, by_call(:force_cleanup))

  @doc false
  @deprecated "Use force_cleanup/0 instead"
  @spec cleanup!() :: :ok | {:error, term()}
  def cleanup!, do: force_cleanup()

  @doc """
  Removes every attachment, whether it has expired or not. Returns errors, in spite of its name.

  It waits for stagings that are under way of what it finds, and removes these too. Files that this
  library did not write stay where they are. It fails as `force_cleanup/0` does.

  ## Examples

      iex> path = Path.join(System.tmp_dir!(), "reset_example.txt")
      iex> File.write!(path, "kept for ever")
      iex> {:ok, attachment} = Codex.Files.stage(path, persist: true)
      iex> Codex.Files.reset!()
      :ok
      iex> File.exists?(attachment.path)
      false

  """
  @spec reset!(registry()) :: :ok | {:error, term()}
  def reset!(registry \\ Registry) do
    # Only once the registry is there: as the system stops, the look for the default directory raises.
    with_registry(
      registry,
      fn {_handle, own} = native ->
        with {:ok, {dir, _default?}} <- Config.staging_dir(own),
             do: NativeRegistry.reset(native, dir)
      end,
      fn {_pid, own} = server ->
        with {:ok, {dir, _default?}} <- Config.staging_dir(own),
             do: by_call({:reset, dir}).(server)
      end
    )
  end

  @doc """
  Counts the staged attachments, in constant time.

    * `:total_count`, `:total_bytes` - all of them
    * `:persistent_count`, `:persistent_bytes` - those staged with `persist: true`
    * `:expirable_count`, `:expirable_bytes` - the others, even if their TTL is `:infinity`
    * `:next_expiry_at` - when the next one without an owner expires, a UTC `DateTime`, or `nil` if none
      will before the year 10,000
    * `:owned_count` - those that have an owner
    * `:max_bytes` - the budget, or `nil`

  ## Examples

      iex> metrics = Codex.Files.metrics()
      iex> metrics.total_count == metrics.persistent_count + metrics.expirable_count
      true

  """
  @spec metrics(registry()) :: map() | {:error, term()}
  def metrics(registry \\ Registry),
    do: with_registry(registry, &NativeRegistry.metrics/1, by_call(:metrics))

  @doc """
  Appends an attachment to the `:attachments` of thread options, or of any such struct.

  An earlier one of the same id is replaced, moving to the end.

  ## Examples

      iex> path = Path.join(System.tmp_dir!(), "attach_example.txt")
      iex> File.write!(path, "attached")
      iex> {:ok, attachment} = Codex.Files.stage(path)
      iex> options = Codex.Files.attach(%{attachments: []}, attachment)
      iex> Codex.Files.attach(options, attachment) == %{attachments: [attachment]}
      true

  """
  @spec attach(options, Attachment.t()) :: options
        when options: %{:attachments => list(), optional(any()) => any()}
  def attach(%{attachments: attachments} = options, %Attachment{id: id} = attachment)
      when is_list(attachments) do
    others = Enum.reject(attachments, &match?(%Attachment{id: ^id}, &1))
    %{options | attachments: others ++ [attachment]}
  end

  @doc """
  Says in one English line what the reason of an error means.

  ## Examples

      iex> Codex.Files.format_error(:enoent)
      "no such file or directory"
      iex> Codex.Files.format_error({:invalid_name, "../x"})
      "expected the name to be one path component of 1 to 255 bytes, got: \\"../x\\""

  """
  @spec format_error(term()) :: String.t()
  defdelegate format_error(reason), to: Codex.Files.ErrorMessage, as: :format
end
