defmodule Soak.Context do
  @moduledoc false
  # What all processes of the traffic in one VM share, and which registry they use.

  alias Soak.{Account, Sources, Tally, Watch}

  defstruct [
    :dir,
    :shared,
    :owned,
    :problems,
    :tally,
    :watch,
    :account,
    :stop,
    :registry,
    :limited
  ]

  # So many contents have several owners at once.
  @owned 6

  @doc "`dir` is this VM's own; `shared` are sources that others may stage too."
  def new(dir, shared, problems) do
    File.mkdir_p!(dir)
    Sources.prepare()

    context = %__MODULE__{
      dir: dir,
      shared: shared,
      owned: for(number <- 1..@owned, do: Sources.write(Path.join(dir, "owned-#{number}"))),
      problems: problems,
      tally: Tally.new(),
      watch: Watch.new(),
      account: Account.new(problems),
      stop: :atomics.new(1, []),
      registry: Codex.Files.Registry
    }

    %{context | limited: %{context | registry: Soak.Limited, account: Account.new(problems)}}
  end

  @doc "Whether the registry may refuse a staging, and evict what is neither owned nor endless."
  def limited?(%__MODULE__{registry: registry}), do: registry == Soak.Limited

  def stop(%__MODULE__{stop: stop}), do: :atomics.put(stop, 1, 1)
  def resume(%__MODULE__{stop: stop}), do: :atomics.put(stop, 1, 0)
  def stopped?(%__MODULE__{stop: stop}), do: :atomics.get(stop, 1) == 1
end
