defmodule Mix.Tasks.Compile.CodexFilesSdk do
  @shortdoc "Puts codex_files in the place of the Codex SDK's own modules"

  @moduledoc """
  Puts the modules of `codex_files` in the place of those of the Codex SDK that have the same names.

  The SDK, `:codex_sdk`, and `codex_files` both define `Codex.Files`, `Codex.Files.Attachment` and
  `Codex.Files.Registry`. A host that depends on both adds this compiler to its own, and from then
  on there is one definition of the three, this library's: in the build path, in the running VM and
  in a release.

      def project do
        [
          app: :my_app,
          version: "0.1.0",
          compilers: Mix.compilers() ++ [:codex_files_sdk],
          deps: [{:codex_sdk, "~> 0.16"}, {:codex_files, path: "../codex_files"}]
        ]
      end

  It says what it has done once:

      $ mix compile
      Replaced Codex.Files, Codex.Files.Attachment, Codex.Files.Registry of codex_sdk 0.16.1 by those of codex_files

  That is to remove the three `.beam` files from the build path of the SDK, and the three names from
  its application resource. The SDK's sources are left alone. A second run finds nothing to do and
  returns `:noop`; when the SDK has been compiled again, be it by `mix deps.compile codex_sdk --force`,
  the next `mix compile` replaces its modules again.

  While Mix compiles the one of the two after the other, it warns about "redefining module
  Codex.Files". At that moment both are there; this compiler runs later, and there is nothing to do
  about the warning. If the host's own modules call what the SDK does not have, such as
  `Codex.Files.format_error/1`, and are warned that it is undefined, put this compiler in front:
  `[:codex_files_sdk] ++ Mix.compilers()`. The guide "Three ways to use it" has what else may come up.

  To go back to the SDK's own modules, remove this compiler and `codex_files` from `mix.exs` and run
  `mix deps.compile codex_sdk --force`.

  ## Errors

  Without `:codex_sdk` among the dependencies of the current environment there is nothing to replace:

      could not replace Codex.Files, Codex.Files.Attachment, Codex.Files.Registry of codex_sdk: \
  expected it to be a dependency in the prod environment, add it to mix.exs or take :codex_files_sdk \
  out of :compilers

  Versions 0.16.1 to 0.18.1 of the SDK were tried. The modules of another one are replaced with a
  warning.
  """

  use Mix.Task.Compiler

  alias Mix.Task.Compiler.Diagnostic

  @modules [Codex.Files, Codex.Files.Attachment, Codex.Files.Registry]
  @names Enum.map_join(@modules, ", ", &inspect/1)
  @first_tried "0.16.1"
  @last_tried "0.18.1"

  @impl true
  def run(_args) do
    with :ok <- check_dependency(),
         :ok <- check_own_beams(),
         {:ok, resource} <- read_resource(),
         {:ok, removed} <- remove_beams(),
         disowned = disown(resource),
         :ok <- write_resource(resource, disowned) do
      reload_resource(disowned)
      reload_modules()

      if removed == [] and disowned == resource do
        :noop
      else
        version = to_string(resource[:vsn])
        Mix.shell().info("Replaced #{@names} of codex_sdk #{version} by those of codex_files")
        {:ok, check_version(version)}
      end
    else
      {:error, reason} ->
        message = "could not replace #{@names} of codex_sdk: #{reason}"
        Mix.shell().error(message)
        {:error, [diagnostic(:error, message)]}
    end
  end

  defp ebin(app), do: Path.join([Mix.Project.build_path(), "lib", to_string(app), "ebin"])
  defp beam(app, module), do: Path.join(ebin(app), "#{module}.beam")
  defp resource_path, do: Path.join(ebin(:codex_sdk), "codex_sdk.app")

  ## Before anything is removed

  defp check_dependency do
    if :codex_sdk in Mix.Project.deps_apps() do
      :ok
    else
      {:error,
       "expected it to be a dependency in the #{Mix.env()} environment, " <>
         "add it to mix.exs or take :codex_files_sdk out of :compilers"}
    end
  end

  # The SDK's modules must not go before there is something to take their place.
  defp check_own_beams do
    case Enum.reject(@modules, &File.regular?(beam(:codex_files, &1))) do
      [] -> :ok
      [module | _] -> {:error, "could not find #{beam(:codex_files, module)}"}
    end
  end

  defp check_version(version) do
    with {:ok, version} <- Version.parse(version),
         true <- Version.match?(version, ">= #{@first_tried} and <= #{@last_tried}") do
      []
    else
      _ ->
        message =
          "codex_files was tried with codex_sdk #{@first_tried} to #{@last_tried}, got: #{version}"

        Mix.shell().error("warning: " <> message)
        [diagnostic(:warning, message)]
    end
  end

  ## The build path

  defp remove_beams do
    Enum.reduce_while(@modules, {:ok, []}, fn module, {:ok, removed} ->
      case File.rm(beam(:codex_sdk, module)) do
        :ok -> {:cont, {:ok, [module | removed]}}
        {:error, :enoent} -> {:cont, {:ok, removed}}
        {:error, reason} -> {:halt, file_error("remove", beam(:codex_sdk, module), reason)}
      end
    end)
  end

  defp read_resource do
    case :file.consult(resource_path()) do
      {:ok, [{:application, :codex_sdk, properties}]} -> {:ok, properties}
      {:ok, _terms} -> {:error, "expected #{resource_path()} to describe codex_sdk"}
      {:error, reason} -> file_error("read", resource_path(), reason)
    end
  end

  defp disown(resource), do: Keyword.update(resource, :modules, [], &(&1 -- @modules))

  # It is written after the beams have gone: Mix writes the resource anew when it is older than its folder.
  # It is renamed into place, because another Mix may be reading it.
  defp write_resource(resource, resource), do: :ok

  defp write_resource(_resource, disowned) do
    temporary = "#{Path.dirname(ebin(:codex_sdk))}/.codex_sdk.app.#{System.pid()}"
    contents = :io_lib.format("%% coding: utf-8~n~tp.~n", [{:application, :codex_sdk, disowned}])

    with :ok <- File.write(temporary, :unicode.characters_to_binary(contents)),
         :ok <- File.rename(temporary, resource_path()) do
      :ok
    else
      {:error, reason} ->
        _ = File.rm(temporary)
        file_error("write", resource_path(), reason)
    end
  end

  ## The running VM

  # Mix has loaded the resource before it ran the compilers. The environment goes with an unload. When
  # the application is running it cannot be unloaded, and has no further use for the list.
  defp reload_resource(disowned) do
    environment = Application.get_all_env(:codex_sdk)

    with modules when is_list(modules) <- Application.spec(:codex_sdk, :modules),
         true <- Enum.any?(@modules, &(&1 in modules)),
         :ok <- Application.unload(:codex_sdk) do
      :ok = :application.load({:application, :codex_sdk, disowned})
      Application.put_all_env(codex_sdk: environment)
    end
  end

  # The code server remembers what the folders of its path held (OTP 26), and whoever compiled against
  # the SDK has loaded its modules.
  defp reload_modules do
    if function_exported?(:code, :clear_cache, 0), do: apply(:code, :clear_cache, [])
    sdk = ebin(:codex_sdk)

    for module <- @modules,
        {:file, file} <- [:code.is_loaded(module)],
        is_list(file) and Path.dirname(file) == sdk do
      own = beam(:codex_files, module) |> Path.rootname() |> String.to_charlist()
      :code.purge(module)
      {:module, ^module} = :code.load_abs(own)
      :code.purge(module)
    end

    :ok
  end

  ## Results

  defp file_error(action, path, reason) do
    {:error, "could not #{action} #{path}: #{:file.format_error(reason)}"}
  end

  defp diagnostic(severity, message) do
    %Diagnostic{
      compiler_name: "codex_files_sdk",
      file: Mix.Project.project_file(),
      position: 0,
      severity: severity,
      message: message
    }
  end
end
