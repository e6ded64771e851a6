defmodule Codex.Files.StartupTest do
  @moduledoc """
  One process starts the registry and all others wait for that one; while applications or the VM are
  being stopped nobody waits. Each in a VM of its own.
  """

  use Codex.Files.StagingCase, async: false

  alias Codex.Files.{ChildVM, FakeSdk, FirstCalls, StoppingHost}

  @moduletag timeout: 180_000

  defp start_vm(context) do
    vm = ChildVM.start(context.staging_dir, [], stderr: Path.join(context.folder, "stderr"))

    # One that hangs does not end by itself.
    on_exit(fn ->
      System.cmd("kill", ["-KILL", to_string(vm.os_pid)], stderr_to_stdout: true)
    end)

    vm
  end

  describe "the first call" do
    # A VM with as long a code path as that of a host with many dependencies.
    defp start_vm_with_code_path(context) do
      vm = start_vm(context)

      folders =
        for number <- 1..150 do
          folder = Path.join(context.folder, "lib/#{number}/ebin")
          File.mkdir_p!(folder)
          to_charlist(folder)
        end

      ChildVM.eval(vm, quote(do: :code.add_pathsz(unquote(folders))))
      vm
    end

    test "of 2,000 processes at once takes at most three times what that of one takes", context do
      # The best of some attempts: other programs are at work too.
      Enum.reduce_while(1..5, {:infinity, :infinity}, fn _attempt, {one, many} ->
        one = min(one, first_calls(context, 1))
        many = min(many, first_calls(context, 2_000))
        # To make so many processes takes some time of its own, where one call takes next to none.
        if many <= 3 * max(one, 15_000), do: {:halt, :ok}, else: {:cont, {one, many}}
      end)
      |> then(&assert(&1 == :ok))
    end

    # In microseconds.
    defp first_calls(context, count) do
      vm = start_vm_with_code_path(context)
      ChildVM.load_modules(vm)
      ChildVM.eval(vm, quote(do: unquote(FirstCalls).at_once(unquote(count))))
    end

    test "is answered to 200 that give up after 100 ms and try again", context do
      vm = start_vm_with_code_path(context)
      impatient = quote(do: unquote(FirstCalls).impatient(200, 20))
      assert ChildVM.eval(vm, impatient) == 200

      # And when the registry and its supervisor were killed meanwhile.
      for name <- [Registry, Codex.Files.Supervisor, Registry] do
        ChildVM.eval(vm, quote(do: Process.exit(Process.whereis(unquote(name)), :kill)))
        assert ChildVM.eval(vm, impatient) == 200
      end
    end
  end

  describe "a registry that cannot be started again" do
    test "takes down neither the application nor the VM, and comes back with its files",
         context do
      vm = start_vm(context)
      source = write(context.folder, "source", "some notes")
      ChildVM.eval(vm, quote(do: Application.ensure_all_started(:codex_files, :permanent)))
      {:ok, attachment} = ChildVM.eval(vm, quote(do: Codex.Files.stage(unquote(source))))
      key = :attachment_cleanup_interval_ms

      malformed? = fn ->
        result = ChildVM.eval(vm, quote(do: Codex.Files.list_staged_result()))
        result == {:error, {:invalid_config, key, "60000"}}
      end

      ChildVM.eval(
        vm,
        quote do
          Application.put_env(:codex_sdk, unquote(key), "60000")
          Process.exit(Process.whereis(unquote(Registry)), :kill)
        end
      )

      # Its supervisor has given up by then.
      eventually(fn -> malformed?.() and malformed?.() end)
      ChildVM.eval(vm, quote(do: Application.delete_env(:codex_sdk, unquote(key))))

      assert ChildVM.eval(vm, quote(do: Codex.Files.list_staged_result())) == {:ok, [attachment]}
      assert_intact([attachment])
    end
  end

  describe "while applications stop" do
    setup context do
      %{vm: start_vm(context), calls: Path.join(context.folder, "calls")}
      |> tap(&File.mkdir!(&1.calls))
    end

    defp assert_refused_at_once(%{calls: folder}, place) do
      for {name, result, milliseconds} <- StoppingHost.calls(folder, place) do
        refused = if name == :list_staged, do: [], else: {:error, :not_started}
        assert {place, name, result} == {place, name, refused}
        assert {place, name, milliseconds < 1_000} == {place, name, true}
      end
    end

    for ending <- ["System.stop()", ":init.stop()", "Application.stop(:stopping_host)"],
        sdk? <- [false, true] do
      test "a host's calls are refused at once: #{ending}, the SDK #{if sdk?, do: "loaded", else: "not there"}",
           %{vm: vm} = context do
        sdk? = unquote(sdk?)

        ChildVM.eval(
          vm,
          quote do
            if unquote(sdk?), do: unquote(FakeSdk).load_for_good()
            unquote(StoppingHost).start(unquote(context.calls))
          end
        )

        stop(vm, unquote(ending))

        for place <- ["prep_stop", "terminate", "stop"],
            do: assert_refused_at_once(context, place)
      end
    end

    for ending <- ["System.stop()", "Application.stop(:codex_sdk)"] do
      test "the calls of a child of Codex.Supervisor are refused at once: #{ending}",
           %{vm: vm} = context do
        start_sdk_with_child(context)
        stop(vm, unquote(ending))
        assert_refused_at_once(context, "terminate")
      end
    end

    test "the calls of a child that Codex.Supervisor ends are refused at once", context do
      start_sdk_with_child(context)

      ChildVM.eval(
        context.vm,
        quote do
          :ok = Supervisor.terminate_child(Codex.Supervisor, Codex.Files.Registry)
          :ok = Supervisor.terminate_child(Codex.Supervisor, unquote(StoppingHost.Child))
        end
      )

      assert_refused_at_once(context, "terminate")
    end

    defp start_sdk_with_child(%{vm: vm, calls: calls}) do
      ChildVM.eval(
        vm,
        quote do
          child = {unquote(StoppingHost.Child), {"terminate", unquote(calls)}}
          unquote(FakeSdk).load_for_good(before: [child])
          {:ok, _registry} = Codex.Files.Registry.ensure_started()
        end
      )
    end

    # It has been asked already when the stop begins, which it is asked for before.
    test "a call that waits is refused as soon as the application controller is at it", context do
      refused =
        ChildVM.eval(
          context.vm,
          quote do
            defmodule Waits do
              use Application

              def start(_type, _args), do: Supervisor.start_link([], strategy: :one_for_one)

              def stop(_state) do
                Process.register(self(), :waits)

                receive do
                  :answered -> :ok
                end
              end
            end

            load = [vsn: ~c"1", applications: [:kernel, :stdlib], mod: {Waits, []}]
            :ok = :application.load({:application, :waits, load})
            :ok = Application.start(:waits)
            controller = Process.whereis(:application_controller)

            queued = fn count ->
              Stream.repeatedly(fn -> Process.info(controller, :message_queue_len) end)
              |> Enum.find(&(&1 == {:message_queue_len, count}))
            end

            :ok = :sys.suspend(controller)
            stopping = Task.async(fn -> Application.stop(:waits) end)
            queued.(1)
            asking = Task.async(&Codex.Files.metrics/0)
            queued.(2)
            :ok = :sys.resume(controller)
            refused = Task.yield(asking, 10_000)

            Stream.repeatedly(fn -> Process.whereis(:waits) end)
            |> Enum.find(& &1)
            |> send(:answered)

            :ok = Task.await(stopping)
            refused
          end
        )

      # A controller that goes on answering, as since OTP 29, may have started the registry before.
      if System.otp_release() < "29",
        do: assert(refused == {:ok, {:error, :not_started}}),
        else: assert({:ok, _answer} = refused)
    end

    test "and when the application controller has gone, too", %{vm: vm} = context do
      # The code server has gone by then as well.
      ChildVM.load_modules(vm)

      0 =
        ChildVM.run_to_end(
          vm,
          quote do
            defmodule Gate do
              use Application

              def start(_type, _args),
                do: Supervisor.start_link([], strategy: :one_for_one)

              # By now `init` waits for the application controller.
              def stop(_state) do
                send(:last, {:stopping, self()})

                receive do
                  :go_on -> :ok
                end
              end
            end

            :ok =
              :application.load(
                {:application, :gate,
                 [vsn: ~c"1", applications: [:kernel, :stdlib], mod: {Gate, []}]}
              )

            :ok = Application.start(:gate)

            spawn(fn ->
              Process.register(self(), :last)
              monitor = Process.monitor(:application_controller)
              System.stop()

              receive do
                {:stopping, gate} ->
                  # It would kill this process.
                  init = Process.whereis(:init)
                  :erlang.suspend_process(init)
                  send(gate, :go_on)

                  receive do
                    {:DOWN, ^monitor, :process, _pid, _reason} -> :ok
                  end

                  unquote(StoppingHost).call_everything("end", unquote(context.calls))
                  :erlang.resume_process(init)
              end
            end)
          end
        )

      assert_refused_at_once(context, "end")
    end

    defp stop(vm, "Application.stop" <> _app = ending) do
      :ok = ChildVM.eval(vm, Code.string_to_quoted!(ending))
      ChildVM.stop(vm)
    end

    defp stop(vm, ending), do: assert(ChildVM.run_to_end(vm, Code.string_to_quoted!(ending)) == 0)
  end
end
