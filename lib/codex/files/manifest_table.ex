defmodule Codex.Files.ManifestTable do
  @moduledoc false
  # The ETS table of a registry. With a file module it is the manifest, which its process alone writes
  # to; otherwise the manifest is native, and the table says where.

  alias Codex.Files.{Attachment, Registry, Verification}

  @typedoc "The deadline is on the monotonic clock; `:infinity`, an atom, is greater than any number."
  @type entry ::
          {checksum :: String.t(), Attachment.t(), deadline :: integer() | :infinity,
           Verification.look()}

  @doc "Creates the table of a registry."
  @spec new(atom()) :: {:ok, atom()} | {:error, {:manifest_table_taken, atom()}}
  def new(table) do
    {:ok, :ets.new(table, [:named_table, :protected, read_concurrency: true])}
  rescue
    ArgumentError -> {:error, {:manifest_table_taken, table}}
  end

  @spec get(atom(), String.t()) :: entry() | nil
  def get(table, checksum), do: table |> :ets.lookup(checksum) |> List.first()

  @spec list(atom()) :: [Attachment.t()]
  def list(table), do: :ets.select(table, [{{:_, :"$1", :_, :_}, [], [:"$1"]}])

  @doc "The checksums that a removal is about."
  @spec checksums(atom(), :reset | :cleanup) :: [String.t()]
  def checksums(table, :reset), do: :ets.select(table, [{{:"$1", :_, :_, :_}, [], [:"$1"]}])

  def checksums(table, :cleanup) do
    expired = {:"=<", :"$2", System.monotonic_time()}
    :ets.select(table, [{{:"$1", :_, :"$2", :_}, [expired], [:"$1"]}])
  end

  @spec expired?(entry()) :: boolean()
  def expired?({_checksum, _attachment, deadline, _look}), do: deadline <= System.monotonic_time()

  @doc "Enters the stagings of one checksum, the first of which found it known or has copied it."
  @spec stage(atom(), :known | :copied, [Registry.stage_opts()], Verification.look()) ::
          [{:ok, Attachment.t(), cached? :: boolean()}]
  def stage(table, how, [%{checksum: checksum} | _] = stagings, look) do
    listed = with {_, attachment, _, _} <- get(table, checksum), do: attachment

    {outcomes, {:known, attachment}} =
      Enum.map_reduce(stagings, {how, listed}, fn opts, {how, listed} ->
        attachment = staged(how, listed, opts)
        {{:ok, attachment, how == :known}, {:known, attachment}}
      end)

    :ets.insert(table, {checksum, attachment, deadline(attachment), look})
    outcomes
  end

  @spec delete(atom(), String.t()) :: true
  def delete(table, checksum), do: :ets.delete(table, checksum)

  @doc "See `Codex.Files.metrics/0`."
  @spec metrics(atom()) :: map()
  def metrics(table) do
    attachments = list(table)
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
      next_expiry_at: next_expiry_at,
      # A file module knows no owners, and no budget.
      owned_count: 0,
      max_bytes: nil
    }
  end

  defp expiry_ms(%Attachment{inserted_at: inserted_at, ttl_ms: ttl_ms}),
    do: DateTime.to_unix(inserted_at, :millisecond) + ttl_ms

  defp staged(:copied, nil, opts) do
    opts
    |> Map.take([:checksum, :name, :persist, :ttl_ms, :size])
    |> Map.merge(%{id: opts.checksum, path: opts.destination_path, inserted_at: now()})
    |> then(&struct!(Attachment, &1))
  end

  # The file had gone or changed: what was promised of it holds for the new one.
  defp staged(:copied, listed, %{name: name, size: size, destination_path: path} = opts),
    do: staged(:known, %{listed | name: name, size: size, path: path}, opts)

  defp staged(:known, listed, %{persist: persist, ttl_ms: ttl_ms}) do
    ttl_ms = if persist or :infinity in [listed.ttl_ms, ttl_ms], do: :infinity, else: ttl_ms
    %{listed | persist: listed.persist or persist, ttl_ms: ttl_ms, inserted_at: now()}
  end

  defp now, do: DateTime.truncate(DateTime.utc_now(), :millisecond)

  defp deadline(%Attachment{persist: persist, ttl_ms: ttl_ms}) do
    if persist or ttl_ms == :infinity,
      do: :infinity,
      else: System.monotonic_time() + System.convert_time_unit(ttl_ms, :millisecond, :native)
  end
end
