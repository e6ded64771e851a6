defmodule Codex.Files.P17BytesTest do
  @moduledoc """
  P17: paths are bytes: any file name that the system accepts, valid UTF-8 or not; `Path.t()` may
  be chardata.
  """

  use Codex.Files.StagingCase, async: false

  @names [
    "with space",
    "new\nline",
    "tab\tbell\a",
    "quote\"'`$(x)",
    "back\\slash",
    "ünïcödé",
    # The same letter, composed and not.
    <<0xC3, 0xA9>>,
    <<?e, 0xCC, 0x81>>,
    "日本語",
    "🙂",
    <<255>>,
    <<0xC3>>,
    <<0xED, 0xA0, 0x80>>,
    <<1, 2, 127, 128, 254, 255>>,
    String.duplicate(<<255>>, 255),
    "-rf",
    "%00",
    "..."
  ]

  # Raw, since Erlang translates names that are no binaries.
  defp write_raw(path, content) do
    {:ok, file} = :file.open(path, [:write, :raw, :binary])
    :ok = :file.write(file, content)
    :ok = :file.close(file)
    path
  end

  # The ways to stage a file under the digest of its content, at a place in `dir`.
  defp ways(other, dir) do
    opts = fn source ->
      stage_opts(source, destination_path: dir <> "/" <> Path.basename(source))
    end

    [{"Codex.Files.stage/2", &Codex.Files.stage(&1)}] ++
      for {way, stage} <- ways_to_stage(other), do: {way, &stage.(opts.(&1))}
  end

  for opts <- registries() do
    describe "a registry with #{inspect(opts)}" do
      @describetag registry_opts: opts

      setup context do
        [_default, other] = start_registries(context)
        %{other: other}
      end

      test "a file of any name is staged under that name", %{folder: folder, other: other} do
        source_dir = Path.join(folder, "source")
        File.mkdir!(source_dir)

        for {way, stage} <- ways(other, Path.join(folder, <<"destination", 255, 10>>)),
            name <- @names do
          source = write_raw(source_dir <> "/" <> name, "#{way} #{name}")
          assert {^way, ^name, {:ok, attachment}} = {way, name, stage.(source)}
          assert attachment.name == name
          assert String.ends_with?(attachment.path, "/" <> name)
          assert File.read!(attachment.path) == "#{way} #{name}"
        end

        listed = Enum.map(Codex.Files.list_staged(), & &1.name)
        assert listed |> Enum.uniq() |> Enum.sort() == Enum.sort(@names)

        assert Codex.Files.reset!() == :ok
        assert Path.wildcard(Codex.Files.staging_dir() <> "/*/*") == []
      end

      test "every byte may be in a name, but the slash and null", %{folder: folder} do
        for byte <- 1..255, byte != ?/ do
          name = <<"a", byte, "b">>
          source = write_raw(folder <> "/" <> name, name)
          assert {^byte, {:ok, %{name: ^name, path: path}}} = {byte, Codex.Files.stage(source)}
          assert {byte, File.read!(path)} == {byte, name}
        end
      end

      test "a path may be chardata", %{folder: folder, other: other} do
        source = write(folder, "söurce", "some notes")
        invalid = write_raw(folder <> "/" <> <<255>>, "other notes")

        for {chardata, path} <- [
              {to_charlist(source), source},
              {[source], source},
              {[folder, ?/, ~c"sö", "urce"], source},
              {[[folder | "/"], [[]], [[~c"s"], "ö"] | "urce"], source},
              {[folder, "/", <<255>>], invalid},
              {[folder, ?/ | <<255>>], invalid}
            ] do
          assert {:ok, %{path: staged}} = Codex.Files.stage(chardata)
          assert File.read!(staged) == File.read!(path)

          destination = Path.join(folder, "copy")

          for stage <- [&Registry.stage/1, &GenServer.call(other, {:stage, &1})],
              place <- [destination, to_charlist(destination), [folder, ?/, ~c"copy"]] do
            opts = %{stage_opts(path) | source_path: chardata, destination_path: place}
            opts = %{opts | checksum: inspect(System.unique_integer())}
            assert {:ok, %{path: ^destination}} = stage.(opts)
            assert File.read!(destination) == File.read!(path)
          end

          for reset <- [&Registry.reset/1, &GenServer.call(other, {:reset, &1})],
              do: assert(reset.(chardata) == :ok)
        end
      end
    end
  end

  test "what cannot be a path is refused as it is", %{folder: folder} do
    # A character beyond a byte, beside bytes that are no characters.
    for path <- [[<<255>>, 300], [folder, -1], [folder, 0x110000], ~c"a\0b", [folder | :a]] do
      assert Codex.Files.stage(path) == {:error, {:invalid_option, :path, path}}
    end
  end

  test "the staging directory may have any name", %{folder: folder} do
    source = write(folder, "source", "some notes")

    for {dir, path} <- [
          {folder <> "/" <> <<255, 10>>, folder <> "/" <> <<255, 10>>},
          {folder <> "/new\nline", folder <> "/new\nline"},
          {[folder, "/", <<254>>], folder <> "/" <> <<254>>},
          {~c"#{folder}/chärlist", folder <> "/chärlist"}
        ],
        file_module <- [File, Codex.Files.Copy] do
      configure(:staging_dir, dir)
      start_default_registry(file_module: file_module)
      assert Codex.Files.staging_dir() == path
      assert {:ok, attachment} = Codex.Files.stage(source, ttl_ms: 0)
      assert String.starts_with?(attachment.path, path <> "/")
      assert File.read!(attachment.path) == "some notes"
      assert Codex.Files.force_cleanup() == :ok
      refute File.exists?(attachment.path)
      stop_default_registry()
    end
  end

  test "paths may be as long as the system takes them", %{folder: folder} do
    # 4,095 bytes are the most that a path may have.
    deep = Enum.reduce(1..15, folder, fn _, dir -> dir <> "/" <> String.duplicate("d", 240) end)
    File.mkdir_p!(deep)
    source = write_raw(deep <> "/source", "some notes")
    assert byte_size(source) > 3_600
    assert {:ok, attachment} = Codex.Files.stage(source)
    assert File.read!(attachment.path) == "some notes"

    assert Codex.Files.stage(String.duplicate("/d", 3_000)) == {:error, :enametoolong}
  end

  @tag :user
  test "messages about any name are readable", %{folder: folder} do
    for name <- @names, String.length(name) < 200 do
      source = write_raw(folder <> "/" <> name, name)
      {:ok, attachment} = Codex.Files.stage(source, ttl_ms: 0)
      undo = make_unremovable(attachment.path)
      assert {:error, reason} = Codex.Files.force_cleanup()
      message = Codex.Files.format_error(reason)
      assert String.valid?(message)
      refute message =~ "\n"
      undo.()
      assert Codex.Files.force_cleanup() == :ok
    end
  end
end
