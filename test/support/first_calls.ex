defmodule Codex.Files.FirstCalls do
  @moduledoc false
  # Very many processes that make the first call at once, in a VM of their own. Not in the test
  # itself: what is evaluated there takes its time.

  alias Codex.Files.Registry

  @doc "How many microseconds it takes until that many processes, which begin at once, have an answer."
  def at_once(count) do
    callers = for _ <- 1..count, do: spawn_monitor(&wait_and_call/0)
    began_at = System.monotonic_time(:microsecond)
    for {pid, _monitor} <- callers, do: send(pid, :begin)
    answers = for {_pid, monitor} <- callers, do: answer(monitor)
    ended_at = System.monotonic_time(:microsecond)
    [{:ok, _registry}] = Enum.uniq(answers)
    ended_at - began_at
  end

  defp wait_and_call do
    receive do
      :begin -> exit({:answer, Registry.ensure_started()})
    end
  end

  defp answer(monitor) do
    receive do
      {:DOWN, ^monitor, :process, _pid, {:answer, answer}} -> answer
    end
  end

  @doc """
  How many of that many processes have an answer after some seconds, if each of them gives up after
  100 ms and tries again.
  """
  def impatient(count, seconds) do
    for(_ <- 1..count, do: Task.async(&try_again/0))
    |> Task.yield_many(seconds * 1_000)
    |> Enum.count(fn {task, answer} ->
      Task.shutdown(task, :brutal_kill)
      answer == {:ok, :answered}
    end)
  end

  defp try_again do
    task = Task.async(&Registry.ensure_started/0)

    case Task.yield(task, 100) || Task.shutdown(task, :brutal_kill) do
      {:ok, {:ok, _registry}} -> :answered
      _none -> try_again()
    end
  end
end
