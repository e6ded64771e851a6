defmodule Codex.Files.FakeSdk do
  @moduledoc false
  # The application `:codex_sdk` as this library meets it: its supervisor with the registry among
  # its children. It is loaded at run time; without it the library is used alone.

  use Application

  import ExUnit.Callbacks, only: [on_exit: 1]

  @doc "Makes the application known until the test ends, without starting it."
  def load(start_args \\ []) do
    load_for_good(start_args)

    on_exit(fn ->
      _ = Application.stop(:codex_sdk)
      :ok = Application.unload(:codex_sdk)
    end)
  end

  @doc "The same for a VM that ends with the test. `:before` are children to start before ours."
  def load_for_good(start_args \\ []) do
    :ok =
      :application.load(
        {:application, :codex_sdk,
         [
           description: ~c"a stand-in",
           vsn: ~c"0.16.1",
           modules: [],
           registered: [],
           applications: [:kernel, :stdlib],
           mod: {__MODULE__, start_args}
         ]}
      )
  end

  @impl true
  def start(_type, start_args) do
    {before, opts} = Keyword.pop(start_args, :before, [])

    Supervisor.start_link(
      before ++ [{Task.Supervisor, name: Codex.TaskSupervisor}, {Codex.Files.Registry, []}],
      Keyword.merge([strategy: :one_for_one, name: Codex.Supervisor], opts)
    )
  end
end
