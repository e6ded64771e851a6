defmodule Codex.Files.Mounts do
  @moduledoc false
  # File systems that a test mounts in its own folder, and that are unmounted when it ends. Such a test
  # has the tag `:file_systems`, and is in test/file_systems: bin/file_systems runs it, as root.

  import Codex.Files.StagingCase, only: [eventually: 1, sh!: 2, stop_default_registry: 0]
  import ExUnit.Assertions
  import ExUnit.Callbacks

  @doc """
  Mounts a directory of `folder` at another one through bindfs, as `mount/3` does.

  The options are those of the command: `["--chmod-deny"]`.
  """
  def bindfs(folder, options \\ []) do
    mount(folder, "bindfs", fn origin, path ->
      program!("bindfs") |> sh!(options ++ [origin, path])
    end)
  end

  @doc """
  As `bindfs/2`, and functions that have it answer nothing, and answer again.
  """
  def bindfs_that_may_hang(folder) do
    {origin, path} = {directory(folder, "bindfs-origin"), directory(folder, "bindfs")}
    device = File.stat!(path).major_device
    args = ["-f", origin, path]
    port = Port.open({:spawn_executable, program!("bindfs")}, [:binary, args: args])
    {:os_pid, os_pid} = Port.info(port, :os_pid)
    unmount_on_exit(path)
    signal = fn signal -> sh!("kill", ["-#{signal}", "#{os_pid}"]) end
    on_exit(fn -> signal.("CONT") end)
    eventually(fn -> File.stat!(path).major_device != device end)
    %{path: path, hang: fn -> signal.("STOP") end, go_on: fn -> signal.("CONT") end}
  end

  @doc """
  Mounts a directory of `folder` at another one through sshfs, as `mount/3` does, with a server of
  its own that is reached by a pipe: no SSH and no network has to do with it.

  The options are those of the command: `["-o", "cache=no"]`.
  """
  def sshfs(folder, options \\ []) do
    mount(folder, "sshfs", fn origin, path ->
      # Run by sshfs with the arguments for `ssh`.
      server = Path.join(folder, "sftp-server-#{System.unique_integer([:positive])}")
      File.write!(server, "#!/bin/sh\nexec /usr/lib/openssh/sftp-server\n")
      File.chmod!(server, 0o700)

      program!("sshfs")
      |> sh!(options ++ ["-o", "ssh_command=#{server}", "localhost:#{origin}", path])
    end)
  end

  @doc "Mounts a tmpfs in `folder` and returns its path. The options are those of mount, as `\"size=1m\"`."
  def tmpfs(folder, options \\ "mode=0700") do
    path = directory(folder, "tmpfs")
    sh!("mount", ["-t", "tmpfs", "-o", options, "tmpfs", path])
    unmount_on_exit(path)
    path
  end

  # Gives `mount` two new directories of `folder`, of which it mounts the first at the second. Returns
  # them: what is written at one path shows at the other.
  defp mount(folder, name, mount) do
    {origin, path} = {directory(folder, name <> "-origin"), directory(folder, name)}
    mount.(origin, path)
    unmount_on_exit(path)
    %{origin: origin, path: path}
  end

  defp directory(folder, name) do
    path = Path.join(folder, "#{name}-#{System.unique_integer([:positive])}")
    File.mkdir_p!(path)
    path
  end

  # The test's own registries have ended by then, but not the default one, which may have files there.
  defp unmount_on_exit(path) do
    on_exit(fn ->
      stop_default_registry()
      sh!("umount", [path])
    end)
  end

  defp program!(name) do
    System.find_executable(name) ||
      flunk("expected #{name} on the PATH (Debian: apt-get install #{name})")
  end
end
