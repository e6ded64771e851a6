defmodule Codex.Files.HostTest do
  # The whole library, in the ways that a host can take it.

  use ExUnit.Case, async: true

  import Codex.Files.HostProject

  @moduletag timeout: 900_000

  @host ~S"""
  def stage do
    File.write!("source", "content")
    {:ok, attachment} = Codex.Files.stage("source", name: "staged")
    "content" = File.read!(attachment.path)
    %{total_count: 1} = Codex.Files.metrics()
    [^attachment] = Codex.Files.list_staged()
    :ok = Codex.Files.reset!()
    IO.puts("staged #{attachment.name}")
  end
  """

  setup do
    folder = temporary_folder()

    write(folder, %{
      "host/test/test_helper.exs" => "ExUnit.start()",
      "host/test/host_test.exs" => """
      defmodule HostTest do
        use ExUnit.Case
        test("stages a file", do: assert(Host.stage() == :ok))
      end
      """
    })

    # The default staging directory is below the system's temporary one.
    %{folder: folder, host: Path.join(folder, "host"), env: [{"TMPDIR", folder}]}
  end

  defp library_by_path, do: ~s({:codex_files, path: "#{root()}"})

  defp dependencies(:alone, _folder), do: [deps: "[#{library_by_path()}]"]

  # The SDK has given its modules up for this library's.
  defp dependencies(:inside, folder) do
    sdk(Path.join(folder, "sdk"), files: false, deps: "[#{library_by_path()}]")
    [deps: ~s([{:codex_sdk, path: "../sdk"}])]
  end

  defp dependencies(:beside, folder) do
    sdk(Path.join(folder, "sdk"))

    [
      deps: ~s([{:codex_sdk, path: "../sdk"}, #{library_by_path()}]),
      compilers: "Mix.compilers() ++ [:codex_files_sdk]"
    ]
  end

  for {way, name} <- [alone: "alone", inside: "inside the SDK", beside: "beside the SDK"] do
    test "#{name}, a host compiles, runs, tests and releases", context do
      host(context.host, [host: @host] ++ dependencies(unquote(way), context.folder))
      env = [{"CODEX_FILES_NIF", library()} | context.env]
      prod = [{"MIX_ENV", "prod"} | env]

      mix!(context.host, ["deps.compile"], env)
      assert mix!(context.host, ["run", "-e", "Host.stage()"], env) =~ "staged staged"
      assert mix!(context.host, ["test"], env) =~ ~r/1 test, 0 failures|1 passed/
      mix!(context.host, ["release"], prod)
      assert release!(context.host, "Host.stage()", context.env) =~ "staged staged"
    end
  end

  test "a git repository of the package's files is built by cargo, runs and is released",
       context do
    package = Path.join(context.folder, "package")

    for file <- Mix.Project.config()[:package][:files], File.exists?(Path.join(root(), file)) do
      target = Path.join(package, file)
      File.mkdir_p!(Path.dirname(target))
      File.cp_r!(Path.join(root(), file), target)
    end

    commit(package)
    host(context.host, deps: "[{:codex_files, git: #{inspect(package)}}]", host: @host)
    env = [{"MIX_ENV", "prod"} | context.env]

    mix!(context.host, ["deps.get"], env)
    assert mix!(context.host, ["deps.compile"], env) =~ "Compiling codex_files_nif"
    assert mix!(context.host, ["run", "-e", "Host.stage()"], env) =~ "staged staged"
    mix!(context.host, ["release"], env)
    assert release!(context.host, "Host.stage()", context.env) =~ "staged staged"

    # The checkout is as it was, but for a file of Mix's own.
    status = ~w(status --porcelain -- . :!.fetch)
    assert {"", 0} = System.cmd("git", status, cd: Path.join(context.host, "deps/codex_files"))

    # The library is all that goes along.
    [released] = Path.wildcard("#{context.host}/_build/prod/rel/host/lib/codex_files-*")
    files = Enum.filter(Path.wildcard("#{released}/**"), &not_code?/1)
    assert files == ["#{released}/priv/native/libcodex_files_nif.so"]
  end

  defp not_code?(path), do: File.regular?(path) and Path.extname(path) not in [".beam", ".app"]
end
