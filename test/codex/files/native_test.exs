defmodule Codex.Files.NativeTest do
  # What is said if the native library cannot be where it is looked for.

  use ExUnit.Case, async: true

  import Codex.Files.HostProject

  @remedy "An escript, which is one file, cannot carry it: make a release."

  setup do
    %{folder: temporary_folder()}
  end

  # Stages something with the modules in a directory.
  defp stage(ebin, folder) do
    File.cp_r!(Application.app_dir(:codex_files, "ebin"), ebin)
    code = ~s|IO.inspect(Codex.Files.stage({:data, "content"}, name: "name"))|
    options = [env: [{"TMPDIR", folder}, {"ERL_LIBS", nil}], stderr_to_stdout: true]
    {output, 0} = System.cmd("elixir", ["-pa", ebin, "-e", code], options)
    assert output =~ "{:error, :native_library_not_loaded}"
    refute output =~ "on_load"
    output
  end

  # As in an escript of older versions of Erlang.
  test "a code path without a directory of the application's name", %{folder: folder} do
    output = stage(Path.join(folder, "of_another_name"), folder)
    assert output =~ "codex_files: could not load its native library.\n"
    assert output =~ @remedy
  end

  # As in one of newer versions, where the directory is inside of a file.
  test "a directory that is inside of a file", %{folder: folder} do
    write(folder, %{"codex_files/priv" => "a file"})
    output = stage(Path.join(folder, "codex_files/ebin"), folder)
    assert output =~ "codex_files: could not load #{folder}/codex_files/priv/native/libcodex"
    assert output =~ @remedy
  end
end
