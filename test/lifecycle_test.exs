defmodule Codex.Files.LifecycleTest do
  @moduledoc """
  The ends and changes of a VM under load: no crash dump, no segmentation fault, no exit that hangs.

  `bin/lifecycle` runs many more rounds of them.
  """

  use Codex.Files.StagingCase, async: false

  import Codex.Files.HostProject, only: [library: 0, root: 0]

  alias Codex.Files.{ChildVM, Load}

  @rounds String.to_integer(System.get_env("CODEX_FILES_LIFECYCLE_ROUNDS", "3"))

  @moduletag timeout: 60_000 + @rounds * 60_000

  setup %{folder: folder} do
    %{dump: Path.join(folder, "erl_crash.dump"), stderr: Path.join(folder, "stderr")}
  end

  # A VM that works, with a file that it has to keep.
  defp start_vm(context, name \\ "vm") do
    folder = Path.join(context.folder, name)
    env = [{"ERL_CRASH_DUMP", context.dump}]
    vm = ChildVM.start(Path.join(folder, "staging"), env, stderr: context.stderr)
    :ok = ChildVM.eval(vm, quote(do: unquote(Load).start(unquote(folder))))
    await_load(vm)
    vm
  end

  # Each of several files more shows that the work goes on.
  defp await_load(vm) do
    :ok =
      ChildVM.eval(
        vm,
        quote do
          staged = fn -> Enum.map(Codex.Files.list_staged(), & &1.id) end
          # At the end of the registry there may be none to ask.
          seen = staged.()

          Stream.repeatedly(fn -> Process.sleep(1) && length(staged.() -- seen) end)
          |> Stream.take_while(&(&1 < 3))
          |> Stream.run()
        end
      )
  end

  defp assert_no_crash(context) do
    refute File.exists?(context.dump)
  end

  for {ending, code} <- [":init.stop/0": ":init.stop()", "System.halt/0": "System.halt()"] do
    test "#{@rounds} rounds of #{ending}", context do
      for round <- 1..@rounds do
        vm = start_vm(context, "vm #{round}")
        ending = Code.string_to_quoted!(unquote(code))
        assert {round, ChildVM.run_to_end(vm, ending)} == {round, 0}
        assert_no_crash(context)
        File.rm_rf!(Path.join(context.folder, "vm #{round}"))
      end
    end
  end

  test "#{@rounds} rounds of Application.stop/1", context do
    vm = start_vm(context)

    for _ <- 1..@rounds do
      assert ChildVM.eval(vm, quote(do: Application.stop(:codex_files))) in [
               :ok,
               # Between its end by an earlier stop and its start by the next use.
               {:error, {:not_started, :codex_files}}
             ]

      await_load(vm)
    end

    assert ChildVM.run_to_end(vm, quote(do: :init.stop())) == 0
    assert_no_crash(context)
  end

  test "#{@rounds} rounds of a supervisor that is killed", context do
    vm = start_vm(context)
    kept = stage_there(vm, write(context.folder, "kept", "kept"))

    for _ <- 1..@rounds do
      ChildVM.eval(
        vm,
        quote do
          pid = Process.whereis(Codex.Files.Supervisor)
          if pid, do: Process.exit(pid, :kill)
        end
      )

      await_load(vm)
      assert_intact([kept])
    end

    assert kept in ChildVM.eval(vm, quote(do: Codex.Files.list_staged()))
    assert ChildVM.run_to_end(vm, quote(do: :init.stop())) == 0
    assert_no_crash(context)
  end

  test "#{@rounds} rounds of modules that are loaded again", context do
    vm = start_vm(context)
    kept = stage_there(vm, write(context.folder, "kept", "kept"))

    for _ <- 1..@rounds do
      # What has to do with the native library stays: see Codex.Files.Native.load/0.
      assert [{Codex.Files.Native, {:error, :on_load_failure}}] =
               ChildVM.eval(
                 vm,
                 quote do
                   {:ok, modules} = :application.get_key(:codex_files, :modules)

                   for module <- modules,
                       # The work itself, and what evaluates this.
                       module not in [unquote(Load), unquote(ChildVM)],
                       :code.purge(module) in [true, false],
                       result = :code.load_file(module),
                       result != {:module, module},
                       do: {module, result}
                 end
               )

      await_load(vm)
      assert_intact([kept])
    end

    assert kept in ChildVM.eval(vm, quote(do: Codex.Files.list_staged()))
    assert ChildVM.run_to_end(vm, quote(do: :init.stop())) == 0
    assert_no_crash(context)

    # Every time it says so, in one message.
    messages = Regex.scan(~r/Restart the Erlang VM/, File.read!(context.stderr))
    assert length(messages) == @rounds
  end

  defp stage_there(vm, source) do
    {:ok, attachment} =
      ChildVM.eval(vm, quote(do: Codex.Files.stage(unquote(source), persist: true)))

    attachment
  end

  test "#{@rounds} rounds of recompile in IEx, and a native library that has changed", context do
    project = Path.join(context.folder, "project")
    File.mkdir_p!(project)

    for entry <- ~w(mix.exs lib),
        do: File.cp_r!(Path.join(root(), entry), Path.join(project, entry))

    native = Path.join(context.folder, "native.so")
    File.cp!(library(), native)
    File.cp!(Path.join(root(), "test/support/load.ex"), Path.join(project, "lib/load.ex"))

    iex = start_iex(project, [{"CODEX_FILES_NIF", native}, {"ERL_CRASH_DUMP", context.dump}])
    staging = inspect(Path.join(context.folder, "iex"))

    type(
      iex,
      "Application.put_env(:codex_sdk, :staging_dir, #{staging}); Codex.Files.Load.start(#{staging})"
    )

    source = inspect(write(context.folder, "kept", "kept"))
    type(iex, "{:ok, kept} = Codex.Files.stage(#{source}, persist: true)")

    for round <- 1..@rounds, module <- ["files.ex", "files/registry.ex"] do
      path = Path.join([project, "lib/codex", module])
      File.write!(path, ["# #{round}\n", File.read!(path)])
      output = type(iex, "recompile()")
      assert output =~ "Compiling"
      refute output =~ "Compilation error"

      # While the compiler had its module the registry could not answer, and may have been restarted.
      shown = type(iex, "kept in Codex.Files.list_staged() and File.read!(kept.path)")
      assert shown =~ ~s("kept")
    end

    # Another library: what is appended to it does not matter to who loads it.
    File.write!(native, "changed", [:append])
    output = type(iex, "recompile()")
    assert [_once] = Regex.scan(~r/restart/i, output)
    assert type(iex, "File.read!(kept.path)") =~ ~s("kept")

    # And the module that calls it: from then on there is none, and one message says what to do.
    path = Path.join(project, "lib/codex/files/native.ex")
    File.write!(path, ["# Changed.\n", File.read!(path)])
    output = type(iex, "recompile()")
    output = output <> type(iex, "Codex.Files.stage(#{source})")
    output = output <> type(iex, "Codex.Files.list_staged_result()")
    assert [_once] = Regex.scan(~r/Restart the Erlang VM/, output)
    assert [_, _] = Regex.scan(~r/{:error, :native_library_not_loaded}/, output)
    assert end_iex(iex) == 0
    assert_no_crash(context)
  end

  ## An IEx that is typed into

  defp start_iex(project, env) do
    env = [{"MIX_ENV", "dev"}, {"TERM", "dumb"} | env]

    port =
      Port.open({:spawn_executable, System.find_executable("iex")}, [
        :binary,
        :exit_status,
        :use_stdio,
        :stderr_to_stdout,
        cd: project,
        args: ["--dot-iex", "", "-S", "mix"],
        env: for({name, value} <- env, do: {to_charlist(name), to_charlist(value)})
      ])

    type(port, ":started")
    port
  end

  # Gives it an expression, and returns what it prints until that has been evaluated.
  defp type(port, expression) do
    marker = "evaluated #{System.unique_integer([:positive])}"
    # Not as it is shown there, lest an echo be taken for it.
    Port.command(port, [
      expression,
      "\n",
      "IO.puts([",
      inspect(String.reverse(marker)),
      "] |> Enum.map(&String.reverse/1))\n"
    ])

    read_until(port, marker, "")
  end

  defp read_until(port, marker, output) do
    if String.contains?(output, marker) do
      output
    else
      receive do
        {^port, {:data, data}} -> read_until(port, marker, output <> data)
        {^port, {:exit_status, status}} -> flunk("IEx ended with status #{status}:\n#{output}")
      after
        120_000 -> flunk("expected IEx to answer, got:\n#{output}")
      end
    end
  end

  defp end_iex(port) do
    Port.command(port, "System.stop()\n")
    await_exit(port)
  end

  defp await_exit(port) do
    receive do
      {^port, {:exit_status, status}} -> status
      {^port, {:data, _data}} -> await_exit(port)
    after
      20_000 -> flunk("expected IEx to end")
    end
  end
end
