defmodule Codex.Files.Load do
  @moduledoc false
  # Work for a VM that is about to be stopped, killed or changed: processes that stage small and large
  # files in every way there is, let them expire, and read.

  alias Codex.Files.Registry

  @workers 4
  @large 400_000

  @doc "Starts processes that work until the VM ends. One that is killed is replaced."
  def start(folder) do
    File.mkdir_p!(folder)
    for number <- 1..@workers, do: spawn(fn -> keep(folder, number, 0) end)
    :ok
  end

  # Counts on where a killed worker left off: what it did not finish is not to be known already.
  defp keep(folder, number, turn) do
    keeper = self()
    {pid, monitor} = spawn_monitor(fn -> work(keeper, folder, number, turn) end)
    turn = await_end(pid, monitor, turn)
    keep(folder, number, turn + 1)
  end

  defp await_end(pid, monitor, turn) do
    receive do
      {^pid, turn} -> await_end(pid, monitor, turn)
      {:DOWN, ^monitor, :process, ^pid, _reason} -> turn
    end
  end

  defp work(keeper, folder, number, turn) do
    send(keeper, {self(), turn})
    content = "#{number} #{turn}"
    size = if rem(turn, 9) == 0, do: div(@large, byte_size(content)), else: 1
    source = Path.join(folder, "source #{number}")
    File.write!(source, :binary.copy(content, size))

    opts = %{
      checksum: "key #{number} #{turn}",
      name: "staged",
      persist: false,
      ttl_ms: 1,
      size: 0,
      source_path: source,
      destination_path: Path.join([folder, "destination", "#{number} #{turn}"])
    }

    tolerate(fn -> Codex.Files.stage(source, ttl_ms: 0) end)
    tolerate(fn -> Registry.stage(opts) end)
    tolerate(fn -> GenServer.call(Registry, {:stage, opts}, :infinity) end)
    tolerate(fn -> Codex.Files.list_staged() end)
    tolerate(fn -> Codex.Files.metrics() end)
    if rem(turn, 7) == 0, do: tolerate(fn -> Codex.Files.force_cleanup() end)
    work(keeper, folder, number, turn + 1)
  end

  # A registry that is being stopped or changed makes its callers exit; a call without one raises.
  defp tolerate(call) do
    call.()
  rescue
    _error -> :raised
  catch
    :exit, _reason -> :exited
  end
end
