defmodule Bench.Side do
  @moduledoc false
  # Who does the work: the library (`:codex_files`), plain Elixir, the bare system calls, a command.

  @enforce_keys [:name, :run]
  defstruct [:name, :run, prepare: nil, tidy: nil]

  def new(name, run, opts \\ []) do
    %__MODULE__{
      name: name,
      run: run,
      prepare: Keyword.get(opts, :prepare, fn _operations -> nil end),
      tidy: Keyword.get(opts, :tidy, fn _context -> :ok end)
    }
  end
end
