defmodule Codex.Files.SetupTest do
  # What `bin/setup` decides on a fresh machine. Nothing is installed: apt, rustup and cargo are
  # stand-ins, in a PATH of the test's own.

  use ExUnit.Case, async: true

  import Codex.Files.HostProject, only: [root: 0, rust_version: 0, temporary_folder: 0]

  # What the script needs of a system.
  @programs ~w(bash env dirname mktemp rm sed sort tail)

  setup do
    folder = temporary_folder()
    bin = Path.join(folder, "bin")
    File.mkdir_p!(bin)
    for name <- @programs, do: File.ln_s!(System.find_executable(name), Path.join(bin, name))

    # A machine of root's with Elixir and a C linker.
    for name <- ~w(cc mix erl), do: stand_in(bin, name, ":")
    stand_in(bin, "id", "echo 0")

    prepared = Path.join(folder, "prepared")
    File.mkdir_p!(prepared)
    %{bin: bin, log: Path.join(folder, "log"), prepared: prepared}
  end

  defp stand_in(bin, name, script) do
    path = Path.join(bin, name)
    File.write!(path, "#!/usr/bin/env bash\n#{script}\n")
    File.chmod!(path, 0o755)
  end

  # A distribution, of which `install` is run when it is to install what it has.
  defp distribution(context, packages, install \\ ":") do
    stand_in(context.bin, "apt-cache", "[[ $1 = show && $2 =~ ^(#{Enum.join(packages, "|")})$ ]]")

    stand_in(context.bin, "apt-get", """
    echo "apt-get $*" >>#{context.log}
    [ $1 = update ] || #{install}
    """)
  end

  defp link, do: System.find_executable("ln") <> " -s"

  # Cargo comes with it, and runs once there is a toolchain.
  defp rustup(context, folder) do
    stand_in(folder, "rustup", """
    echo "rustup $*" >>#{context.log}
    case $1 in
      toolchain) echo $3 >#{context.prepared}/toolchain ;;
      default) [ -e #{context.prepared}/toolchain ] ;;
    esac
    """)

    stand_in(folder, "cargo", """
    [ -e #{context.prepared}/toolchain ] || { echo 'no default toolchain' >&2; exit 1; }
    read -r version <#{context.prepared}/toolchain
    echo "cargo $version.0 (0123456 2025-09-01)"
    """)
  end

  defp setup_script(context, args \\ []) do
    env = [{"PATH", context.bin}, {"CARGO", nil}]
    script = Path.join(root(), "bin/setup")
    System.cmd(script, args, env: env, stderr_to_stdout: true)
  end

  defp log(context) do
    case File.read(context.log) do
      {:ok, log} -> String.split(log, "\n", trim: true)
      {:error, :enoent} -> []
    end
  end

  test "is silent where everything is there", context do
    stand_in(context.bin, "cargo", "echo 'cargo #{rust_version()}.0'")
    assert setup_script(context) == {"", 0}

    stand_in(context.bin, "cargo", "echo 'cargo 1.1000.0-nightly (0123456 2025-09-01)'")
    assert setup_script(context) == {"", 0}
  end

  test "installs rustup and a toolchain where the distribution has rustup", context do
    %{bin: bin, prepared: prepared} = context
    distribution(context, ["rustup"], "#{link()} #{prepared}/{rustup,cargo} #{bin}")
    rustup(context, prepared)
    version = rust_version()

    assert setup_script(context, ["rustfmt", "clippy"]) ==
             {"installing rustup ...\ninstalling Rust #{version} ...\n", 0}

    assert log(context) == [
             "apt-get update",
             "apt-get install -y --no-install-recommends rustup",
             "rustup toolchain install #{version} --profile minimal --component=rustfmt --component=clippy",
             "rustup default #{version}"
           ]

    assert setup_script(context) == {"", 0}
  end

  test "installs a toolchain where rustup has none", context do
    rustup(context, context.bin)
    version = rust_version()

    assert setup_script(context) == {"installing Rust #{version} ...\n", 0}

    assert log(context) == [
             "rustup toolchain install #{version} --profile minimal",
             "rustup default #{version}"
           ]
  end

  test "says in two lines what to type where the distribution has no rustup", context do
    # The rest is installed all the same.
    %{bin: bin} = context
    distribution(context, ["gcc"], "#{link()} #{bin}/mix #{bin}/cc")
    File.rm!(Path.join(bin, "cc"))

    assert {output, 1} = setup_script(context)

    assert log(context) == [
             "apt-get update",
             "apt-get install -y --no-install-recommends gcc libc6-dev"
           ]

    assert ["installing gcc libc6-dev rustup ...", expected, "  curl " <> _, "  . " <> _, ""] =
             String.split(output, "\n")

    assert expected ==
             "expected Rust #{rust_version()} or newer, got: no cargo that runs. To install it type"
  end

  test "says both numbers where Rust is too old, and installs nothing over it", context do
    cargo = Path.join(context.bin, "cargo")
    stand_in(context.bin, "cargo", "echo 'cargo 1.9.0 (0123456 2016-05-01)'")

    expected =
      "expected Rust #{rust_version()} or newer, got: 1.9.0 (#{cargo}). To install it type\n"

    assert {output, 1} = setup_script(context)
    assert output =~ expected
    assert output =~ "  curl "

    stand_in(context.bin, "rustup", "exit 99")
    assert {output, 1} = setup_script(context)

    assert output ==
             expected <>
               "  rustup toolchain install #{rust_version()} --profile minimal && rustup default #{rust_version()}\n"
  end

  test "shows what a failed installation said", context do
    rustup(context, context.bin)
    stand_in(context.bin, "rustup", "echo 'could not download'; exit 1")

    assert setup_script(context) ==
             {"installing Rust #{rust_version()} ...\ncould not download\n" <>
                "could not install Rust #{rust_version()}: see above\n", 1}
  end

  test "leaves packages to root, or to sudo", context do
    distribution(context, ["rustup"])
    stand_in(context.bin, "id", "echo 1000")

    assert setup_script(context) ==
             {"expected to run as root, or to find sudo, to install rustup\n", 1}

    assert log(context) == []
    stand_in(context.bin, "sudo", "echo \"sudo $*\" >>#{context.log}; exit 1")
    assert {_output, 1} = setup_script(context)
    assert log(context) == ["sudo apt-get update"]
  end
end
