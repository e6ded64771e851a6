defmodule Codex.Files.P18NativeSafetyTest do
  @moduledoc """
  P18: no input, race or panic on the native side takes the VM down. `Codex.Files.P18PanicsTest` is
  about panics.
  """

  use Codex.Files.StagingCase, async: false

  alias Codex.Files.Native

  @moduletag :capture_log

  # One of every type, and the edges of the numbers.
  defp bad_terms do
    [
      nil,
      true,
      :atom,
      :"",
      0,
      -1,
      1,
      0xFFFF_FFFF_FFFF_FFFF,
      0x1_0000_0000_0000_0000,
      -0x8000_0000_0000_0001,
      1.5,
      -0.0,
      "",
      "binary",
      <<255, 0>>,
      <<1::3>>,
      :binary.copy("a", 1_000_000),
      [],
      ~c"charlist",
      [1 | 2],
      [nil],
      List.duplicate([], 1_000),
      Enum.reduce(1..10_000, [], fn _, list -> [list] end),
      {},
      {:ok, 1},
      {"a", true, :too_many},
      %{},
      %{"a" => 1},
      %{__struct__: Nothing},
      DateTime.utc_now(),
      make_ref(),
      self(),
      hd(Port.list()),
      fn -> :ok end,
      &Map.get/2
    ]
  end

  setup %{folder: folder} do
    source = write(folder, "source/notes.txt", "some notes")
    {:ok, earlier} = Codex.Files.stage(write(folder, "earlier", "earlier"), persist: true)
    %{source: source, earlier: earlier, registry: Process.whereis(Registry)}
  end

  defp assert_unharmed(context) do
    assert Process.whereis(Registry) == context.registry
    assert Process.alive?(context.registry)
    assert context.earlier in Codex.Files.list_staged()
    assert_intact([context.earlier])
    assert {:ok, _attachment} = Codex.Files.stage(context.source)
  end

  # A value, an exit of a call, or one of the exceptions that bad arguments raise.
  defp outcome(call) do
    call.()
  rescue
    error in [ArgumentError, ErlangError, FunctionClauseError, ArithmeticError] ->
      {:raised, error}
  catch
    :exit, reason -> {:exited, reason}
  end

  # Valid arguments, with a bad term in the place of each in turn, and in all places.
  defp mutations(args) do
    one_bad =
      for index <- 0..(length(args) - 1)//1, term <- bad_terms() do
        List.replace_at(args, index, term)
      end

    all_bad = for term <- bad_terms(), args != [], do: Enum.map(args, fn _arg -> term end)
    one_bad ++ all_bad
  end

  test "bad terms to the functions of Codex.Files are errors, never exits", context do
    calls = [
      {:stage, [context.source, [ttl_ms: 1]]},
      {:stage, [context.source]},
      {:stage, [{:data, "some bytes"}, [name: "name"]]},
      {:stage, [{:stream, ["some bytes"]}, [name: "name"]]},
      {:format_error, [:enoent]}
    ]

    for {function, args} <- calls, args <- mutations(args) do
      result = outcome(fn -> apply(Codex.Files, function, args) end)
      refute match?({:exited, _reason}, result)
      refute match?({:raised, _reason}, result)
    end

    for key <- [:name, :persist, :ttl_ms], term <- bad_terms() do
      result = outcome(fn -> Codex.Files.stage(context.source, [{key, term}]) end)
      assert match?({:ok, _attachment}, result) or match?({:error, _reason}, result)
    end

    for args <- mutations([%{attachments: []}, context.earlier]) do
      assert {:raised, %FunctionClauseError{}} =
               outcome(fn -> apply(Codex.Files, :attach, args) end)
    end

    assert_unharmed(context)
  end

  test "bad terms in the configuration are errors", context do
    # Some are paths, relative to the current directory.
    File.cd!(context.folder, fn ->
      for key <- [:staging_dir, :attachment_ttl_ms, :attachment_recognise_unchanged],
          term <- bad_terms() do
        configure(key, term)
        result = outcome(fn -> Codex.Files.stage(context.source) end)
        assert match?({:ok, _attachment}, result) or match?({:error, _reason}, result)
        unconfigure(key)
        configure(:staging_dir, context.staging_dir)
      end
    end)

    assert_unharmed(context)
  end

  test "bad terms in the configuration are refused at the start, or do no harm", context do
    stop_default_registry()

    File.cd!(context.folder, fn ->
      for key <- [
            :staging_dir,
            :attachment_cleanup_interval_ms,
            :attachment_recognise_unchanged
          ],
          term <- bad_terms() do
        configure(key, term)

        case outcome(fn -> Codex.Files.list_staged_result() end) do
          {:ok, []} ->
            result = outcome(fn -> Codex.Files.reset!() end)
            assert result == :ok or match?({:error, _reason}, result)

          refused ->
            assert refused == {:error, {:invalid_config, key, term}}
            refute Process.whereis(Registry)
        end

        stop_default_registry()
        unconfigure(key)
        configure(:staging_dir, context.staging_dir)
      end
    end)
  end

  test "bad terms to the functions of the registry are errors", context do
    registry = start_registry()
    opts = stage_opts(context.source)

    for {key, _value} <- opts, term <- bad_terms(), key != :checksum or not is_binary(term) do
      opts = %{opts | key => term, checksum: if(key == :checksum, do: term, else: "key")}

      for stage <- [&Registry.stage/1, &GenServer.call(registry, {:stage, &1})] do
        result = outcome(fn -> stage.(opts) end)
        assert match?({:ok, _attachment}, result) or match?({:error, _reason}, result)
      end
    end

    for term <- bad_terms(), not (is_binary(term) or is_list(term)) do
      assert {:error, {:invalid_option, :dir, ^term}} = Registry.reset(term)
      assert {:error, {:invalid_option, :dir, ^term}} = GenServer.call(registry, {:reset, term})
      assert {:error, {:unknown_request, ^term}} = GenServer.call(registry, term)
      send(registry, term)
      GenServer.cast(registry, term)
    end

    assert Process.alive?(registry)
    assert_unharmed(context)
  end

  describe "the NIFs" do
    setup %{source: source, staging_dir: staging_dir} do
      # Not that of a registry that the other tests look at.
      {:ok, handle} = Native.open(inspect(make_ref()), :a_table, 60_000, {nil, :refuse}, true)
      on_exit(fn -> Native.stop(handle, make_ref()) end)
      dir = {staging_dir, false}
      opts = stage_opts(source, checksum: "key")
      stream = Native.open_stream(handle, dir, "name", {false, 60_000, nil}, false)

      nifs = [
        open: ["name", :a_table, 60_000, {nil, :refuse}, true],
        table: [self()],
        stop: [handle, make_ref()],
        purge: [handle, dir],
        refresh_at: [handle, opts],
        refresh_file: [handle, source, {:ok, "name"}, {false, 60_000, self()}],
        stage_at: [handle, dir, opts, make_ref()],
        stage_file: [
          handle,
          dir,
          source,
          {:ok, "name"},
          {false, 60_000, self()},
          :unseen,
          make_ref()
        ],
        refresh_data: [handle, "some bytes", "name", {false, 60_000, self()}],
        stage_data: [handle, dir, "some bytes", "name", {false, 60_000, self()}, make_ref()],
        open_stream: [handle, dir, "name", {false, 60_000, self()}, false],
        write_stream: [stream, ["some bytes", "and more"], make_ref()],
        commit_stream: [stream, make_ref()],
        abort_stream: [stream],
        list: [handle],
        metrics: [handle],
        try_metrics: [handle],
        fetch: [handle, "id"],
        try_fetch: [handle, "id"],
        verify: [handle, make_ref()],
        release: [handle, "id", self()],
        temporary_owner: [handle],
        end_owner: [Native.temporary_owner(handle)],
        unstage: [handle, "id", make_ref()],
        force_cleanup: [handle, make_ref()],
        reset: [handle, staging_dir, make_ref()]
      ]

      %{nifs: nifs, handle: handle}
    end

    test "are all of these", %{nifs: nifs} do
      assert Enum.sort(for {name, args} <- nifs, do: {name, length(args)}) ==
               Enum.sort(Native.__info__(:functions) -- [load: 0, load_from: 1, available?: 0])
    end

    test "raise or return an error for bad terms", %{nifs: nifs} = context do
      for {name, args} <- nifs, name != :stop, args <- mutations(args) do
        result = outcome(fn -> apply(Native, name, args) end)
        refute match?({:error, {:native_panic, _message}}, result)
        refute match?({:exited, _reason}, result)
      end

      for args <- mutations([context.handle, make_ref()]), not is_reference(hd(args)) do
        assert {:raised, _error} = outcome(fn -> apply(Native, :stop, args) end)
      end

      assert_unharmed(context)
    end

    test "raise for a resource of another kind", context do
      {:ok, file} = :file.open(context.source, [:read, :raw, :binary])
      {:file_descriptor, :prim_file, %{handle: of_another_kind}} = file

      resources = [
        of_another_kind,
        :ets.new(:table, []),
        :atomics.new(1, []),
        make_ref()
      ]

      for {name, [first | args]} <- context.nifs, is_reference(first), other <- resources do
        assert {^name, {:raised, %ArgumentError{}}} =
                 {name, outcome(fn -> apply(Native, name, [other | args]) end)}
      end

      :ok = :file.close(file)
      assert_unharmed(context)
    end

    test "go on with a copy whose caller is gone, for those who wait for it", context do
      %{handle: handle, nifs: nifs, folder: folder} = context
      large = large_file(folder, "large", 200_000_000)
      args = List.replace_at(nifs[:stage_at], 2, stage_opts(large, checksum: "abandoned"))
      test = self()

      leader =
        spawn(fn ->
          send(test, {:leads, apply(Native, :stage_at, args)})
          # It would wait for its answer.
          receive do: (:never -> :ok)
        end)

      assert_receive {:leads, :wait}, 5_000
      ref = make_ref()
      assert apply(Native, :stage_at, List.replace_at(args, 3, ref)) == :wait
      kill(leader)
      assert_receive {^ref, {:ok, %{checksum: "abandoned"} = attachment, true}}, 60_000
      assert File.stat!(attachment.path).size == 200_000_000
      assert Native.list(handle) == [attachment]
    end

    test "are of use to nobody once the registry has been stopped", context do
      %{nifs: nifs, handle: handle} = context
      assert {:ok, attachment, false} = apply(Native, :stage_at, nifs[:stage_at])
      ref = make_ref()
      assert Native.stop(handle, ref) == :wait
      assert_receive {^ref, :ok}, 5_000

      refute File.exists?(attachment.path)
      assert Native.list(handle) == []
      assert %{total_count: 0, total_bytes: 0} = Native.metrics(handle)
      assert apply(Native, :purge, nifs[:purge]) == :ok
      assert apply(Native, :refresh_at, nifs[:refresh_at]) == :miss
      assert apply(Native, :refresh_file, nifs[:refresh_file]) in [:new, :unseen]

      for name <- [:stage_at, :stage_file, :stage_data, :write_stream, :commit_stream] do
        assert {name, apply(Native, name, nifs[name])} == {name, {:error, :stopped}}
      end

      for name <- [:force_cleanup, :reset, :stop] do
        args = nifs[name]
        ref = List.last(args)
        assert apply(Native, name, args) == :wait
        assert_receive {^ref, answer}, 5_000
        assert {name, answer} == {name, {:error, :stopped}}
      end

      assert_unharmed(context)
    end
  end

  test "callers that are killed in the middle of a copy harm nobody", context do
    sources = for n <- 1..4, do: large_file(context.folder, "large #{n}", 20_000_000 + n)

    for _ <- 1..10 do
      callers = for source <- sources, _ <- 1..3, do: spawn(fn -> Codex.Files.stage(source) end)
      # At different moments of their copies.
      Codex.Files.stage(context.source)
      for caller <- callers, do: kill(caller)
      assert Codex.Files.reset!() == :ok
    end

    for source <- sources do
      assert {:ok, attachment} = Codex.Files.stage(source)
      assert attachment.size == File.stat!(source).size
      assert_intact([attachment])
    end

    assert Process.whereis(Registry) == context.registry
  end
end
