defmodule Soak.Outcome do
  @moduledoc false
  # What a phase has to tell.

  defstruct [:title, :seconds, counts: %{}, checks: 0, figures: [], resources: nil, problems: []]
end
