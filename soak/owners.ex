defmodule Soak.Owners do
  @moduledoc false
  # Processes that own what is staged, and end in every way. As long as one of them lives the file is
  # there; soon after the last one's end it is not.

  alias Soak.{Account, Operations, Problems, Tally}

  @longest_life_ms 60

  # The promise is one second. The machine may be busy with something else.
  @gone_ms 5_000

  @ends [:return, :error, :exit, :throw, :kill, :be_killed, :release]

  @doc "A process stages a content that nobody else has, and ends. What it owned goes."
  def own(context, source) do
    attachment =
      live(context, source, [], fn ending, attachment ->
        if ending == :release and Operations.release(context, attachment) == :ok,
          do: expect_gone(context, attachment)
      end)

    expect_gone(context, attachment)
  end

  @doc "A process stages a content that others may own at the same time, and ends."
  def share(context) do
    live(context, Enum.random(context.owned), [again: true], fn ending, attachment ->
      if ending == :release, do: Operations.release(context, attachment)
    end)
  end

  # The attachment, if it was one.
  defp live(context, source, opts, before_end) do
    caller = self()
    ending = Enum.random(@ends)

    {pid, monitor} =
      spawn_monitor(fn ->
        attachment = hold(context, source, opts, caller)
        if attachment, do: before_end.(ending, attachment)
        finish(ending)
      end)

    if ending == :be_killed do
      Process.sleep(:rand.uniform(@longest_life_ms))
      Process.exit(pid, :kill)
    end

    receive do
      {:DOWN, ^monitor, :process, ^pid, _reason} -> Tally.add_event(context.tally, :owner_ended)
    end

    receive do
      {^pid, attachment} -> attachment
    after
      0 -> nil
    end
  end

  defp hold(context, source, opts, caller) do
    epoch = Account.epoch(context.account)
    ttl = Enum.random([[], [ttl_ms: 0], [ttl_ms: :rand.uniform(@longest_life_ms)]])
    opts = opts ++ ttl ++ [owner: self()]

    with {:ok, attachment} <- Operations.stage(context, Operations.random_source(), source, opts) do
      send(caller, {self(), attachment})
      Process.sleep(:rand.uniform(@longest_life_ms))
      check(context, attachment, epoch, opts)
      attachment
    else
      {:error, _reason} -> nil
    end
  end

  defp finish(ending) when ending in [:return, :release], do: :returned
  defp finish(:be_killed), do: Process.sleep(:infinity)
  defp finish(:kill), do: Process.exit(self(), :kill)
  defp finish(kind), do: :erlang.raise(kind, {Soak, :end}, [])

  @doc "An owner is killed at about the moment at which another process stages for it."
  def bereave(context, source) do
    owner = spawn(fn -> Process.sleep(:infinity) end)

    spawn(fn ->
      Process.sleep(:rand.uniform(6) - 1)
      Process.exit(owner, :kill)
    end)

    with {:ok, attachment} <-
           Operations.stage(context, Operations.random_source(), source, owner: owner),
         do: expect_gone(context, attachment)

    Process.exit(owner, :kill)
  end

  @doc "A temporary attachment, and one of the same content within. It is there until the function ends."
  def temporary(context, source) do
    epoch = Account.epoch(context.account)

    ending =
      Enum.random([
        {:ok, make_ref()}
        | for(kind <- [:error, :exit, :throw], do: {:failed, kind, make_ref()})
      ])

    caller = self()

    result =
      Operations.temporary(context, Operations.random_source(), source, fn attachment ->
        send(caller, {ending, attachment})

        if :rand.uniform(3) == 1,
          do:
            Operations.temporary(context, Operations.random_source(), source, fn _same ->
              :inner
            end)

        check(context, attachment, epoch, :temporary)

        case ending do
          {:ok, result} -> result
          {:failed, kind, reason} -> :erlang.raise(kind, {Soak, reason}, [])
        end
      end)

    receive do
      {^ending, attachment} ->
        if result != ending,
          do: Problems.add(context.problems, :error, "temporary gave #{inspect(result)}")

        expect_gone(context, attachment)
    after
      0 -> :ok
    end
  end

  defp check(context, %{checksum: checksum, path: path}, epoch, how),
    do: Account.check(context.account, checksum, path, epoch, "owned (#{inspect(how)})")

  @doc "Waits until the file of an attachment has gone, which nothing keeps any more."
  def expect_gone(_context, nil), do: :ok

  def expect_gone(context, %{path: path}) do
    started = System.monotonic_time(:microsecond)

    if Soak.Wait.until(fn -> not File.exists?(path, [:raw]) end, @gone_ms) do
      took = System.monotonic_time(:microsecond) - started
      Tally.add(context.tally, "gone after its last owner's end", took)
    else
      Problems.add(context.problems, :leftover, "#{path} has no owner any more")
    end
  end
end
