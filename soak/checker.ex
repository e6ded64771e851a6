defmodule Soak.Checker do
  @moduledoc false
  # Compares what is listed with what is on the disk.

  alias Soak.{Account, Context, Operations, Problems, Wait}

  # Of each list.
  @sample 20

  @doc "Again and again: what is listed and does not expire must be there, while all goes on."
  def run(context) do
    unless Context.stopped?(context) do
      epoch = Account.epoch(context.account)

      with {:ok, attachments} <- Operations.list(context) do
        for %{checksum: checksum, path: path} <-
              attachments |> Enum.filter(&lasting?/1) |> Enum.take_random(@sample),
            do: Account.check(context.account, checksum, path, epoch, "listed")
      end

      Process.sleep(50)
      run(context)
    end
  end

  defp lasting?(%{ttl_ms: ttl_ms}), do: ttl_ms == :infinity or ttl_ms >= Account.long_ms()

  @doc """
  With nobody at work: all that is owed is listed and there, all that should have expired or has no
  owner any more is gone, and the metrics are those of the list. Returns the number of files checked.
  """
  def settle(context) do
    registry = context.registry

    unless Wait.until(fn ->
             Codex.Files.force_cleanup(registry) == :ok and consistent?(registry)
           end) do
      metrics = inspect(Codex.Files.metrics(registry))
      listed = length(Codex.Files.list_staged(registry))
      detail = "expected no expired entries: #{metrics} beside #{listed} listed"
      Problems.add(context.problems, :leftover, detail)
    end

    listed = Map.new(Codex.Files.list_staged(registry), &{&1.checksum, &1.path})
    owed = Account.owed(context.account)

    for {checksum, path} <- owed, not is_map_key(listed, checksum) do
      Problems.add(context.problems, :loss, "#{path} is not listed")
    end

    files = Enum.uniq(owed ++ Map.to_list(listed))
    epoch = Account.epoch(context.account)
    for {checksum, path} <- files, do: Account.check(context.account, checksum, path, epoch)
    length(files)
  end

  # Copies whose callers were killed may still come to their end.
  defp consistent?(registry) do
    attachments = Codex.Files.list_staged(registry)
    metrics = Codex.Files.metrics(registry)

    match?({:ok, _attachments}, Codex.Files.list_staged_result(registry)) and
      Enum.all?(attachments, &lasting?/1) and
      metrics.owned_count == 0 and
      metrics.total_count == length(attachments) and
      metrics.total_bytes == Enum.sum(Enum.map(attachments, & &1.size))
  end

  @doc "Resets, and looks whether anything is left in this registry's own places."
  def clear(context, elsewhere) do
    source = Soak.Sources.write(Path.join(context.dir, "last"), 1)
    {:ok, attachment} = Codex.Files.stage(source.path, registry: context.registry)
    area = attachment.path |> Path.dirname() |> Path.dirname()
    left = fn -> Enum.flat_map([area | elsewhere], &files/1) end

    empty? = fn ->
      Account.reset(context.account, fn -> Codex.Files.reset!(context.registry) end) == :ok and
        Codex.Files.list_staged(context.registry) == [] and left.() == []
    end

    unless Wait.until(empty?),
      do:
        Problems.add(
          context.problems,
          :leftover,
          "after a reset: #{inspect(Enum.take(left.(), 5))}"
        )

    :ok
  end

  defp files(dir), do: Path.wildcard(Path.join(dir, "**"), match_dot: true)
end
