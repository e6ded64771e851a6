defmodule Codex.Files.TypedHost do
  @moduledoc false
  # A host that uses every public function as the README and the documentation do. It never runs:
  # `bin/dialyzer` analyses it together with the library, so that a spec which rejects what a host may
  # do fails there.

  use Supervisor

  alias Codex.Files.{Attachment, Registry}

  defmodule Options do
    @moduledoc false
    # Thread options of the host's own, as `Codex.Thread.Options` are the SDK's.
    defstruct model: "gpt-5", attachments: []

    @type t() :: %__MODULE__{model: String.t(), attachments: [Attachment.t()]}
  end

  defmodule Request do
    @moduledoc false
    # Its list of attachments may have other things in it.
    @enforce_keys [:prompt, :attachments]
    defstruct [:prompt, :attachments]

    @type t() :: %__MODULE__{prompt: String.t(), attachments: [Attachment.t() | :none]}
  end

  @spec start_link(keyword()) :: Supervisor.on_start()
  def start_link(opts), do: Supervisor.start_link(__MODULE__, opts)

  @impl true
  def init(opts) do
    own = [name: Keyword.fetch!(opts, :name), manifest_table: :own, file_module: File]
    Supervisor.init([{Registry, []}, Registry.child_spec(own)], strategy: :one_for_one)
  end

  # Codex.Files

  @spec ask(String.t()) :: {:ok, Options.t()} | {:error, String.t()}
  def ask(path) do
    case Codex.Files.stage(path, name: "q3.pdf", ttl_ms: 600_000) do
      {:ok, attachment} -> {:ok, Codex.Files.attach(%Options{}, attachment)}
      {:error, reason} -> {:error, Codex.Files.format_error(reason)}
    end
  end

  @spec attach(Request.t(), Attachment.t()) :: Request.t()
  def attach(%Request{} = request, attachment), do: Codex.Files.attach(request, attachment)

  @spec attach_to_map(Attachment.t()) :: %{attachments: [Attachment.t()]}
  def attach_to_map(attachment), do: Codex.Files.attach(%{attachments: []}, attachment)

  @spec attach_to_options(Attachment.t()) :: map()
  def attach_to_options(attachment) do
    options = Codex.Files.attach(%{attachments: [], model: "gpt-5"}, attachment)
    _ = Codex.Files.attach(%{:attachments => [], "extra" => true}, attachment)
    %{options | model: "gpt-5-mini"}
  end

  @spec keep(Path.t(), Attachment.ttl()) :: {String.t(), Attachment.ttl()}
  def keep(path, ttl_ms) do
    {:ok, _kept} = Codex.Files.stage(path, persist: true)
    {:ok, %Attachment{id: id}} = Codex.Files.stage([path, ?., "bak"])
    {:ok, %Attachment{ttl_ms: ttl_ms}} = Codex.Files.stage(path, ttl_ms: ttl_ms)
    {id, ttl_ms}
  end

  @spec read(Attachment.t()) :: {binary(), DateTime.t()}
  def read(attachment), do: {File.read!(attachment.path), attachment.inserted_at}

  @spec names() :: {:ok, [String.t()]} | {:error, term()}
  def names do
    if Codex.Files.list_staged() == [] do
      {:ok, [Path.basename(Codex.Files.staging_dir())]}
    else
      with {:ok, attachments} <- Codex.Files.list_staged_result(),
           do: {:ok, Enum.map(attachments, & &1.name)}
    end
  end

  @spec clear() :: :ok | {:error, term()}
  def clear do
    with :ok <- Codex.Files.force_cleanup(),
         :ok <- apply(Codex.Files, :cleanup!, []),
         do: Codex.Files.reset!()
  end

  @spec count() :: non_neg_integer() | :unknown
  def count do
    case Codex.Files.metrics() do
      %{total_count: count} -> count
      {:error, _reason} -> :unknown
    end
  end

  # Codex.Files.Registry

  @spec stage_at(Path.t(), String.t()) :: {:ok, Path.t()} | {:error, term()}
  def stage_at(source, key) do
    {:ok, _registry} = Registry.ensure_started()

    opts = %{
      checksum: key,
      name: "example.txt",
      persist: false,
      ttl_ms: 60_000,
      size: 5,
      source_path: source,
      destination_path: source <> ".staged"
    }

    with {:ok, attachment} <- Registry.stage(opts),
         {:ok, attachment} <- Registry.stage(%{opts | ttl_ms: :infinity, name: attachment.name}),
         do: {:ok, attachment.path}
  end

  @spec survey() :: {[Path.t()], map()}
  def survey, do: {Enum.map(Registry.list(), & &1.path), Registry.metrics()}

  @spec clear(Path.t()) :: :ok | {:error, term()}
  def clear(dir) do
    with :ok <- Registry.force_cleanup(), do: Registry.reset(dir)
  end

  # Registries of its own

  @spec tenants(Path.t()) :: [Supervisor.child_spec() | {module(), keyword()}]
  def tenants(dir) do
    via = {:via, Elixir.Registry, {__MODULE__.Names, "tenant"}}

    [
      {Registry, name: __MODULE__.Uploads, staging_dir: dir, ttl_ms: 60_000, max_bytes: 1_000},
      {Registry, name: via, manifest_table: :a_table, ttl_ms: :infinity, when_full: :evict},
      Registry.child_spec(name: {:global, :reports}, manifest_table: :reports, max_bytes: nil)
    ]
  end

  @spec of_tenant(Codex.Files.registry(), Path.t()) :: {:ok, non_neg_integer()} | {:error, term()}
  def of_tenant(registry, path) do
    with {:ok, attachment} <- Codex.Files.stage(path, registry: registry, owner: self()),
         {:ok, %Attachment{}} <- Codex.Files.fetch(attachment.id, registry: registry),
         {:ok, size} <- Codex.Files.temporary(path, [registry: registry], & &1.size),
         :ok <- Codex.Files.release(attachment, registry: registry),
         :ok <- Codex.Files.unstage(attachment.id, registry: registry),
         {:ok, _attachments} <- Codex.Files.list_staged_result(registry),
         :ok <- Codex.Files.force_cleanup(registry),
         :ok <- Codex.Files.reset!(registry) do
      [] = Codex.Files.list_staged(registry)
      %{total_count: 0} = Codex.Files.metrics(registry)
      {:ok, size}
    end
  end

  @spec every_tenant(Path.t()) :: [{:ok, non_neg_integer()} | {:error, term()}]
  def every_tenant(path) do
    via = {:via, Elixir.Registry, {__MODULE__.Names, "tenant"}}
    for it <- [__MODULE__.Uploads, via, {:global, :reports}, self()], do: of_tenant(it, path)
  end

  @spec other() :: :ok
  def other do
    {:ok, registry} = Registry.start_link(name: __MODULE__.Registry)
    [] = GenServer.call(registry, :list)
    GenServer.stop(registry)
  end
end
