defmodule Mix.Tasks.Compile.CodexFiles do
  @shortdoc "Builds the native library of codex_files"

  @moduledoc """
  Builds the native library of `codex_files` with cargo.

  It is a compiler of the library's own project: where `codex_files` is a dependency it runs with
  the others when the dependency is compiled, and the host's `mix.exs` has nothing to say about it.

      $ mix compile
      ==> codex_files
      Compiling ... files (.ex)
      Generated codex_files app
         Compiling codex_files v0.1.0
         Compiling codex_files_nif v0.1.0
          Finished `release` profile [optimized] target(s) in 41.20s

  Cargo runs every time and its fingerprints decide what there is to do. When that is nothing, it is
  silent and the compiler returns `:noop`. Where cargo cannot be run any more, what it has built stays
  in use as long as the Rust sources, the target and the profile are the same.

  Everything is built below the build path, with the release profile when the application is compiled
  in the `:prod` environment, as dependencies are by default; the source folder is only read. What
  counts in the end is one file in the build path, `priv/native/libcodex_files_nif.so`: a release
  carries this file and nothing else of the build. Beside a prebuilt one lies a note with the path that
  it was copied from, for the message of a system that cannot load it. `mix clean` removes them, and
  what cargo has built.

  ## Environment variables

    * `CODEX_FILES_NIF` - the absolute path of a prebuilt library, to be installed instead of
      building one. Neither Rust nor a C compiler is needed then. Another Erlang VM loads it first,
      and calls its functions: one that is damaged, of another version or for another system is refused.
    * `CARGO` - the cargo to run, a name or an absolute path. Defaults to `cargo`.
    * `CARGO_BUILD_TARGET` - the target to build for, such as `aarch64-unknown-linux-gnu`. Defaults
      to the machine that builds. If it is set, a prebuilt library is installed without being tried,
      since this machine may not be the one to load it.

  Whatever else cargo knows, such as `RUSTFLAGS`, reaches it unchanged, with two exceptions. A target
  directory is not taken from elsewhere, and panics unwind whatever the host's cargo configuration
  says: one that aborts would take the VM down.

  ## Errors

  Cargo's messages are printed as they come, and those of a failed build are returned as diagnostics
  too. A cargo that is missing or too old is one message with the remedy, and so is a prebuilt
  library that cannot be read or loaded, when what was installed before stays:

      $ CODEX_FILES_NIF=/no/such/library mix compile
      could not install the native library of codex_files from /no/such/library: no such file or directory

  ## A running VM

  The library is replaced by rename, so a VM that has loaded the former one is not harmed: it keeps
  it until it ends. To load the new one it has to be restarted, which a recompilation under IEx says.
  """

  use Mix.Task.Compiler

  alias Codex.Files.{Native, Trial}
  alias Mix.Task.Compiler.Diagnostic

  @package "codex_files_nif"
  @library "libcodex_files_nif.so"

  @impl true
  def run(_args) do
    with {:ok, origin, library, diagnostics} <- library(),
         {:ok, status} <- install(origin, library) do
      {status, diagnostics}
    else
      {:error, message, diagnostics} ->
        Mix.shell().error(message)
        {:error, diagnostics}
    end
  end

  @impl true
  def manifests, do: [installed()]

  @impl true
  def clean do
    _ = File.rm_rf!(target_dir())

    # A link leads to the source folder, where nothing was made: see own_priv/0.
    if match?({:error, _}, File.read_link(priv())), do: remove_priv()
    :ok
  end

  defp remove_priv do
    _ = File.rm(installed())
    _ = File.rm(note())
    _ = File.rmdir(Path.dirname(installed()))
    _ = File.rmdir(priv())
    :ok
  end

  # The current directory is that of codex_files, whoever depends on it.
  defp root, do: File.cwd!()
  defp manifest, do: Path.join(root(), "Cargo.toml")

  # Beside ebin and priv, which a release copies whole.
  defp target_dir, do: Path.join(Mix.Project.app_path(), "cargo")
  defp ebin, do: Path.join(Mix.Project.app_path(), "ebin")
  defp priv, do: Path.join(Mix.Project.app_path(), "priv")
  defp installed, do: Path.join([priv(), "native", @library])
  # Has the path of the prebuilt library that the installed one is a copy of. When that cannot be
  # loaded, Codex.Files.Native says whose fault it is.
  defp note, do: Path.rootname(installed()) <> ".prebuilt"

  defp library do
    case System.get_env("CODEX_FILES_NIF", "") do
      "" -> build()
      path -> prebuilt(path)
    end
  end

  # A relative path would be relative to the dependency, not to where the command was typed.
  defp prebuilt(path) do
    if Path.type(path) == :absolute do
      {:ok, :prebuilt, path, []}
    else
      failure("expected CODEX_FILES_NIF to be an absolute path, got: #{path}")
    end
  end

  ## Build

  defp build do
    # Before cargo reads them: what is changed meanwhile is built the next time.
    sources = digest_sources()

    with {:ok, cargo} <- find_cargo(),
         :ok <- check_version(cargo) do
      _ = File.rm(record())
      cargo |> run_cargo() |> built(sources)
    else
      unfit -> built_earlier(sources, unfit)
    end
  end

  # What was built of these sources is there, although cargo is not any more.
  defp built_earlier(sources, unfit) do
    with {:ok, record} <- File.read(record()),
         [^sources, library] <- String.split(record, "\n", parts: 2),
         library = Path.expand(library, target_dir()),
         true <- File.regular?(library) do
      {:ok, :built, library, []}
    else
      _ -> unfit
    end
  end

  # Says of what cargo has built the library, and where that is.
  defp record, do: Path.join(target_dir(), "#{@package}.built")

  # By content, since copying a folder into an image or checking it out again changes the times.
  defp digest_sources do
    sources =
      for path <- ["Cargo.toml", "Cargo.lock" | Path.wildcard("native/**")],
          File.regular?(path),
          do: [path, 0, File.read!(path), 0]

    machine = [
      :erlang.system_info(:system_architecture),
      System.get_env("CARGO_BUILD_TARGET", "")
    ]

    Base.encode16(:erlang.md5([sources, machine, profile(Mix.env())]))
  end

  defp find_cargo do
    name = System.get_env("CARGO", "cargo")

    case System.find_executable(name) do
      nil -> unfit("could not find #{name}")
      path -> {:ok, path}
    end
  end

  # Asked beforehand: what an old cargo says of a manifest it cannot read helps nobody.
  defp check_version(cargo) do
    required = required_version()
    {output, _status} = System.cmd(cargo, ["--version"], stderr_to_stdout: true, cd: root())

    case Regex.run(~r/^cargo (\d+\.\d+\.\d+)/m, output, capture: :all_but_first) do
      nil ->
        unfit("could not run #{cargo}: #{String.trim(output)}")

      [version] ->
        if Version.match?(version, ">= #{required}.0") do
          :ok
        else
          unfit("expected #{cargo} to be version #{required} or newer, got: #{version}")
        end
    end
  end

  defp required_version do
    [[_, version]] = Regex.scan(~r/^rust-version = "(\d+\.\d+)"$/m, File.read!(manifest()))
    version
  end

  defp unfit(message) do
    failure("""
    #{message}

    The native library of codex_files is built with Rust #{required_version()} or newer: install it \
    as https://rustup.rs says, or set CARGO to the cargo to use. To do without Rust set \
    CODEX_FILES_NIF to a prebuilt library.\
    """)
  end

  defp run_cargo(cargo) do
    args =
      ~w(build --locked --package #{@package} --message-format json-render-diagnostics) ++
        ["--manifest-path", manifest(), "--target-dir", target_dir()] ++
        profile(Mix.env()) ++
        if(IO.ANSI.enabled?(), do: ~w(--color always), else: [])

    port =
      Port.open({:spawn_executable, cargo}, [
        :binary,
        :exit_status,
        :hide,
        :stderr_to_stdout,
        line: 4096,
        args: args,
        cd: root()
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
      # Nothing was built.
      output.messages == [] and message =~ ~r/^\s*Finished / ->
        output

      # Worth knowing while it lasts, but neither is anything built.
      message =~ ~r/^\s*Blocking waiting for file lock/ ->
        Mix.shell().info(line)
        output

      true ->
        Mix.shell().info(line)
        %{output | messages: [message | output.messages]}
    end
  end

  defp built({0, %{library: library} = output}, sources) when is_binary(library) do
    # Without it the next build needs cargo, no more.
    _ = File.write(record(), [sources, "\n", Path.relative_to(library, target_dir())])
    {:ok, :built, library, output.messages |> Enum.reverse() |> diagnostics()}
  end

  defp built({status, output}, _sources) do
    message =
      "could not build the native library of codex_files: cargo exited with status #{status}"

    case output.messages |> Enum.reverse() |> diagnostics() do
      [] -> failure(message)
      diagnostics -> {:error, message, diagnostics}
    end
  end

  # `error[E0425]: cannot find value` and, in one of the next lines, `--> native/x/src/lib.rs:1:2`.
  defp diagnostics(messages) do
    {_pending, diagnostics} =
      Enum.reduce(messages, {nil, []}, fn message, {pending, diagnostics} ->
        case Regex.run(~r/^(?:(error|warning)(?:\[\w+\])?: (.+)|\s*--> (.+):(\d+):\d+)$/, message) do
          [_, severity, text] ->
            {{String.to_existing_atom(severity), text}, diagnostics}

          [_, "", "", file, line] when pending != nil ->
            {severity, text} = pending
            diagnostic = diagnostic(severity, text, Path.expand(file), String.to_integer(line))
            {nil, [diagnostic | diagnostics]}

          _ ->
            {pending, diagnostics}
        end
      end)

    Enum.reverse(diagnostics)
  end

  ## Installation

  defp install(origin, library) do
    with :ok <- own_priv(),
         :ok <- File.mkdir_p(Path.dirname(installed())),
         {:ok, status} <- replace(origin, library),
         :ok <- write_note(origin, library) do
      {:ok, status}
    else
      {:refused, reason} ->
        failure("""
        #{not_installed(library)}: #{reason}

        Nothing was installed. Name a whole library in CODEX_FILES_NIF that was built for this system \
        (#{:erlang.system_info(:system_architecture)}) from this version of codex_files, or unset it \
        to have one built with Rust #{required_version()} or newer.\
        """)

      {:error, reason} ->
        failure("#{not_installed(library)}: #{:file.format_error(reason)}")
    end
  end

  defp not_installed(library),
    do: "could not install the native library of codex_files from #{library}"

  defp write_note(:prebuilt, library), do: File.write(note(), library)

  defp write_note(:built, _library) do
    with {:error, :enoent} <- File.rm(note()), do: :ok
  end

  # Mix links priv to that of the source folder if there is one. A library that belongs to one build
  # must not land there, where all the builds of all the hosts would share it.
  defp own_priv do
    with {:ok, link} <- File.read_link(priv()),
         :ok <- File.rm(priv()),
         {:ok, _} <- link |> Path.expand(Path.dirname(priv())) |> File.cp_r(priv()) do
      :ok
    else
      {:error, reason, _path} -> {:error, reason}
      # Not a link.
      {:error, reason} when reason in [:einval, :enoent] -> :ok
      error -> error
    end
  end

  defp replace(origin, library) do
    cond do
      not same?(library, installed()) -> replace_by(origin, library)
      origin == :built or tried?() -> {:ok, :noop}
      true -> with :ok <- try_out(origin, library, installed()), do: {:ok, :noop}
    end
  end

  # By rename, because writing to a library that a VM has loaded crashes that VM.
  defp replace_by(origin, library) do
    temporary = Path.join(Mix.Project.app_path(), ".#{System.pid()}.#{@library}")

    with :ok <- copy(library, temporary),
         :ok <- try_out(origin, library, temporary),
         :ok <- File.rename(temporary, installed()) do
      changed()
      {:ok, :ok}
    else
      failed ->
        _ = File.rm(temporary)
        failed
    end
  end

  # The note is written after a trial. A module that has been compiled since may want other functions.
  defp tried? do
    with {:ok, %{mtime: tried}} <- File.stat(note()),
         {:ok, %{mtime: compiled}} <- File.stat(Path.join(ebin(), "#{Native}.beam")) do
      tried > compiled
    else
      _ -> false
    end
  end

  defp copy(library, temporary) do
    # Anything but a file may be read for ever.
    with {:ok, %{type: type}} when type in [:regular, :directory] <- File.stat(library),
         {:ok, _size} <- File.copy(library, temporary) do
      File.chmod(temporary, 0o755)
    else
      {:ok, _no_file} -> {:refused, "expected a regular file"}
      {:error, reason} -> {:error, reason}
    end
  end

  defp same?(a, b) do
    with {:ok, %{size: size}} <- File.stat(a),
         {:ok, %{size: ^size}} <- File.stat(b) do
      File.read(a) == File.read(b)
    else
      _ -> false
    end
  end

  # Whoever has built it may have built it for another machine, or sent us a part.
  defp try_out(:built, _library, _copy), do: :ok

  defp try_out(:prebuilt, library, copy) do
    if System.get_env("CARGO_BUILD_TARGET", "") == "" do
      with {:refused, reason} <- Trial.run(copy, ebin()),
           do: {:refused, String.replace(reason, copy, library)}
    else
      # This machine's VM could not load it.
      Mix.shell().info(
        "Installing #{library} untried, since CARGO_BUILD_TARGET says that it is for another machine"
      )
    end
  end

  defp changed do
    if :erlang.module_loaded(Native) do
      Mix.shell().info(
        "The native library of codex_files has changed: restart the VM to load it, " <>
          "this one keeps the former"
      )
    end
  end

  ## Results

  defp failure(message), do: {:error, message, [diagnostic(:error, message, manifest(), 0)]}

  defp diagnostic(severity, message, file, line) do
    %Diagnostic{
      compiler_name: "codex_files",
      file: file,
      position: line,
      severity: severity,
      message: message
    }
  end
end
