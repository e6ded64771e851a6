defmodule Codex.Files.Trial do
  @moduledoc false
  # Tries a native library that somebody else has built, before it is installed. One that is not whole
  # kills the VM that loads or calls it, so that has to be another VM than ours.

  # Under load it takes a second or two.
  @timeout_ms 60_000

  # The status of what SIGKILL has ended.
  @killed 137

  # It calls every function with what none of them accepts, and so learns whether the library has all.
  # Before that, the module is told not to load what is installed. Then it stages the library itself.
  @code ~S"""
  Native = 'Elixir.Codex.Files.Native',
  Refuse = fun(Format, Arguments) -> io:format(Format, Arguments), halt(2) end,
  persistent_term:put(Native, gone),
  [Library, StagingDir] = init:get_plain_arguments(),
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
        [] -> persistent_term:put(Native, loaded);
        [{Function, Arity} | _] ->
          Refuse("expected it to have the function ~ts/~b of this version", [Function, Arity])
      end;
    {error, {_, Text}} -> Refuse("~ts", [Text])
  end,
  application:set_env(codex_sdk, staging_dir, unicode:characters_to_binary(StagingDir)),
  {ok, Content} = file:read_file(Library ++ ".so"),
  Digest = 'Elixir.Base':encode16(crypto:hash(sha256, Content), [{'case', lower}]),
  case catch 'Elixir.Codex.Files':stage(Library ++ ".so") of
    {ok, #{checksum := Digest}} -> halt(0);
    Other -> Refuse("expected it to stage a file with the checksum ~ts, got: ~0tp", [Digest, Other])
  end.
  """

  @doc """
  Lets another VM load the library at `path`, which ends in `.so`, with the modules in `ebin`, and stage
  a file with it.

  The reason of a refusal is the loader's, or says what else is wrong.
  """
  @spec run(Path.t(), Path.t(), pos_integer()) :: :ok | {:refused, String.t()}
  def run(path, ebin, timeout_ms \\ @timeout_ms) do
    staging_dir = Path.join(System.tmp_dir!(), "codex_files-trial-#{System.pid()}-#{unique()}")

    result = path |> start(ebin, staging_dir) |> await("", now() + timeout_ms)
    _ = File.rm_rf!(staging_dir)

    case result do
      {0, _output} ->
        :ok

      {2, output} ->
        {:refused, explain(output)}

      {@killed, _output} ->
        {:refused, "it blocks the VM that tries it"}

      {status, _output} ->
        {:refused, "it is damaged: the VM that tries it ends with status #{status}"}
    end
  end

  # The loader names the first function that this VM does not have.
  defp explain(output) do
    case Regex.run(~r/undefined symbol: (enif_\w+)/, output) do
      [_, function] ->
        "expected a library of NIF version #{:erlang.system_info(:nif_version)} or older, " <>
          "got one that calls #{function}"

      nil ->
        output
    end
  end

  defp unique, do: System.unique_integer([:positive])

  defp start(path, ebin, staging_dir) do
    elixir = for app <- [:elixir, :logger], do: Path.join(:code.lib_dir(app), "ebin")
    arguments = ["-boot", "no_dot_erlang", "-noinput", "-pa", ebin | elixir] ++ ["-eval", @code]

    # The user's flags for every VM, such as a node name, must not reach this one.
    unset = for name <- [~c"ERL_FLAGS", ~c"ERL_AFLAGS", ~c"ERL_ZFLAGS"], do: {name, false}

    Port.open({:spawn_executable, Path.join([:code.root_dir(), "bin", "erl"])}, [
      :binary,
      :exit_status,
      :hide,
      :stderr_to_stdout,
      args: arguments ++ ["-extra", Path.rootname(path), staging_dir],
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
