defmodule Codex.Files.PrecompileTest do
  # What `bin/precompile` makes of a build. Nothing is built: Rust and Python are stand-ins, and the
  # library is one that an earlier build has left.

  use ExUnit.Case, async: true

  import Codex.Files.HostProject, only: [root: 0, temporary_folder: 0, write: 2]

  @target "x86_64-unknown-linux-gnu"
  @archive "libcodex_files_nif-v1.2.3-nif-2.15-#{@target}.so.tar.gz"
  @stand_ins %{
    "rustc" => "echo /",
    "cc" => "exit 1",
    "readelf" => ":",
    "python3" => ~S[mkdir -p "$3/bin" && ln -s "$(type -P true)" "$3/bin/pip"]
  }

  setup do
    folder = temporary_folder()

    write(folder, %{
      "bin/precompile" => File.read!(Path.join(root(), "bin/precompile")),
      "mix.exs" => ~s(  @version "1.2.3"\n),
      "_build/precompile/target/#{@target}/release/libcodex_files_nif.so" => "of before"
    })

    %{folder: folder, made: Path.join(folder, "_build/precompiled")}
  end

  defp precompile(folder, cargo) do
    bin = Path.join(folder, "stand_ins")

    for {name, script} <- Map.put(@stand_ins, "cargo", cargo) do
      write(bin, %{name => "#!/usr/bin/env bash\n#{script}\n"})
      File.chmod!(Path.join(bin, name), 0o755)
    end

    env = [{"PATH", bin <> ":" <> System.get_env("PATH")}, {"CODEX_FILES_FEATURES", nil}]
    System.cmd("bash", ["bin/precompile"], cd: folder, env: env, stderr_to_stdout: true)
  end

  test "packs the library, and writes the sum of the archive beside it", context do
    assert {output, 0} = precompile(context.folder, ":")
    assert output =~ @archive

    archive = File.read!(Path.join(context.made, @archive))
    [{name, library}] = unpacked(archive)
    assert {to_string(name) <> ".tar.gz", library} == {@archive, "of before"}

    sum = Base.encode16(:crypto.hash(:sha256, archive), case: :lower)
    checksums = Path.join(context.made, "checksum-Elixir.Codex.Files.Native.exs")
    assert {%{@archive => "sha256:" <> ^sum}, _} = Code.eval_file(checksums)
  end

  defp unpacked(archive) do
    {:ok, files} = :erl_tar.extract({:binary, archive}, [:memory, :compressed])
    files
  end

  test "does not pack what is left of an earlier build when this one fails", context do
    assert {"no such crate\n", 101} =
             precompile(context.folder, "echo 'no such crate' >&2; exit 101")

    assert File.ls!(context.made) == []
  end
end
