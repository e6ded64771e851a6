# The demonstration behind bin/demo. Uses nothing but the public API.

defmodule Demo do
  @big_file_mib 256
  @mib 1024 * 1024

  def main(args) do
    scratch = Path.join(System.tmp_dir!(), "codex_files_demo_#{System.pid()}")
    File.mkdir_p!(scratch)
    Application.put_env(:codex_sdk, :staging_dir, Path.join(scratch, "staging"))
    Application.put_env(:codex_sdk, :attachment_cleanup_interval_ms, 250)

    try do
      run(files(args, scratch), scratch)
    after
      Codex.Files.reset!()
      File.rm_rf!(scratch)
    end
  end

  defp files([], scratch) do
    big = Path.join(scratch, "generated_#{@big_file_mib}_mib.bin")
    note("generating #{Path.basename(big)} ...")
    piece = :crypto.strong_rand_bytes(@mib)

    File.open!(big, [:write, :raw], fn file ->
      for number <- 1..@big_file_mib, do: :ok = :file.write(file, [<<number::64>>, piece])
    end)

    ["README.md", "LICENSE", "mix.exs", "Cargo.toml", "Cargo.lock", big]
  end

  defp files(args, _scratch) do
    from = System.get_env("CODEX_FILES_DEMO_DIR", ".")
    Enum.map(args, &{&1, Path.expand(&1, from)})
  end

  defp run(files, scratch) do
    files = Enum.map(files, fn file -> if is_tuple(file), do: file, else: {file, file} end)

    width =
      files |> Enum.map(fn {name, _path} -> String.length(Path.basename(name)) end) |> Enum.max()

    started = System.monotonic_time(:microsecond)
    staged = for round <- 1..2, file <- files, do: stage(file, round, max(width, 4))
    elapsed = System.monotonic_time(:microsecond) - started

    IO.puts("\nmetrics")

    for {key, value} <- Enum.sort(Codex.Files.metrics()) do
      IO.puts("  #{String.pad_trailing(to_string(key), 18)} #{value || "none"}")
    end

    expire(files)
    one_of_each(scratch)
    reset()

    bytes = staged |> Enum.map(fn {attachment, _known?} -> attachment.size end) |> Enum.sum()
    known = Enum.count(staged, fn {_attachment, known?} -> known? end)
    mib = bytes / @mib

    IO.puts(
      "\n#{length(staged)} files staged, #{fixed(mib)} MiB, #{fixed(mib / (elapsed / 1_000_000))} MiB/s, " <>
        "#{known} deduplicated"
    )
  end

  defp stage({name, path}, round, width) do
    # Only a new checksum adds to the count.
    before = count()

    {time, result} =
      :timer.tc(fn -> with_progress(name, path, fn -> Codex.Files.stage(path) end) end)

    case result do
      {:ok, attachment} ->
        known? = count() == before
        if Process.put(:round, round) != round, do: header(round, width)

        IO.puts(
          Enum.join(
            [
              String.pad_trailing(Path.basename(name), width),
              String.pad_leading(Integer.to_string(attachment.size), 12),
              String.slice(attachment.checksum, 0, 12),
              if(known?, do: "known", else: "new  "),
              String.pad_leading(duration(time), 10)
            ],
            "  "
          )
        )

        {attachment, known?}

      {:error, reason} ->
        fail("could not stage #{name}: #{Codex.Files.format_error(reason)}")
    end
  end

  defp header(round, width) do
    IO.puts(if round == 1, do: "staging", else: "\nstaging the same files again")

    IO.puts(
      String.pad_trailing("name", width) <> "         bytes  checksum      state        time"
    )
  end

  # A file of noticeable size shows how far its copy has come: on its way in it grows in the
  # staging directory.
  defp with_progress(name, path, work) do
    size =
      case File.stat(path) do
        {:ok, %File.Stat{size: size}} -> size
        {:error, _reason} -> 0
      end

    if size > 32 * @mib and IO.ANSI.enabled?() do
      task = Task.async(work)
      result = show_progress(task, Path.basename(name), size)
      IO.write("\r" <> IO.ANSI.clear_line())
      result
    else
      work.()
    end
  end

  defp show_progress(task, name, size) do
    case Task.yield(task, 50) do
      {:ok, result} ->
        result

      nil ->
        copied =
          [Codex.Files.staging_dir(), "*", ".staging-*"]
          |> Path.join()
          |> Path.wildcard(match_dot: true)
          |> Enum.map(&file_size/1)
          |> Enum.max(fn -> 0 end)

        IO.write("\r#{name}: #{fixed(copied / @mib)} of #{fixed(size / @mib)} MiB copied")
        show_progress(task, name, size)
    end
  end

  defp file_size(path) do
    case File.stat(path) do
      {:ok, %File.Stat{size: size}} -> size
      {:error, _reason} -> 0
    end
  end

  defp expire(files) do
    ttl_ms = 500
    short = Enum.take(files, max(div(length(files), 2), 1))
    attachments = for {_name, path} <- short, do: elem(Codex.Files.stage(path, ttl_ms: ttl_ms), 1)
    before = count()

    IO.puts(
      "\n#{length(short)} files staged again with a TTL of #{ttl_ms} ms; #{before} are staged"
    )

    until_gone(attachments)
    IO.puts("the cleanup thread has removed #{before - count()} of them; #{count()} are staged")
  end

  defp one_of_each(scratch) do
    IO.puts("\none of each")

    for {title, show} <- [
          {"bytes in memory", &in_memory/1},
          {"a stream", &stream/1},
          {"a second name", &second_name/1},
          {"an owner", &owner/1},
          {"temporary", &temporary/1},
          {"fetch and unstage", &fetch_and_unstage/1},
          {"a registry apart", &registry/1},
          {"verify", &verify/1},
          {"a sparse file", &sparse/1}
        ],
        do: IO.puts("  #{String.pad_trailing(title, 18)} #{show.(scratch)}")

    IO.puts("")
  end

  defp in_memory(_scratch) do
    {:ok, image} = Codex.Files.stage({:data, ["PNG", :rand.bytes(5_000)]}, name: "image.png")
    "#{image.name}, #{image.size} bytes, that were in no file"
  end

  defp stream(_scratch) do
    pieces = Stream.repeatedly(fn -> :rand.bytes(65_536) end) |> Stream.take(128)
    {:ok, download} = Codex.Files.stage({:stream, pieces}, name: "download.bin")
    "#{download.name}, #{fixed(download.size / @mib)} MiB, hashed and written as they came"
  end

  defp second_name(_scratch) do
    {:ok, first} = Codex.Files.stage({:data, "Minutes"}, name: "notes.txt")
    {:ok, second} = Codex.Files.stage({:data, "Minutes"}, name: "minutes.txt")
    [one, other] = for %{path: path} <- [first, second], do: File.stat!(path).inode
    "#{second.name} beside #{first.name}, #{if one == other, do: "one file", else: "a copy"}"
  end

  defp owner(_scratch) do
    owner = spawn(fn -> receive do: (:done -> :ok) end)

    drafts =
      for number <- 1..3 do
        {:ok, draft} = Codex.Files.stage({:data, "#{number}"}, name: "draft.txt", owner: owner)
        draft
      end

    :ok = Codex.Files.force_cleanup()
    kept = Enum.count(drafts, &File.exists?(&1.path))
    send(owner, :done)
    {time, :ok} = :timer.tc(fn -> until_gone(drafts, 1) end)
    "a process kept #{kept} files, which were gone #{duration(time)} after it had ended"
  end

  defp temporary(_scratch) do
    use = fn attachment -> {attachment, File.read!(attachment.path)} end
    {:ok, {attachment, read}} = Codex.Files.temporary({:data, "a secret"}, [name: "key.txt"], use)
    until_gone([attachment])
    "#{inspect(read)} was read from a file, which is gone"
  end

  defp fetch_and_unstage(_scratch) do
    {:ok, attachment} = Codex.Files.stage({:data, "not for long"}, name: "note.txt")
    {:ok, ^attachment} = Codex.Files.fetch(attachment.id)
    :ok = Codex.Files.unstage(attachment)
    {:error, reason} = Codex.Files.fetch(attachment.id)
    "found by its id; when it is unstaged, \"#{Codex.Files.format_error(reason)}\""
  end

  defp registry(scratch) do
    {:ok, registry} =
      Codex.Files.Registry.start_link(
        name: Demo.Uploads,
        staging_dir: Path.join(scratch, "uploads"),
        max_bytes: @mib,
        when_full: :evict
      )

    for _ <- 1..10 do
      data = {:data, :rand.bytes(div(@mib, 4))}
      {:ok, _} = Codex.Files.stage(data, name: "upload.bin", registry: Demo.Uploads)
    end

    %{total_count: there, total_bytes: bytes} = Codex.Files.metrics(Demo.Uploads)
    :ok = GenServer.stop(registry)

    "10 files of 0.25 MiB staged, a budget of 1 MiB: #{there} are there, #{fixed(bytes / @mib)} MiB"
  end

  defp verify(_scratch) do
    {:ok, attachment} = Codex.Files.stage({:data, "intact"}, name: "report.txt")
    {:ok, count} = Codex.Files.verify()
    File.chmod!(attachment.path, 0o600)
    File.write!(attachment.path, "harmed")
    {:error, {:damaged, [{path, _}]}} = Codex.Files.verify()
    {:ok, _} = Codex.Files.stage({:data, "intact"}, name: "report.txt")
    {:ok, ^count} = Codex.Files.verify()
    "#{Path.basename(path)} was found damaged, and staged anew: all #{count} files are intact"
  end

  defp sparse(scratch) do
    path = Path.join(scratch, "disk.img")

    File.open!(path, [:write, :raw], fn file ->
      {:ok, _} = :file.position(file, 1024 * @mib)
      :ok = :file.write(file, "the end")
    end)

    {:ok, attachment} = Codex.Files.stage(path)
    {kib, 0} = System.cmd("du", ["-k", attachment.path])
    [kib, _path] = String.split(kib, "\t")
    "#{attachment.name}, #{fixed(attachment.size / @mib)} MiB, takes #{kib} KiB on the disk"
  end

  defp reset do
    paths = Enum.map(Codex.Files.list_staged(), & &1.path)
    :ok = Codex.Files.reset!()
    left = Enum.count(paths, &File.exists?/1)
    IO.puts("reset! has removed #{length(paths) - left} more; #{count()} are staged")
  end

  defp count, do: Codex.Files.metrics().total_count

  defp until_gone(attachments, pause_ms \\ 50, left_ms \\ 10_000) do
    cond do
      not Enum.any?(attachments, &File.exists?(&1.path)) -> :ok
      left_ms <= 0 -> fail("the files have not gone within 10 s")
      true -> Process.sleep(pause_ms) && until_gone(attachments, pause_ms, left_ms - pause_ms)
    end
  end

  defp duration(microseconds) when microseconds < 10_000, do: "#{microseconds} us"
  defp duration(microseconds), do: "#{div(microseconds, 1000)} ms"

  defp fixed(number), do: :erlang.float_to_binary(number / 1, decimals: 1)

  defp note(text), do: IO.puts(:stderr, text)

  defp fail(text) do
    note(text)
    exit({:shutdown, 1})
  end
end

Demo.main(System.argv())
