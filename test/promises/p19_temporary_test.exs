defmodule Codex.Files.P19TemporaryTest do
  @moduledoc """
  P19: what a function needs is there as long as it runs, and gone within a second of its end, however it
  ends: return, raise, throw, exit or kill.
  """

  use Codex.Files.StagingCase, async: false

  import Codex.Files.OwnerProcess

  alias Codex.Files.FakeTelemetry

  @moduletag :capture_log

  setup %{folder: folder} do
    %{source: write(folder, "source/notes.txt", "some notes")}
  end

  # Runs `work` with what `temporary/3` gives it, in a process that lives on, and returns how it ended, and
  # the attachment. The garbage collector finds no reason to look after that process.
  defp temporary(source, opts \\ [], work) do
    test = self()

    run = fn ->
      result =
        try do
          Codex.Files.temporary(source, opts, fn attachment ->
            send(test, {:attachment, attachment})
            assert_kept(attachment)
            work.(attachment)
          end)
        catch
          kind, reason -> {kind, reason, __STACKTRACE__}
        end

      send(test, {:result, result})
      receive do: (:never -> :ok)
    end

    _pid = :erlang.spawn_opt(run, [:link, min_heap_size: 4_000_000])
    assert_receive {:result, result}, 30_000
    assert_receive {:attachment, attachment}
    {result, attachment}
  end

  test "what the function returns is the result, and the file goes after it", context do
    configure(:attachment_cleanup_interval_ms, 5)

    for source <- [context.source, {:data, "bytes"}, {:stream, ["a ", "stream"]}],
        result <- [:done, nil, {:error, :something}, {:ok, :nested}] do
      {got, attachment} =
        temporary(source, [name: "other.txt"], fn attachment ->
          assert %{name: "other.txt", ttl_ms: 0, persist: false} = attachment
          assert owned_count() == 1
          # The garbage collector does not end it.
          :erlang.garbage_collect()
          assert_kept(attachment)
          result
        end)

      assert got == {:ok, result}
      assert_gone(attachment)
      assert owned_count() == 0
    end

    assert Codex.Files.temporary(context.source, &File.read!(&1.path)) == {:ok, "some notes"}
  end

  test "what it raises, throws or exits with reaches the caller as it is", %{source: source} do
    for {kind, reason, work} <- [
          {:error, %RuntimeError{message: "boom"}, fn _ -> raise "boom" end},
          {:error, :badarg, fn _ -> :erlang.error(:badarg) end},
          {:throw, :ball, fn _ -> throw(:ball) end},
          {:exit, :normal, fn _ -> exit(:normal) end},
          # As the end of a registry looks to its callers.
          {:exit, {:noproc, {GenServer, :call, []}},
           fn _ -> exit({:noproc, {GenServer, :call, []}}) end},
          {:error, %UndefinedFunctionError{module: Codex.Files.Native, function: :f, arity: 0},
           fn _ ->
             raise %UndefinedFunctionError{module: Codex.Files.Native, function: :f, arity: 0}
           end}
        ] do
      {{^kind, got, stacktrace}, attachment} = temporary(source, work)
      assert {kind, got} == {kind, reason}
      assert Enum.any?(stacktrace, &(elem(&1, 0) == __MODULE__))
      assert_gone(attachment)
      assert owned_count() == 0
    end
  end

  test "a process that is killed in it leaves nothing", %{source: source} do
    for how <- [:kill, :shutdown] do
      test = self()

      running =
        spawn(fn ->
          Codex.Files.temporary(source, fn attachment ->
            send(test, {:attachment, attachment})
            receive do: (:never -> :ok)
          end)
        end)

      assert_receive {:attachment, attachment}, 5_000
      assert_kept(attachment)
      monitor = Process.monitor(running)
      Process.exit(running, how)
      assert_receive {:DOWN, ^monitor, :process, ^running, _reason}, 5_000
      assert_gone(attachment)
      assert owned_count() == 0
    end
  end

  test "each is an owner of its own, and does not end another of the same content", context do
    %{source: source} = context

    {{:ok, inner}, outer} =
      temporary(source, fn outer ->
        {:ok, inner} =
          Codex.Files.temporary(source, fn inner ->
            assert inner.path == outer.path
            # It is not the calling process that owns it.
            assert Codex.Files.release(inner) == :ok
            assert_kept(inner)
            inner
          end)

        assert_kept(outer)
        inner
      end)

    assert inner.id == outer.id
    assert_gone(outer)

    # Beside an owner that is a process.
    owner = start_owner()
    {:ok, attachment} = Codex.Files.stage(source, owner: owner)
    assert {{:ok, :done}, _attachment} = temporary(source, fn _ -> :done end)
    assert_kept(attachment)
    end_owner(owner, :return)
    assert_gone(attachment)
  end

  test "many processes may use the same file at once", %{source: source} do
    uses =
      for _ <- 1..20 do
        Task.async(fn ->
          for _ <- 1..20 do
            {:ok, "some notes"} = Codex.Files.temporary(source, &File.read!(&1.path))
          end
        end)
      end

    Task.await_many(uses, 60_000)
    eventually(fn -> Codex.Files.list_staged() == [] end)
    assert owned_count() == 0
  end

  test "what else keeps the attachment does so after it", %{source: source} do
    for opts <- [[ttl_ms: 600_000], [ttl_ms: :infinity], [persist: true]] do
      {{:ok, :done}, attachment} = temporary(source, opts, fn _ -> :done end)
      eventually(fn -> owned_count() == 0 end)
      assert_kept(attachment)
      assert Codex.Files.reset!() == :ok
    end

    {:ok, kept} = Codex.Files.stage(source, ttl_ms: 600_000)
    {{:ok, :done}, ^kept} = temporary(source, fn _ -> :done end)
    eventually(fn -> owned_count() == 0 end)
    assert_kept(kept)
  end

  test "it can be unstaged or reset meanwhile", %{source: source} do
    for remove <- [&Codex.Files.unstage/1, fn _ -> Codex.Files.reset!() end] do
      {{:ok, :ok}, attachment} = temporary(source, remove)
      refute File.exists?(attachment.path)
    end

    assert {{:ok, :ok}, attachment} = temporary(source, fn _ -> stop_default_registry() end)
    refute File.exists?(attachment.path)
    assert Codex.Files.list_staged() == []
  end

  test "a registry that is killed meanwhile changes nothing", %{source: source} do
    {{:ok, successor}, attachment} =
      temporary(source, fn attachment ->
        successor = kill_default_registry()
        assert_kept(attachment)
        successor
      end)

    assert Process.whereis(Registry) == successor
    assert_gone(attachment)
  end

  test "the function does not run if the file cannot be staged", %{source: source} do
    run = fn _attachment -> flunk("there is nothing to run it with") end

    for {source, opts, fun, reason} <- [
          {"/no/such/file", [], run, :enoent},
          {source, [name: ".."], run, {:invalid_name, ".."}},
          {source, [ttl_ms: -1], run, {:invalid_ttl, -1}},
          {source, [owner: self()], run, {:invalid_option, :owner, self()}},
          {source, [owner: nil], run, {:invalid_option, :owner, nil}},
          {source, :opts, run, {:invalid_option, :opts, :opts}},
          {source, [], :fun, {:invalid_option, :fun, :fun}},
          {source, [], nil, {:invalid_option, :fun, nil}},
          {source, [], &String.replace/3, {:invalid_option, :fun, &String.replace/3}},
          {nil, [], run, {:invalid_option, :path, nil}}
        ] do
      assert Codex.Files.temporary(source, opts, fun) == {:error, reason}
      refute Codex.Files.format_error(reason) =~ "unexpected"
    end

    assert Codex.Files.list_staged() == []
    assert owned_count() == 0
  end

  test "has the events of a staging and of a cleanup", %{source: source} do
    FakeTelemetry.start()
    {{:ok, :done}, attachment} = temporary(source, fn _ -> :done end)
    id = attachment.id
    measured = %{count: 1, bytes: 10}

    assert_receive {:telemetry, [:codex, :attachment, :staged], %{size_bytes: 10},
                    %{checksum: ^id, ttl_ms: 0, persist?: false, cached?: false}}

    assert_receive {:telemetry, [:codex, :attachment, :cleaned], ^measured, metadata}, 5_000
    assert metadata == Map.take(attachment, [:checksum, :name, :ttl_ms])
    refute_received {:telemetry, _event, _measurements, _metadata}
  end
end
