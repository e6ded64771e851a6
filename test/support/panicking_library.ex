defmodule Codex.Files.PanickingLibrary do
  @moduledoc false
  # The library with a native part that panics on demand, for other VMs. See `panics.rs`.

  import ExUnit.Assertions

  @root Path.expand("../..", __DIR__)

  @doc """
  Builds it below `folder`, and returns the directory of its modules.

  Where the library is tried that `bin/precompile` makes, `CODEX_FILES_PANICKING_NIF` names one with that
  native part which was made in the same way.
  """
  def build(folder) do
    library = System.get_env("CODEX_FILES_PANICKING_NIF") || build_with_cargo()

    app = Path.join(folder, "codex_files")
    native = Path.join(app, "priv/native")
    File.mkdir_p!(native)
    File.cp!(library, Path.join(native, "libcodex_files_nif.so"))
    ebin = Path.join(app, "ebin")
    File.ln_s!(Application.app_dir(:codex_files, "ebin"), ebin)
    ebin
  end

  # Cargo builds where it has built the native part that the tests run with: most of it is there. It
  # links that again when it is next asked to, since both have one name; the installed one stays.
  defp build_with_cargo do
    cargo = System.get_env("CARGO", "cargo")
    target = Path.join(Mix.Project.app_path(), "cargo")

    args =
      ~w(build --locked --package codex_files_nif --features panic-injection) ++
        ["--message-format", "json-render-diagnostics", "--target-dir", target] ++
        ["--config", ~s(profile.dev.panic="unwind")]

    {output, status} = System.cmd(cargo, args, cd: @root, stderr_to_stdout: true)
    assert status == 0, output
    [_, library] = Regex.run(~r/"([^"]*libcodex_files_nif\.(?:so|dylib))"/, output)
    library
  end
end
