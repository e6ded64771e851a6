defmodule Soak.Wait do
  @moduledoc false
  # Waiting for what must come true.

  # Unless it is said.
  @limit_ms 30_000

  @doc "Calls `check` until it gives something truthy, and returns that; if it never does, `nil`."
  def until(check, limit_ms \\ @limit_ms),
    do: until_deadline(check, System.monotonic_time(:millisecond) + limit_ms)

  defp until_deadline(check, deadline) do
    cond do
      result = check.() ->
        result

      System.monotonic_time(:millisecond) > deadline ->
        nil

      true ->
        Process.sleep(5)
        until_deadline(check, deadline)
    end
  end
end
