defmodule Codex.Files.AttachmentTest do
  use Codex.Files.StagingCase, async: false

  doctest Codex.Files.Attachment

  @keys [:id, :name, :path, :checksum, :size, :persist, :inserted_at, :ttl_ms]

  test "has these keys and no other" do
    assert Attachment.__struct__() |> Map.from_struct() |> Map.keys() |> Enum.sort() ==
             Enum.sort(@keys)
  end

  for key <- @keys do
    test "cannot be made without #{inspect(key)}" do
      pairs = for other <- @keys, other != unquote(key), do: {other, nil}

      assert_raise ArgumentError, ~r/#{unquote(key)}/, fn -> struct!(Attachment, pairs) end
      assert %Attachment{} = struct!(Attachment, [{unquote(key), nil} | pairs])
    end
  end

  test "is matched at compile time by other modules" do
    module =
      quote do
        def path(%Codex.Files.Attachment{path: path}), do: path
      end

    {:module, matcher, _code, _path} =
      Module.create(Codex.Files.Matcher, module, Macro.Env.location(__ENV__))

    on_exit(fn ->
      :code.purge(matcher)
      :code.delete(matcher)
    end)

    attachment = struct!(Attachment, for(key <- @keys, do: {key, "the #{key}"}))
    assert matcher.path(attachment) == "the path"
  end

  describe "of a staged file" do
    setup %{folder: folder} do
      source = write(folder, "notes.txt", "some notes")
      before = DateTime.utc_now() |> DateTime.truncate(:millisecond)
      {:ok, attachment} = Codex.Files.stage(source, ttl_ms: 60_000)
      %{attachment: attachment, before: before}
    end

    test "has the digest of its content as id and checksum", %{attachment: attachment} do
      assert attachment.checksum == sha256("some notes")
      assert attachment.checksum =~ ~r/\A[0-9a-f]{64}\z/
      assert attachment.id == attachment.checksum
    end

    test "has a path that File.read!/1 takes", %{attachment: attachment} do
      assert Path.type(attachment.path) == :absolute
      assert File.read!(attachment.path) == "some notes"
    end

    test "has an insertion time in UTC, of millisecond precision", context do
      %{attachment: %{inserted_at: inserted_at}, before: before} = context

      assert %DateTime{time_zone: "Etc/UTC", zone_abbr: "UTC", utc_offset: 0, std_offset: 0} =
               inserted_at

      assert {microsecond, 3} = inserted_at.microsecond
      assert rem(microsecond, 1_000) == 0
      assert DateTime.compare(inserted_at, before) in [:gt, :eq]
      assert DateTime.compare(inserted_at, DateTime.utc_now()) in [:lt, :eq]
      # As made by Elixir itself, down to the last field.
      assert inserted_at |> DateTime.to_iso8601() |> DateTime.from_iso8601() ==
               {:ok, inserted_at, 0}
    end

    test "has the size in bytes, the name, and what was asked for", %{attachment: attachment} do
      assert %Attachment{size: 10, name: "notes.txt", persist: false, ttl_ms: 60_000} = attachment
    end
  end
end
