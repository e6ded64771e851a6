defmodule Soak.Limited do
  @moduledoc false
  # A second registry, in the same staging directory, with a budget that evicts. Its name is this module's.

  alias Soak.{Context, Operations, Problems}

  @max_bytes 4 * 1024 * 1024

  # How long what may be evicted would stay.
  @ttl_ms 3_000
  def ttl_ms, do: @ttl_ms

  @doc "Starts it, linked to the calling process."
  def start_link(cleanup_interval_ms) do
    registry =
      {Codex.Files.Registry,
       name: __MODULE__,
       max_bytes: @max_bytes,
       when_full: :evict,
       cleanup_interval_ms: cleanup_interval_ms}

    # It is killed often.
    {:ok, _pid} =
      Supervisor.start_link([registry], strategy: :one_for_one, max_restarts: 100, max_seconds: 1)
  end

  @doc "Again and again: the bytes in its own directory, and those that it counts, do not pass the budget."
  def watch(context) do
    unless Context.stopped?(context) do
      with %{total_bytes: bytes} when bytes > @max_bytes <- Operations.metrics(context),
           do: Problems.add(context.problems, :over_budget, "it counts #{bytes}")

      # Any attachment tells where it is.
      with {:ok, [attachment | _others]} <- Operations.list(context) do
        bytes = bytes_below(attachment.path |> Path.dirname() |> Path.dirname())

        if bytes > @max_bytes,
          do: Problems.add(context.problems, :over_budget, "#{bytes} are there")
      end

      Process.sleep(20)
      watch(context)
    end
  end

  # Of what was there at one moment: after all sizes were read, and before all were looked at again.
  # Files only grow.
  defp bytes_below(dir) do
    paths = Path.wildcard(Path.join(dir, "**"), match_dot: true)
    seen = for path <- paths, {inode, size} <- look(path), do: {path, inode, size}
    there = for {path, inode, size} <- seen, {^inode, _size} <- look(path), do: {inode, size}
    there |> Map.new() |> Map.values() |> Enum.sum()
  end

  defp look(path) do
    with {:ok, info} <- :file.read_link_info(path, [:raw, time: :posix]),
         %File.Stat{type: :regular, inode: inode, size: size} <- File.Stat.from_record(info) do
      [{inode, size}]
    else
      _gone_or_other -> []
    end
  end
end
