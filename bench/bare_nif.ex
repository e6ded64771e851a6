defmodule Bench.BareNif do
  @moduledoc false
  # The bare system calls, made on a dirty I/O scheduler: native/codex_files_nif/examples/bare_nif.rs.

  @compile {:autoload, false}
  @on_load :load

  @doc false
  def load do
    library =
      Path.join(System.get_env("CARGO_TARGET_DIR", "target"), "release/examples/libbare_nif")

    :erlang.load_nif(String.to_charlist(library), 0)
  end

  @doc "Names the directory to publish in."
  def open(_dir), do: :erlang.nif_error(:not_loaded)

  @doc "Makes a directory with a file of so many bytes in it; `true`."
  def publish(_number, _size), do: :erlang.nif_error(:not_loaded)

  @doc "Links the file in such a directory under another name beside it; `true`."
  def link(_number, _name), do: :erlang.nif_error(:not_loaded)
end
