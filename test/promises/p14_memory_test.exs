defmodule Codex.Files.P14MemoryTest do
  @moduledoc """
  P14: memory is constant: staging any size needs at most 16 MiB beyond the idle VM; a cleanup of any
  number of files leaves nothing behind in any process.
  """

  use Codex.Files.StagingCase, async: false

  alias Codex.Files.ChildVM

  # So much is written and hashed.
  @moduletag timeout: 300_000

  @mib 1024 * 1024

  setup %{folder: folder, staging_dir: staging_dir} do
    vm = ChildVM.start(staging_dir)
    # The library has been loaded, and a registry runs.
    small = write(folder, "small", "some notes")
    {:ok, _attachment} = ChildVM.eval(vm, quote(do: Codex.Files.stage(unquote(small))))
    %{vm: vm, idle: peak(vm)}
  end

  # The most memory that the VM has had in use, in bytes.
  defp peak(%ChildVM{os_pid: os_pid}) do
    [kib] =
      Regex.run(~r/^VmHWM:\s+(\d+) kB$/m, File.read!("/proc/#{os_pid}/status"),
        capture: :all_but_first
      )

    String.to_integer(kib) * 1024
  end

  test "256 MiB need at most 16 MiB, new, known, under a checksum, and to be verified", context do
    %{vm: vm, idle: idle, folder: folder} = context
    large = large_file(folder, "large", 256 * @mib)
    checksum = "a6d72ac7690f53be6ae46ba88506bd97302a093f7108472bd9efc3cefda06484"

    for _ <- 1..2 do
      {:ok, attachment} = ChildVM.eval(vm, quote(do: Codex.Files.stage(unquote(large))))
      assert attachment.size == 256 * @mib
      assert attachment.checksum == checksum
      assert peak(vm) - idle < 16 * @mib
    end

    opts =
      Macro.escape(%{
        checksum: String.upcase(checksum),
        name: "name",
        persist: false,
        ttl_ms: 60_000,
        size: 256 * @mib,
        source_path: large,
        destination_path: Path.join(folder, "copy")
      })

    {:ok, _attachment} = ChildVM.eval(vm, quote(do: Codex.Files.Registry.stage(unquote(opts))))
    assert peak(vm) - idle < 16 * @mib
    assert {:ok, 3} = ChildVM.eval(vm, quote(do: Codex.Files.verify()))
    assert peak(vm) - idle < 16 * @mib
  end

  test "staging eight files of 32 MiB at once needs at most 16 MiB", context do
    %{vm: vm, idle: idle, folder: folder} = context
    sources = for n <- 1..8, do: large_file(folder, "large #{n}", 32 * @mib + n)

    staged =
      ChildVM.eval(
        vm,
        quote do
          unquote(sources)
          |> Enum.map(&Task.async(fn -> Codex.Files.stage(&1) end))
          |> Task.await_many(:infinity)
        end
      )

    assert length(for {:ok, _attachment} <- staged, do: :ok) == 8
    assert peak(vm) - idle < 16 * @mib
  end

  test "staging a stream of 256 MiB needs at most 16 MiB, new and known", context do
    %{vm: vm, idle: idle} = context

    # Each piece is new in memory, as what is read of a file is, and some are lists.
    stage =
      quote do
        pieces =
          Stream.map(1..4096, fn number ->
            if rem(number, 3) == 0,
              do: List.duplicate(<<number::32>>, 16_384),
              else: :binary.copy(<<number::32>>, 16_384)
          end)

        Codex.Files.stage({:stream, pieces}, name: "name")
      end

    for _ <- 1..2 do
      {:ok, attachment} = ChildVM.eval(vm, stage)
      assert attachment.size == 256 * @mib
      assert peak(vm) - idle < 16 * @mib
    end
  end

  test "staging 64 MiB of many small parts needs at most 16 MiB, new and known", context do
    %{vm: vm, idle: idle} = context

    for source <- [:data, :stream], _ <- 1..2 do
      # Half a MiB of parts, which is the same each time, takes little memory itself.
      stage =
        quote do
          part = List.duplicate(["some bytes", ?., [" and some more" | " of them"]], 16_384)
          list = List.duplicate(part, 124)
          source = if unquote(source) == :data, do: list, else: [list]
          Codex.Files.stage({unquote(source), source}, name: "name")
        end

      {:ok, attachment} = ChildVM.eval(vm, stage)
      assert attachment.size > 63 * @mib
      assert peak(vm) - idle < 16 * @mib
    end
  end

  test "staging a binary of 256 MiB needs at most 16 MiB beyond it", %{vm: vm} do
    make =
      quote do
        binary = :binary.copy("0123456789abcdef", 16 * 1024 * 1024)
        :persistent_term.put(:binary, binary)
      end

    :ok = ChildVM.eval(vm, make)
    with_it = peak(vm)

    stage = quote(do: Codex.Files.stage({:data, :persistent_term.get(:binary)}, name: "name"))

    for _ <- 1..2 do
      {:ok, attachment} = ChildVM.eval(vm, stage)
      assert attachment.size == 256 * @mib
      assert peak(vm) - with_it < 16 * @mib
    end
  end
end
