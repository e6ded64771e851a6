defmodule Codex.Files.P06LostFilesTest do
  @moduledoc """
  P6: a known key whose file was removed from outside (a tmp cleaner, a person) is staged again, not
  answered from the manifest.
  """

  use Codex.Files.StagingCase, async: false

  # What happens to a staged file behind the library's back.
  defp losses(%{folder: folder, staging_dir: staging_dir}) do
    [
      {"the file is removed", &File.rm!(&1.path)},
      {"its directory is removed", &File.rm_rf!(Path.dirname(&1.path))},
      {"the registry's directory is removed", &File.rm_rf!(area(&1))},
      {"the staging directory is removed", fn _attachment -> File.rm_rf!(staging_dir) end},
      {"the file is moved away", &File.rename!(&1.path, Path.join(folder, "moved away"))},
      {"the registry's directory is moved away",
       &File.rename!(area(&1), Path.join(folder, "area #{System.unique_integer()}"))},
      {"the staging directory is moved away",
       fn _attachment ->
         File.rename!(staging_dir, Path.join(folder, "staging #{System.unique_integer()}"))
       end},
      {"another file is in its place",
       fn attachment ->
         File.rm!(attachment.path)
         File.write!(attachment.path, "something else")
       end},
      {"it is overwritten",
       fn attachment ->
         File.chmod!(attachment.path, 0o600)
         File.write!(attachment.path, "something else")
       end},
      {"it is cut off",
       fn attachment ->
         File.chmod!(attachment.path, 0o600)
         File.write!(attachment.path, "")
       end}
    ]
  end

  defp area(attachment), do: attachment.path |> Path.dirname() |> Path.dirname()

  for size <- [1_000, 1_000_000] do
    test "a file of #{size} bytes is staged again, whatever happened to it", context do
      content = :binary.copy("a", unquote(size))
      source = write(context.folder, "source/notes.txt", content)
      {:ok, registry} = Registry.ensure_started()

      for {loss, lose} <- losses(context) do
        {:ok, attachment} = Codex.Files.stage(source)
        lose.(attachment)

        assert {loss, {:ok, again}} = {loss, Codex.Files.stage(source)}
        assert {loss, File.read!(again.path) == content} == {loss, true}
        assert {loss, again.checksum} == {loss, attachment.checksum}
        assert Codex.Files.list_staged() == [again]
      end

      assert Process.whereis(Registry) == registry
    end
  end

  test "so is one staged under a checksum at a place of the caller's", context do
    source = write(context.folder, "source/notes.txt", "some notes")
    {:ok, _registry} = Registry.ensure_started()
    opts = stage_opts(source, destination_path: Path.join(context.folder, "area/place/copy"))

    for {_way, stage} <- ways_to_stage(start_registry()),
        {loss, lose} <- losses(context),
        loss != "the staging directory is moved away" do
      {:ok, attachment} = stage.(opts)
      lose.(attachment)
      assert {loss, {:ok, again}} = {loss, stage.(opts)}
      assert {loss, File.read!(again.path)} == {loss, "some notes"}
    end
  end

  for opts <- registries() do
    describe "a registry with #{inspect(opts)}" do
      @describetag registry_opts: opts

      test "stages such a file again, by every way", context do
        [_default, other] = start_registries(context)
        source = write(context.folder, "source/notes.txt", "some notes")
        opts = stage_opts(source, destination_path: Path.join(context.folder, "copy"))

        ways =
          [fn -> Codex.Files.stage(source) end] ++
            for {_way, stage} <- ways_to_stage(other), do: fn -> stage.(opts) end

        lose =
          [
            &File.rm!(&1.path),
            &File.rename!(&1.path, Path.join(context.folder, "moved away")),
            &overwrite(&1, "something else"),
            &overwrite(&1, "")
          ] ++
            if not_on(~w(sshfs), "an edit that keeps the size and the second is not seen there"),
              do: [],
              else: [&overwrite(&1, "SOME NOTES")]

        for stage <- ways, lose <- lose do
          {:ok, attachment} = stage.()
          lose.(attachment)
          assert {:ok, again} = stage.()
          assert again.checksum == attachment.checksum
          assert_intact([again])
        end
      end

      test "keeps for the new copy what was promised before", context do
        start_registries(context)
        source = write(context.folder, "source", "some notes")
        {:ok, attachment} = Codex.Files.stage(source, persist: true)
        File.rm!(attachment.path)
        assert {:ok, again} = Codex.Files.stage(source, ttl_ms: 0)
        assert again.persist
        assert again.ttl_ms == :infinity
        assert Codex.Files.force_cleanup() == :ok
        assert_intact([again])
        assert %{total_count: 1, persistent_count: 1} = Codex.Files.metrics()
      end
    end
  end

  defp overwrite(attachment, content) do
    File.chmod!(attachment.path, 0o600)
    File.write!(attachment.path, content)
  end

  test "one of many that want it copies, when it was lost", %{folder: folder} do
    source = write(folder, "source", "some notes")
    {:ok, attachment} = Codex.Files.stage(source)

    for _ <- 1..20 do
      File.rm!(attachment.path)

      staged =
        1..16
        |> Enum.map(fn _ -> Task.async(fn -> Codex.Files.stage(source) end) end)
        |> Task.await_many()

      assert [path] = staged |> Enum.map(fn {:ok, %{path: path}} -> path end) |> Enum.uniq()
      assert File.read!(path) == "some notes"
    end
  end

  test "a cleanup takes the entry of a lost file away", %{folder: folder} do
    {:ok, attachment} = Codex.Files.stage(write(folder, "source", "some notes"), ttl_ms: 0)
    File.rm_rf!(Path.dirname(attachment.path))
    assert Codex.Files.force_cleanup() == :ok
    assert Codex.Files.list_staged() == []
    assert %{total_count: 0, total_bytes: 0} = Codex.Files.metrics()
  end
end
