defmodule Codex.Files.P08PrivateTest do
  @moduledoc """
  P8: staged files are readable by their owner only. A staging directory that belongs to another
  user, or is a symbolic link planted by one, is refused with a clear error (the default one: a
  per-user name is used instead).
  """

  use Codex.Files.StagingCase, async: false

  @moduletag :user

  alias Codex.Files.ChildVM

  # Only root can play another user.
  @as_root if System.cmd("id", ["-u"]) != {"0\n", 0}, do: "needs root", else: false

  @links_as_root @as_root ||
                   not_on(~w(sshfs), "a link cannot be given away, since SFTP follows it")

  @users_as_root @as_root || not_on(~w(sshfs), "what anybody makes is the server's user's there")

  @nobody "65534"

  setup %{folder: folder} do
    %{source: write(folder, "source/notes.txt", "some notes")}
  end

  # The directory and all above it, up to the staging directory.
  defp directories(path, staging_dir) do
    dir = Path.dirname(path)
    if dir == staging_dir, do: [dir], else: [dir | directories(dir, staging_dir)]
  end

  defp victim(folder) do
    victim = Path.join(folder, "victim")
    File.mkdir_p!(victim)
    victim
  end

  defp foreign_link(target, link) do
    File.ln_s!(target, link)
    sh!("chown", ["-h", @nobody, link])
  end

  describe "modes" do
    test "of directories are 0700", %{source: source, staging_dir: staging_dir} do
      {:ok, attachment} = Codex.Files.stage(source)
      dirs = directories(attachment.path, staging_dir)
      assert length(dirs) == 3
      for dir <- dirs, do: assert({dir, mode(dir)} == {dir, 0o700})
    end

    for {source_mode, staged_mode} <- [
          {0o644, 0o400},
          {0o600, 0o400},
          {0o666, 0o400},
          {0o444, 0o400},
          {0o400, 0o400},
          {0o755, 0o500},
          {0o777, 0o500},
          {0o700, 0o500},
          {0o500, 0o500},
          {0o6755, 0o500},
          {0o1777, 0o500}
        ],
        size <- [10, 1_000_000] do
      test "of files are the owner's without write: " <>
             "#{Integer.to_string(source_mode, 8)} of #{size} bytes",
           %{folder: folder} do
        source = write(folder, "source/file", :binary.copy("a", unquote(size)))
        File.chmod!(source, unquote(source_mode))

        assert {:ok, attachment} = Codex.Files.stage(source)
        assert mode(attachment.path) == unquote(staged_mode)

        opts = stage_opts(source, checksum: "key", destination_path: Path.join(folder, "copy"))
        assert {:ok, attachment} = Registry.stage(opts)
        assert mode(attachment.path) == unquote(staged_mode)
      end
    end

    test "do not depend on the umask, neither root's nor a plain user's", context do
      users = if @users_as_root, do: [nil], else: [nil, @nobody]
      File.chmod!(context.folder, 0o777)

      for umask <- ["000", "027", "077", "0177", "0277", "0777"], user <- users do
        # The umask is the VM's: another one has another.
        vm = ChildVM.start(Path.join(context.folder, umask), [], umask: umask, user: user)

        {:ok, attachment} =
          ChildVM.eval(vm, quote(do: Codex.Files.stage(unquote(context.source))))

        assert {umask, mode(attachment.path)} == {umask, 0o400}

        for dir <- directories(attachment.path, Path.join(context.folder, umask)),
            do: assert({umask, mode(dir)} == {umask, 0o700})

        destination = Path.join([context.folder, "made", "for", "copy"])
        opts = stage_opts(context.source, checksum: "key", destination_path: destination)
        stage = quote(do: Codex.Files.Registry.stage(unquote(Macro.escape(opts))))
        assert {:ok, elsewhere} = ChildVM.eval(vm, stage)
        assert {umask, mode(elsewhere.path)} == {umask, 0o400}

        for dir <- directories(elsewhere.path, Path.join(context.folder, "made")),
            do: assert({umask, mode(dir)} == {umask, 0o700})

        ChildVM.stop(vm)
        File.rm_rf!(Path.join(context.folder, "made"))
        File.rm_rf!(Path.join(context.folder, umask))
      end
    end

    test "of a staging directory that is there stay", %{source: source} = context do
      File.mkdir!(context.staging_dir)
      File.chmod!(context.staging_dir, 0o755)
      {:ok, attachment} = Codex.Files.stage(source)
      assert mode(context.staging_dir) == 0o755
      assert mode(attachment.path |> Path.dirname() |> Path.dirname()) == 0o700
    end
  end

  describe "a configured staging directory" do
    @tag skip: @as_root
    test "that belongs to another user is refused", context do
      %{source: source, staging_dir: staging_dir} = context
      File.mkdir!(staging_dir)
      File.chmod!(staging_dir, 0o777)
      sh!("chown", [@nobody, staging_dir])

      reason = {:insecure_staging_dir, staging_dir, :foreign_owner}
      assert Codex.Files.stage(source) == {:error, reason}
      assert Codex.Files.format_error(reason) =~ "belongs to another user"

      # Of a known place too, since that is where the record is kept.
      opts = stage_opts(source, destination_path: Path.join(context.folder, "copy"))
      assert Registry.stage(opts) == {:error, reason}
      refute File.exists?(Path.join(context.folder, "copy"))

      assert Codex.Files.list_staged() == []
      assert Codex.Files.reset!() == :ok
      assert files_below(staging_dir) == []
    end

    @tag skip: @links_as_root
    test "that is a link planted by another user is refused", context do
      %{folder: folder, source: source, staging_dir: staging_dir} = context
      foreign_link(victim(folder), staging_dir)

      reason = {:insecure_staging_dir, staging_dir, :foreign_link}
      assert Codex.Files.stage(source) == {:error, reason}
      assert Codex.Files.format_error(reason) =~ "symbolic link made by another user"
      assert Codex.Files.list_staged() == []
      assert Codex.Files.reset!() == :ok
      assert files_below(victim(folder)) == []
    end

    test "that is a link of our own is followed", context do
      %{folder: folder, source: source, staging_dir: staging_dir} = context
      File.ln_s!(victim(folder), staging_dir)
      assert {:ok, attachment} = Codex.Files.stage(source)
      assert File.read!(attachment.path) == "some notes"
      assert length(files_below(victim(folder))) == 3
      assert Codex.Files.reset!() == :ok
      assert files_below(victim(folder)) == []
    end

    @tag skip: @links_as_root
    test "that is exchanged for a link while it is used is not followed", context do
      %{folder: folder, source: source, staging_dir: staging_dir} = context
      {:ok, _attachment} = Codex.Files.stage(source)

      File.rename!(staging_dir, Path.join(folder, "moved away"))
      foreign_link(victim(folder), staging_dir)
      other = write(folder, "source/other", "other notes")
      large = write(folder, "source/large", :binary.copy("a", 1_000_000))

      for source <- [source, other, large] do
        assert Codex.Files.stage(source) ==
                 {:error, {:insecure_staging_dir, staging_dir, :foreign_link}}
      end

      Codex.Files.force_cleanup()
      Codex.Files.reset!()
      assert files_below(victim(folder)) == []
    end

    @tag skip: @links_as_root
    test "is the user's again once the stranger's is gone", context do
      %{folder: folder, source: source, staging_dir: staging_dir} = context
      foreign_link(victim(folder), staging_dir)
      assert {:error, _reason} = Codex.Files.stage(source)
      File.rm!(staging_dir)
      assert {:ok, attachment} = Codex.Files.stage(source)
      assert_intact([attachment])
    end
  end

  describe "the default staging directory" do
    setup %{folder: folder} do
      unconfigure(:staging_dir)
      uid = String.trim(sh!("id", ["-u"]))
      default = Path.join(folder, "codex_files")
      %{default: default, own: "#{default}-#{uid}"}
    end

    test "is used if it is ours", %{source: source, default: default, own: own} do
      assert {:ok, attachment} = Codex.Files.stage(source)
      assert String.starts_with?(attachment.path, default <> "/")
      refute File.exists?(own)
    end

    @tag skip: @as_root
    test "is one of a per-user name if it belongs to another user", context do
      %{source: source, default: default, own: own} = context
      File.mkdir!(default)
      File.chmod!(default, 0o777)
      sh!("chown", [@nobody, default])

      assert {:ok, attachment} = Codex.Files.stage(source)
      assert String.starts_with?(attachment.path, own <> "/")
      assert mode(own) == 0o700
      assert_intact([attachment])
      assert files_below(default) == []
      assert Codex.Files.reset!() == :ok
      refute File.exists?(attachment.path)
    end

    @tag skip: @links_as_root
    test "is one of a per-user name if it is a link planted by another user", context do
      %{folder: folder, source: source, default: default, own: own} = context
      foreign_link(victim(folder), default)
      assert {:ok, attachment} = Codex.Files.stage(source)
      assert String.starts_with?(attachment.path, own <> "/")
      assert files_below(victim(folder)) == []
    end

    @tag skip: @as_root
    test "is refused if the per-user name is a stranger's too", context do
      %{source: source, default: default, own: own} = context

      for dir <- [default, own] do
        File.mkdir!(dir)
        sh!("chown", [@nobody, dir])
      end

      assert Codex.Files.stage(source) == {:error, {:insecure_staging_dir, own, :foreign_owner}}
    end
  end
end
