defmodule Codex.Files.VerifyTest do
  @moduledoc """
  `Codex.Files.verify/1` finds what is damaged, however it looks, and what is damaged is copied anew.
  """

  use Codex.Files.StagingCase, async: false

  # Changes a byte, and nothing that a look at the file shows.
  defp damage(path) do
    %{mode: mode} = File.stat!(path)
    times = path <> ".times"
    sh!("touch", ["--reference", path, times])
    File.chmod!(path, 0o600)
    {:ok, file} = :file.open(path, [:read, :write, :raw, :binary])
    {:ok, <<byte>>} = :file.pread(file, 0, 1)
    :ok = :file.pwrite(file, 0, <<Bitwise.bxor(byte, 1)>>)
    :ok = :file.close(file)
    File.chmod!(path, mode)
    # Last: Erlang's change of the mode sets the times, to whole seconds.
    sh!("touch", ["--reference", times, path])
    File.rm!(times)
  end

  defp stage_some(folder) do
    for {name, size} <- [{"empty", 0}, {"small", 10}, {"large", 1_000_000}] do
      source = write(folder, "source/#{name}", :binary.copy("a", size))
      {:ok, attachment} = Codex.Files.stage(source)
      attachment
    end
  end

  test "counts what is as it was staged", %{folder: folder} do
    assert Codex.Files.verify() == {:ok, 0}
    stage_some(folder)
    assert Codex.Files.verify() == {:ok, 3}
  end

  test "tells of each damaged one, which is copied anew", %{folder: folder} do
    [empty, small, large] = stage_some(folder)
    for attachment <- [small, large], do: damage(attachment.path)
    assert Codex.Files.fetch(small.id) == {:ok, small}
    File.rm!(empty.path)

    assert {:error, {:damaged, damaged}} = Codex.Files.verify()
    mismatch = &{&1.path, {:checksum_mismatch, sha256(File.read!(&1.path))}}

    assert Enum.sort(damaged) ==
             Enum.sort([{empty.path, :enoent}, mismatch.(small), mismatch.(large)])

    assert Codex.Files.format_error({:damaged, damaged}) =~ small.path

    for attachment <- [empty, small, large] do
      assert attachment in Codex.Files.list_staged()
      assert Codex.Files.fetch(attachment.id) == {:error, :not_staged}
      assert {:ok, again} = Codex.Files.stage(Path.join([folder, "source", attachment.name]))
      assert again.path == attachment.path
      assert_intact([again])
      assert Codex.Files.fetch(attachment.id) == {:ok, again}
    end

    assert Codex.Files.verify() == {:ok, 3}
  end

  test "looks at what was staged under a key that is no digest", %{folder: folder} do
    {:ok, _registry} = Registry.ensure_started()
    source = write(folder, "source/file", "some notes")
    path = Path.join(folder, "copy")
    opts = stage_opts(source, checksum: "key", destination_path: path)
    {:ok, _attachment} = Registry.stage(opts)
    assert Codex.Files.verify() == {:ok, 1}
    damage(path)
    assert Codex.Files.verify() == {:ok, 1}
    File.touch!(path, 1_000_000_000)
    assert Codex.Files.verify() == {:error, {:damaged, [{path, :changed}]}}
    assert {:ok, _attachment} = Registry.stage(opts)
    assert File.read!(path) == "some notes"
    assert Codex.Files.verify() == {:ok, 1}
  end

  test "reads another name of a content where that is a file of its own", %{folder: folder} do
    source = write(folder, "source/file", "some notes")
    {:ok, first} = Codex.Files.stage(source)
    {:ok, second} = Codex.Files.stage(source, name: "second")
    assert Codex.Files.verify() == {:ok, 1}
    File.rm!(second.path)
    assert Codex.Files.verify() == {:ok, 1}
    File.write!(second.path, "other notes")
    actual = sha256("other notes")
    damaged = [{second.path, {:checksum_mismatch, actual}}]
    assert Codex.Files.verify() == {:error, {:damaged, damaged}}
    assert {:ok, %{path: path}} = Codex.Files.stage(source, name: "second")
    assert_intact([first, %{second | path: path}])
    assert Codex.Files.verify() == {:ok, 1}
  end

  test "is of no use with a file module" do
    start_default_registry(file_module: Codex.Files.Copy)
    assert Codex.Files.verify() == {:error, :not_supported}
  end

  describe "while it reads" do
    setup %{folder: folder} do
      large = sparse_file(folder, "large", 1024 * 1024 * 1024)
      {:ok, attachment} = Codex.Files.stage(large)
      verifying = Task.async(fn -> Codex.Files.verify() end)
      %{large: large, attachment: attachment, verifying: verifying}
    end

    test "what is read can be looked up, staged again and removed", context do
      %{large: large, attachment: %{id: id}, verifying: verifying} = context
      assert {:ok, %{id: ^id}} = Codex.Files.stage(large)
      assert {:ok, %{id: ^id}} = Codex.Files.fetch(id)
      assert {:ok, _attachment} = Codex.Files.stage({:data, "some notes"}, name: "notes")
      assert Codex.Files.unstage(id) == :ok
      # It had been opened.
      assert {:ok, _count} = Task.await(verifying, 60_000)
      assert Codex.Files.verify() == {:ok, 1}
    end

    test "the stop of the registry ends it", %{verifying: verifying} do
      stop_default_registry()
      assert Task.await(verifying, 60_000) in [{:error, :stopped}, {:error, :noproc}, {:ok, 1}]
    end

    test "the registry may be killed", %{verifying: verifying} do
      kill_default_registry()
      assert Task.await(verifying, 60_000) == {:ok, 1}
    end
  end
end
