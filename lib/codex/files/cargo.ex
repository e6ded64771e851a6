defmodule Codex.Files.Cargo do
  @moduledoc false
  # Builds the native library with cargo, for the Mix compiler. The current directory is that of
  # codex_files, whoever depends on it.

  @package "codex_files_nif"

  @typedoc "What cargo says of a line of a source."
  @type remark :: {:error | :warning, text :: String.t(), Path.t(), line :: pos_integer()}

  @doc """
  Builds the library below `target_dir`, with the profile for the Mix environment `env`, and returns its
  path. Where cargo cannot be run, that is of one built earlier, if the sources are the same.
  """
  @spec build(Path.t(), atom()) ::
          {:ok, Path.t(), [remark()]} | {:error, String.t(), [remark()]}
  def build(target_dir, env) do
    # The sources are read before cargo reads them: what is changed meanwhile is built the next time.
    sources = digest_sources(env)

    with {:ok, cargo} <- find_cargo(),
         :ok <- check_version(cargo) do
      _ = File.rm(record(target_dir))
      cargo |> run(target_dir, env) |> built(sources, target_dir)
    else
      unfit -> built_earlier(sources, target_dir, unfit)
    end
  end

  # The library that was built of these sources may be there, although cargo is not any more.
  defp built_earlier(sources, target_dir, unfit) do
    with {:ok, record} <- File.read(record(target_dir)),
         [^sources, library] <- String.split(record, "\n", parts: 2),
         library = Path.expand(library, target_dir),
         true <- File.regular?(library) do
      {:ok, library, []}
    else
      _ -> unfit
    end
  end

  # This file says of what sources cargo has built the library, and where that is.
  defp record(target_dir), do: Path.join(target_dir, "#{@package}.built")

  # Sources are compared by content: copying a folder into an image, or checking it out again, changes
  # their times.
  defp digest_sources(env) do
    sources =
      for path <- ["Cargo.toml", "Cargo.lock" | Path.wildcard("native/**")],
          File.regular?(path),
          do: [path, 0, File.read!(path), 0]

    machine = [
      :erlang.system_info(:system_architecture),
      System.get_env("CARGO_BUILD_TARGET", "")
    ]

    Base.encode16(:erlang.md5([sources, machine, profile(env)]))
  end

  defp find_cargo do
    name = System.get_env("CARGO", "cargo")

    case System.find_executable(name) do
      nil -> unfit("could not find #{name}")
      path -> {:ok, path}
    end
  end

  # The version is asked beforehand: what an old cargo says of a manifest it cannot read helps nobody.
  defp check_version(cargo) do
    required = required_version()
    {output, status} = System.cmd(cargo, ["--version"], stderr_to_stdout: true)

    case Regex.run(~r/^cargo (\d+\.\d+\.\d+)/m, output, capture: :all_but_first) do
      nil ->
        silence = "it exited with status #{status} and said nothing"
        said = if String.trim(output) == "", do: silence, else: String.trim(output)
        unfit("could not run #{cargo}: #{said}")

      [version] ->
        if Version.match?(version, ">= #{required}.0") do
          :ok
        else
          unfit("expected #{cargo} to be version #{required} or newer, got: #{version}")
        end
    end
  end

  @doc "The oldest version of Rust that will do."
  def required_version do
    [[_, version]] = Regex.scan(~r/^rust-version = "(\d+\.\d+)"$/m, File.read!("Cargo.toml"))
    version
  end

  defp unfit(message) do
    message = """
    #{message}

    The native library of codex_files is built with Rust #{required_version()} or newer: install it \
    as https://rustup.rs says, or set CARGO to the cargo to use. To do without Rust set \
    CODEX_FILES_NIF to a prebuilt library.\
    """

    {:error, message, []}
  end

  defp run(cargo, target_dir, env) do
    args =
      ~w(build --locked --package #{@package} --message-format json-render-diagnostics) ++
        ["--target-dir", target_dir] ++
        profile(env) ++
        if(IO.ANSI.enabled?(), do: ~w(--color always), else: [])

    port =
      Port.open({:spawn_executable, cargo}, [
        :binary,
        :exit_status,
        :hide,
        :stderr_to_stdout,
        line: 4096,
        args: args
      ])

    stream(port, "", %{library: nil, messages: []})
  end

  # On the command line it outweighs the configuration of a host that has panics abort.
  defp profile(:prod), do: ["--release", "--config", ~s(profile.release.panic="unwind")]
  defp profile(_env), do: ["--config", ~s(profile.dev.panic="unwind")]

  defp stream(port, line, output) do
    receive do
      {^port, {:data, {:noeol, part}}} -> stream(port, line <> part, output)
      {^port, {:data, {:eol, part}}} -> stream(port, "", line(line <> part, output))
      {^port, {:exit_status, status}} -> {status, output}
    end
  end

  # Cargo says in JSON what it made, on standard output, and the rest in English, on standard error.
  # It alone knows where the library is: the target may be set in a configuration file of the host.
  defp line(~s({"reason":) <> _ = json, output) do
    case Regex.run(~r/"((?:[^"\\]|\\.)*lib#{@package}\.(?:so|dylib))"/, json) do
      nil -> output
      [_, path] -> %{output | library: Regex.replace(~r/\\(.)/, path, "\\1")}
    end
  end

  defp line(line, output) do
    message = String.replace(line, ~r/\e\[[\d;]*m/, "")

    cond do
      # There was nothing to build.
      output.messages == [] and message =~ ~r/^\s*Finished / ->
        output

      # The wait is worth knowing while it lasts, but nothing is built then either.
      message =~ ~r/^\s*Blocking waiting for file lock/ ->
        Mix.shell().info(line)
        output

      true ->
        Mix.shell().info(line)
        %{output | messages: [message | output.messages]}
    end
  end

  defp built({0, %{library: library} = output}, sources, target_dir) when is_binary(library) do
    # Without the record the next build needs cargo, no more.
    _ = File.write(record(target_dir), [sources, "\n", Path.relative_to(library, target_dir)])
    {:ok, library, remarks(output)}
  end

  defp built({status, output}, _sources, _target_dir) do
    {:error,
     "could not build the native library of codex_files: cargo exited with status #{status}",
     remarks(output)}
  end

  # `error[E0425]: cannot find value` and, in one of the next lines, `--> native/x/src/lib.rs:1:2`.
  defp remarks(%{messages: messages}) do
    {_pending, remarks} =
      messages
      |> Enum.reverse()
      |> Enum.reduce({nil, []}, fn message, {pending, remarks} ->
        case Regex.run(~r/^(?:(error|warning)(?:\[\w+\])?: (.+)|\s*--> (.+):(\d+):\d+)$/, message) do
          [_, severity, text] ->
            {{String.to_existing_atom(severity), text}, remarks}

          [_, "", "", file, line] when pending != nil ->
            {severity, text} = pending
            {nil, [{severity, text, Path.expand(file), String.to_integer(line)} | remarks]}

          _ ->
            {pending, remarks}
        end
      end)

    Enum.reverse(remarks)
  end
end
