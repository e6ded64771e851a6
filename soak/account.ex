defmodule Soak.Account do
  @moduledoc false
  # What must be there: whatever was staged with success and a long TTL, unless somebody has begun a
  # reset since the staging began. Kept apart from the library's own manifest, to be compared with it
  # and with the disk.

  alias Soak.{Operations, Problems, Sources}

  defstruct [:owed, :counters, :problems]

  # The counters.
  @begun 1
  @ended 2
  @first 3
  @last 4
  @checks 5
  @closed 6

  # What lives at least that long does not expire during a soak.
  @long_ms 3_600_000
  def long_ms, do: @long_ms

  # So many are read.
  @sample 100

  def new(problems) do
    %__MODULE__{
      owed: :ets.new(__MODULE__, [:public, write_concurrency: true]),
      counters: :atomics.new(6, []),
      problems: problems
    }
  end

  ## Resets

  @doc "The number of resets so far; `nil` while one is under way, and once nothing is owed any more."
  def epoch(%__MODULE__{counters: counters} = account) do
    begun = :atomics.get(counters, @begun)
    if :atomics.get(counters, @ended) == begun and not closed?(account), do: begun
  end

  @doc "Runs a reset. Nothing is owed any more as soon as it begins."
  def reset(%__MODULE__{counters: counters, owed: owed}, reset) do
    begun = :atomics.add_get(counters, @begun, 1)
    result = reset.()
    :ets.select_delete(owed, [{{:_, :_, :_, :"$1"}, [{:<, :"$1", begun}], [true]}])
    :atomics.put(counters, @first, :atomics.get(counters, @last) + 1)
    :atomics.put(counters, @ended, begun)
    result
  end

  @doc "Nothing is owed any more: the VM is about to stop, and takes its files along."
  def close(%__MODULE__{counters: counters}), do: :atomics.put(counters, @closed, 1)

  defp closed?(%__MODULE__{counters: counters}), do: :atomics.get(counters, @closed) == 1

  ## What is owed

  @doc "Enters an attachment whose staging began at `epoch`."
  def owe(_account, _attachment, nil), do: :ok

  def owe(%__MODULE__{owed: owed, counters: counters}, attachment, epoch) do
    number = :atomics.add_get(counters, @last, 1)
    :ets.insert(owed, {number, attachment.checksum, attachment.path, epoch})
    :ok
  end

  @doc "All that is owed: `{checksum, path}`, each once."
  def owed(%__MODULE__{owed: owed} = account) do
    epoch = epoch(account)
    Enum.uniq(for {_number, checksum, path, ^epoch} <- :ets.tab2list(owed), do: {checksum, path})
  end

  def checks(%__MODULE__{counters: counters}), do: :atomics.get(counters, @checks)

  @doc "Looks whether something of what is owed, chosen at random, is there."
  def check_one(account) do
    for {_number, checksum, path, epoch} <- random(account),
        do: check(account, checksum, path, epoch)
  end

  # None if there is none, or that number has gone.
  defp random(%__MODULE__{owed: owed, counters: counters}) do
    first = max(:atomics.get(counters, @first), 1)
    last = :atomics.get(counters, @last)
    if last >= first, do: :ets.lookup(owed, Enum.random(first..last)), else: []
  end

  @doc "Looks something of what is owed up, chosen at random."
  def fetch_one(%{account: account} = context) do
    with [_ | _] = owed <- random(account), {_number, id, path, epoch} <- hd(owed) do
      if Operations.fetch(context, id) == {:error, :not_staged},
        do: problem(account, epoch, :loss, "#{path} is not staged")
    end
  end

  @doc """
  Looks whether all that is owed is there, and whether some of it is whole: before a reset, after
  which nobody could tell. Returns the number of files.
  """
  def check_all(account) do
    epoch = epoch(account)
    owed = owed(account)

    for {_checksum, path} <- owed, not File.exists?(path, [:raw]) do
      problem(account, epoch, :loss, "#{path} is missing")
    end

    for {checksum, path} <- Enum.take_random(owed, @sample),
        do: check(account, checksum, path, epoch)

    :atomics.add(account.counters, @checks, length(owed))
    length(owed)
  end

  @doc "Looks whether the file is there, whole, unless there was a reset since `epoch`. `what` it is."
  def check(account, checksum, path, epoch, what \\ "owed")
  def check(_account, _checksum, _path, nil, _what), do: :ok

  def check(%__MODULE__{counters: counters} = account, checksum, path, epoch, what) do
    :atomics.add(counters, @checks, 1)

    case Sources.digest_of_file(path) do
      {:ok, ^checksum} -> :ok
      {:ok, other} -> problem(account, epoch, :wrong_content, "#{path} has the digest #{other}")
      {:error, reason} -> problem(account, epoch, :loss, "#{what}, #{path}: #{reason}")
    end
  end

  @doc "Notes a problem, unless a reset has begun since `epoch`."
  def problem(_account, nil, _kind, _detail), do: :ok

  def problem(%__MODULE__{counters: counters} = account, epoch, kind, detail) do
    if :atomics.get(counters, @begun) == epoch and not closed?(account),
      do: Problems.add(account.problems, kind, detail)

    :ok
  end
end
