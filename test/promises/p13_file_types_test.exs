defmodule Codex.Files.P13FileTypesTest do
  @moduledoc """
  P13: only regular files are staged; a FIFO, socket or device gives
  `{:error, {:unsupported_file_type, type}}` at once (no open that blocks).
  """

  use Codex.Files.StagingCase, async: false

  @moduletag skip: not_on(~w(sshfs), "SFTP makes no FIFO")

  setup %{folder: folder} = context do
    [registry, other] = start_registries(Map.put_new(context, :registry_opts, []))
    {:ok, earlier} = Codex.Files.stage(write(folder, "earlier", "earlier"))

    fifo = Path.join(folder, "fifo")
    sh!("mkfifo", [fifo])

    socket = Path.join(folder, "socket")
    {:ok, listening} = :gen_tcp.listen(0, ifaddr: {:local, socket})
    on_exit(fn -> :gen_tcp.close(listening) end)

    sources =
      for {path, type} <- [
            {fifo, :fifo},
            {socket, :socket},
            {"/dev/null", :device},
            {"/dev/zero", :device},
            {"/dev/random", :device},
            {"/dev/tty", :device}
          ],
          path <- [path, link(folder, path)],
          do: {path, type}

    %{sources: sources, registry: registry, other: other, earlier: earlier}
  end

  defp link(folder, path) do
    link = Path.join(folder, "link to #{Path.basename(path)}")
    File.ln_s!(path, link)
    link
  end

  # A call that opened the FIFO for reading would wait for a writer, for ever.
  defp at_once(call) do
    task = Task.async(call)

    case Task.yield(task, 2_000) || Task.shutdown(task, :brutal_kill) do
      {:ok, result} -> result
      nil -> flunk("expected an answer at once")
    end
  end

  for opts <- registries() do
    describe "a registry with #{inspect(opts)}" do
      @describetag registry_opts: opts

      test "refuses anything else at once, by what it is", context do
        opts =
          stage_opts(context.earlier.path, checksum: "key", destination_path: "/no/such/place")

        ways =
          [{"Codex.Files.stage/2", &Codex.Files.stage/1}] ++
            for {way, stage} <- ways_to_stage(context.other) do
              {way, &stage.(%{opts | source_path: &1})}
            end

        for {way, stage} <- ways, {path, type} <- context.sources do
          reason = {:unsupported_file_type, type}
          assert {way, path, at_once(fn -> stage.(path) end)} == {way, path, {:error, reason}}
        end

        refute File.exists?("/no/such/place")
        assert Codex.Files.list_staged() == [context.earlier]
        assert Process.whereis(Registry) == context.registry
        assert_intact([context.earlier])
      end
    end
  end

  test "it does not take a reader's place at a pipe", context do
    # Whoever writes to it must not be told that somebody reads.
    {fifo, :fifo} = List.keyfind(context.sources, :fifo, 1)
    writer = Task.async(fn -> sh!("sh", ["-c", "echo written > \"$0\"", fifo]) end)
    for _ <- 1..20, do: {:error, _reason} = Codex.Files.stage(fifo)
    assert Task.yield(writer, 0) == nil
    assert sh!("cat", [fifo]) == "written\n"
    Task.await(writer)
  end

  test "files of /proc, which have no size, are regular", _context do
    content = File.read!("/proc/version")
    assert {:ok, attachment} = Codex.Files.stage("/proc/version")
    assert attachment.size == byte_size(content)
    assert File.read!(attachment.path) == content
  end
end
