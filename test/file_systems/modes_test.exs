defmodule Codex.Files.FileSystems.ModesTest do
  @moduledoc """
  P8: where a file system refuses or ignores modes, staging and purging work all the same.
  """

  use Codex.Files.StagingCase, async: false

  import Codex.Files.Mounts

  alias Codex.Files.ChildVM

  @moduletag :file_systems

  # With the second umask what is made needs another mode than it gets.
  for {name, options} <- [
        {"refuses to change modes", ["--chmod-deny"]},
        {"ignores changes of modes", ["--chmod-ignore"]},
        {"gives all files modes of its own", ["--chmod-ignore", "--perms=0755"]},
        {"gives all files modes of its own, and refuses others",
         ["--chmod-deny", "--perms=a+rwX"]}
      ],
      umask <- ["022", "0177"] do
    describe "a file system that #{name}, under the umask #{umask}," do
      setup %{folder: folder} do
        mount = bindfs(folder, unquote(options))
        staging_dir = Path.join(mount.path, "staging")
        configure(:staging_dir, staging_dir)
        small = write(folder, "source/small", "some notes")
        large = write(folder, "source/large", :binary.copy("a", 1_000_000))
        %{staging_dir: staging_dir, mount: mount, sources: [small, large]}
      end

      test "stages, recognises and removes", context do
        vm = ChildVM.start(context.staging_dir, [], umask: unquote(umask))

        for remove <- [
              quote(do: Codex.Files.force_cleanup()),
              quote(do: Codex.Files.reset!())
            ] do
          attachments = stage_all(vm, context)
          assert length(attachments) == 4

          for %{path: path, size: size} <- attachments,
              do: assert(byte_size(File.read!(path)) == size)

          assert length(stage_all(vm, context)) == 4
          assert ChildVM.eval(vm, remove) == :ok
          assert left(context.mount) == []
        end

        stage_all(vm, context)
        ChildVM.stop(vm)
        assert left(context.mount) == []
      end

      test "has what a killed VM staged removed by the next start", context do
        vm = ChildVM.start(context.staging_dir, [], umask: unquote(umask))
        assert length(stage_all(vm, context)) == 4
        ChildVM.kill(vm)

        # And what it had begun to copy.
        [area] = Path.wildcard(Path.join(context.staging_dir, "codex_files-*"))
        write(area, ".staging-77", "in part")

        foreign =
          for path <- [Path.join(area, "mine"), Path.join(context.mount.path, "places/0/mine")],
              do: write(Path.dirname(path), Path.basename(path), "of somebody else")

        {:ok, _registry} = Registry.ensure_started()
        assert Registry.force_cleanup() == :ok

        assert for(path <- left(context.mount), not (path =~ ~r"/\z"), do: path) ==
                 Enum.sort(for(path <- foreign, do: Path.relative_to(path, context.mount.path)))

        for path <- foreign, do: assert(File.read!(path) == "of somebody else")
      end
    end
  end

  # All that can be staged, in a VM with that umask.
  defp stage_all(vm, context) do
    inside =
      for source <- context.sources,
          do: ChildVM.eval(vm, quote(do: Codex.Files.stage(unquote(source), ttl_ms: 0)))

    outside =
      for {source, number} <- Enum.with_index(context.sources) do
        destination = Path.join(context.mount.path, "places/#{number}/copy")
        opts = stage_opts(source, checksum: "#{number}", destination_path: destination)
        opts = Macro.escape(Map.put(opts, :ttl_ms, 0))
        ChildVM.eval(vm, quote(do: Codex.Files.Registry.stage(unquote(opts))))
      end

    for {:ok, attachment} <- inside ++ outside, do: attachment
  end

  defp left(mount) do
    for path <- files_below(mount.path),
        not (path =~ ~r"\A(staging/|places/|staging/codex_files-[0-9a-f]{16}/)\z"),
        do: path
  end
end
