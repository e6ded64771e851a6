defmodule Bench.Bare do
  @moduledoc false
  # The bare system calls, made by a small program: native/codex_files/examples/bare_calls.rs.

  def start do
    port =
      Port.open({:spawn_executable, System.find_executable(System.get_env("CARGO", "cargo"))}, [
        :binary,
        line: 1024,
        args: ~w(run --quiet --release --locked --package codex_files --example bare_calls)
      ])

    Process.put(__MODULE__, port)
  end

  @doc "Makes so many directories with a file each; the nanoseconds that took."
  def publish(dir, threads, first, count, size),
    do: command("publish #{dir} #{threads} #{first} #{count} #{size}")

  @doc "Removes them; the nanoseconds that took."
  def remove(dir, first, count), do: command("remove #{dir} #{first} #{count}")

  @doc "Looks, so often in all, at so many of the files there; the nanoseconds that took."
  def look(dir, threads, there, different, count),
    do: command("look #{dir} #{threads} #{there} #{different} #{count}")

  defp command(line) do
    port = Process.get(__MODULE__)
    Port.command(port, [line, "\n"])

    receive do
      {^port, {:data, {:eol, nanoseconds}}} -> String.to_integer(nanoseconds)
    end
  end
end
