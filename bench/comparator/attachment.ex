defmodule Comparator.Attachment do
  @moduledoc false

  @enforce_keys [:id, :name, :path, :checksum, :size, :persist, :inserted_at, :ttl_ms]
  defstruct [:id, :name, :path, :checksum, :size, :persist, :inserted_at, :ttl_ms]
end
