defmodule Codex.Files.HostProject do
  @moduledoc false
  # Mix projects in a temporary folder, for the tests of what happens in a host. They are compiled by
  # an OS process of their own, with the Mix and the Erlang that run the tests.

  import ExUnit.Assertions
  import ExUnit.Callbacks

  @root Path.expand("../..", __DIR__)

  # What would lead the inner Mix or cargo elsewhere if whoever runs the tests had set it.
  @unset ~w(MIX_ENV MIX_TARGET MIX_EXS MIX_BUILD_PATH MIX_BUILD_ROOT MIX_DEPS_PATH MIX_QUIET ERL_LIBS
            CODEX_FILES_NIF CARGO_TARGET_DIR CARGO_BUILD_TARGET_DIR CARGO_BUILD_TARGET RUSTFLAGS)

  @doc "The top of this repository."
  def root, do: @root

  @doc "The native library that the tests themselves run with."
  def library, do: Application.app_dir(:codex_files, "priv/native/libcodex_files_nif.so")

  @doc "A file that begins as a library of this system does."
  def elf(content) do
    <<head::binary-40, _table::64, middle::binary-12, _entries::16, last::binary-2, _::binary>> =
      File.read!(library())

    <<head::binary, 0::64, middle::binary, 0::16, last::binary, content::binary>>
  end

  @doc "Creates a folder that goes when the test, or the module in `setup_all`, is done."
  def temporary_folder do
    path = Path.join(System.tmp_dir!(), "codex_files_test_#{System.pid()}_#{unique()}")
    File.mkdir_p!(path)
    on_exit(fn -> File.rm_rf!(path) end)

    # Mix resolves the current directory, so what it prints and records has no link in it. This VM's
    # stays what it is: other tests are being loaded by it.
    {resolved, 0} = System.cmd("pwd", ["-P"], cd: path)
    String.trim_trailing(resolved, "\n")
  end

  defp unique, do: System.unique_integer([:positive])

  @doc "Writes files given as a map of their content by relative path."
  def write(folder, files) do
    for {path, content} <- files do
      path = Path.join(folder, path)
      File.mkdir_p!(Path.dirname(path))
      File.write!(path, content)
    end

    folder
  end

  @doc "Makes a git repository of a folder, to depend on by `git:`."
  def commit(folder) do
    git = fn args ->
      identity = ~w(-c user.name=test -c user.email=test@localhost)
      {output, status} = System.cmd("git", identity ++ args, cd: folder, stderr_to_stdout: true)
      assert status == 0, output
    end

    git.(~w(init --quiet))
    git.(~w(add --all))
    git.(~w(commit --quiet --message test))
    folder
  end

  @doc "Runs mix and returns its exit status and what it printed."
  def mix(folder, args, env \\ []) do
    run(System.find_executable("mix"), folder, args, env)
  end

  @doc "Runs mix, which has to succeed, and returns what it printed."
  def mix!(folder, args, env \\ []) do
    {status, output} = mix(folder, args, env)
    assert status == 0, "mix #{Enum.join(args, " ")} failed:\n#{output}"
    output
  end

  @doc "Evaluates an expression in the release of a host, and returns what it printed."
  def release!(folder, expression, env \\ []) do
    executable = Path.join(folder, "_build/prod/rel/host/bin/host")
    {status, output} = run(executable, folder, ["eval", expression], env)
    assert status == 0, "#{executable} failed:\n#{output}"
    output
  end

  defp run(executable, folder, args, env) do
    env = Enum.map(@unset, &{&1, nil}) ++ env
    {output, status} = System.cmd(executable, args, cd: folder, env: env, stderr_to_stdout: true)
    {status, output}
  end

  @doc """
  Writes a host application.

  `:deps` is the source of its list of dependencies, `:compilers` that of its compilers. Its module
  `Host` has the functions given as source in `:host`.
  """
  def host(folder, opts) do
    write(folder, %{
      "mix.exs" => """
      defmodule Host.MixProject do
        use Mix.Project

        def project do
          [
            app: :host,
            version: "0.1.0",
            compilers: #{Keyword.get(opts, :compilers, "Mix.compilers()")},
            deps: #{Keyword.fetch!(opts, :deps)}
          ]
        end

        def application, do: [extra_applications: [:logger]]
      end
      """,
      "lib/host.ex" => """
      defmodule Host do
        #{Keyword.get(opts, :host, "")}
      end
      """
    })
  end

  @doc """
  Writes a miniature of this library: its `mix.exs` and its compilers, but of everything else only a
  stub, with a crate that is built in no time.
  """
  def miniature(folder) do
    File.mkdir_p!(Path.join(folder, "lib/mix"))
    File.cp!(Path.join(@root, "mix.exs"), Path.join(folder, "mix.exs"))
    File.cp_r!(Path.join(@root, "lib/mix"), Path.join(folder, "lib/mix"))
    File.mkdir_p!(Path.join(folder, "lib/codex/files"))

    # What the compilers use.
    for file <- ["cargo.ex", "prebuilt.ex", "trial.ex"] do
      path = Path.join("lib/codex/files", file)
      File.cp!(Path.join(@root, path), Path.join(folder, path))
    end

    write(folder, %{
      "lib/codex/files.ex" => """
      defmodule Codex.Files do
        def origin, do: :codex_files

        def stage(path) do
          checksum = Base.encode16(:crypto.hash(:sha256, File.read!(path)), case: :lower)
          {:ok, %{checksum: checksum}}
        end

        def format_error(reason), do: inspect(reason)
      end
      """,
      "lib/codex/files/attachment.ex" => attachment(),
      "lib/codex/files/registry.ex" => registry(:codex_files),
      "lib/codex/files/application.ex" => """
      defmodule Codex.Files.Application do
        use Application
        def start(_type, _args), do: Supervisor.start_link([], strategy: :one_for_one)
      end
      """,
      "lib/codex/files/native.ex" => """
      defmodule Codex.Files.Native do
        @compile {:autoload, false}
        def loaded, do: true
        # Takes any ELF file for a library.
        def load_from(_path), do: :ok
      end
      """,
      "Cargo.toml" => """
      [workspace]
      members = ["native/codex_files_nif"]
      resolver = "3"

      [workspace.package]
      rust-version = "#{rust_version()}"
      """,
      "Cargo.lock" => """
      version = 4

      [[package]]
      name = "codex_files_nif"
      version = "0.1.0"
      """,
      "native/codex_files_nif/Cargo.toml" => """
      [package]
      name = "codex_files_nif"
      version = "0.1.0"
      edition = "2024"
      rust-version.workspace = true

      [lib]
      crate-type = ["cdylib"]
      """,
      "native/codex_files_nif/src/lib.rs" => crate(1)
    })
  end

  @doc "The source of the miniature's crate, another for every answer."
  def crate(answer) do
    """
    #[cfg(panic = "abort")]
    compile_error!("a panic must unwind");

    #[unsafe(no_mangle)]
    pub extern "C" fn answer() -> u32 {
        #{answer}
    }
    """
  end

  @doc "The oldest Rust that builds this library, as its manifest says."
  def rust_version do
    [version] =
      Regex.run(~r/^rust-version = "(.+)"$/m, File.read!(Path.join(@root, "Cargo.toml")),
        capture: :all_but_first
      )

    version
  end

  @doc """
  Writes a stand-in of the Codex SDK: its supervisor, its three modules that this library has too,
  and one that matches the struct at compile time.

  With `files: false` the three modules are not there, and `:deps` brings this library.
  """
  def sdk(folder, opts \\ []) do
    write(folder, %{
      "mix.exs" => """
      defmodule Codex.MixProject do
        use Mix.Project

        def project do
          [
            app: :codex_sdk,
            version: "#{Keyword.get(opts, :version, "0.16.1")}",
            deps: #{Keyword.get(opts, :deps, "[]")}
          ]
        end

        def application, do: [mod: {Codex.Application, []}, extra_applications: [:logger]]
      end
      """,
      "lib/codex/application.ex" => """
      defmodule Codex.Application do
        use Application

        def start(_type, _args) do
          children = [{Task.Supervisor, name: Codex.TaskSupervisor}, {Codex.Files.Registry, []}]
          Supervisor.start_link(children, strategy: :one_for_one, name: Codex.Supervisor)
        end
      end
      """,
      "lib/codex/input.ex" => """
      defmodule Codex.Input do
        alias Codex.Files.Attachment
        def read(%Attachment{path: path}), do: File.read!(path)
      end
      """
    })

    if Keyword.get(opts, :files, true) do
      write(folder, %{
        "lib/codex/files.ex" =>
          attachment() <>
            """

            defmodule Codex.Files do
              def origin, do: :codex_sdk
            end
            """,
        "lib/codex/files/registry.ex" => registry(:codex_sdk)
      })
    end

    folder
  end

  defp attachment do
    """
    defmodule Codex.Files.Attachment do
      @enforce_keys [:id, :name, :path, :checksum, :size, :persist, :inserted_at, :ttl_ms]
      defstruct @enforce_keys
    end
    """
  end

  defp registry(origin) do
    """
    defmodule Codex.Files.Registry do
      use Agent
      def start_link(_opts), do: Agent.start_link(fn -> #{inspect(origin)} end, name: __MODULE__)
    end
    """
  end
end
