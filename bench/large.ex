defmodule Bench.Large do
  @moduledoc false
  # The rows about one large file.

  import Bench.Measure, only: [side: 2, side: 3, calls: 4]

  alias Bench.{Measure, Report, Result, Row, Side, Sources}

  @names ~w(again_large gone_large new_large verify sparse)

  # A sparse file is so many times as large.
  @sparse 6

  @mib 1024 * 1024

  def names, do: @names

  def sources_needed, do: 0

  def run(names, dirs, settings, report) do
    mib = settings.large_mib
    if names != ["sparse"], do: with_data(names, mib, dirs, settings, report)
    if "sparse" in names, do: sparse(@sparse * mib, dirs, settings, report)
  end

  defp with_data(names, mib, dirs, settings, report) do
    source = Sources.make_large(Path.join(dirs.work, "large.bin"), mib)
    # Until then it is not taken to be unchanged.
    Process.sleep(2_100)

    # "Unchanged" means the second time.
    {:ok, _} = Codex.Files.stage(source)
    {:ok, _} = Comparator.Files.stage(source)

    for row <- rows(source, mib, dirs), row.name in names do
      report.(%Result{row: row, values: Measure.rounds(row, settings)})
      :ok = Codex.Files.reset!()
      :ok = Comparator.Files.reset!()
    end

    File.rm!(source)
  end

  defp rows(source, mib, dirs) do
    change = fn _ -> Sources.change(source) end
    unchanged = fn _ -> nil end

    [
      %Row{
        name: "again_large",
        title: "Files.stage, unchanged #{mib} MiB",
        sides: [
          side(:codex_files, fn _, _ -> {:ok, _} = Codex.Files.stage(source) end),
          side(:elixir, fn _, _ -> {:ok, _} = Comparator.Files.stage(source) end)
        ],
        bars: [{:at_most, 20_000}]
      },
      # Staged before, by the turn before at the latest, which has removed its copy.
      copy("gone_large", "Files.stage, #{mib} MiB whose copy has gone", source, dirs, unchanged),
      copy("new_large", "Files.stage, new #{mib} MiB", source, dirs, change),
      %Row{
        name: "verify",
        title: "verify, #{mib} MiB",
        operations: 1,
        sides: [
          side(:codex_files, fn _, _ -> {:ok, 1} = Codex.Files.verify() end,
            prepare: fn _ -> {:ok, _} = Codex.Files.stage(source) end
          ),
          openssl(source, unchanged)
        ],
        bars: [{:at_most_times, 1.1, [:openssl], "openssl"}]
      }
    ]
  end

  # Of holes alone: to be hashed, and not to be written.
  defp sparse(mib, dirs, settings, report) do
    source = Path.join(dirs.work, "sparse.bin")
    make = fn _ -> Sources.make_sparse(source, mib) end

    row = %Row{
      name: "sparse",
      title: "Files.stage, new sparse #{Report.grouped(mib)} MiB",
      operations: 1,
      sides: [
        side(:codex_files, fn _, _ -> {:ok, _} = Codex.Files.stage(source, ttl_ms: 0) end,
          prepare: make,
          tidy: fn _ -> :ok = Codex.Files.force_cleanup() end
        ),
        openssl(source, make)
      ],
      bars: [{:at_most_times, 1.1, [:openssl], "openssl"}]
    }

    values = Measure.rounds(row, settings)
    make.(1)
    {:ok, copy} = Codex.Files.stage(source)
    more = on_disk(copy.path) - on_disk(source)

    bar =
      {:measured, "at most 1 MiB more on the disk than the source", Result.format(more, :bytes),
       more <= @mib}

    report.(%Result{row: %{row | bars: [bar | row.bars]}, values: values})
    :ok = Codex.Files.reset!()
    File.rm!(source)
  end

  # What a file takes there, in bytes.
  defp on_disk(path) do
    {blocks, 0} = System.cmd("stat", ["-c", "%b", path])
    512 * (blocks |> String.trim() |> String.to_integer())
  end

  defp copy(name, title, source, dirs, prepare) do
    bare_copy = Path.join(dirs.bare, "copy")

    %Row{
      name: name,
      title: title,
      operations: 1,
      disk?: true,
      sides: [
        side(:codex_files, fn _, _ -> {:ok, _} = Codex.Files.stage(source, ttl_ms: 0) end,
          prepare: prepare,
          tidy: fn _ -> :ok = Codex.Files.force_cleanup() end
        ),
        side(:elixir, fn _, _ -> {:ok, _} = Comparator.Files.stage(source, ttl_ms: 0) end,
          prepare: prepare,
          tidy: fn _ -> :ok = Comparator.Files.force_cleanup() end
        ),
        command(:cp, "cp", [source, bare_copy],
          prepare: prepare,
          tidy: fn _ -> File.rm!(bare_copy) end
        ),
        openssl(source, prepare)
      ],
      bars: [{:at_most_times, 1.05, [:cp, :openssl], "the slower of cp and openssl"}]
    }
  end

  defp openssl(source, prepare),
    do: command(:openssl, "openssl", ["dgst", "-sha256", source], prepare: prepare)

  defp command(name, program, args, opts) do
    run = fn _, 1, 1 -> calls(fn _, _ -> {_, 0} = System.cmd(program, args) end, nil, 1, 1) end
    Side.new(name, run, opts)
  end
end
