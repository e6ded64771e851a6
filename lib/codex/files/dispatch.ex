defmodule Codex.Files.Dispatch do
  @moduledoc false
  # Finds the registry that a call of `Codex.Files` is meant for, and does there what is asked. Whatever
  # becomes of the registry meanwhile, the caller gets a result.
  #
  # The default registry is started if it does not run. Any other is its host's to start.

  alias Codex.Files.{Config, FileModuleRegistry, NativeRegistry, Options, Registry}

  @doc """
  Calls `by_handle` with a registry that does its own file operations, and `by_call` with the pid and the
  options of one that has a file module.
  """
  @spec with_registry(
          Codex.Files.registry() | term(),
          (NativeRegistry.t() -> result),
          ({pid(), Config.own()} -> result)
        ) :: result | {:error, term()}
        when result: term()
  def with_registry(registry, by_handle, by_call) do
    NativeRegistry.guarded(fn ->
      case find(registry) do
        {:native, native} -> by_handle.(native)
        {:file_module, pid, own} -> by_call.({pid, own})
        error -> error
      end
    end)
  catch
    :exit, {reason, {_module, _function, args}} when is_list(args) -> {:error, reason}
    :exit, reason -> {:error, reason}
  end

  defp find(registry) do
    with {:ok, registry} <- Options.check(:registry, registry),
         :error <- found(registry),
         {:ok, pid} <- running(registry),
         :error <- found(pid),
         do: ask(pid, registry)
  end

  defp found(registry) when is_atom(registry) or is_pid(registry) do
    with {:ok, native} <- NativeRegistry.find(registry), do: {:native, native}
  end

  defp found(_name), do: :error

  defp running(Registry), do: Registry.ensure_started()

  defp running(registry) do
    case GenServer.whereis(registry) do
      nil -> {:error, :noproc}
      pid when is_pid(pid) and node(pid) == node() -> {:ok, pid}
      _another_nodes -> {:error, {:invalid_option, :registry, registry}}
    end
  rescue
    # A host's registry of names, or its module, is not there: neither is what it would know.
    _error -> {:error, :noproc}
  end

  # It knows, even if its table is not there yet. Another process might never answer.
  defp ask(pid, registry) do
    case :proc_lib.translate_initial_call(pid) do
      {module, :init, 1} when module in [Registry, FileModuleRegistry] ->
        GenServer.call(pid, :registry, :infinity)

      _other ->
        if Process.alive?(pid),
          do: {:error, {:invalid_option, :registry, registry}},
          else: {:error, :noproc}
    end
  end
end
