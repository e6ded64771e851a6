defmodule Bench.InMemory do
  @moduledoc false
  # The rows about what is staged from memory: bytes that are there, and a stream that brings them.

  import Bench.Measure, only: [side: 3]

  alias Bench.{Measure, Result, Row, Sources}

  @names ~w(data data_known stream)

  # The contents of one turn.
  @some 1_000

  @piece 64 * 1024
  # The pieces of a stream lie in so many bytes, which no cache of the processor holds.
  @from 16 * 1024 * 1024

  def names, do: @names

  def sources_needed, do: @some

  def run(names, dirs, settings, report) do
    # Not copied into every process that calls.
    contents = for number <- 0..(@some - 1), do: File.read!(Sources.path(number))
    :persistent_term.put(__MODULE__, List.to_tuple(contents))

    for row <- [data(), data_known(), stream(settings.large_mib, dirs)], row.name in names do
      report.(%Result{row: row, values: Measure.rounds(row, settings)})
      :ok = Codex.Files.reset!()
    end
  end

  defp data do
    clean = fn _ -> :ok = Codex.Files.force_cleanup() end

    %Row{
      name: "data",
      title: "Files.stage, {:data, 4 KiB}, new",
      operations: @some,
      disk?: true,
      sides: [
        side(:codex_files, fn _, number -> stage_data(number, ttl_ms: 0) end, tidy: clean),
        side(
          :as_file,
          fn _, number -> {:ok, _} = Codex.Files.stage(Sources.path(number), ttl_ms: 0) end,
          tidy: clean
        )
      ],
      bars: [{:at_most_times, 1, [:as_file], "the same as a file"}]
    }
  end

  defp data_known do
    %Row{
      name: "data_known",
      title: "Files.stage, {:data, 4 KiB}, known",
      sides: [
        side(:codex_files, fn _, number -> stage_data(rem(number, @some), []) end,
          prepare: fn _ -> for number <- 0..(@some - 1), do: stage_data(number, []) end
        )
      ],
      bars: [{:at_most, 20_000}]
    }
  end

  defp stage_data(number, opts) do
    data = elem(:persistent_term.get(__MODULE__), number)
    {:ok, _} = Codex.Files.stage({:data, data}, [name: "data.bin"] ++ opts)
  end

  defp stream(mib, dirs) do
    from = :crypto.strong_rand_bytes(@from)
    copy = Path.join(dirs.elixir, "stream")

    %Row{
      name: "stream",
      title: "Files.stage, {:stream} of #{mib} MiB",
      operations: 1,
      disk?: true,
      sides: [
        side(
          :codex_files,
          fn stream, _ ->
            {:ok, _} = Codex.Files.stage({:stream, stream}, name: "stream.bin", ttl_ms: 0)
          end,
          prepare: fn _ -> pieces(from, mib) end,
          tidy: fn _ -> :ok = Codex.Files.force_cleanup() end
        ),
        side(:elixir, fn stream, _ -> Comparator.Files.write_stream(stream, copy) end,
          prepare: fn _ -> pieces(from, mib) end,
          tidy: fn _ -> File.rm_rf!(copy) end
        )
      ],
      bars: [{:faster, 1.5}]
    }
  end

  # A content that there has not been, of parts that are there: what a stream does to make its pieces
  # is not measured.
  defp pieces(from, mib) do
    unique = <<System.unique_integer([:positive])::64, System.os_time()::64>>
    first = unique <> binary_part(from, 0, @piece - byte_size(unique))
    places = div(@from, @piece)
    rest = Stream.map(2..(mib * 16), &binary_part(from, rem(&1, places) * @piece, @piece))
    Stream.concat([first], rest)
  end
end
