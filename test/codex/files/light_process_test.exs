defmodule Codex.Files.LightProcessTest do
  @moduledoc """
  The registry process stays light, and those who use it do not pay for their own long mailboxes.
  """

  use Codex.Files.StagingCase, async: false

  alias Codex.Files.FakeTelemetry

  @files 2_000

  # Stages that many small files that expire at once.
  defp stage_many(folder) do
    for number <- 1..@files do
      source = write(folder, "source", "#{number}")
      {:ok, _attachment} = Codex.Files.stage(source, name: "#{number}", ttl_ms: 0)
    end
  end

  describe "after a cleanup on time of #{@files} files" do
    test "the registry process is as small as before, and every event has come", context do
      {:ok, _registry} = Registry.ensure_started()
      stage_many(context.folder)
      FakeTelemetry.start()

      # The successor finds them all, and cleans up at once.
      configure(:attachment_cleanup_interval_ms, 1)
      successor = kill_default_registry()

      for _ <- 1..@files, do: assert_receive({:telemetry, [_, _, :cleaned], _, _}, 30_000)
      assert Codex.Files.list_staged() == []
      eventually(fn -> Process.info(successor, :memory) < {:memory, 100_000} end)
      refute_received {:telemetry, [_, _, :cleaned], _, _}
    end
  end

  test "a list of #{@files} files does not pass through the registry process", context do
    {:ok, registry} = Registry.ensure_started()
    stage_many(context.folder)
    assert length(GenServer.call(registry, :list)) == @files
    assert {:memory, memory} = Process.info(registry, :memory)
    assert memory < 100_000
  end

  test "who has many messages waiting does not search them for the answer to a large staging",
       context do
    {:ok, _registry} = Registry.ensure_started()
    # A thread stages it, and sends the answer.
    source = large_file(context.folder, "large", 2_500_000)
    {:ok, _attachment} = Codex.Files.stage(source)
    for number <- 1..100_000, do: send(self(), number)

    # Each message that is looked at counts; the collection of garbage does as well, once.
    assert Enum.min(for _ <- 1..5, do: reductions_of_staging(source)) < 10_000
  end

  defp reductions_of_staging(source) do
    # It is not recognised then.
    File.touch!(source)
    {:reductions, before} = Process.info(self(), :reductions)
    {:ok, _attachment} = Codex.Files.stage(source)
    {:reductions, later} = Process.info(self(), :reductions)
    later - before
  end
end
