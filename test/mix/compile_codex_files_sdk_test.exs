defmodule Mix.Tasks.Compile.CodexFilesSdkTest do
  use ExUnit.Case, async: true

  import Codex.Files.HostProject

  @moduletag timeout: 300_000

  @names ~w(Codex.Files Codex.Files.Attachment Codex.Files.Registry)
  @replaced "Replaced Codex.Files, Codex.Files.Attachment, Codex.Files.Registry of codex_sdk"

  # Functions of the host that find out which definitions there are.
  @host ~S"""
  @names [Codex.Files, Codex.Files.Attachment, Codex.Files.Registry]

  def path(%Codex.Files.Attachment{path: path}), do: path

  defimpl String.Chars, for: Codex.Files.Attachment do
    def to_string(attachment), do: "attachment " <> attachment.name
  end

  def report do
    {:ok, _apps} = Application.ensure_all_started(:codex_sdk)
    on_path = :code.get_path() |> Enum.flat_map(&Path.wildcard("#{&1}/Elixir.Codex.Files.beam"))

    IO.inspect(length(on_path), label: "definitions")
    IO.inspect(Codex.Files.origin(), label: "functions")
    IO.inspect(Agent.get(Codex.Files.Registry, & &1), label: "registry")
    IO.inspect(is_pid(Process.whereis(Codex.TaskSupervisor)), label: "supervised")
    IO.inspect(@names -- (@names -- Application.spec(:codex_sdk, :modules)), label: "resource")
    IO.inspect(Application.get_env(:codex_sdk, :staging_dir), label: "environment")

    attachment =
      struct!(Codex.Files.Attachment,
        id: "0",
        name: "mix.exs",
        path: __ENV__.file,
        checksum: "0",
        size: 0,
        persist: false,
        inserted_at: DateTime.utc_now(),
        ttl_ms: 0
      )

    File.write!("attached", "content")
    IO.inspect(Codex.Input.read(%{attachment | path: "attached"}), label: "sdk")
    IO.puts(attachment)
  end
  """

  # What the report says when this library alone defines the three modules.
  @report """
  definitions: 1
  functions: :codex_files
  registry: :codex_files
  supervised: true
  resource: []
  environment: "staged"
  sdk: "content"
  attachment mix.exs
  """

  setup do
    %{folder: temporary_folder()}
  end

  # A host of a miniature of this library and of the stand-in of the SDK.
  defp project(folder, opts \\ []) do
    library = miniature(Path.join(folder, "library"))
    sdk = sdk(Path.join(folder, "sdk"), Keyword.take(opts, [:version]))

    source =
      case Keyword.get(opts, :by, :path) do
        :path ->
          fn path -> "path: #{inspect(path)}" end

        :git ->
          Enum.each([library, sdk], &commit/1)
          fn path -> "git: #{inspect(path)}" end
      end

    dependencies = ["{:codex_sdk, #{source.(sdk)}}", "{:codex_files, #{source.(library)}}"]

    write(Path.join(folder, "host"), %{
      "config/config.exs" => """
      import Config
      config :codex_sdk, staging_dir: "staged"
      """
    })

    host(
      Path.join(folder, "host"),
      Keyword.merge(
        [
          deps: "[#{Enum.join(dependencies, ", ")}]",
          compilers: "Mix.compilers() ++ [:codex_files_sdk]",
          host: @host
        ],
        Keyword.take(opts, [:deps, :compilers, :host])
      )
    )
  end

  # The library is not what is tested here: a file will do.
  defp env(project) do
    path = Path.join(project, "prebuilt")
    File.write!(path, elf("prebuilt"))
    [{"CODEX_FILES_NIF", path}]
  end

  defp compile!(project, args \\ []), do: mix!(project, ["compile" | args], env(project))
  defp report!(project), do: mix!(project, ["run", "-e", "Host.report()"], env(project))

  defp beams(project, app) do
    for name <- @names,
        File.exists?(Path.join(project, "_build/dev/lib/#{app}/ebin/Elixir.#{name}.beam")),
        do: name
  end

  defp task_result(project) do
    code = ~S|IO.inspect(Mix.Task.run("compile.codex_files_sdk", []), label: "returned")|

    {_status, output} =
      mix(project, ["run", "--no-compile", "--no-start", "-e", code], env(project))

    [_, result] = String.split(output, "returned: ")
    result
  end

  for by <- [:path, :git] do
    test "leaves one definition, in the VM that compiles and in the next one, by #{by}",
         context do
      project = project(context.folder, by: unquote(by))
      if unquote(by) == :git, do: mix!(project, ["deps.get"])

      first = report!(project)
      assert first =~ "#{@replaced} 0.16.1 by those of codex_files"
      assert String.ends_with?(first, @report)
      assert beams(project, :codex_sdk) == []
      assert beams(project, :codex_files) == @names

      second = report!(project)
      refute second =~ @replaced
      assert String.ends_with?(second, @report)
    end
  end

  test "finds nothing to do the second time", context do
    project = project(context.folder)
    assert [_] = Regex.scan(~r/Replaced/, compile!(project))
    refute compile!(project) =~ "Replaced"
    assert task_result(project) =~ ":noop"
  end

  test "replaces again when the SDK has been compiled again", context do
    project = project(context.folder)
    compile!(project)

    # On new versions of Mix the SDK is compiled without sight of codex_files, so one that has been
    # edited has to be compiled whole.
    source = Path.join(context.folder, "sdk/lib/codex/input.ex")

    File.write!(
      source,
      String.replace(File.read!(source), "def read", "def size(), do: 0\ndef read")
    )

    mix!(project, ["deps.compile", "codex_sdk", "--force"], env(project))
    assert beams(project, :codex_sdk) == @names

    assert compile!(project) =~ @replaced
    assert beams(project, :codex_sdk) == []
    assert String.ends_with?(report!(project), @report)
    refute compile!(project) =~ @replaced
  end

  test "replaces under a running application without disturbing it", context do
    project = project(context.folder)
    compile!(project)

    code = ~S"""
    {:ok, _apps} = Application.ensure_all_started(:codex_sdk)
    registry = Process.whereis(Codex.Files.Registry)

    {_output, 0} = System.cmd("mix", ["deps.compile", "codex_sdk", "--force"])
    Mix.Task.rerun("compile.codex_files_sdk")

    IO.inspect(Process.whereis(Codex.Files.Registry) == registry, label: "same process")
    IO.inspect(Codex.Files.origin(), label: "functions")
    """

    output = mix!(project, ["run", "-e", code], env(project))
    assert output =~ @replaced
    assert String.ends_with?(output, "same process: true\nfunctions: :codex_files\n")
    assert beams(project, :codex_sdk) == []
  end

  test "keeps the environment of the application that Mix has loaded", context do
    project = project(context.folder)
    compile!(project)
    mix!(project, ["deps.compile", "codex_sdk", "--force"], env(project))

    code = ~S"""
    Application.load(:codex_sdk)
    IO.inspect(Codex.Files in Application.spec(:codex_sdk, :modules), label: "listed")
    Application.put_env(:codex_sdk, :attachment_ttl_ms, 5)
    Mix.Task.run("compile.codex_files_sdk")
    IO.inspect(Codex.Files in Application.spec(:codex_sdk, :modules), label: "listed")
    IO.inspect(Application.get_env(:codex_sdk, :attachment_ttl_ms), label: "environment")
    """

    output = mix!(project, ["run", "--no-compile", "--no-start", "-e", code], env(project))

    assert [["true"], ["false"]] =
             Regex.scan(~r/^listed: (.+)$/m, output, capture: :all_but_first)

    assert String.ends_with?(output, "environment: 5\n")
  end

  test "lets a release be made, with one definition in it", context do
    project = project(context.folder)
    env = [{"MIX_ENV", "prod"} | env(project)]

    assert mix!(project, ["release"], env) =~ @replaced
    refute mix!(project, ["release", "--overwrite"], env) =~ "Duplicated modules"

    assert String.ends_with?(release!(project, "Host.report()"), @report)
  end

  test "may come before the other compilers, for a host that calls what only codex_files has",
       context do
    project =
      project(context.folder,
        compilers: "[:codex_files_sdk] ++ Mix.compilers()",
        host: @host <> "def message, do: Codex.Files.format_error(:enoent)"
      )

    assert compile!(project, ["--warnings-as-errors"]) =~ @replaced
    assert String.ends_with?(report!(project), @report)
    refute compile!(project) =~ @replaced
  end

  test "works for an application of an umbrella", context do
    project = project(context.folder)
    umbrella = Path.join(context.folder, "umbrella")
    File.mkdir_p!(Path.join(umbrella, "apps"))
    File.rename!(project, Path.join(umbrella, "apps/host"))

    mix_exs = Path.join(umbrella, "apps/host/mix.exs")

    File.write!(
      mix_exs,
      String.replace(
        File.read!(mix_exs),
        "app: :host,",
        ~s(app: :host, build_path: "../../_build", deps_path: "../../deps", lockfile: "../../mix.lock",)
      )
    )

    write(umbrella, %{
      "mix.exs" => """
      defmodule Umbrella.MixProject do
        use Mix.Project
        def project, do: [apps_path: "apps", version: "0.1.0", deps: []]
      end
      """
    })

    assert compile!(umbrella) =~ @replaced
    assert beams(umbrella, :codex_sdk) == []
    refute compile!(umbrella) =~ @replaced
  end

  test "without the SDK among the dependencies is a clear error", context do
    project = project(context.folder, deps: ~s([{:codex_files, path: "../library"}]), host: "")

    assert {1, output} = mix(project, ["compile"], env(project))
    assert output =~ "of codex_sdk: expected it to be a dependency in the dev environment"
    refute output =~ "** ("

    assert task_result(project) =~ "{:error,"
  end

  for version <- ["0.16.0", "0.18.2"] do
    test "warns that version #{version} of the SDK was not tried, and replaces it", context do
      project = project(context.folder, version: unquote(version))
      output = compile!(project)

      assert output =~
               "warning: codex_files was tried with codex_sdk 0.16.1 to 0.18.1, got: #{unquote(version)}"

      assert output =~ @replaced
      assert beams(project, :codex_sdk) == []
    end
  end

  for version <- ["0.16.1", "0.18.1"] do
    test "does not warn of version #{version} of the SDK", context do
      project = project(context.folder, version: unquote(version))
      output = compile!(project)

      assert output =~ @replaced
      refute output =~ "was tried with"
    end
  end

  test "removes nothing while there is nothing to take its place", context do
    project = project(context.folder)
    compile!(project)
    mix!(project, ["deps.compile", "codex_sdk", "--force"], env(project))

    own = Path.join(project, "_build/dev/lib/codex_files/ebin/Elixir.Codex.Files.Registry.beam")
    File.rm!(own)

    assert {1, output} = mix(project, ["compile"], env(project))
    assert output =~ "could not find #{own}"
    assert beams(project, :codex_sdk) == @names
  end
end
