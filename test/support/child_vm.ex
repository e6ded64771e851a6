defmodule Codex.Files.ChildVM do
  @moduledoc false
  # Another VM with this library, for the tests of what happens when one dies or when there are two.
  # It reads requests from its standard input, one a line, and ends when that is closed.

  import ExUnit.Assertions

  defstruct [:port, :os_pid]

  @answer "answer: "

  @doc """
  Starts a VM that stages below `staging_dir`, with environment variables of its own. It ends with
  the calling process.

  Options: `:umask`; `:user`, the number of the user to run as, which only root can choose; `:ebin`,
  the directory of the library's modules, beside which its `priv` is; `:stderr`, a file for what it
  prints there, by default where this VM prints it.
  """
  def start(staging_dir, env \\ [], opts \\ []) do
    umask = Keyword.get(opts, :umask, "022")
    ebin = Keyword.get_lazy(opts, :ebin, fn -> Application.app_dir(:codex_files, "ebin") end)

    # Inherited and not opened as /dev/stderr: a pipe or a file of another user's cannot be opened again.
    {stderr, redirection} = if path = opts[:stderr], do: {path, ~s(2>>"$0")}, else: {"sh", ""}
    script = ~s(umask #{umask}; exec #{as(opts[:user])} elixir "$@" #{redirection})

    # The shells that start Elixir and Erlang replace themselves: the port's process is the VM.
    port =
      Port.open({:spawn_executable, System.find_executable("sh")}, [
        :binary,
        :exit_status,
        :use_stdio,
        args: ["-c", script, stderr] ++ paths(ebin) ++ ["-e", code()],
        env: for({name, value} <- env, do: {to_charlist(name), to_charlist(value)})
      ])

    {:os_pid, os_pid} = Port.info(port, :os_pid)
    vm = %__MODULE__{port: port, os_pid: os_pid}
    eval(vm, quote(do: Application.put_env(:codex_sdk, :staging_dir, unquote(staging_dir))))
    vm
  end

  defp as(nil), do: ""
  # It has no home: what would be looked for there is not.
  defp as(user), do: "env HOME=/ setpriv --reuid=#{user} --regid=#{user} --clear-groups"

  # This module and its neighbours may be elsewhere than the library's, which come first: each is put
  # before the others.
  defp paths(library) do
    here = __MODULE__ |> :code.which() |> Path.dirname()
    for path <- Enum.uniq([here, library]), argument <- ["-pa", path], do: argument
  end

  defp code, do: "#{inspect(__MODULE__)}.main()"

  @doc "Loads all modules of the library, as a release does when it starts."
  def load_modules(vm) do
    eval(
      vm,
      quote do
        _ = Application.load(:codex_files)
        {:ok, modules} = :application.get_key(:codex_files, :modules)
        :ok = :code.ensure_modules_loaded(modules)
      end
    )
  end

  @doc "Evaluates quoted code in the VM and returns its value, for which it waits a minute, or so many ms."
  def eval(vm, quoted, patience \\ 60_000) do
    request(vm, quoted)
    answer(vm, "", patience)
  end

  @doc "Gives the VM quoted code to evaluate, without waiting for its value."
  def request(%__MODULE__{port: port}, quoted) do
    Port.command(port, [encode(quoted), ?\n])
  end

  @doc "Kills the VM as the system does when it runs out of memory, and waits until it is gone."
  def kill(%__MODULE__{port: port, os_pid: os_pid}) do
    {_output, 0} = System.cmd("kill", ["-KILL", to_string(os_pid)])
    assert_exit(port)
  end

  @doc "Stops the VM in order and waits until it is gone."
  def stop(vm), do: 0 = run_to_end(vm, quote(do: System.stop()))

  @doc "Evaluates quoted code that ends the VM, and returns the status that it ends with."
  def run_to_end(%__MODULE__{port: port} = vm, quoted) do
    request(vm, quoted)
    assert_exit(port)
  end

  defp assert_exit(port) do
    receive do
      {^port, {:exit_status, status}} -> status
    after
      20_000 -> flunk("expected the VM to end")
    end
  end

  defp answer(%__MODULE__{port: port} = vm, output, patience) do
    receive do
      {^port, {:data, data}} ->
        output = output <> data

        case Regex.run(~r/^#{@answer}(.*)\n/m, output, capture: :all_but_first) do
          [answer] -> value(decode(answer), output)
          nil -> answer(vm, output, patience)
        end

      {^port, {:exit_status, status}} ->
        flunk("expected an answer, but the VM ended with status #{status}:\n#{output}")
    after
      patience -> flunk("expected an answer of the VM, got: #{output}")
    end
  end

  defp value({:ok, value}, _output), do: value
  defp value({:failed, message}, output), do: flunk("the VM failed: #{message}\n#{output}")

  ## In the VM

  @doc false
  def main do
    case IO.read(:stdio, :line) do
      line when is_binary(line) ->
        quoted = line |> String.trim() |> decode()
        spawn(fn -> IO.puts(@answer <> encode(evaluate(quoted))) end)
        main()

      :eof ->
        System.halt(0)

      # The VM is being stopped, and its input was stopped before.
      {:error, _reason} ->
        Process.sleep(:infinity)
    end
  end

  defp evaluate(quoted) do
    {value, _binding} = Code.eval_quoted(quoted)
    {:ok, value}
  rescue
    error -> {:failed, Exception.format(:error, error, __STACKTRACE__)}
  end

  defp encode(term), do: term |> :erlang.term_to_binary() |> Base.encode64()
  defp decode(text), do: text |> Base.decode64!() |> :erlang.binary_to_term()
end
