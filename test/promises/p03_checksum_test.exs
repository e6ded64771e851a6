defmodule Codex.Files.P03ChecksumTest do
  @moduledoc """
  P3: `checksum` is the digest of the bytes at `path`: the hash is taken of the bytes written, not
  of the source read earlier. And a staging never answers with an older content than the file had
  when it was called.
  """

  use Codex.Files.StagingCase, async: false

  # Below and above the size from which on a file is copied in pieces.
  @sizes [20_000, 1_000_000]
  @rounds 30

  setup %{folder: folder} do
    %{source: Path.join(folder, "source")}
  end

  # Rewrites a file in place, in no order, as fast as it can, and grows and shrinks it.
  defp rewrite_for_ever(source, size) do
    File.write!(source, :binary.copy("a", size))
    test = self()

    rewriter =
      spawn_link(fn ->
        {:ok, file} = :file.open(source, [:read, :write, :raw, :binary])
        send(test, :rewriting)
        rewrite(file, size)
      end)

    assert_receive :rewriting, 5_000
    rewriter
  end

  defp rewrite(file, size) do
    length = :rand.uniform(div(size, 4))
    byte = Enum.random(?a..?z)
    :ok = :file.pwrite(file, :rand.uniform(size) - 1, :binary.copy(<<byte>>, length))

    if :rand.uniform(10) == 1 do
      {:ok, _position} = :file.position(file, div(size, 2) + :rand.uniform(div(size, 2)))
      :ok = :file.truncate(file)
    end

    rewrite(file, size)
  end

  for size <- @sizes do
    test "holds for a file of #{size} bytes that is being rewritten", %{source: source} do
      rewriter = rewrite_for_ever(source, unquote(size))

      checksums =
        for _ <- 1..@rounds do
          assert {:ok, attachment} = Codex.Files.stage(source)
          content = File.read!(attachment.path)
          assert sha256(content) == attachment.checksum
          assert byte_size(content) == attachment.size
          attachment.checksum
        end

      Process.unlink(rewriter)
      kill(rewriter)
      # It did change all the time.
      assert checksums |> Enum.uniq() |> length() > div(@rounds, 2)
    end

    test "holds for a claim about a file of #{size} bytes that is being rewritten", context do
      %{source: source, folder: folder} = context
      rewriter = rewrite_for_ever(source, unquote(size))
      {:ok, _registry} = Registry.ensure_started()

      for round <- 1..@rounds do
        destination = Path.join(folder, "destination/#{round}/copy")
        opts = stage_opts(source, destination_path: destination)

        case Registry.stage(opts) do
          {:ok, attachment} ->
            assert sha256(File.read!(attachment.path)) == attachment.checksum

          {:error, {:checksum_mismatch, actual}} ->
            assert actual =~ ~r/\A[0-9a-f]{64}\z/
            assert actual != opts.checksum
            refute File.exists?(Path.dirname(destination))
        end
      end

      Process.unlink(rewriter)
      kill(rewriter)
    end
  end

  test "holds for each of many contents of one size, one right after the other", context do
    for round <- 1..200 do
      content = String.pad_leading("#{round}", 100)
      File.write!(context.source, content)
      assert {:ok, attachment} = Codex.Files.stage(context.source)
      assert attachment.checksum == sha256(content)
      assert File.read!(attachment.path) == content
    end
  end

  test "holds for a content of the same size and modification time as the former one", context do
    %{source: source} = context
    File.write!(source, "one")
    %{mtime: mtime} = File.stat!(source, time: :posix)

    # An unchanged file is recognised by its times only when they are old enough.
    eventually(fn -> System.os_time(:second) - mtime > 3 end)
    {:ok, _attachment} = Codex.Files.stage(source)
    {:ok, recognised} = Codex.Files.stage(source)
    assert recognised.checksum == sha256("one")

    File.write!(source, "two")
    File.touch!(source, mtime)
    assert {:ok, attachment} = Codex.Files.stage(source)
    assert attachment.checksum == sha256("two")
    assert File.read!(attachment.path) == "two"
  end

  test "holds for another file that takes the former one's place", %{folder: folder} do
    source = Path.join(folder, "source")

    for round <- 1..50 do
      content = "content #{rem(round, 7)}"
      File.rename!(write(folder, "next", content), source)
      assert {:ok, %{checksum: checksum, path: path}} = Codex.Files.stage(source)
      assert checksum == sha256(content)
      assert File.read!(path) == content
    end
  end

  # What the kernel makes up when it is read keeps its times, and often its size.
  @kernel_files ~w(/proc/uptime /proc/sys/kernel/random/uuid /sys/class/net/lo/statistics/tx_packets
                   /sys/fs/cgroup/cpu.stat /sys/fs/cgroup/cpuacct/cpuacct.usage)

  for path <- @kernel_files, File.regular?(path) do
    test "holds for #{path}, whose content changes and whose times do not" do
      path = unquote(path)
      make_times_old(path)
      assert {:ok, %{checksum: first}} = Codex.Files.stage(path)
      eventually(fn -> sha256(read_while_traffic(path)) != first end)

      assert {:ok, second} = Codex.Files.stage(path)
      assert second.checksum != first
      assert sha256(File.read!(second.path)) == second.checksum
    end
  end

  # Only times that were two seconds old when the file was staged are believed.
  defp make_times_old(path) do
    eventually(fn -> System.os_time(:second) - File.stat!(path, time: :posix).mtime > 3 end)
  end

  # The network's counters change only if there is some.
  defp read_while_traffic(path) do
    {:ok, socket} = :gen_udp.open(0, ip: {127, 0, 0, 1})
    {:ok, port} = :inet.port(socket)
    :ok = :gen_udp.send(socket, {127, 0, 0, 1}, port, "traffic")
    :ok = :gen_udp.close(socket)
    File.read!(path)
  end
end
