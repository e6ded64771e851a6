defmodule Soak.Context do
  @moduledoc false
  # What all processes of the traffic in one VM share.

  alias Soak.{Account, Sources, Tally, Watch}

  defstruct [:dir, :shared, :problems, :tally, :watch, :account, :stop]

  @doc "`dir` is this VM's own; `shared` are sources that others may stage too."
  def new(dir, shared, problems) do
    File.mkdir_p!(dir)
    Sources.prepare()

    %__MODULE__{
      dir: dir,
      shared: shared,
      problems: problems,
      tally: Tally.new(),
      watch: Watch.new(),
      account: Account.new(problems),
      stop: :atomics.new(1, [])
    }
  end

  def stop(%__MODULE__{stop: stop}), do: :atomics.put(stop, 1, 1)
  def resume(%__MODULE__{stop: stop}), do: :atomics.put(stop, 1, 0)
  def stopped?(%__MODULE__{stop: stop}), do: :atomics.get(stop, 1) == 1
end
