defmodule Codex.Files.P07LeftoversTest do
  @moduledoc """
  P7: cleanup removes the checksum directory too: 0 leftovers, also of a file that somebody changed in
  our own directory. A removal that fails keeps its entry, is reported, the others are removed all the
  same, and it is tried again.
  """

  use Codex.Files.StagingCase, async: false

  alias Codex.Files.ChildVM

  @moduletag :user

  defp stage(folder, contents, opts) do
    for content <- contents do
      {:ok, attachment} = Codex.Files.stage(write(folder, "source/#{content}", content), opts)
      attachment
    end
  end

  # What is below the staging directory but the registry's own directory, if it has kept that.
  defp leftovers(staging_dir) do
    for path <- files_below(staging_dir),
        not (path =~ ~r"\Acodex_files-[0-9a-f]{16}/\z"),
        do: path
  end

  describe "nothing is left" do
    test "by a cleanup", %{folder: folder, staging_dir: staging_dir} do
      stage(folder, for(n <- 1..50, do: "#{n}"), ttl_ms: 0)
      large = large_file(folder, "source/large", 1_000_000)
      {:ok, _attachment} = Codex.Files.stage(large, ttl_ms: 0)
      assert Codex.Files.force_cleanup() == :ok
      assert leftovers(staging_dir) == []
    end

    test "by the cleanup on time", %{folder: folder, staging_dir: staging_dir} do
      configure(:attachment_cleanup_interval_ms, 10)
      stage(folder, for(n <- 1..50, do: "#{n}"), ttl_ms: 0)
      eventually(fn -> Codex.Files.list_staged() == [] end)
      assert leftovers(staging_dir) == []
    end

    test "by a reset", %{folder: folder, staging_dir: staging_dir} do
      stage(folder, for(n <- 1..50, do: "#{n}"), persist: true)
      assert Codex.Files.reset!() == :ok
      assert files_below(staging_dir) == []
    end

    test "by the end of the registry", %{folder: folder, staging_dir: staging_dir} do
      stage(folder, for(n <- 1..50, do: "#{n}"), persist: true)
      stop_default_registry()
      assert files_below(staging_dir) == []
    end

    test "of what was staged at a place of the caller's, nor of the directory made for it",
         %{folder: folder, staging_dir: staging_dir} do
      {:ok, _registry} = Registry.ensure_started()
      source = write(folder, "source", "some notes")

      for remove <- [&Registry.force_cleanup/0, fn -> Registry.reset(staging_dir) end] do
        for destination <- ["made/for/it", "source.copy"] do
          destination = Path.join([folder, "places", destination])

          opts =
            stage_opts(source, checksum: destination, destination_path: destination, ttl_ms: 0)

          {:ok, _attachment} = Registry.stage(opts)
        end

        assert remove.() == :ok
        # Its parents may be somebody else's by now.
        assert files_below(Path.join(folder, "places")) -- ["made/"] == []
        assert leftovers(staging_dir) == []
      end
    end

    test "by a staging that fails", %{folder: folder, staging_dir: staging_dir} do
      {:ok, _registry} = Registry.ensure_started()
      source = write(folder, "notes.txt", "some notes")
      stage(folder, ["another"], persist: true)
      before = leftovers(staging_dir)

      for overrides <- [
            %{checksum: sha256("something else")},
            %{source_path: "/no/such/file"},
            %{destination_path: folder},
            %{destination_path: source <> "/below"}
          ] do
        assert {:error, _reason} = Registry.stage(stage_opts(source, overrides))
      end

      assert leftovers(staging_dir) == before
    end
  end

  # What is in our own directory is told by where it is.
  describe "a staged file that somebody changed goes all the same:" do
    @changes %{
      "its mode" => quote(do: &File.chmod!(&1, 0o644)),
      "its mode, so that nobody can read it" => quote(do: &File.chmod!(&1, 0)),
      "its times" => quote(do: &File.touch!(&1, 1_000_000_000)),
      "its content" =>
        quote do
          fn path ->
            File.chmod!(path, 0o600)
            File.write!(path, "something else")
          end
        end,
      "it was replaced as an editor does" =>
        quote do
          fn path ->
            File.write!(path <> "~", "something else")
            File.rename!(path <> "~", path)
          end
        end,
      "it was replaced by a link" =>
        quote do
          fn path ->
            target = unquote(__MODULE__).target("file", "of somebody else")
            File.rm!(path)
            File.ln_s!(target, path)
          end
        end,
      "it was replaced by an empty directory" =>
        quote do
          fn path ->
            File.rm!(path)
            File.mkdir!(path)
          end
        end,
      "its directory was replaced by a link" =>
        quote do
          fn path ->
            # What is there looks like ours, and is not.
            target = unquote(__MODULE__).target(Path.basename(path), File.read!(path))
            File.rm_rf!(Path.dirname(path))
            File.ln_s!(Path.dirname(target), Path.dirname(path))
          end
        end
    }

    for {what, change} <- @changes do
      test "#{what}", %{folder: folder, staging_dir: staging_dir} do
        change = unquote(change)

        for remove <- [
              &Codex.Files.force_cleanup/0,
              &Codex.Files.reset!/0,
              &stop_default_registry/0
            ],
            size <- [10, 1_000_000] do
          [one, two] =
            for name <- ["one", "two"] do
              source = write(folder, "source/#{name}", :binary.copy(name, size))
              {:ok, attachment} = Codex.Files.stage(source, ttl_ms: 0)
              attachment
            end

          change.(one.path)
          assert remove.() == :ok
          assert Codex.Files.list_staged() == []
          assert leftovers(staging_dir) == []
          refute File.exists?(two.path)
          assert_targets_there()
        end
      end

      test "#{what}, by the next start", %{folder: folder, staging_dir: staging_dir} do
        change = unquote(change)
        vm = ChildVM.start(staging_dir)

        for content <- ["one", "two"] do
          source = write(folder, "source/#{content}", content)
          {:ok, attachment} = ChildVM.eval(vm, quote(do: Codex.Files.stage(unquote(source))))
          if content == "one", do: change.(attachment.path)
        end

        ChildVM.kill(vm)
        {:ok, _registry} = Registry.ensure_started()
        assert Registry.force_cleanup() == :ok
        assert files_below(staging_dir) == []
        assert_targets_there()
      end

      test "#{what}, and is staged again", %{folder: folder, staging_dir: staging_dir} do
        change = unquote(change)

        for again <- [fn -> :ok end, &Codex.Files.reset!/0] do
          [attachment] = stage(folder, ["one"], ttl_ms: 0)
          change.(attachment.path)
          again.()
          [attachment] = stage(folder, ["one"], ttl_ms: 0)
          assert_intact([attachment])
          assert File.lstat!(Path.dirname(attachment.path)).type == :directory
          assert_targets_there()
          assert Codex.Files.reset!() == :ok
          assert leftovers(staging_dir) == []
        end
      end
    end

    # A file that a link leads to, alone in its directory. It is in the test's folder.
    def target(name, content) do
      dir = "targets/#{System.unique_integer([:positive])}"
      path = write(System.tmp_dir!(), Path.join(dir, name), content)
      File.chmod!(path, 0o400)
      send(self(), {:target, path, File.lstat!(path), content})
      path
    end

    defp assert_targets_there do
      receive do
        {:target, path, stat, content} ->
          assert File.read!(path) == content
          assert File.lstat!(path).inode == stat.inode
          assert files_below(Path.dirname(path)) == [Path.basename(path)]
          assert_targets_there()
      after
        0 -> :ok
      end
    end

    test "a directory with something in it is put aside when its content is staged again",
         %{folder: folder, staging_dir: staging_dir} do
      for again <- [fn -> :ok end, &Codex.Files.reset!/0, &Codex.Files.force_cleanup/0],
          content <- ["small", :binary.copy("large", 200_000)] do
        source = write(folder, "source/file", content)
        {:ok, attachment} = Codex.Files.stage(source, ttl_ms: 0)
        File.rm!(attachment.path)
        write(attachment.path, "foreign", "of somebody else")
        again.()
        assert {:ok, attachment} = Codex.Files.stage(source, ttl_ms: 0)
        assert_intact([attachment])

        assert [foreign] =
                 for(path <- files_below(staging_dir), Path.basename(path) == "foreign", do: path)

        assert File.read!(Path.join(staging_dir, foreign)) == "of somebody else"
        assert Codex.Files.reset!() == :ok
        refute File.exists?(attachment.path)
        assert File.read!(Path.join(staging_dir, foreign)) == "of somebody else"
        File.rm_rf!(staging_dir)
      end
    end
  end

  describe "a file that cannot be removed" do
    for {name, remove} <- [
          force_cleanup: quote(do: &Codex.Files.force_cleanup/0),
          reset!: quote(do: &Codex.Files.reset!/0)
        ] do
      test "is reported by #{name}, stays listed, and goes the next time", context do
        %{folder: folder, staging_dir: staging_dir} = context
        remove = unquote(remove)
        [one, stuck, other] = stage(folder, ["one", "stuck", "other"], ttl_ms: 0)
        undo = make_unremovable(stuck.path)

        assert {:error, {:cleanup_failed, [{path, reason}]}} = remove.()
        assert path == stuck.path
        assert reason in [:eperm, :eacces, :ebusy]

        # The others are gone all the same.
        refute File.exists?(one.path)
        refute File.exists?(other.path)
        assert Codex.Files.list_staged() == [stuck]
        assert %{total_count: 1, total_bytes: 5} = Codex.Files.metrics()
        assert_intact([stuck])

        # It is no less staged than before.
        source = Path.join(folder, "source/stuck")
        assert {:ok, %{path: ^path}} = Codex.Files.stage(source, ttl_ms: 0)

        undo.()
        assert remove.() == :ok
        assert Codex.Files.list_staged() == []
        assert leftovers(staging_dir) == []
      end
    end

    test "is tried again by the cleanup on time", %{folder: folder, staging_dir: staging_dir} do
      configure(:attachment_cleanup_interval_ms, 20)
      [stuck] = stage(folder, ["stuck"], ttl_ms: 2_000)
      undo = make_unremovable(stuck.path)
      # An earlier one is gone only when a cleanup has run.
      eventually(fn ->
        [marker] = stage(folder, ["marker"], ttl_ms: 0)
        eventually(fn -> marker not in Codex.Files.list_staged() end)
        DateTime.diff(DateTime.utc_now(), stuck.inserted_at, :millisecond) > 2_100
      end)

      assert Codex.Files.list_staged() == [stuck]
      assert_intact([stuck])

      undo.()
      eventually(fn -> Codex.Files.list_staged() == [] end)
      assert leftovers(staging_dir) == []
    end

    test "is reported for each of many", %{folder: folder} do
      stuck = stage(folder, for(n <- 1..5, do: "stuck #{n}"), ttl_ms: 0)
      for %{path: path} <- stuck, do: make_unremovable(path)
      assert {:error, {:cleanup_failed, failures}} = Codex.Files.force_cleanup()

      assert failures |> Enum.map(fn {path, _reason} -> path end) |> Enum.sort() ==
               stuck |> Enum.map(& &1.path) |> Enum.sort()

      assert length(Codex.Files.list_staged()) == 5
    end
  end

  test "a file that somebody has removed already is no failure", context do
    %{folder: folder, staging_dir: staging_dir} = context
    [one, two] = stage(folder, ["one", "two"], ttl_ms: 0)
    File.rm!(one.path)
    File.rm_rf!(Path.dirname(two.path))
    assert Codex.Files.force_cleanup() == :ok
    assert Codex.Files.list_staged() == []
    assert leftovers(staging_dir) == []
  end
end
