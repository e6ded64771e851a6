defmodule Mix.Tasks.Compile.CodexFilesTest do
  use ExUnit.Case, async: true

  import Codex.Files.HostProject

  @moduletag timeout: 300_000

  setup do
    %{folder: temporary_folder()}
  end

  # A miniature that is compiled for itself, in the dev environment.
  defp alone(%{folder: folder}), do: %{project: miniature(folder)}

  # A miniature in a folder of its own, and a host that depends on it.
  defp hosted(%{folder: folder}) do
    library = miniature(Path.join(folder, "library"))
    host = host(Path.join(folder, "host"), deps: ~s([{:codex_files, path: "../library"}]))
    %{library: library, host: host}
  end

  defp build_path(project, env \\ "dev"), do: Path.join(project, "_build/#{env}/lib/codex_files")

  defp installed(project, env \\ "dev") do
    Path.join(build_path(project, env), "priv/native/libcodex_files_nif.so")
  end

  # What the task returns when it runs in a compiled project, as source.
  defp task_result(project, env \\ []) do
    code = ~S"""
    IO.inspect(Mix.Task.run("compile.codex_files", []), label: "returned", limit: :infinity)
    """

    {_status, output} = mix(project, ["run", "--no-compile", "--no-start", "-e", code], env)
    [_, result] = String.split(output, "returned: ")
    result
  end

  # What remembers where a prebuilt library came from.
  defp note(project), do: Path.rootname(installed(project)) <> ".prebuilt"

  # The miniature takes any file for a library. With the real module it takes the real one only.
  defp with_real_module(project) do
    native = "lib/codex/files/native.ex"
    File.cp!(Path.join(root(), native), Path.join(project, native))
  end

  defp no_cargo, do: {"CARGO", "no-such-cargo"}

  # What a compilation says, other than that it waits for another cargo on this machine.
  defp compile_again!(project) do
    project |> mix!(["compile"]) |> String.replace(~r/^ *Blocking waiting .*\n/m, "")
  end

  defp executable(folder, name, script) do
    write(folder, %{name => "#!/bin/sh\n" <> script})
    path = Path.join(folder, name)
    File.chmod!(path, 0o755)
    path
  end

  # The files below a folder and their content, but for what Mix builds in it.
  defp snapshot(folder) do
    for path <- Path.wildcard(Path.join(folder, "**"), match_dot: true),
        File.regular?(path),
        not String.starts_with?(path, Path.join(folder, "_build")),
        into: %{},
        do: {path, File.read!(path)}
  end

  describe "building" do
    setup :alone

    test "installs the library, and a second run finds nothing to do and says nothing", context do
      assert mix!(context.project, ["compile"]) =~ "Compiling codex_files_nif"
      assert File.regular?(installed(context.project))

      assert compile_again!(context.project) == ""
      assert task_result(context.project) =~ "{:noop, []}"
    end

    test "follows the sources, and leaves alone the file that a VM may have loaded", context do
      mix!(context.project, ["compile"])
      loaded = Path.join(context.folder, "loaded.so")
      File.ln!(installed(context.project), loaded)
      before = File.read!(loaded)

      write(context.project, %{"native/codex_files_nif/src/lib.rs" => crate(2)})
      # Nobody in that VM has loaded a library that it would have to be restarted for.
      refute mix!(context.project, ["compile"]) =~ "restart"

      assert File.read!(loaded) == before
      assert File.read!(installed(context.project)) != before
    end

    test "leaves nothing but the library in what a release copies", context do
      mix!(context.project, ["compile"])
      build_path = build_path(context.project)

      priv = Path.join(build_path, "priv")

      assert Path.wildcard("#{priv}/**", match_dot: true) -- ["#{priv}/native"] ==
               [installed(context.project)]

      assert Path.wildcard("#{build_path}/ebin/*.{so,rlib,d}") == []
    end

    test "says that a restart is needed when the VM has loaded the former library", context do
      mix!(context.project, ["compile"])

      code = """
      Codex.Files.Native.loaded()
      Mix.Task.rerun("compile.codex_files")
      IO.puts("unchanged")
      File.write!("native/codex_files_nif/src/lib.rs", #{inspect(crate(3))})
      Mix.Task.rerun("compile.codex_files")
      """

      [unchanged, changed] =
        context.project |> mix!(["run", "-e", code]) |> String.split("unchanged")

      refute unchanged =~ "restart"
      assert [_] = Regex.scan(~r/^The native library .* restart the VM/m, changed)
    end

    test "returns what the compiler said of the sources as diagnostics", context do
      mix!(context.project, ["compile"])
      source = Path.join(context.project, "native/codex_files_nif/src/lib.rs")

      File.write!(source, crate(4) <> "fn unused() {}\n")
      warned = task_result(context.project)
      assert warned =~ "{:ok,"
      assert warned =~ "severity: :warning"
      assert warned =~ "function `unused` is never used"
      assert warned =~ inspect(source)
      assert warned =~ "position: 8"

      File.write!(source, crate("\"four\""))
      assert {1, output} = mix(context.project, ["compile"])

      assert output =~
               "could not build the native library of codex_files: cargo exited with status 101"

      refute output =~ "** ("

      failed = task_result(context.project)
      assert failed =~ "{:error,"
      assert failed =~ "severity: :error"
      assert failed =~ "mismatched types"
    end

    test "fails rather than changing the lock file", context do
      lock = Path.join(context.project, "Cargo.lock")
      before = File.read!(lock)
      manifest = Path.join(context.project, "native/codex_files_nif/Cargo.toml")
      File.write!(manifest, String.replace(File.read!(manifest), "0.1.0", "0.2.0"))

      assert {1, output} = mix(context.project, ["compile"])
      assert output =~ "--locked"
      assert File.read!(lock) == before
    end

    test "is undone by clean", context do
      mix!(context.project, ["compile"])
      code = "Mix.Tasks.Compile.CodexFiles.clean()"
      mix!(context.project, ["run", "--no-compile", "--no-start", "-e", code])

      refute File.exists?(Path.join(build_path(context.project), "priv"))
      refute File.exists?(Path.join(build_path(context.project), "cargo"))

      mix!(context.project, ["compile"])
      mix!(context.project, ["clean"])
      refute File.exists?(build_path(context.project))
    end

    test "does not follow a linked priv into the source folder", context do
      write(context.project, %{"priv/data.txt" => "data"})

      mix!(context.project, ["compile"])
      assert File.ls!(Path.join(context.project, "priv")) == ["data.txt"]
      assert File.read!(Path.join(build_path(context.project), "priv/data.txt")) == "data"
      assert File.regular?(installed(context.project))

      assert compile_again!(context.project) == ""
    end
  end

  describe "cargo" do
    setup :alone

    test "that is missing is one message with the remedy", context do
      assert {1, output} = mix(context.project, ["compile"], [{"CARGO", "no-such-cargo"}])
      assert output =~ "could not find no-such-cargo"
      assert_remedy(output)
    end

    test "that is too old is one message with the remedy", context do
      cargo = executable(context.folder, "old", "echo 'cargo 1.65.0'")

      assert {1, output} = mix(context.project, ["compile"], [{"CARGO", cargo}])
      assert output =~ "expected #{cargo} to be version #{rust_version()} or newer, got: 1.65.0"
      assert_remedy(output)
    end

    test "that cannot run is one message with the reason and the remedy", context do
      for {script, said} <- [
            {"echo 'no default toolchain' >&2; exit 1", "no default toolchain"},
            {"exit 3", "it exited with status 3 and said nothing"}
          ] do
        cargo = executable(context.folder, "broken", script)

        assert {1, output} = mix(context.project, ["compile"], [{"CARGO", cargo}])
        assert output =~ "could not run #{cargo}: #{said}"
        assert_remedy(output)
      end
    end

    test "may be a nightly of the oldest version", context do
      cargo =
        executable(context.folder, "nightly", """
        test $1 = --version && echo 'cargo #{rust_version()}.0-nightly (0123456 2025-09-01)' && exit
        echo nothing built; exit 7
        """)

      assert {1, output} = mix(context.project, ["compile"], [{"CARGO", cargo}])
      assert output =~ "nothing built"
      assert output =~ "cargo exited with status 7"
    end

    test "may build a .dylib, which is installed as the .so that the VM looks for", context do
      write(context.folder, %{"out/libcodex_files_nif.dylib" => "dylib"})
      library = Path.join(context.folder, "out/libcodex_files_nif.dylib")

      cargo =
        executable(context.folder, "mac", """
        test $1 = --version && echo 'cargo 99.0.0' && exit
        echo '{"reason":"compiler-artifact","filenames":["#{library}"]}'
        """)

      mix!(context.project, ["compile"], [{"CARGO", cargo}])
      assert File.read!(installed(context.project)) == "dylib"
    end

    test "builds for CARGO_BUILD_TARGET", context do
      {version, 0} = System.cmd("rustc", ["-vV"])
      [_, target] = Regex.run(~r/^host: (.+)$/m, version)

      mix!(context.project, ["compile"], [{"CARGO_BUILD_TARGET", target}])
      assert File.dir?(Path.join([build_path(context.project), "cargo", target, "debug"]))
      assert File.regular?(installed(context.project))
    end

    defp assert_remedy(output) do
      assert output =~ "Rust #{rust_version()} or newer: install it as https://rustup.rs says"
      assert output =~ "CODEX_FILES_NIF"
      refute output =~ "** ("
    end
  end

  describe "CODEX_FILES_NIF" do
    setup :alone

    test "is installed, without cargo", context do
      write(context.folder, %{"prebuilt" => elf("prebuilt")})
      prebuilt = Path.join(context.folder, "prebuilt")
      File.chmod!(prebuilt, 0o400)
      env = [{"CODEX_FILES_NIF", prebuilt}, no_cargo()]

      mix!(context.project, ["compile"], env)
      assert File.read!(installed(context.project)) == elf("prebuilt")
      # Whoever runs a release is often not the one who has built it.
      assert Bitwise.band(File.stat!(installed(context.project)).mode, 0o777) == 0o755
      refute File.exists?(Path.join(build_path(context.project), "cargo"))
      assert File.read!(note(context.project)) == prebuilt

      assert task_result(context.project, env) =~ "{:noop, []}"
      mix!(context.project, ["run", "-e", "Mix.Tasks.Compile.CodexFiles.clean()"], env)
      refute File.exists?(Path.join(build_path(context.project), "priv"))
    end

    test "may be an archive, or a folder of archives with their sums", context do
      target = Codex.Files.Prebuilt.target()
      name = "libcodex_files_nif-v#{Mix.Project.config()[:version]}-nif-2.15-#{target}.so"
      archives = Path.join(context.folder, "archives")
      File.mkdir!(archives)
      archive = Path.join(archives, "#{name}.tar.gz")
      content = elf("packed")
      :ok = :erl_tar.create(archive, [{String.to_charlist(name), content}], [:compressed])

      for named <- [archive, archives] do
        env = [{"CODEX_FILES_NIF", named}, no_cargo()]
        mix!(context.project, ["compile"], env)
        assert File.read!(installed(context.project)) == content
        assert File.read!(note(context.project)) == archive
        assert task_result(context.project, env) =~ "{:noop, []}"
        File.rm!(installed(context.project))
      end

      write(archives, %{"checksum-Elixir.Codex.Files.Native.exs" => "%{}"})
      assert {1, output} = mix(context.project, ["compile"], [{"CODEX_FILES_NIF", archives}])

      assert output =~
               ~r/^could not install .* from #{archive}: expected its sum to be in .*, got none$/m

      refute File.exists?(installed(context.project))
    end

    test "for a target is taken from a folder by CARGO_BUILD_TARGET", context do
      version = Mix.Project.config()[:version]
      write(context.folder, %{"archives/notes" => ""})

      for target <- [Codex.Files.Prebuilt.target(), "riscv64gc-another-machine"] do
        name = "libcodex_files_nif-v#{version}-nif-2.15-#{target}.so"
        archive = Path.join(context.folder, "archives/#{name}.tar.gz")
        :ok = :erl_tar.create(archive, [{String.to_charlist(name), target}], [:compressed])
      end

      env = [
        {"CODEX_FILES_NIF", Path.join(context.folder, "archives")},
        {"CARGO_BUILD_TARGET", "riscv64gc-another-machine"}
      ]

      mix!(context.project, ["compile"], env)
      assert File.read!(installed(context.project)) == "riscv64gc-another-machine"
    end

    test "that is no file is one message", context do
      fifo = Path.join(context.folder, "fifo")
      {"", 0} = System.cmd("mkfifo", [fifo])

      for {path, message} <- [
            {"/no/such/library",
             "could not install the native library of codex_files from /no/such/library: " <>
               "no such file or directory"},
            {fifo, "from #{fifo}: expected a regular file"},
            {"relative/library",
             "expected CODEX_FILES_NIF to be an absolute path, got: relative/library"}
          ] do
        assert {1, output} = mix(context.project, ["compile"], [{"CODEX_FILES_NIF", path}])
        assert output =~ message
        refute output =~ "** ("
      end
    end

    test "that cannot be loaded is refused in one message, and what is installed stays",
         context do
      with_real_module(context.project)
      mix!(context.project, ["compile"], [{"CODEX_FILES_NIF", library()}])
      whole = File.read!(library())
      size = byte_size(whole)
      assert File.read!(installed(context.project)) == whole

      cut = fn bytes, length -> binary_part(bytes, 0, length) end
      # Without the table at its end that says how long it has to be.
      <<_header::binary-64, rest::binary>> = whole
      unknown_size = elf(rest)
      <<head::binary-18, machine::binary-2, rest::binary>> = whole
      [own, other] = if machine == <<62, 0>>, do: ~w(x86_64 aarch64), else: ~w(aarch64 x86_64)
      other_machine = if machine == <<62, 0>>, do: <<183, 0>>, else: <<62, 0>>
      crypto = Path.join(:code.priv_dir(:crypto), "lib/crypto.so")

      for {content, reason} <- [
            {"", "expected a library in the ELF format, got: an empty file"},
            {cut.(whole, 63), "expected at least 64 bytes, got: 63"},
            {cut.(whole, 4_096), "expected #{size} bytes, got: 4096"},
            {cut.(whole, div(size, 2)), "expected #{size} bytes, got: #{div(size, 2)}"},
            {cut.(whole, size - 1), "expected #{size} bytes, got: #{size - 1}"},
            {cut.(unknown_size, 65_536),
             "it is damaged: the VM that tries it ends with status 1"},
            {<<head::binary, other_machine::binary, rest::binary>>,
             "expected a library for #{own}, got: #{other}"},
            {"a text\n",
             ~S(expected a library in the ELF format, got: 7 bytes that begin with "a text\n")},
            {File.read!(crypto), "Library module name 'crypto' does not match"}
          ] do
        write(context.folder, %{"damaged.so" => content})
        damaged = Path.join(context.folder, "damaged.so")

        assert {1, output} = mix(context.project, ["compile"], [{"CODEX_FILES_NIF", damaged}])
        assert [message] = Regex.run(~r/^could not install .* from #{damaged}: .*$/m, output)
        assert message =~ reason
        assert output =~ "Nothing was installed. Name a whole library in CODEX_FILES_NIF"
        refute output =~ "** ("
        refute output =~ "#{build_path(context.project)}/."
        assert File.read!(installed(context.project)) == whole
        assert File.read!(note(context.project)) == library()
      end

      # Neither a copy nor an image of the VM that died.
      assert Enum.sort(File.ls!(build_path(context.project))) -- ["consolidated"] ==
               [".mix", "ebin", "priv"]
    end

    test "of another version is refused, also if it is the one that is installed", context do
      with_real_module(context.project)
      env = [{"CODEX_FILES_NIF", library()}]
      mix!(context.project, ["compile"], env)
      native = Path.join(context.project, "lib/codex/files/native.ex")

      newer =
        String.replace(
          File.read!(native),
          "  defp not_loaded,",
          "  def newer(_handle, _opts), do: not_loaded()\n\n  defp not_loaded,"
        )

      File.write!(native, newer)

      for again <- [fn -> :ok end, fn -> File.rm_rf!(build_path(context.project)) end] do
        again.()
        assert {1, output} = mix(context.project, ["compile"], env)
        assert output =~ "expected it to have the function newer/2 of this version"
      end

      refute File.exists?(installed(context.project))
    end

    test "for another machine is not tried, and a VM that cannot load it says whose fault it is",
         context do
      with_real_module(context.project)
      write(context.folder, %{"foreign.so" => "of another machine"})
      foreign = Path.join(context.folder, "foreign.so")
      env = [{"CODEX_FILES_NIF", foreign}, {"CARGO_BUILD_TARGET", "another-machine"}]

      output = mix!(context.project, ["compile"], env)
      assert output =~ "Installing #{foreign} untried, since CARGO_BUILD_TARGET"

      output = load(context.project)
      assert output =~ "codex_files: could not load #{installed(context.project)}: "
      assert output =~ "file too short"
      assert output =~ "It is a copy of #{inspect(foreign)}, which CODEX_FILES_NIF named"
      assert output =~ "Name a library that was built for this system"
      assert output =~ ~s(run "mix deps.compile codex_files --force"; or unset CODEX_FILES_NIF)
    end

    test "was not what named a library that cargo has built", context do
      with_real_module(context.project)
      # The miniature's own is no NIF library.
      mix!(context.project, ["compile"])

      output = load(context.project)
      assert output =~ "codex_files: could not load #{installed(context.project)}: "

      assert output =~
               ~s("mix deps.clean codex_files --build", then "mix deps.compile codex_files")

      refute output =~ "CODEX_FILES_NIF"
    end

    defp load(project) do
      code = "Codex.Files.Native.available?()"
      {_status, output} = mix(project, ["run", "--no-compile", "--no-start", "-e", code])
      output
    end
  end

  describe "without cargo, a library that was built before" do
    setup :hosted

    setup context do
      mix!(context.host, ["compile"])
      %{built: File.read!(installed(context.host))}
    end

    defp lib_rs(context), do: Path.join(context.library, "native/codex_files_nif/src/lib.rs")

    test "stays in use while the sources are unchanged", context do
      assert mix!(context.host, ["compile"], [no_cargo()]) == ""

      # Checked out anew, at another time.
      File.touch!(lib_rs(context), 1_000_000_000)
      File.rm!(installed(context.host))
      mix!(context.host, ["compile"], [no_cargo()])
      assert File.read!(installed(context.host)) == context.built

      old = executable(context.folder, "old", "echo 'cargo 1.65.0'")
      mix!(context.host, ["compile"], [{"CARGO", old}])
    end

    test "stays in use where everything has been moved", context do
      moved = context.folder <> "_moved"
      on_exit(fn -> File.rm_rf!(moved) end)
      File.cp_r!(context.folder, moved)
      host = Path.join(moved, "host")
      File.rm!(installed(host))
      File.rm_rf!(context.folder)

      mix!(host, ["compile"], [no_cargo()])
      assert File.read!(installed(host)) == context.built
    end

    test "is of no use when a source has changed", context do
      for file <- ["native/codex_files_nif/src/lib.rs", "Cargo.lock"] do
        path = Path.join(context.library, file)
        before = File.read!(path)
        File.write!(path, before <> "\n")
        assert_needs_cargo(context, [])
        File.write!(path, before)
        mix!(context.host, ["compile"], [no_cargo()])
      end

      # Nor is what an interrupted build may have left.
      File.write!(lib_rs(context), crate("\"four\""))
      assert {1, _output} = mix(context.host, ["compile"])
      assert_needs_cargo(context, [])
    end

    test "is of no use for another target or profile", context do
      assert_needs_cargo(context, [{"CARGO_BUILD_TARGET", "another-machine"}])

      dependency = ~s({:codex_files, path: "../library", env: :dev})
      host(context.host, deps: "[#{dependency}]")
      assert_needs_cargo(context, [])
    end

    test "comes back when CODEX_FILES_NIF is unset", context do
      write(context.folder, %{"prebuilt" => elf("prebuilt")})
      prebuilt = Path.join(context.folder, "prebuilt")
      mix!(context.host, ["compile"], [{"CODEX_FILES_NIF", prebuilt}])
      assert File.read!(installed(context.host)) == elf("prebuilt")

      mix!(context.host, ["compile"], [no_cargo()])
      assert File.read!(installed(context.host)) == context.built
      refute File.exists?(note(context.host))
    end

    defp assert_needs_cargo(context, env) do
      assert {1, output} = mix(context.host, ["compile"], [no_cargo() | env])
      assert output =~ "could not find no-such-cargo"
      assert_remedy(output)
    end
  end

  describe "as a dependency" do
    setup :hosted

    test "builds with the release profile, below the host's build path only", context do
      before = snapshot(context.library)
      mix!(context.host, ["compile"])

      assert File.regular?(installed(context.host))
      assert File.dir?(Path.join(build_path(context.host), "cargo/release"))
      assert snapshot(context.library) == before
      refute File.exists?(Path.join(context.library, "_build"))

      assert compile_again!(context.host) == ""
    end

    test "builds for two environments and two hosts at once", context do
      other =
        host(Path.join(context.folder, "other"), deps: ~s([{:codex_files, path: "../library"}]))

      [{context.host, "dev"}, {context.host, "test"}, {other, "dev"}]
      |> Enum.map(fn {host, env} ->
        Task.async(fn ->
          mix!(host, ["compile"], [{"MIX_ENV", env}])
          assert File.regular?(installed(host, env))
        end)
      end)
      |> Task.await_many(:infinity)
    end

    test "is not led astray by the host's cargo settings", context do
      {version, 0} = System.cmd("rustc", ["-vV"])
      [_, target] = Regex.run(~r/^host: (.+)$/m, version)
      elsewhere = Path.join(context.folder, "elsewhere")

      # The host is a Cargo workspace, with the dependency below it.
      File.rename!(context.library, Path.join(context.host, "vendored"))

      write(context.host, %{
        "Cargo.toml" => "[workspace]\nmembers = []\n",
        ".cargo/config.toml" => """
        [build]
        target = "#{target}"
        target-dir = "#{elsewhere}"

        [profile.release]
        panic = "abort"
        """
      })

      host(context.host, deps: ~s([{:codex_files, path: "vendored"}]))

      mix!(context.host, ["compile"], [
        {"CARGO_TARGET_DIR", elsewhere},
        {"CARGO_PROFILE_RELEASE_PANIC", "abort"},
        {"RUSTFLAGS", "-Dwarnings"}
      ])

      assert File.regular?(installed(context.host))
      assert File.dir?(Path.join([build_path(context.host), "cargo", target, "release"]))
      refute File.exists?(elsewhere)
    end

    test "makes the host's compilation fail in one message when there is no cargo", context do
      assert {1, output} = mix(context.host, ["compile"], [{"CARGO", "no-such-cargo"}])
      assert [_] = Regex.scan(~r/could not find no-such-cargo/, output)
      assert output =~ "could not compile dependency :codex_files"
    end
  end
end
