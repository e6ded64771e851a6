defmodule Soak.Disturber do
  @moduledoc false
  # What happens beside the callers now and then: resets, kills of the registry and of its
  # supervisor. Each in a process of its own.

  alias Codex.Files.Registry
  alias Soak.{Account, Context, Operations, Tally}

  # A reset comes earlier if so much is staged: the disk is not ours alone.
  @most_bytes 1024 * 1024 * 1024
  @most_files 20_000

  @tick_ms 50

  @doc "Resets, each time after a pause of up to `every_ms`."
  def reset(context, every_ms) do
    wait(context, :rand.uniform(every_ms), fn -> crowded?(context.registry) end)

    unless Context.stopped?(context) do
      Account.check_all(context.account)
      Account.reset(context.account, fn -> Operations.reset(context) end)
      reset(context, every_ms)
    end
  end

  defp crowded?(registry) do
    case Codex.Files.metrics(registry) do
      %{total_bytes: bytes, total_count: count} -> bytes > @most_bytes or count > @most_files
      {:error, _reason} -> false
    end
  end

  @doc "Kills the process of that name, each time after a pause of up to `every_ms`."
  def kill(context, name, event, every_ms) do
    wait(context, :rand.uniform(every_ms), fn -> false end)

    unless Context.stopped?(context) do
      if pid = Process.whereis(name) do
        Process.exit(pid, :kill)
        Tally.add_event(context.tally, event)
      end

      kill(context, name, event, every_ms)
    end
  end

  @doc """
  Kills the registry `count` times, each time when the one before has its successor, which must
  stage something. Returns how often it has.
  """
  def kill_registry(context, count) do
    for number <- 1..count, reduce: 0 do
      kills -> kills + kill_once(context, Process.whereis(Registry), number)
    end
  end

  defp kill_once(context, killed, number) do
    if killed, do: Process.exit(killed, :kill)
    Soak.Wait.until(fn -> Process.whereis(Registry) not in [nil, killed] end)
    source = Soak.Sources.write(Path.join(context.dir, "after-kill"), 100)
    epoch = Account.epoch(context.account)
    # The supervisor lets it be restarted a hundred times a second.
    Process.sleep(10 + rem(number, 10))

    case Operations.stage(context, :path, source, ttl_ms: Account.long_ms()) do
      {:ok, attachment} -> Account.owe(context.account, attachment, epoch) && 1
      {:error, _reason} -> 0
    end
  end

  defp wait(context, milliseconds, enough?) do
    if milliseconds > 0 and not Context.stopped?(context) and not enough?.() do
      Process.sleep(min(milliseconds, @tick_ms))
      wait(context, milliseconds - @tick_ms, enough?)
    end
  end
end
