defmodule Codex.Files.Trial do
  @moduledoc false
  # Tries a native library that somebody else has built, before it is installed. One that is not whole
  # kills the VM that loads or calls it, so that has to be another VM than ours.

  # Under load it takes a second or two.
  @timeout_ms 60_000

  # It calls every function with what none of them accepts, and so learns whether the library has all.
  # Before that, the module is told not to load what is installed.
  @code """
  Native = 'Elixir.Codex.Files.Native',
  persistent_term:put(Native, gone),
  [Library] = init:get_plain_arguments(),
  Lacks = fun({Function, Arity}) ->
    try apply(Native, Function, lists:duplicate(Arity, nil)) of
      _ -> false
    catch
      error:native_library_not_loaded -> true;
      _:_ -> false
    end
  end,
  case Native:load_from(Library) of
    ok ->
      case lists:filter(Lacks, Native:module_info(exports)) of
        [] -> halt(0);
        [{Function, Arity} | _] ->
          io:format("expected it to have the function ~ts/~b of this version", [Function, Arity]),
          halt(1)
      end;
    {error, {_, Text}} -> io:put_chars(Text), halt(1)
  end.
  """

  @doc """
  Lets another VM load the library at `path`, which ends in `.so`, with the module in `ebin`.

  The reason of a refusal is the loader's, or says what else is wrong.
  """
  @spec run(Path.t(), Path.t(), pos_integer()) :: :ok | {:refused, String.t()}
  def run(path, ebin, timeout_ms \\ @timeout_ms) do
    with :ok <- check_size(path) do
      case path |> start(ebin) |> await("", now() + timeout_ms) do
        {0, _output} -> :ok
        {1, output} -> {:refused, output}
        _died -> {:refused, "it kills or blocks the VM that tries it"}
      end
    end
  end

  # Where an ELF file ends too early, in the last page that is loaded, the VM sees zeros and may go on
  # for a while. The table of its sections is at its very end.
  defp check_size(path) do
    size = File.stat!(path).size

    with {:ok, header} <- File.open(path, [:read], &IO.binread(&1, 64)),
         <<0x7F, "ELF", 2, 1, _::binary-34, table::64-little, _::binary-10, entry::16-little,
           entries::16-little, _::16>> <- header,
         whole when size < whole <- table + entry * entries do
      {:refused, "expected #{whole} bytes, got: #{size}"}
    else
      _ -> :ok
    end
  end

  defp start(path, ebin) do
    arguments = ["-boot", "no_dot_erlang", "-noinput", "-pa", ebin, "-eval", @code]

    # The user's flags for every VM, such as a node name, must not reach this one.
    unset = for name <- [~c"ERL_FLAGS", ~c"ERL_AFLAGS", ~c"ERL_ZFLAGS"], do: {name, false}

    Port.open({:spawn_executable, Path.join([:code.root_dir(), "bin", "erl"])}, [
      :binary,
      :exit_status,
      :hide,
      :stderr_to_stdout,
      args: arguments ++ ["-extra", Path.rootname(path)],
      # A core dump, if the system writes one, must not land in the source folder.
      cd: Path.dirname(path),
      env: [{~c"ERL_CRASH_DUMP_BYTES", ~c"0"} | unset]
    ])
  end

  defp await(port, output, deadline) do
    receive do
      {^port, {:data, data}} -> await(port, output <> data, deadline)
      {^port, {:exit_status, status}} -> {status, output}
    after
      max(0, deadline - now()) ->
        # It may have ended just now. Its status comes in both cases.
        with {:os_pid, os_pid} <- Port.info(port, :os_pid),
             do: System.cmd("kill", ["-KILL", to_string(os_pid)], stderr_to_stdout: true)

        await(port, output, now() + @timeout_ms)
    end
  end

  defp now, do: System.monotonic_time(:millisecond)
end
