defmodule Soak.Wait do
  @moduledoc false
  # Waiting for what must come true.

  @limit_ms 30_000

  @doc "Calls `check` until it gives something truthy, and returns that; after half a minute `nil`."
  def until(check), do: until(check, System.monotonic_time(:millisecond) + @limit_ms)

  defp until(check, deadline) do
    cond do
      result = check.() ->
        result

      System.monotonic_time(:millisecond) > deadline ->
        nil

      true ->
        Process.sleep(5)
        until(check, deadline)
    end
  end
end
