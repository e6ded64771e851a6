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
      run(files(args, scratch))
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

    Path.wildcard("lib/**/*.ex") ++
      Path.wildcard("native/*/src/*.rs") ++ ["mix.exs", "Cargo.toml", "LICENSE", big]
  end

  defp files(args, _scratch) do
    from = System.get_env("CODEX_FILES_DEMO_DIR", ".")
    Enum.map(args, &{&1, Path.expand(&1, from)})
  end

  defp run(files) do
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

    until(fn -> not Enum.any?(attachments, &File.exists?(&1.path)) end)
    IO.puts("the cleanup thread has removed #{before - count()} of them; #{count()} are staged")
  end

  defp reset do
    paths = Enum.map(Codex.Files.list_staged(), & &1.path)
    :ok = Codex.Files.reset!()
    left = Enum.count(paths, &File.exists?/1)
    IO.puts("reset! has removed #{length(paths) - left} more; #{count()} are staged")
  end

  defp count, do: Codex.Files.metrics().total_count

  defp until(done?, attempts \\ 200) do
    cond do
      done?.() -> :ok
      attempts == 0 -> fail("the files have not expired within 10 s")
      true -> Process.sleep(50) && until(done?, attempts - 1)
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
