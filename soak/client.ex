defmodule Soak.Client do
  @moduledoc false
  # A caller of the library: one operation after the other, chosen at random.

  alias Soak.{Account, Context, Operations, Problems, Sources, Tally}

  # The time to live of what is to expire, and the longest pause between two operations.
  @short_ms 100
  @pause_ms 10

  def run(context, number) do
    if Context.stopped?(context) do
      look_for_strays(context)
    else
      step(context, number, :rand.uniform(100))
      Process.sleep(:rand.uniform(@pause_ms + 1) - 1)
      run(context, number)
    end
  end

  # Whoever has called and has got a result, or an exit, gets nothing more.
  defp look_for_strays(context) do
    receive do
      message ->
        Problems.add(context.problems, :stray, inspect(message, limit: 5))
        look_for_strays(context)
    after
      0 -> :ok
    end
  end

  defp step(context, number, dice) when dice <= 35, do: keep(context, source(context, number))
  defp step(context, number, dice) when dice <= 50, do: expire(context, source(context, number))
  defp step(context, number, dice) when dice <= 60, do: renew(context, source(context, number))
  defp step(context, _number, dice) when dice <= 82, do: stage_again(context)
  defp step(context, _number, dice) when dice <= 87, do: be_killed(context)
  defp step(context, _number, dice) when dice <= 92, do: Operations.force_cleanup(context)
  defp step(context, _number, dice) when dice <= 95, do: Operations.metrics(context)
  defp step(context, _number, _dice), do: Account.check_one(context.account)

  # Each caller writes its new contents over its old ones.
  defp source(context, number), do: Sources.write(Path.join(context.dir, "source-#{number}"))

  defp keep(context, source, opts \\ []) do
    lasting = Enum.random([[ttl_ms: Account.long_ms()], [ttl_ms: :infinity], [persist: true]])
    epoch = Account.epoch(context.account)

    with {:ok, attachment} <-
           Operations.stage(context, Operations.random_way(), source, opts ++ lasting),
         do: Account.owe(context.account, attachment, epoch)
  end

  defp expire(context, source) do
    ttl_ms = :rand.uniform(@short_ms) - 1
    Operations.stage(context, Operations.random_way(), source, ttl_ms: ttl_ms)
  end

  # The same content to stay, at about the moment at which a cleanup takes it.
  defp renew(context, source) do
    expire(context, source)
    Process.sleep(:rand.uniform(@short_ms) - 1)
    keep(context, source, again: true)
  end

  # What others stage at the same time: some wait for the one that copies.
  defp stage_again(context), do: keep(context, Enum.random(context.shared), again: true)

  defp be_killed(context) do
    source =
      if :rand.uniform(2) == 1,
        do: Enum.random(context.shared),
        else:
          Sources.write(
            Path.join(context.dir, "killed-#{:erlang.phash2(self())}"),
            Sources.large_size()
          )

    way = Operations.random_way()
    ttl_ms = Account.long_ms()

    {pid, monitor} =
      spawn_monitor(fn ->
        try do
          Operations.call(way, source, ttl_ms: ttl_ms)
        catch
          # The registry was killed before its caller was.
          :exit, _reason -> :ok
        end
      end)

    Process.sleep(:rand.uniform(20) - 1)
    Process.exit(pid, :kill)

    receive do
      {:DOWN, ^monitor, :process, ^pid, reason} ->
        if reason == :killed, do: Tally.add_event(context.tally, :caller_killed)
    end
  end
end
