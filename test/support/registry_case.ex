defmodule Codex.Files.RegistryCase do
  @moduledoc false
  # An asynchronous test, with registries of its own in a folder of its own. It touches neither the
  # default registry nor the application environment.

  use ExUnit.CaseTemplate

  alias Codex.Files.{Registry, StagingCase}

  using do
    quote do
      import Codex.Files.RegistryCase
      import Codex.Files.StagingCase

      alias Codex.Files.Attachment
      alias Codex.Files.Registry
    end
  end

  setup do
    folder = StagingCase.temporary_folder()
    %{folder: folder, staging_dir: Path.join(folder, "staging")}
  end

  @doc "Starts a registry under a supervisor, and returns its name. `opts` are those of `start_link/1`."
  def start_own(staging_dir, opts \\ []) do
    name = :"registry_#{System.unique_integer([:positive])}"
    opts = Keyword.merge([name: name, staging_dir: staging_dir], opts)
    start_supervised!({Registry, opts}, id: opts[:name])
    opts[:name]
  end

  @doc "The process of a registry."
  def pid(registry), do: GenServer.whereis(registry)

  @doc "Kills the process of a registry, and waits for its successor."
  def kill_own(registry) do
    killed = pid(registry)
    StagingCase.kill(killed)
    StagingCase.eventually(fn -> pid(registry) not in [nil, killed] end)
  end

  @doc "A process of another node."
  def foreign_pid do
    <<131, _tag, rest::binary>> = :erlang.term_to_binary(self())
    own = :erlang.term_to_binary(node())
    size = byte_size(own) - 1
    numbers = binary_part(rest, size, byte_size(rest) - size)
    <<131, node::binary>> = :erlang.term_to_binary(:another@node)
    :erlang.binary_to_term(<<131, 88, node::binary, numbers::binary>>)
  end
end
