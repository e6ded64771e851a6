defmodule Bench.Measure do
  @moduledoc false
  # Measures the sides of a row in turns: A B, B A, A B, ... in random order, so that what drifts
  # (the disk, the clock of the processor) drifts for all of them.

  alias Bench.{Row, Side}

  # A turn is long enough when neither the clock nor the start of the callers can be seen in it.
  @turn_ns %{quick: 10_000_000, full: 50_000_000}
  @rounds %{quick: 3..31, full: 7..101}

  # Turns of so many operations, on the disk, take minutes, and even out by themselves.
  @many 50_000
  @rounds_of_many 3..7

  @doc """
  A side of a row that calls `operation` with what `prepare` returned and the number of the call.
  """
  def side(name, operation, opts \\ []) do
    Side.new(
      name,
      fn context, callers, operations -> calls(operation, context, callers, operations) end,
      opts
    )
  end

  @doc "The nanoseconds an operation of each side took, one value for each round."
  def rounds(%Row{} = row, settings) do
    sides = Enum.map(row.sides, &{&1, operations(row, &1, settings)})
    deadline = now() + settings.seconds * 1_000_000_000
    rounds(row, sides, deadline, how_many(row, settings), [])
  end

  defp how_many(%Row{operations: count}, _settings) when is_integer(count) and count >= @many,
    do: @rounds_of_many

  defp how_many(_row, settings), do: @rounds[settings.mode]

  defp rounds(row, sides, deadline, least..most, done) do
    count = length(done)

    if count >= least and (count >= most or now() >= deadline) do
      for {side, _operations} <- sides, into: %{} do
        {side.name, done |> Enum.reverse() |> Enum.map(& &1[side.name])}
      end
    else
      round =
        for {side, operations} <- Enum.shuffle(sides),
            into: %{},
            do: {side.name, turn(row, side, operations) / operations}

      rounds(row, sides, deadline, least..most, [round | done])
    end
  end

  # How many operations make a turn; the first ones, which warm up, do not count.
  defp operations(%Row{operations: count} = row, side, _settings) when is_integer(count) do
    turn(row, side, count)
    count
  end

  defp operations(%Row{operations: :enough} = row, side, settings),
    do: enough(row, side, row.callers, @turn_ns[settings.mode])

  defp enough(row, side, operations, turn_ns) do
    elapsed = turn(row, side, operations)

    cond do
      elapsed >= turn_ns -> operations
      elapsed < turn_ns / 8 -> enough(row, side, operations * 8, turn_ns)
      true -> ceil(operations * turn_ns / elapsed)
    end
  end

  defp turn(row, side, operations) do
    context = side.prepare.(operations)
    if row.disk?, do: settle()
    for pid <- Process.list(), do: :erlang.garbage_collect(pid)
    elapsed = side.run.(context, row.callers, operations)
    side.tidy.(context)
    elapsed
  end

  # Nobody pays for what another side has left to be written.
  defp settle, do: {"", 0} = System.cmd("sync", [])

  @doc "Runs the calls in processes of their own; the time from the first start to the last end."
  def calls(operation, context, callers, operations) do
    parent = self()

    workers =
      for share <- shares(operations, callers) do
        spawn_monitor(fn ->
          receive do: (:go -> :ok)
          start = now()
          Enum.each(share, &operation.(context, &1))
          send(parent, {self(), start, now()})
        end)
      end

    for {pid, _monitor} <- workers, do: send(pid, :go)

    times =
      for {pid, monitor} <- workers do
        receive do
          {^pid, start, stop} ->
            Process.demonitor(monitor, [:flush])
            {start, stop}

          {:DOWN, ^monitor, :process, ^pid, reason} ->
            exit(reason)
        end
      end

    {starts, stops} = Enum.unzip(times)
    Enum.max(stops) - Enum.min(starts)
  end

  defp shares(operations, callers) do
    for caller <- 0..(callers - 1) do
      first = div(operations * caller, callers)
      last = div(operations * (caller + 1), callers) - 1
      first..last//1
    end
  end

  def now, do: System.monotonic_time(:nanosecond)
end
