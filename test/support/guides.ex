defmodule Codex.Files.Guides do
  @moduledoc false
  # The README and the guides, as modules with documentation, for the sake of `doctest`: only Elixir 1.15 can take
  # the examples of a file.

  for wildcard <- ["../../README.md", "../../guides/*.md"],
      path <- Path.wildcard(Path.expand(wildcard, __DIR__)) do
    defmodule Module.concat(__MODULE__, Macro.camelize(Path.basename(path, ".md"))) do
      @external_resource path
      @moduledoc File.read!(path)
    end
  end
end
