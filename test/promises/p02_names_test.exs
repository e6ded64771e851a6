defmodule Codex.Files.P02NamesTest do
  @moduledoc """
  P2: a name is one path component: not empty, `.`, `..`, no `/`, no NUL, at most 255 bytes; else
  `{:error, {:invalid_name, name}}`.
  """

  use Codex.Files.StagingCase, async: false

  @invalid [
    "",
    ".",
    "..",
    "/",
    "//",
    "/etc/passwd",
    "a/b",
    "a/",
    "/a",
    "../../x",
    "./a",
    "\0",
    "a\0",
    "\0a",
    String.duplicate("n", 256),
    String.duplicate("ü", 128),
    String.duplicate("n", 100_000)
  ]

  @valid [
    "a",
    "...",
    "..a",
    "a..",
    ".hidden",
    "-rf",
    "~",
    "*",
    " ",
    "\n",
    "\r\t",
    "a\\b",
    "C:",
    "%2e%2e",
    "ünïcode",
    <<255>>,
    <<1, 128, 254>>,
    String.duplicate("n", 255),
    String.duplicate("ü", 127),
    # As the library's own files on their way in are called.
    ".staging",
    ".staging-",
    ".staging-0",
    ".elsewhere-0"
  ]

  setup context do
    [registry, other] = start_registries(Map.put_new(context, :registry_opts, []))
    {:ok, earlier} = Codex.Files.stage(write(context.folder, "earlier", "earlier"))
    source = write(context.folder, "source/notes.txt", "some notes")
    %{registry: registry, other: other, earlier: earlier, source: source}
  end

  for opts <- registries() do
    describe "a registry with #{inspect(opts)}" do
      @describetag registry_opts: opts

      test "refuses anything else, and nothing is written anywhere", context do
        ways =
          [{"Codex.Files.stage/2", &Codex.Files.stage(context.source, name: &1)}] ++
            for {way, stage} <- ways_to_stage(context.other) do
              {way, &stage.(stage_opts(context.source, name: &1))}
            end

        before = files_below(context.folder)

        for {way, stage} <- ways, name <- @invalid do
          assert {way, stage.(name)} == {way, {:error, {:invalid_name, name}}}
        end

        assert files_below(context.folder) == before
        assert Codex.Files.list_staged() == [context.earlier]
        assert Process.whereis(Registry) == context.registry
        assert_intact([context.earlier])
      end

      test "takes any component as it is", context do
        for {name, index} <- Enum.with_index(@valid) do
          source = write(context.folder, "source/#{index}", "#{index}")
          assert {:ok, %{name: ^name} = attachment} = Codex.Files.stage(source, name: name)
          assert String.ends_with?(attachment.path, "/" <> name)
          assert File.read!(attachment.path) == "#{index}"
        end

        assert Codex.Files.reset!() == :ok
      end

      test "the default one is the last component of the path, however that is written",
           context do
        %{folder: folder, source: source} = context

        for path <- [
              source,
              Path.join(folder, "source/../source/./notes.txt"),
              Path.join(folder, "source//notes.txt"),
              to_charlist(source)
            ] do
          Codex.Files.reset!()
          assert {:ok, %{name: "notes.txt"}} = Codex.Files.stage(path)
        end
      end
    end
  end

  test "any component is taken as it is, for small files and large ones", context do
    for {name, index} <- Enum.with_index(@valid), size <- [10, 300_000] do
      content = String.duplicate("#{index} ", size)
      source = write(context.folder, "source/#{index}-#{size}", content)

      assert {:ok, %{name: ^name} = attachment} = Codex.Files.stage(source, name: name)
      assert Path.dirname(Path.dirname(Path.dirname(attachment.path))) == context.staging_dir
      assert String.ends_with?(attachment.path, "/" <> name)
      assert File.read!(attachment.path) == content
      assert mode(attachment.path) == 0o400
    end

    assert length(Codex.Files.list_staged()) == 1 + 2 * length(@valid)
    assert Codex.Files.reset!() == :ok
    assert files_below(context.staging_dir) == []
  end
end
