defmodule Codex.Files.Native do
  @moduledoc false
  # The functions of the native library. Those that return `:wait` answer later, with the message
  # `{reference, result}`. Any of them may return `{:error, {:native_panic, message}}`.

  # The module is loaded when it is first called, not while the project is being compiled: the library
  # is not there yet.
  @compile {:autoload, false}
  @on_load :load

  # Some versions of Erlang take the inside of an escript for a directory.
  @no_directory "It has to lie in a directory named codex_files in the code path. An escript, which is one file, " <>
                  "cannot carry it: make a release."

  alias Codex.Files.Attachment

  @type handle :: reference()
  @type staging_dir :: {Path.t(), default? :: boolean()}
  @type outcome ::
          {:ok, Attachment.t(), cached? :: boolean()} | {:error, term()} | :retry
  @typedoc "Whether the file is known to be new, or takes more than a glance."
  @type miss :: :new | :unseen
  @type budget :: {max_bytes :: pos_integer() | nil, :refuse | :evict}
  @typedoc "What `temporary_owner/1` gives."
  @type temporary_owner :: reference()
  @typedoc "What `open_stream/5` gives."
  @type stream :: reference()
  @typedoc "Without a TTL of its own, that of a staging is `nil`."
  @type keep ::
          {persist :: boolean(), :infinity | non_neg_integer() | nil,
           pid() | temporary_owner() | nil}
  @type report :: {cleaned :: [Attachment.t()], failed :: [{Attachment.t(), reason :: term()}]}

  @doc false
  # The library can be loaded once in the life of a VM. Its handles are of use only to the functions
  # of that first time, and rustler has no callback to hand them on.
  def load do
    case :persistent_term.get(__MODULE__, :never) do
      :never -> load_library()
      :loaded -> restart_needed(:erlang.module_loaded(__MODULE__))
      :gone -> :ok
    end
  end

  @doc "Whether the functions below are the native library's."
  @spec available?() :: boolean()
  def available?, do: :persistent_term.get(__MODULE__, :never) == :loaded

  defp load_library do
    with priv when is_list(priv) <- :code.priv_dir(:codex_files),
         library = Path.join(priv, "native/libcodex_files_nif"),
         {:error, {_reason, text}} <- load_from(String.to_charlist(library)) do
      refuse("#{library}.so: #{text}\n#{remedy(library)}")
    else
      :ok -> :persistent_term.put(__MODULE__, :loaded)
      {:error, :bad_name} -> refuse("its native library.\n#{@no_directory}")
    end
  end

  defp refuse(what) do
    IO.puts(:stderr, "codex_files: could not load #{what}")
    :not_loaded
  end

  @doc false
  # The Mix compiler has another VM call it, to try a library before it is installed.
  @spec load_from(charlist()) :: :ok | {:error, {atom(), charlist()}}
  def load_from(path_without_extension), do: :erlang.load_nif(path_without_extension, 0)

  # The Mix compiler leaves a note beside a library that it has not built.
  defp remedy(library) do
    case File.read(library <> ".prebuilt") do
      {:ok, named} ->
        """
        It is a copy of #{inspect(named)}, which CODEX_FILES_NIF named when codex_files was compiled. Name a \
        library that was built for this system, from this version of codex_files, and run "mix \
        deps.compile codex_files --force"; or unset CODEX_FILES_NIF, and have one built by the same \
        command.\
        """

      {:error, :enotdir} ->
        @no_directory

      {:error, _reason} ->
        """
        Build it anew for the system that it is to run on: "mix deps.clean codex_files --build", then \
        "mix deps.compile codex_files".\
        """
    end
  end

  # The load fails, and the code that is running stays in place.
  defp restart_needed(true) do
    IO.puts(:stderr, """
    codex_files: its native library is in use and cannot be replaced in a running system; \
    the loaded version goes on. Restart the Erlang VM to load the new one.\
    """)

    :restart_needed
  end

  # Mix deletes a module before it compiles it anew. This one is then loaded without the library, and
  # its functions raise: were it not loaded, every call would have the VM try again.
  defp restart_needed(false) do
    :persistent_term.put(__MODULE__, :gone)

    IO.puts(:stderr, """
    codex_files: #{inspect(__MODULE__)} has been compiled anew, and its native library cannot be \
    loaded a second time. Restart the Erlang VM: until then nothing can be staged.\
    """)
  end

  # A registry

  @spec open(
          name :: binary(),
          table :: atom(),
          cleanup_interval_ms :: non_neg_integer(),
          budget(),
          boolean()
        ) ::
          {:ok, handle()} | {:error, term()}
  def open(_name, _table, _cleanup_interval_ms, _budget, _recognise_unchanged), do: not_loaded()

  @doc "The ETS table of the registry of a process."
  @spec table(pid()) :: {:ok, atom()} | :error | {:error, term()}
  def table(_pid), do: not_loaded()

  @spec stop(handle(), reference()) :: :wait | :ok | {:error, term()}
  def stop(_handle, _reference), do: not_loaded()

  @spec purge(handle(), staging_dir()) :: :ok | {:error, term()}
  def purge(_handle, _staging_dir), do: not_loaded()

  # Staging

  @spec refresh_at(handle(), Codex.Files.Registry.stage_opts()) :: outcome() | :miss
  def refresh_at(_handle, _opts), do: not_loaded()

  @spec refresh_file(
          handle(),
          binary(),
          {:ok, binary()} | :error,
          keep()
        ) :: outcome() | miss()
  def refresh_file(_handle, _path, _name, _keep), do: not_loaded()

  @spec refresh_data(handle(), binary(), binary(), keep()) :: outcome() | :miss
  def refresh_data(_handle, _data, _name, _keep), do: not_loaded()

  @spec stage_at(handle(), staging_dir(), Codex.Files.Registry.stage_opts(), reference()) ::
          outcome() | :wait
  def stage_at(_handle, _staging_dir, _opts, _reference), do: not_loaded()

  @spec stage_file(
          handle(),
          staging_dir(),
          binary(),
          {:ok, binary()} | :error,
          keep(),
          miss(),
          reference()
        ) :: outcome() | :wait
  def stage_file(_handle, _staging_dir, _path, _name, _keep, _miss, _reference), do: not_loaded()

  @spec stage_data(handle(), staging_dir(), binary(), binary(), keep(), reference()) ::
          outcome() | :wait
  def stage_data(_handle, _staging_dir, _data, _name, _keep, _reference), do: not_loaded()

  # Streaming

  # With `only_renew?` nothing is written, and the end is `:new` if the content is not known.
  @spec open_stream(handle(), staging_dir(), binary(), keep(), only_renew? :: boolean()) ::
          stream() | {:error, term()}
  def open_stream(_handle, _staging_dir, _name, _keep, _only_renew?), do: not_loaded()

  @spec write_stream(stream(), [binary()], reference()) :: :ok | :wait | {:error, term()}
  def write_stream(_stream, _binaries, _reference), do: not_loaded()

  @spec commit_stream(stream(), reference()) :: outcome() | :wait | :new
  def commit_stream(_stream, _reference), do: not_loaded()

  # Whether it has ended or not, nothing is left of it then.
  @spec abort_stream(stream()) :: :ok | {:error, term()}
  def abort_stream(_stream), do: not_loaded()

  # Owning

  @spec release(handle(), binary(), pid()) :: :ok | {:error, term()}
  def release(_handle, _id, _owner), do: not_loaded()

  # An owner that ends with the term.
  @spec temporary_owner(handle()) :: temporary_owner() | {:error, term()}
  def temporary_owner(_handle), do: not_loaded()

  @spec end_owner(temporary_owner()) :: :ok | {:error, term()}
  def end_owner(_owner), do: not_loaded()

  # Reading

  @spec list(handle()) :: [Attachment.t()] | {:error, term()}
  def list(_handle), do: not_loaded()

  @spec metrics(handle()) :: map() | {:error, term()}
  def metrics(_handle), do: not_loaded()

  # Gives `:miss` if it would have to wait.
  @spec try_metrics(handle()) :: map() | :miss
  def try_metrics(_handle), do: not_loaded()

  @spec fetch(handle(), binary()) :: {:ok, Attachment.t()} | {:error, term()}
  def fetch(_handle, _id), do: not_loaded()

  # Gives `:miss` if the file is not on this machine.
  @spec try_fetch(handle(), binary()) :: {:ok, Attachment.t()} | {:error, term()} | :miss
  def try_fetch(_handle, _id), do: not_loaded()

  @spec verify(handle(), reference()) :: :wait | {:error, term()}
  def verify(_handle, _reference), do: not_loaded()

  # Removing

  @spec force_cleanup(handle(), reference()) :: :wait | {:error, term()}
  def force_cleanup(_handle, _reference), do: not_loaded()

  @spec reset(handle(), binary(), reference()) :: :wait | {:error, term()}
  def reset(_handle, _dir, _reference), do: not_loaded()

  @spec unstage(handle(), binary(), reference()) :: :wait | {:error, term()}
  def unstage(_handle, _id, _reference), do: not_loaded()

  defp not_loaded, do: :erlang.nif_error(:native_library_not_loaded)
end
