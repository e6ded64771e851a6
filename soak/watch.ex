defmodule Soak.Watch do
  @moduledoc false
  # Who is in which call, and since when: a call that does not come to an end is found here.

  # Far longer than any call takes, on a machine that is busy with something else.
  @limit_ms 45_000
  def limit_ms, do: @limit_ms

  def new, do: :ets.new(__MODULE__, [:public, write_concurrency: true])

  def enter(watch, kind) do
    :ets.insert(watch, {self(), kind, System.monotonic_time(:millisecond)})
  end

  def leave(watch), do: :ets.delete(watch, self())

  @doc "One line for each call that takes too long."
  def hanging(watch) do
    latest = System.monotonic_time(:millisecond) - @limit_ms

    for {pid, kind, since} <- :ets.tab2list(watch), since < latest, Process.alive?(pid) do
      "#{kind} for more than #{@limit_ms} ms, at #{where(pid)}"
    end
  end

  @doc "Where a process is."
  def where(pid) do
    case Process.info(pid, :current_stacktrace) do
      {:current_stacktrace, stack} -> Exception.format_stacktrace(stack)
      nil -> "its end"
    end
  end
end
