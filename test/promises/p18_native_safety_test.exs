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

  test "bad terms in the configuration do not keep the registry from starting", context do
    stop_default_registry()

    File.cd!(context.folder, fn ->
      for key <- [
            :staging_dir,
            :attachment_cleanup_interval_ms,
            :attachment_recognise_unchanged
          ],
          term <- bad_terms() do
        configure(key, term)
        start_default_registry()
        assert {:ok, _attachments} = Codex.Files.list_staged_result()
        result = outcome(fn -> Codex.Files.reset!() end)
        assert result == :ok or match?({:error, _reason}, result)
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
      {handle, false} = Native.open(inspect(make_ref()), 60_000, true)
      on_exit(fn -> Native.close(handle, make_ref()) end)
      {:copy, staging} = Native.admit(handle, stage_opts(source, checksum: "ticket"), make_ref())
      dir = {staging_dir, false}
      opts = stage_opts(source, checksum: "key")

      nifs = [
        open: ["name", 60_000, true],
        purge: [handle, dir],
        refresh: [handle, opts],
        refresh_file: [handle, source, {:ok, "name"}, false, 60_000],
        stage: [handle, dir, opts, make_ref()],
        stage_file: [handle, dir, source, {:ok, "name"}, false, 60_000, :unclear, make_ref()],
        list: [handle],
        metrics: [handle],
        try_metrics: [handle],
        force_cleanup: [handle, make_ref()],
        reset: [handle, staging_dir, make_ref()],
        describe: [source, :error, false, 60_000, make_ref()],
        admit: [handle, opts, make_ref()],
        admit_known: [handle, opts, make_ref()],
        verify_staging: [staging, make_ref()],
        commit_staging: [staging],
        fail_staging: [staging, :erlang.term_to_binary(:reason)],
        claim_expired: [handle],
        claim_all: [handle],
        end_removal: [make_ref(), true],
        stop_staging: [handle],
        close: [handle, make_ref()]
      ]

      %{nifs: nifs, handle: handle, staging: staging}
    end

    test "are all of these", %{nifs: nifs} do
      assert Enum.sort(for {name, args} <- nifs, do: {name, length(args)}) ==
               Enum.sort(Native.__info__(:functions) -- [load: 0, load_from: 1, available?: 0])
    end

    test "raise or return an error for bad terms", %{nifs: nifs} = context do
      for {name, args} <- nifs, name != :close, args <- mutations(args) do
        result = outcome(fn -> apply(Native, name, args) end)
        refute match?({:error, {:native_panic, _message}}, result)
        refute match?({:exited, _reason}, result)
      end

      for args <- mutations([context.handle, make_ref()]), not is_reference(hd(args)) do
        assert {:raised, _error} = outcome(fn -> apply(Native, :close, args) end)
      end

      assert_unharmed(context)
    end

    test "raise for a resource of another kind", context do
      %{nifs: nifs, handle: handle, staging: staging} = context
      resources = [handle, staging, make_ref()]

      for {name, [first | args]} <- nifs, is_reference(first), other <- resources -- [first] do
        assert {^name, {:raised, %ArgumentError{}}} =
                 {name, outcome(fn -> apply(Native, name, [other | args]) end)}
      end

      assert_unharmed(context)
    end

    test "take a ticket once", context do
      %{handle: handle, staging: staging} = context
      assert {:ok, _attachment, false} = Native.commit_staging(staging)
      assert Native.commit_staging(staging) == {:error, :stopped}
      assert Native.verify_staging(staging, make_ref()) == {:error, :stopped}
      assert Native.fail_staging(staging, "no term") == :ok
      assert [%{checksum: "ticket"}] = Native.list(handle)

      [{removal, _attachment}] = Native.claim_all(handle)
      assert Native.claim_all(handle) == []
      assert Native.end_removal(removal, true) == :ok
      assert Native.end_removal(removal, true) == :ok
      assert Native.list(handle) == []
      assert %{total_count: 0, total_bytes: 0} = Native.metrics(handle)
      assert_unharmed(context)
    end

    test "give a ticket back when its process is gone", context do
      %{handle: handle, source: source} = context
      opts = stage_opts(source, checksum: "abandoned")
      test = self()

      leader =
        spawn(fn ->
          {:copy, ticket} = Native.admit(handle, opts, make_ref())
          send(test, :admitted)
          # Keeps it.
          receive do: (:never -> Native.commit_staging(ticket))
        end)

      assert_receive :admitted, 5_000
      ref = make_ref()
      assert Native.admit(handle, opts, ref) == :wait
      kill(leader)
      assert_receive {^ref, :retry}, 5_000
      assert {:copy, _ticket} = Native.admit(handle, opts, make_ref())
    end

    test "are of use to nobody once the registry has been closed", context do
      %{nifs: nifs, handle: handle, staging: staging} = context
      ref = make_ref()
      assert Native.close(handle, ref) == :wait
      assert_receive {^ref, :ok}, 5_000

      assert Native.commit_staging(staging) == {:error, :stopped}
      assert Native.list(handle) == []
      assert %{total_count: 0} = Native.metrics(handle)
      assert Native.claim_all(handle) == []

      for name <- [:stage, :stage_file, :admit, :admit_known] do
        assert {name, apply(Native, name, nifs[name])} == {name, {:error, :stopped}}
      end

      for name <- [:force_cleanup, :reset, :close] do
        args = nifs[name]
        ref = List.last(args)
        assert apply(Native, name, args) == :wait
        assert_receive {^ref, {:error, :stopped}}, 5_000
      end

      assert_unharmed(context)
    end
  end

  test "callers that are killed in the middle of a copy harm nobody", context do
    sources = for n <- 1..4, do: sparse_file(context.folder, "large #{n}", 20_000_000 + n)

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
