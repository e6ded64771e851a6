defmodule Bench.Row do
  @moduledoc false
  # What is measured. `operations` are those of one turn, `:enough` for operations that can be
  # repeated as often as it takes. Before a turn of a row that is `disk?` everything is written out.

  @enforce_keys [:name, :title]
  defstruct [
    :name,
    :title,
    entries: nil,
    callers: 1,
    operations: :enough,
    disk?: false,
    sides: [],
    bars: []
  ]
end
