defmodule Codex.Files.StagingCase do
  @moduledoc false
  # A test with a temporary folder, a staging directory and a default registry of its own. The
  # default registry has not been started when the test begins, and is stopped when it ends.
  #
  # The default registry, the application environment and TMPDIR are the VM's: such a test is never
  # asynchronous.

  use ExUnit.CaseTemplate

  alias Codex.Files.Registry

  using do
    quote do
      import Codex.Files.StagingCase

      alias Codex.Files.Attachment
      alias Codex.Files.Registry
    end
  end

  setup do
    folder = temporary_folder()
    staging_dir = Path.join(folder, "staging")
    tmpdir = System.get_env("TMPDIR")

    stop_default_registry()
    System.put_env("TMPDIR", folder)
    Application.put_env(:codex_sdk, :staging_dir, staging_dir)

    on_exit(fn ->
      stop_default_registry()
      for {key, _value} <- Application.get_all_env(:codex_sdk), do: unconfigure(key)
      if tmpdir, do: System.put_env("TMPDIR", tmpdir), else: System.delete_env("TMPDIR")
    end)

    %{folder: folder, staging_dir: staging_dir}
  end

  @doc "Makes a folder that is removed when the test ends."
  def temporary_folder do
    unique = System.unique_integer([:positive])
    folder = Path.join(System.tmp_dir!(), "codex_files_test_#{System.pid()}_#{unique}")
    File.mkdir_p!(folder)
    # What a VM that has just ended had open is there under another name for a moment, on FUSE.
    on_exit(fn -> eventually(fn -> match?({:ok, _paths}, File.rm_rf(folder)) end) end)
    folder
  end

  ## Set-up

  @doc "Changes the configuration for this test."
  def configure(key, value), do: Application.put_env(:codex_sdk, key, value)

  @doc "Makes the library use the default."
  def unconfigure(key), do: Application.delete_env(:codex_sdk, key)

  @doc """
  The options of the two kinds of registry. What both promise is tested with either:

      for opts <- registries() do
        describe "a registry with \#{inspect(opts)}" do
          @describetag registry_opts: opts
  """
  def registries, do: [[], [file_module: Codex.Files.Copy]]

  @doc """
  Starts the default registry and one that shares nothing with it, both of the kind that the test
  is tagged with, and waits until they have cleared the staging directory, if they do.
  """
  def start_registries(%{registry_opts: opts}) do
    registries = [start_default_registry(opts), start_registry(opts)]
    for registry <- registries, do: :ok = GenServer.call(registry, :force_cleanup)
    registries
  end

  @doc "Starts the default registry, with a file module for instance, and returns its pid."
  def start_default_registry(opts \\ []) do
    {:ok, registry} = Supervisor.start_child(Codex.Files.Supervisor, {Registry, opts})
    registry
  end

  @doc "Stops the default registry for good, as its supervisor does."
  def stop_default_registry do
    {:ok, _started} = Application.ensure_all_started(:codex_files)
    _ = Supervisor.terminate_child(Codex.Files.Supervisor, Registry)
    _ = Supervisor.delete_child(Codex.Files.Supervisor, Registry)
    :ok
  end

  @doc "Starts a registry that shares nothing with another, and returns its pid."
  def start_registry(opts \\ []) do
    id = System.unique_integer([:positive])
    defaults = [name: :"registry_#{id}", manifest_table: :"manifest_#{id}"]
    start_supervised!({Registry, Keyword.merge(defaults, opts)}, id: id)
  end

  @doc "Starts a registry with a file module, and waits until it has cleared the staging directory."
  def start_registry_with_file_module do
    registry = start_registry(file_module: Codex.Files.PuppetFile)
    assert_receive {:callback, _pid, :rm_rf, [_staging_dir]}, 5_000
    assert GenServer.call(registry, :force_cleanup) == :ok
    registry
  end

  @doc "Kills a process and waits until it is gone."
  def kill(pid) do
    monitor = Process.monitor(pid)
    Process.exit(pid, :kill)
    assert_receive {:DOWN, ^monitor, :process, ^pid, _reason}, 5_000
  end

  @doc "Kills the default registry and waits for its successor, whose pid it returns."
  def kill_default_registry do
    killed = Process.whereis(Registry)
    kill(killed)
    eventually(fn -> (pid = Process.whereis(Registry)) != killed && pid end)
  end

  ## Files

  @doc "Writes a file, with its parents, and returns its path."
  def write(folder, name, content) do
    path = Path.join(folder, name)
    File.mkdir_p!(Path.dirname(path))
    File.write!(path, content)
    path
  end

  @doc "Makes a file of `size` bytes that are all zero, at once."
  def large_file(folder, name, size) do
    # Where room can be had without writing, it has no holes: those would not be copied.
    file_of_size(folder, name, size, &:file.allocate(&1, 0, size))
  end

  @doc "Makes a file of `size` bytes that is a hole: it takes no room on the disk, and reads as zeros."
  def sparse_file(folder, name, size), do: file_of_size(folder, name, size, fn _file -> :ok end)

  defp file_of_size(folder, name, size, allocate) do
    path = Path.join(folder, name)
    File.mkdir_p!(Path.dirname(path))
    {:ok, file} = :file.open(path, [:write, :raw])
    _ = allocate.(file)
    {:ok, _position} = :file.position(file, size)
    :ok = :file.truncate(file)
    :ok = :file.close(file)
    path
  end

  @doc "How many bytes of the disk a file takes."
  def room(path) do
    [blocks, size] = sh!("stat", ["--format=%b %B", path]) |> String.split()
    String.to_integer(blocks) * String.to_integer(size)
  end

  @doc "The lower-case hexadecimal SHA-256 digest of `content`."
  def sha256(content) do
    Base.encode16(:crypto.hash(:sha256, content), case: :lower)
  end

  @doc "The paths of all there is below `folder`, relative to it; directories end with a slash."
  def files_below(folder) do
    case :file.list_dir_all(folder) do
      {:ok, names} -> names |> Enum.flat_map(&below(folder, raw(&1))) |> Enum.sort()
      {:error, :enoent} -> []
    end
  end

  defp below(folder, name) do
    path = Path.join(folder, name)

    case File.lstat(path) do
      {:ok, %{type: :directory}} -> [name <> "/" | Enum.map(files_below(path), &"#{name}/#{&1}")]
      {:ok, _stat} -> [name]
      # It has gone since it was listed.
      {:error, :enoent} -> []
    end
  end

  @doc "The names of the files in the registries' own directories, of what is staged and on its way."
  def files_in_areas(staging_dir) do
    for path <- files_below(staging_dir),
        not String.ends_with?(path, "/"),
        do: Path.basename(path)
  end

  # Names that are no valid UTF-8 come as binaries, the others as character lists.
  defp raw(name) when is_list(name), do: List.to_string(name)
  defp raw(name), do: name

  @doc "The permission bits of a path, links not followed."
  def mode(path), do: Bitwise.band(File.lstat!(path).mode, 0o7777)

  @doc "Runs a command of the system, which must succeed, and returns what it printed."
  def sh!(command, args) do
    {output, status} = System.cmd(command, args, stderr_to_stdout: true)
    assert status == 0, "#{command} #{inspect(args)} failed: #{output}"
    output
  end

  @doc "Whether the tests run as root, who can play another user but whom no mode keeps out."
  def root?, do: sh!("id", ["-u"]) == "0\n"

  @doc "Makes removing a staged file fail until the test ends or the function returned is called."
  def make_unremovable(path) do
    cond do
      not root?() ->
        dir = Path.dirname(path)
        File.chmod!(dir, 0o500)
        undo_once(fn -> File.chmod!(dir, 0o700) end)

      match?({_output, 0}, run("chattr", ["+i", path])) ->
        undo_once(fn -> sh!("chattr", ["-i", path]) end)

      true ->
        sh!("mount", ["--bind", path, path])
        undo_once(fn -> sh!("umount", [path]) end)
    end
  end

  defp run(command, args) do
    System.find_executable(command) && System.cmd(command, args, stderr_to_stdout: true)
  end

  defp undo_once(undo) do
    done = :atomics.new(1, [])
    undo_once = fn -> if :atomics.exchange(done, 1, 1) == 0, do: undo.() end
    on_exit(undo_once)
    undo_once
  end

  @doc """
  For `@tag skip:`, the reason why a test cannot hold where `bin/file_systems` runs it, if that is on one
  of these file systems; `false` elsewhere.
  """
  def not_on(file_systems, reason) do
    here = System.get_env("CODEX_FILES_TEST_FILE_SYSTEM", "")

    if here in file_systems do
      IO.puts("not applicable on #{here}: #{reason}")
      reason
    else
      false
    end
  end

  ## Staging

  @doc "What `Registry.stage/1` takes, for a file, under the digest of its content."
  def stage_opts(source, overrides \\ %{}) do
    content = File.read!(source)
    checksum = sha256(content)
    name = Path.basename(source)

    Map.merge(
      %{
        checksum: checksum,
        name: name,
        persist: false,
        ttl_ms: 60_000,
        size: byte_size(content),
        source_path: source,
        destination_path: Path.join([Codex.Files.staging_dir(), checksum, name])
      },
      Map.new(overrides)
    )
  end

  @doc "The ways to stage under a checksum: the function, and a call to a registry of any name."
  def ways_to_stage(registry) do
    [
      {"Registry.stage/1", &Registry.stage/1},
      {"GenServer.call/2", &GenServer.call(registry, {:stage, &1})}
    ]
  end

  @doc "Asserts that what is staged is there, whole."
  def assert_intact(attachments) do
    for %{path: path, checksum: checksum} <- attachments do
      assert sha256(File.read!(path)) == checksum
    end
  end

  ## Waiting

  @doc "Calls `check` until it gives something truthy, and returns that; fails after ten seconds."
  def eventually(check), do: eventually(check, System.monotonic_time(:millisecond) + 10_000)

  defp eventually(check, deadline) do
    cond do
      result = check.() ->
        result

      System.monotonic_time(:millisecond) > deadline ->
        flunk("expected this to become true in time: #{inspect(check)}")

      true ->
        receive do
        after
          2 -> eventually(check, deadline)
        end
    end
  end
end
