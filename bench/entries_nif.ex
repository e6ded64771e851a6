defmodule Bench.EntriesNif do
  @moduledoc false
  # The native functions, and one that enters attachments without files:
  # native/codex_files_nif/examples/entries_nif.rs.

  alias Codex.Files.Native

  @compile {:autoload, false}
  @on_load :load

  @doc false
  def load do
    library =
      Path.join(System.get_env("CARGO_TARGET_DIR", "target"), "release/examples/libentries_nif")

    :erlang.load_nif(String.to_charlist(library), 0)
  end

  @doc "Enters so many, beside one that has been staged."
  def enter(_handle, _count), do: :erlang.nif_error(:not_loaded)

  for {name, arity} <- Native.__info__(:functions) -- [load: 0, load_from: 1, available?: 0] do
    args = Macro.generate_arguments(arity, __MODULE__)
    def unquote(name)(unquote_splicing(args)), do: :erlang.nif_error({:not_loaded, unquote(args)})
  end
end
