defmodule Mix.Tasks.Compile.CodexFiles do
  @shortdoc "Builds the native library of codex_files"

  @moduledoc """
  Builds the native library of `codex_files` with cargo.

  It is a compiler of the library's own project: where `codex_files` is a dependency it runs with
  the others when the dependency is compiled, and the host's `mix.exs` has nothing to say about it.

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

    * `CODEX_FILES_NIF` - the absolute path of a prebuilt library, of an archive of one, or of a folder
      of archives, to be installed instead of building one. Neither Rust nor a C compiler is needed
      then. Archives are those of `bin/precompile`, named as `rustler_precompiled` names its own; where
      `checksum-Elixir.Codex.Files.Native.exs` lies beside one, its sum has to be in there. What is
      known of the library is read first, then another Erlang VM loads it, calls its functions and
      stages a file: one that is damaged, of another version or for another system is refused.
    * `CARGO` - the cargo to run, a name or an absolute path. Defaults to `cargo`.
    * `CARGO_BUILD_TARGET` - the target to build for, such as `aarch64-unknown-linux-gnu`. Defaults
      to the machine that builds. If it is set, a prebuilt library is chosen for it, and installed
      without being tried, since this machine may not be the one to load it.

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

  alias Codex.Files.{Cargo, Native, Prebuilt, Trial}
  alias Mix.Task.Compiler.Diagnostic

  @library "libcodex_files_nif.so"

  @impl true
  def run(_args) do
    with {:ok, origin, path, library, remarks} <- library(),
         {:ok, status} <- install(origin, path, library) do
      {status, Enum.map(remarks, &diagnostic/1)}
    else
      {:error, message, remarks} ->
        Mix.shell().error(message)

        remarks =
          if remarks == [], do: [{:error, message, Path.expand("Cargo.toml"), 0}], else: remarks

        {:error, Enum.map(remarks, &diagnostic/1)}
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

  # It lies beside ebin and priv, which a release copies whole.
  defp target_dir, do: Path.join(Mix.Project.app_path(), "cargo")
  defp ebin, do: Path.join(Mix.Project.app_path(), "ebin")
  defp priv, do: Path.join(Mix.Project.app_path(), "priv")
  defp installed, do: Path.join([priv(), "native", @library])

  # This file has the path of the prebuilt library that the installed one is a copy of. When the copy
  # cannot be loaded, Codex.Files.Native names that path.
  defp note, do: Path.rootname(installed()) <> ".prebuilt"

  # The file that the library is in, and its content.
  defp library do
    case System.get_env("CODEX_FILES_NIF", "") do
      "" ->
        with {:ok, path, remarks} <- Cargo.build(target_dir(), Mix.env()),
             do: {:ok, :built, path, File.read!(path), remarks}

      named ->
        prebuilt(named)
    end
  end

  # A relative path would be relative to the dependency, not to where the command was typed.
  defp prebuilt(named) do
    wanted = %{
      version: Mix.Project.config()[:version],
      target: target() || Prebuilt.target(),
      nif: to_string(:erlang.system_info(:nif_version))
    }

    with :absolute <- Path.type(named),
         {:ok, path, library} <- Prebuilt.read(named, wanted) do
      {:ok, :prebuilt, path, library, []}
    else
      {unfit, path, reason} ->
        not_installed(path, {unfit, reason})

      _relative ->
        failure("expected CODEX_FILES_NIF to be an absolute path, got: #{named}")
    end
  end

  # The target that whoever builds has asked for.
  defp target do
    case System.get_env("CARGO_BUILD_TARGET", "") do
      "" -> nil
      target -> target
    end
  end

  ## Installation

  defp install(origin, path, library) do
    with :ok <- own_priv(),
         :ok <- File.mkdir_p(Path.dirname(installed())),
         {:ok, status} <- replace(origin, path, library),
         :ok <- write_note(origin, path) do
      {:ok, status}
    else
      unfit -> not_installed(path, unfit)
    end
  end

  defp not_installed(path, {unfit, reason}) do
    message = "could not install the native library of codex_files from #{path}: "

    case unfit do
      :error ->
        failure(message <> to_string(:file.format_error(reason)))

      :refused ->
        failure("""
        #{message}#{reason}

        Nothing was installed. Name a whole library in CODEX_FILES_NIF that was built for this system \
        (#{Prebuilt.target()}) from this version of codex_files, or unset it to have one built with \
        Rust #{Cargo.required_version()} or newer.\
        """)
    end
  end

  defp write_note(:prebuilt, path), do: File.write(note(), path)

  defp write_note(:built, _path) do
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
      # It is not a link.
      {:error, reason} when reason in [:einval, :enoent] -> :ok
      error -> error
    end
  end

  defp replace(origin, path, library) do
    cond do
      File.read(installed()) != {:ok, library} -> replace_by(origin, path, library)
      origin == :built or tried?() -> {:ok, :noop}
      true -> with :ok <- try_out(origin, path, installed()), do: {:ok, :noop}
    end
  end

  # The library is replaced by rename, because writing to one that a VM has loaded crashes that VM.
  defp replace_by(origin, path, library) do
    temporary = Path.join(Mix.Project.app_path(), ".#{System.pid()}.#{@library}")

    with :ok <- File.write(temporary, library),
         :ok <- File.chmod(temporary, 0o755),
         :ok <- try_out(origin, path, temporary),
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

  defp try_out(:built, _path, _copy), do: :ok

  defp try_out(:prebuilt, path, copy) do
    if target() == nil do
      with {:refused, reason} <- Trial.run(copy, ebin()),
           do: {:refused, String.replace(reason, copy, path)}
    else
      # This machine's VM could not load it.
      Mix.shell().info(
        "Installing #{path} untried, since CARGO_BUILD_TARGET says that it is for another machine"
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

  defp failure(message), do: {:error, message, []}

  defp diagnostic({severity, message, file, line}) do
    %Diagnostic{
      compiler_name: "codex_files",
      file: file,
      position: line,
      severity: severity,
      message: message
    }
  end
end
