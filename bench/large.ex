defmodule Bench.Large do
  @moduledoc false
  # The rows about one large file.

  import Bench.Measure, only: [side: 2, side: 3, calls: 4]

  alias Bench.{Measure, Result, Row, Side, Sources}

  @names ~w(again_large gone_large new_large)

  def names, do: @names

  def run(names, mib, dirs, settings, report) do
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
      copy("new_large", "Files.stage, new #{mib} MiB", source, dirs, change)
    ]
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
        command(:openssl, "openssl", ["dgst", "-sha256", source], prepare: prepare)
      ],
      bars: [{:at_most_times, 1.05, [:cp, :openssl], "the slower of cp and openssl"}]
    }
  end

  defp command(name, program, args, opts) do
    run = fn _, 1, 1 -> calls(fn _, _ -> {_, 0} = System.cmd(program, args) end, nil, 1, 1) end
    Side.new(name, run, opts)
  end
end
