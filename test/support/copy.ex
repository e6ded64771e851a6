defmodule Codex.Files.Copy do
  @moduledoc false
  # A file module that does what `File` does.

  defdelegate mkdir_p!(path), to: File
  defdelegate cp!(source, destination), to: File
  defdelegate rm_rf(path), to: File
end
