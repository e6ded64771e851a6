defmodule Soak.Client do
  @moduledoc false
  # A caller of the library: one operation after the other, chosen at random.

  alias Soak.{
    Account,
    Context,
    Damage,
    Limited,
    Operations,
    Owners,
    Problems,
    Sources,
    Streams,
    Tally
  }

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

  defp step(context, number, dice) when dice <= 75,
    do: step_of_default(context, number, :rand.uniform(100))

  defp step(context, number, _dice),
    do: step_of_limited(context.limited, number, :rand.uniform(100))

  defp step_of_default(context, number, dice) do
    cond do
      dice <= 25 -> keep(context, source(context, number))
      dice <= 35 -> expire(context, source(context, number))
      dice <= 41 -> renew(context, source(context, number))
      dice <= 59 -> stage_again(context)
      dice <= 63 -> be_killed(context)
      dice <= 66 -> Operations.force_cleanup(context)
      dice <= 68 -> Operations.metrics(context)
      dice <= 73 -> Account.check_one(context.account)
      dice <= 74 -> Account.fetch_one(context)
      dice <= 75 -> Damage.round(context, number)
      true -> either(context, number, dice - 75)
    end
  end

  # Nothing is certain to stay there but what is owned or endless, of which there is little.
  defp step_of_limited(context, number, dice) do
    cond do
      dice <= 35 -> pass(context, source(context, number))
      dice <= 50 -> pass(context, Enum.random(context.shared), again: true)
      dice <= 53 -> keep(context, small_source(context, number), ttl_ms: :infinity)
      dice <= 57 -> be_killed(context)
      dice <= 60 -> Account.check_one(context.account)
      dice <= 62 -> Operations.force_cleanup(context)
      true -> either(context, number, dice - 62)
    end
  end

  defp either(context, number, dice) do
    cond do
      dice <= 7 -> Owners.own(context, source(context, number))
      dice <= 11 -> Owners.share(context)
      dice <= 14 -> Owners.bereave(context, source(context, number))
      dice <= 19 -> Owners.temporary(context, source(context, number))
      dice <= 22 -> Streams.fail(context, source(context, number))
      true -> unstage(context, source(context, number))
    end
  end

  # Each caller writes its new contents over its old ones.
  defp source(context, number), do: Sources.write(Path.join(context.dir, "source-#{number}"))

  defp small_source(context, number),
    do: Sources.write_small(Path.join(context.dir, "source-#{number}"))

  defp keep(context, source, opts \\ []) do
    lasting = Enum.random([[ttl_ms: Account.long_ms()], [ttl_ms: :infinity], [persist: true]])
    epoch = Account.epoch(context.account)

    with {:ok, attachment} <- stage(context, source, Keyword.merge(lasting, opts)),
         do: Account.owe(context.account, attachment, epoch)
  end

  defp expire(context, source), do: stage(context, source, ttl_ms: :rand.uniform(@short_ms) - 1)

  defp pass(context, source, opts \\ []),
    do: stage(context, source, opts ++ [ttl_ms: Limited.ttl_ms()])

  defp stage(context, source, opts),
    do: Operations.stage(context, Operations.random_way(context), source, opts)

  # Removed before its time: its owner lives. A reset may come first.
  defp unstage(context, source) do
    epoch = Account.epoch(context.account)
    opts = [owner: self()]

    with {:ok, %{id: id, path: path}} <-
           Operations.stage(context, Operations.random_source(), source, opts) do
      fetched = Operations.fetch(context, id)
      unstaged = Operations.unstage(context, id)

      if {:error, :not_staged} in [fetched, unstaged],
        do: Account.problem(context.account, epoch, :loss, "#{path} was not there to unstage")

      if unstaged == :ok and File.exists?(path, [:raw]),
        do: Problems.add(context.problems, :leftover, "#{path} was unstaged")
    end
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

    way = Enum.random([Operations.random_way(context), {:stream, Streams.slowly(source)}])
    opts = [ttl_ms: if(Context.limited?(context), do: 0, else: Account.long_ms())]

    {pid, monitor} =
      spawn_monitor(fn ->
        try do
          Operations.call(context, way, source, opts)
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
