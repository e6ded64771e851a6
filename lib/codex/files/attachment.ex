defmodule Codex.Files.Attachment do
  @moduledoc """
  A staged file.

    * `:id` - the same as `:checksum`
    * `:name` - the name that a staging asked for, one path component; in a listing, and from
      `Codex.Files.fetch/2`, the one that it was first staged under
    * `:path` - where the staged copy is under that name; read it with `File.read!/1`
    * `:checksum` - the SHA-256 digest of the content, 64 lower-case hexadecimal digits (an entry
      made through `Codex.Files.Registry.stage/1` has the checksum that its caller chose)
    * `:size` - in bytes
    * `:persist` - whether it is exempt from expiry
    * `:inserted_at` - when it was last staged, a UTC `DateTime` of millisecond precision
    * `:ttl_ms` - how many milliseconds after `:inserted_at` it expires, or `:infinity`

  ## Examples

      iex> path = Path.join(System.tmp_dir!(), "attachment_example.txt")
      iex> File.write!(path, "hello")
      iex> {:ok, attachment} = Codex.Files.stage(path, ttl_ms: 60_000)
      iex> {attachment.name, attachment.size, attachment.ttl_ms}
      {"attachment_example.txt", 5, 60_000}
      iex> attachment.id
      "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
      iex> File.read!(attachment.path)
      "hello"

  """

  @enforce_keys [:id, :name, :path, :checksum, :size, :persist, :inserted_at, :ttl_ms]
  defstruct @enforce_keys

  @typedoc "A staged file. See the module documentation for the fields."
  @type t :: %__MODULE__{
          id: String.t(),
          name: String.t(),
          path: Path.t(),
          checksum: String.t(),
          size: non_neg_integer(),
          persist: boolean(),
          inserted_at: DateTime.t(),
          ttl_ms: ttl()
        }

  @typedoc "A time to live in milliseconds; with 0 it ends at the next cleanup."
  @type ttl :: :infinity | non_neg_integer()
end
