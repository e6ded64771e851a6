defmodule Codex.Files.P09ForeignFilesTest do
  @moduledoc """
  P9: only what the library wrote is ever deleted or replaced; a foreign file in the staging directory
  survives start and reset. `reset("/")` is harmless, and so is any destination.
  """

  use Codex.Files.StagingCase, async: false

  alias Codex.Files.ChildVM

  @moduletag :user

  # As a registry's own directory is called.
  @area "codex_files-0123456789abcdef"

  setup %{folder: folder} do
    %{source: write(folder, "source/notes.txt", "some notes")}
  end

  defp area(attachment), do: attachment.path |> Path.dirname() |> Path.dirname()

  # What somebody else keeps in the staging directory.
  defp foreign_files(staging_dir) do
    for name <- [
          "notes.txt",
          "directory/notes.txt",
          ".hidden",
          ".staging",
          ".staging-0",
          ".elsewhere-0",
          "#{sha256("some notes")}/notes.txt",
          "codex_files-1",
          "codex_files-0123456789ABCDEF/notes.txt",
          "codex_files-0123456789abcdef0/notes.txt",
          "#{@area}/notes.txt",
          "#{@area}/directory/notes.txt",
          "#{@area}/#{sha256("some notes")}/notes.txt",
          "codex_files-fedcba9876543210"
        ] do
      write(staging_dir, name, "of somebody else")
    end
  end

  defp assert_there(paths) do
    for path <- paths, do: assert({path, File.read(path)} == {path, {:ok, "of somebody else"}})
  end

  # Everything that removes something.
  defp removals(staging_dir) do
    [
      start: fn ->
        stop_default_registry()
        {:ok, _registry} = Registry.ensure_started()
        # It clears in the background; it does this one after that.
        Codex.Files.force_cleanup()
      end,
      restart: fn ->
        kill_default_registry()
        Codex.Files.force_cleanup()
      end,
      stop: &stop_default_registry/0,
      force_cleanup: &Codex.Files.force_cleanup/0,
      reset!: &Codex.Files.reset!/0,
      reset: fn -> Registry.reset(staging_dir) end,
      call: fn -> GenServer.call(Registry, {:reset, staging_dir}) end
    ]
  end

  test "foreign files in the staging directory stay", %{source: source, staging_dir: staging_dir} do
    foreign = foreign_files(staging_dir)

    for {name, remove} <- removals(staging_dir) do
      {:ok, attachment} = Codex.Files.stage(source, ttl_ms: 0)
      assert {name, remove.()} == {name, :ok}
      refute File.exists?(attachment.path)
      assert_there(foreign)
    end
  end

  test "foreign files beside a staged one stay", %{source: source, staging_dir: staging_dir} do
    for {name, remove} <- removals(staging_dir) do
      {:ok, attachment} = Codex.Files.stage(source, ttl_ms: 0)

      foreign =
        for dir <- [Path.dirname(attachment.path), area(attachment)],
            file <- ["foreign", ".foreign", "directory/foreign"] do
          write(dir, file, "of somebody else")
        end

      assert {name, remove.()} == {name, :ok}
      refute File.exists?(attachment.path)
      assert_there(foreign)
    end
  end

  test "a foreign file that took the place of a destination's stays", context do
    destination = Path.join(context.folder, "destination/copy")

    for {name, remove} <- removals(context.staging_dir) do
      {:ok, _registry} = Registry.ensure_started()
      opts = stage_opts(context.source, ttl_ms: 0, destination_path: destination)
      {:ok, attachment} = Registry.stage(opts)
      File.rm!(attachment.path)
      File.write!(attachment.path, "of somebody else")
      assert {name, remove.()} == {name, :ok}
      assert_there([destination])
      File.rm!(destination)
    end
  end

  test "a foreign directory that took the place of a staged file stays", context do
    %{source: source, staging_dir: staging_dir} = context

    for {name, remove} <- removals(staging_dir) do
      {:ok, attachment} = Codex.Files.stage(source, ttl_ms: 0)
      File.rm!(attachment.path)
      foreign = write(attachment.path, "foreign", "of somebody else")
      assert {name, remove.()} == {name, :ok}
      assert_there([foreign])
    end
  end

  # Whatever is there, and whoever looks: nobody has lost it.
  describe "a destination that is no regular file" do
    @describetag skip: not_on(~w(sshfs), "SFTP makes no FIFO")

    setup %{folder: folder} do
      dir = Path.join(folder, "destinations")
      File.mkdir!(dir)
      path = &Path.join(dir, &1)
      target = write(folder, "target/file", "of somebody else")

      sh!("mkfifo", [path.("fifo")])
      {:ok, _socket} = :gen_tcp.listen(0, ifaddr: {:local, path.("socket")})
      write(path.("directory"), "file", "of somebody else")
      File.mkdir!(path.("empty"))
      File.ln_s!(target, path.("link"))
      File.ln_s!(Path.dirname(target), path.("link-to-directory"))
      File.ln_s!(path.("nowhere"), path.("dangling"))
      # The null device's twin, never the real one.
      if root?(), do: sh!("mknod", [path.("device"), "c", "1", "3"])

      types = %{
        "fifo" => :fifo,
        "socket" => :socket,
        "directory" => :directory,
        "directory/." => :directory,
        "empty" => :directory,
        "link" => :symlink,
        "link-to-directory" => :symlink,
        "dangling" => :symlink
      }

      types = if root?(), do: Map.put(types, "device", :device), else: types
      destinations = for {name, type} <- types, do: {path.(name), type}
      %{destinations: destinations, kept: [target, path.("directory/file")], dir: dir}
    end

    defp looks(dir) do
      for name <- files_below(dir) do
        stat = File.lstat!(Path.join(dir, name))
        {name, stat.type, stat.inode, stat.major_device, stat.minor_device}
      end
    end

    test "is refused and untouched, also by a removal", context do
      before = looks(context.dir)

      for {name, remove} <- removals(context.staging_dir) do
        {:ok, registry} = Registry.ensure_started()

        for {destination, type} <- context.destinations,
            {way, stage} <- ways_to_stage(registry) do
          opts = stage_opts(context.source, destination_path: destination, ttl_ms: 0)
          reason = {:unsupported_destination, type}
          assert {way, destination, stage.(opts)} == {way, destination, {:error, reason}}
        end

        assert Registry.list() == []
        assert {name, remove.()} == {name, :ok}
        assert looks(context.dir) == before
        assert_there(context.kept)
      end
    end

    test "is untouched when the VM is killed", context do
      before = looks(context.dir)
      vm = ChildVM.start(context.staging_dir)
      {:ok, _registry} = ChildVM.eval(vm, quote(do: Codex.Files.Registry.ensure_started()))

      for {destination, type} <- context.destinations do
        opts = Macro.escape(stage_opts(context.source, destination_path: destination))

        assert ChildVM.eval(vm, quote(do: Codex.Files.Registry.stage(unquote(opts)))) ==
                 {:error, {:unsupported_destination, type}}
      end

      ChildVM.kill(vm)
      {:ok, _registry} = Registry.ensure_started()
      assert Registry.force_cleanup() == :ok
      assert looks(context.dir) == before
      assert_there(context.kept)
    end

    test "is no trouble if a link above leads to it", context do
      real = Path.join(context.folder, "real")
      File.mkdir!(real)
      File.ln_s!(real, Path.join(context.folder, "way"))
      {:ok, _registry} = Registry.ensure_started()
      destination = Path.join(context.folder, "way/copy")
      opts = stage_opts(context.source, destination_path: destination)
      assert {:ok, %{path: ^destination}} = Registry.stage(opts)
      assert File.read!(Path.join(real, "copy")) == "some notes"
      assert Codex.Files.reset!() == :ok
      assert files_below(real) == []
    end
  end

  test "a dead registry's files go, and foreign ones among them stay", context do
    %{folder: folder, staging_dir: staging_dir} = context
    dead = Path.join(staging_dir, @area)
    checksum = sha256("some notes")

    # As such a registry has left them: no one may write them.
    own =
      for name <- ["#{checksum}/notes.txt", ".staging-7", "#{sha256("other")}/.staging"] do
        path = write(dead, name, "of a dead registry")
        File.chmod!(path, 0o400)
        path
      end

    foreign =
      for name <- ["#{checksum}/mine", "directory/deeper/mine", "mine"],
          do: write(dead, name, "of somebody else")

    # And links to what is not in there.
    outside = write(folder, "outside/mine", "of somebody else")
    private = write(folder, "outside/private", "of somebody else")
    File.chmod!(private, 0o400)
    File.ln_s!(Path.dirname(outside), Path.join(dead, "link"))
    File.ln_s!(private, Path.join(dead, "#{checksum}/link"))

    {:ok, _registry} = Registry.ensure_started()
    assert Codex.Files.force_cleanup() == :ok

    refute Enum.any?(own, &File.exists?/1)
    assert_there([outside, private | foreign])
  end

  test "a dead registry's record does not lead to a foreign file", context do
    %{folder: folder, staging_dir: staging_dir} = context
    victim = write(folder, "victim", "of somebody else")
    File.chmod!(victim, 0o400)
    dead = Path.join(staging_dir, @area)
    File.mkdir_p!(dead)

    # A link of that name says what was staged where; this one says nothing true.
    for record <- [".elsewhere-0", ".elsewhere-1-0-0", ".elsewhere-x", ".elsewhere-2-zz-zz"],
        do: File.ln_s!(victim, Path.join(dead, record))

    {:ok, _registry} = Registry.ensure_started()
    assert Codex.Files.force_cleanup() == :ok
    assert_there([victim])
  end

  test "a directory that the caller has staged into stays if something else is in it", context do
    {:ok, _registry} = Registry.ensure_started()

    for remove <- [&Registry.force_cleanup/0, &Codex.Files.reset!/0] do
      destination = Path.join(context.folder, "destination/copy")
      opts = stage_opts(context.source, ttl_ms: 0, destination_path: destination)
      {:ok, _attachment} = Registry.stage(opts)
      foreign = write(Path.dirname(destination), "foreign", "of somebody else")

      assert remove.() == :ok
      refute File.exists?(destination)
      assert_there([foreign])
      File.rm_rf!(Path.dirname(destination))
    end
  end

  test "reset of any directory is harmless to what is in it", context do
    %{folder: folder, source: source} = context
    {:ok, _registry} = Registry.ensure_started()
    home = Path.join(folder, "home")
    foreign = foreign_files(home)

    for dir <- ["/", "/tmp", "/etc", home, folder, ".", "..", Path.join(home, "notes.txt")],
        reset <- [&Registry.reset/1, &GenServer.call(start_registry(), {:reset, &1})] do
      assert {dir, reset.(dir)} == {dir, :ok}
      assert_there(foreign)
      assert File.read!(source) == "some notes"
      assert File.dir?("/etc")
    end
  end

  test "the sources stay", %{folder: folder, staging_dir: staging_dir} do
    # Even one that lies in the staging directory.
    sources = for dir <- [folder, staging_dir], do: write(dir, "mine", "of somebody else")
    for source <- sources, do: {:ok, _attachment} = Codex.Files.stage(source, ttl_ms: 0)
    assert Codex.Files.force_cleanup() == :ok
    assert Codex.Files.reset!() == :ok
    stop_default_registry()
    assert_there(sources)
  end
end
