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

  test "who has a million messages waiting stages a large file as fast as others", context do
    {:ok, _registry} = Registry.ensure_started()
    # A thread stages it, and sends the answer.
    source = sparse_file(context.folder, "large", 2_500_000)

    [none, million] =
      for messages <- [0, 1_000_000] do
        Task.async(fn ->
          for number <- 1..messages//1, do: send(self(), number)
          Enum.min(for _ <- 1..20, do: staging_time(source))
        end)
        |> Task.await(60_000)
      end

    assert million - none < 2_000, "without messages: #{none} us, with a million: #{million} us"
  end

  # In microseconds.
  defp staging_time(source) do
    # It is not recognised then.
    File.touch!(source)
    staged_at = System.monotonic_time(:microsecond)
    {:ok, _attachment} = Codex.Files.stage(source)
    System.monotonic_time(:microsecond) - staged_at
  end
end
