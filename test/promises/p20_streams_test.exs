defmodule Codex.Files.P20StreamsTest do
  @moduledoc """
  P20: a source can be a path, bytes in memory or a stream, with the same guarantees: whole or not at
  all, constant memory, nothing left behind when the caller dies in the middle. Here: streams.
  """

  use Codex.Files.StagingCase, async: false

  alias Codex.Files.{ChildVM, FakeTelemetry, PanickingLibrary}

  @small 4096
  # From here on it does not all fit into what is gathered.
  @large 512 * 1024 + 1

  defp stage(source, opts \\ []),
    do: Codex.Files.stage(source, Keyword.put_new(opts, :name, "name.bin"))

  # That no other test stages, and that differ from place to place.
  defp bytes(size), do: :crypto.strong_rand_bytes(size)

  describe "a stream" do
    test "is staged under the checksum of all that it gives, private to its owner", context do
      for size <- [0, 1, @small, @large - 1, @large, 600_000, 3_000_000, 20_000_000] do
        bytes = bytes(size)
        assert {:ok, attachment} = stage({:stream, pieces(bytes, 65_536)}, ttl_ms: 60_000)
        assert %Attachment{name: "name.bin", size: ^size, ttl_ms: 60_000} = attachment
        assert attachment.checksum == sha256(bytes)
        assert File.read!(attachment.path) == bytes
        assert mode(attachment.path) == 0o400
        assert attachment in Codex.Files.list_staged()
      end

      assert Codex.Files.reset!() == :ok
      assert files_in_areas(context.staging_dir) == []
    end

    test "can give any iodata, in pieces of any size", _context do
      many_parts = Enum.map(1..40_000, &["part ", Integer.to_string(&1), ?\n])

      for elements <- [
            [],
            ["", [], [[]]],
            ["a", ["b", ?c, [?d | "e"]], <<0, 255>>],
            List.duplicate("x", 700_000),
            [bytes(3_000_000), "and a little", bytes(20)],
            [[many_parts, ?. | "the end"], "after", many_parts],
            # Deep to the left, and with a tail that is no list.
            ["before", Enum.reduce(1..300_000, [], &[&2 | <<&1::32>>])],
            [Enum.map(1..600_000, &rem(&1, 256))],
            Stream.map(1..50, &[bytes(20_000) | <<&1>>]) |> Enum.to_list()
          ] do
        bytes = IO.iodata_to_binary(elements)
        assert {:ok, attachment} = stage({:stream, elements})
        assert attachment.checksum == sha256(bytes)
        assert File.read!(attachment.path) == bytes
      end
    end

    test "can be whatever is enumerable", %{folder: folder} do
      lines = Enum.map_join(1..60_000, "\n", &"line #{&1} \xFF")
      path = write(folder, "lines", lines)
      {:ok, device} = StringIO.open("of a device")
      test = self()

      resource =
        Stream.resource(
          fn -> 1 end,
          fn number ->
            if number > 40, do: {:halt, number}, else: {[bytes_of(number)], number + 1}
          end,
          fn number -> send(test, {:after, number}) end
        )

      for {source, bytes} <- [
            {File.stream!(path), lines},
            {file_stream(path, 2048), lines},
            {file_stream(path, 3_000_000), lines},
            {IO.binstream(device, 4), "of a device"},
            {resource, Enum.map_join(1..40, &bytes_of/1)},
            {Stream.take(Stream.repeatedly(fn -> "again and " end), 100_000),
             String.duplicate("again and ", 100_000)},
            {MapSet.new(["only one"]), "only one"},
            {fn acc, fun -> Enumerable.reduce(["a", "b"], acc, fun) end, "ab"}
          ] do
        assert {:ok, attachment} = stage({:stream, source})
        assert File.read!(attachment.path) == bytes
      end

      assert_received {:after, 41}
      refute_received {:after, _number}
    end

    @tag skip: not_on(~w(sshfs), "the names of a file have different inode numbers there")
    test "that is known is renewed, and leaves nothing else", context do
      FakeTelemetry.start()

      for size <- [@small, @large, 3_000_000] do
        bytes = bytes(size)
        {:ok, first} = stage({:stream, pieces(bytes, 50_000)}, ttl_ms: 60_000)
        assert {:ok, again} = stage({:stream, pieces(bytes, 70_000)}, ttl_ms: 120_000)
        assert {:ok, _same} = stage({:data, bytes})
        assert FakeTelemetry.cached() == [false, true, true]
        assert {again.path, again.ttl_ms} == {first.path, 120_000}

        # Also under another name, and if the file was lost.
        assert {:ok, named} = stage({:stream, pieces(bytes, 50_000)}, name: "another name")
        assert Path.basename(named.path) == "another name"
        assert File.stat!(named.path).inode == File.stat!(first.path).inode
        File.rm!(first.path)
        File.rm!(named.path)
        assert {:ok, _lost} = stage({:stream, pieces(bytes, 50_000)})
        assert File.read!(first.path) == bytes
        assert FakeTelemetry.cached() == [true, false]
      end

      assert length(files_in_areas(context.staging_dir)) == 6
    end

    test "that many stage at once is kept once", context do
      FakeTelemetry.start()

      for size <- [@small, 3_000_000] do
        bytes = bytes(size)
        stage = fn -> stage({:stream, pieces(bytes, 50_000)}) end
        tasks = for _ <- 1..10, do: Task.async(stage)
        attachments = for {:ok, attachment} <- Task.await_many(tasks, 60_000), do: attachment
        assert [_] = attachments |> Enum.map(& &1.path) |> Enum.uniq()
        cached = FakeTelemetry.cached()
        assert {length(cached), Enum.count(cached, &(not &1))} == {10, 1}
      end

      assert length(files_in_areas(context.staging_dir)) == 2
    end

    test "may stage other things while it is read, and receive messages", context do
      send(self(), :before)

      source =
        Stream.map(1..40, fn number ->
          {:ok, _attachment} = stage({:stream, [bytes(300_000), bytes(300_000)]})
          {:ok, _attachment} = stage({:data, bytes(300_000 + number)})
          receive do: ({:ask, pid} -> send(pid, :answer)), after: (0 -> :ok)
          bytes(100_000)
        end)

      assert {:ok, _attachment} = stage({:stream, source})
      assert Process.info(self(), :messages) == {:messages, [:before]}
      assert length(files_in_areas(context.staging_dir)) == 81
    end

    test "is kept as long as its owner lives", _context do
      for size <- [@small, 3_000_000] do
        owner = spawn(fn -> receive(do: (:never -> :ok)) end)
        assert {:ok, attachment} = stage({:stream, pieces(bytes(size), 50_000)}, owner: owner)
        assert Codex.Files.force_cleanup() == :ok
        assert File.exists?(attachment.path)
        kill(owner)
        eventually(fn -> not File.exists?(attachment.path) end)

        # One that ends while it is read has owned it.
        owner = spawn(fn -> receive(do: (:never -> :ok)) end)

        source =
          Stream.concat(
            pieces(bytes(size), 50_000),
            Stream.map([1], fn _ -> kill(owner) && "end" end)
          )

        assert {:ok, attachment} = stage({:stream, source}, owner: owner)
        eventually(fn -> not File.exists?(attachment.path) end)

        bytes = bytes(size)
        source = {:stream, pieces(bytes, 50_000)}
        result = Codex.Files.temporary(source, [name: "n"], &File.read!(&1.path))
        assert result == {:ok, bytes}
        eventually(fn -> Codex.Files.list_staged() == [] end)
      end
    end

    test "may fail as it likes: that reaches the caller unchanged, and nothing is left",
         context do
      failures = [
        fn -> raise "oops" end,
        fn -> raise ArgumentError, "no iodata" end,
        fn -> :erlang.error(:badarg) end,
        fn -> :erlang.error(:native_library_not_loaded) end,
        fn -> apply(Codex.Files.Native, :no_such_function, []) end,
        fn -> GenServer.call(:no_such_server, :call) end,
        fn -> exit({:shutdown, 1}) end,
        fn -> exit(:normal) end,
        fn -> throw({:error, :enoent}) end
      ]

      for failure <- failures, size <- [0, @small, 3_000_000] do
        test = self()

        source =
          Stream.resource(
            fn -> {:read, bytes(size)} end,
            fn
              {:read, bytes} -> {pieces(bytes, 50_000), :fail}
              :fail -> failure.()
            end,
            fn _state -> send(test, :after) end
          )

        for run <- [
              &stage({:stream, &1}),
              &Codex.Files.temporary({:stream, &1}, [name: "n"], fn _ ->
                flunk("it is not staged")
              end)
            ] do
          {kind, reason, stacktrace} = caught(fn -> Enum.each(source, fn _ -> :ok end) end)
          assert_received :after
          assert {^kind, ^reason, seen} = caught(fn -> run.(source) end)
          assert_received :after
          assert hd(seen) == hd(stacktrace)
          # Before it reaches the caller.
          assert files_in_areas(context.staging_dir) == []
        end
      end

      assert Codex.Files.list_staged() == []
      assert Process.info(self(), :messages) == {:messages, []}
    end

    test "is read no further than to an element that is no iodata", context do
      for element <- [nil, 1, :a, {"a", "b"}, %{}, [256], ["a", :b], ["a" | 98], <<1::3>>, self()],
          size <- [0, 3_000_000] do
        test = self()

        source =
          Stream.concat([
            pieces(bytes(size), 50_000),
            Stream.resource(
              fn -> [element] end,
              fn
                [element] -> {[element], :too_far}
                :too_far -> flunk("it is read further")
              end,
              fn _state -> send(test, :after) end
            )
          ])

        assert stage({:stream, source}) == {:error, {:invalid_option, :source, element}}
        assert_received :after
        assert files_in_areas(context.staging_dir) == []
      end
    end

    test "is not read if it could not be staged", _context do
      source = Stream.repeatedly(fn -> flunk("it is read") end)

      for {opts, reason} <- [
            {[], {:missing_option, :name}},
            {[name: nil], {:invalid_option, :name, nil}},
            {[name: "a/b"], {:invalid_name, "a/b"}},
            {[name: "n", ttl_ms: -1], {:invalid_ttl, -1}},
            {[name: "n", persist: nil], {:invalid_option, :persist, nil}},
            {[name: "n", owner: :me], {:invalid_option, :owner, :me}},
            {[name: "n", registry: :no_such_registry], :noproc}
          ] do
        assert Codex.Files.stage({:stream, source}, opts) == {:error, reason}
      end

      configure(:attachment_ttl_ms, "a day")

      assert stage({:stream, source}) ==
               {:error, {:invalid_config, :attachment_ttl_ms, "a day"}}

      for term <- [nil, 1, :a, "bytes", {:a}, fn -> :ok end, self()] do
        assert stage({:stream, term}) == {:error, {:invalid_option, :source, term}}
      end

      stop_default_registry()
      start_default_registry(file_module: Codex.Files.Copy)
      assert stage({:stream, source}) == {:error, :not_supported}
    end

    test "leaves nothing when its caller is killed", context do
      {:ok, known} = stage({:data, "something"})
      test = self()

      # While it waits for the next piece, and at any other moment.
      for waits? <- [true, false], _ <- 1..5 do
        source =
          Stream.map(Stream.iterate(1, &(&1 + 1)), fn number ->
            if number == 20, do: send(test, :under_way)
            if number > 20 and waits?, do: receive(do: (:never -> :ok))
            bytes(50_000)
          end)

        caller = spawn(fn -> stage({:stream, source}) end)
        assert_receive :under_way, 10_000
        eventually(fn -> length(files_in_areas(context.staging_dir)) == 2 end)
        kill(caller)
        eventually(fn -> files_in_areas(context.staging_dir) == ["name.bin"] end)
      end

      assert Codex.Files.list_staged() == [known]
    end

    test "ends with its registry, and leaves nothing, also while it waits", context do
      test = self()

      for waits? <- [true, false] do
        {:ok, _registry} = Registry.ensure_started()

        source =
          Stream.resource(
            fn -> 1 end,
            fn number ->
              if number == 20, do: send(test, {:under_way, self()})
              if number == 20 and waits?, do: receive(do: (:go_on -> :ok))
              {[bytes(50_000)], number + 1}
            end,
            fn _number -> send(test, :after) end
          )

        caller = Task.async(fn -> stage({:stream, source}) end)
        assert_receive {:under_way, pid}, 10_000
        eventually(fn -> files_in_areas(context.staging_dir) != [] end)
        stop_default_registry()
        if waits?, do: assert(files_below(context.staging_dir) == [])
        send(pid, :go_on)
        assert Task.await(caller, 30_000) == {:error, :stopped}
        assert_received :after
        assert files_below(context.staging_dir) == []
      end
    end

    @tag timeout: 300_000
    test "for which the disk takes longer than a stop waits leaves nothing", context do
      %{folder: folder, staging_dir: staging_dir} = context
      delays = Path.join(folder, "delays")
      File.mkdir!(delays)
      ebin = PanickingLibrary.build(folder)
      vm = ChildVM.start(staging_dir, [{"CODEX_FILES_PANICS", delays}], ebin: ebin)

      stage =
        quote do
          {:ok, _registry} = Codex.Files.Registry.ensure_started()
          delay = Path.join(unquote(delays), "write")
          File.write!(delay, "4000")

          pieces =
            Stream.map(1..2, fn number ->
              if number == 2, do: receive(do: (:go_on -> :ok))
              :binary.copy("0123456789", 100_000)
            end)

          stage = fn -> Codex.Files.stage({:stream, pieces}, name: "name") end
          spawn(fn -> :persistent_term.put(:result, stage.()) end)
          # Whoever waits has removed it.
          fn -> File.exists?(delay) end |> Stream.repeatedly() |> Enum.find(&(not &1))
          :ok = Supervisor.terminate_child(Codex.Files.Supervisor, Codex.Files.Registry)
          files = Path.wildcard(unquote(staging_dir) <> "/*/*", match_dot: true)
          {length(files), :persistent_term.get(:result, nil)}
        end

      # The stop has not waited for it.
      assert ChildVM.eval(vm, stage) == {1, nil}
      # Once the disk goes on, nobody has to do anything for it to go.
      eventually(fn -> files_below(staging_dir) == [] end)
      result = quote(do: :persistent_term.get(:result, nil))
      assert eventually(fn -> ChildVM.eval(vm, result) end) == {:error, :stopped}
    end

    test "goes on while its registry's process is killed and started again", _context do
      bytes = bytes(3_000_000)

      source =
        bytes
        |> pieces(50_000)
        |> Stream.with_index()
        |> Stream.map(fn {piece, index} ->
          if rem(index, 20) == 10, do: kill_default_registry()
          piece
        end)

      assert {:ok, attachment} = stage({:stream, source})
      assert File.read!(attachment.path) == bytes
      assert Codex.Files.list_staged() == [attachment]
    end

    @tag skip: not_on(~w(bindfs sshfs), "a file that is open keeps its directory there")
    test "outlives the removal of its directory from outside", context do
      bytes = bytes(3_000_000)

      source =
        bytes
        |> pieces(50_000)
        |> Stream.with_index()
        |> Stream.map(fn {piece, index} ->
          if index == 30, do: File.rm_rf!(context.staging_dir)
          piece
        end)

      assert {:ok, attachment} = stage({:stream, source})
      assert File.read!(attachment.path) == bytes
    end

    test "that is more than the budget is an error, and leaves nothing", context do
      registry = start_registry(max_bytes: 1_000_000, staging_dir: context.staging_dir)
      stage = &stage({:stream, &1}, registry: registry, persist: true)
      assert {:ok, kept} = stage.(pieces(bytes(400_000), 50_000))
      endless = Stream.repeatedly(fn -> bytes(50_000) end)
      assert {:error, {:over_budget, _size, 1_000_000}} = stage.(endless)
      assert Codex.Files.list_staged(registry) == [kept]
      assert files_in_areas(context.staging_dir) == ["name.bin"]
      # What it had has been given back.
      assert {:ok, _attachment} = stage.(pieces(bytes(600_000), 50_000))
    end

    test "delays nobody while it waits", _context do
      test = self()

      source =
        Stream.map(1..2, fn number ->
          if number == 2 do
            send(test, {:under_way, self()})
            receive(do: (:go_on -> :ok))
          end

          bytes(1_000_000)
        end)

      caller = Task.async(fn -> stage({:stream, source}) end)
      assert_receive {:under_way, pid}, 10_000
      assert {:ok, attachment} = stage({:data, "small"})
      assert {:ok, _attachment} = stage({:stream, pieces(bytes(3_000_000), 50_000)})
      assert Codex.Files.reset!() == :ok
      refute File.exists?(attachment.path)
      assert Codex.Files.metrics().total_count == 0
      send(pid, :go_on)
      # What is committed later is a new entry.
      assert {:ok, attachment} = Task.await(caller)
      assert Codex.Files.list_staged() == [attachment]
    end
  end

  # As a stream, each piece of so many bytes.
  defp pieces(bytes, size) do
    Stream.unfold(bytes, fn
      "" -> nil
      rest -> split(rest, min(size, byte_size(rest)))
    end)
  end

  defp split(bytes, at),
    do: {binary_part(bytes, 0, at), binary_part(bytes, at, byte_size(bytes) - at)}

  defp bytes_of(number), do: :binary.copy(<<number>>, 30_000)

  # Elixir 1.16 has other arguments.
  defp file_stream(path, bytes) do
    if Version.match?(System.version(), ">= 1.16.0"),
      do: apply(File, :stream!, [path, bytes]),
      else: File.stream!(path, [], bytes)
  end

  defp caught(run) do
    run.()
    flunk("expected it to fail")
  catch
    kind, reason -> {kind, reason, __STACKTRACE__}
  end
end
