defmodule Codex.Files.Guides do
  @moduledoc false
  # The guides, as modules with documentation, for the sake of `doctest`: only Elixir 1.15 can take
  # the examples of a file.

  for path <- Path.wildcard(Path.expand("../../guides/*.md", __DIR__)) do
    defmodule Module.concat(__MODULE__, Macro.camelize(Path.basename(path, ".md"))) do
      @external_resource path
      @moduledoc File.read!(path)
    end
  end
end
