defmodule Bench.Kept do
  @moduledoc false
  # The rows about what is asked of attachments that are there: to look one up, to keep it for an owner,
  # another name; and about the end of an owner.

  import Bench.Measure, only: [side: 2, side: 3, calls: 4]

  alias Bench.{Bare, BareNif, Measure, Result, Row, Scene, Side, Sources}

  @names ~w(fetch owned second_name owner_end)

  # So many are there, of which one owner keeps all.
  @entries 10_000

  # The files of a turn that gives each another name.
  @some 1_000

  # How many different ones are looked up.
  @different 1_000

  def names, do: @names

  def sources_needed, do: @entries

  def run(names, dirs, settings, report) do
    measure = fn rows ->
      for row <- rows, row.name in names do
        report.(%Result{row: row, values: Measure.rounds(row, settings)})
      end
    end

    fill(@entries)
    Bare.publish(dirs.bare, 16, 0, @entries, Sources.size())
    measure.([fetch(dirs), owned()])
    :ok = Codex.Files.reset!()
    Bare.remove(dirs.bare, 0, @entries)
    measure.([second_name(dirs), owner_end(dirs)])
  end

  defp fill(count), do: Scene.fill(&Codex.Files.stage/1, count)

  defp fetch(dirs) do
    step = div(@entries, @different)
    checksums = for number <- 0..(@different - 1), do: Sources.checksum(number * step)
    # Not copied into every process that calls.
    :persistent_term.put(__MODULE__, List.to_tuple(checksums))

    %Row{
      name: "fetch",
      title: "Files.fetch",
      entries: @entries,
      sides: [
        side(:codex_files, fn _, number ->
          checksum = elem(:persistent_term.get(__MODULE__), rem(number, @different))
          {:ok, _} = Codex.Files.fetch(checksum)
        end),
        Side.new(:bare, fn _, callers, count ->
          Bare.look(dirs.bare, callers, @entries, @different, count)
        end)
      ],
      bars: [{:at_most_more, 3_000, :bare, "the bare look"}]
    }
  end

  # Each file is new to the owner of the turn.
  defp owned do
    %Row{
      name: "owned",
      title: "Files.stage, unchanged 4 KiB, for an owner",
      entries: @entries,
      operations: @entries,
      sides: [
        side(
          :codex_files,
          fn owner, number ->
            {:ok, _} = Codex.Files.stage(Sources.path(number), owner: owner)
          end,
          prepare: fn _ -> spawn(Process, :sleep, [:infinity]) end,
          tidy: fn owner ->
            Process.exit(owner, :kill)
            until_none(:owned_count)
          end
        ),
        side(:no_owner, fn _, number -> {:ok, _} = Codex.Files.stage(Sources.path(number)) end)
      ],
      bars: [{:at_most_more, 3_000, :no_owner, "without an owner"}]
    }
  end

  defp second_name(dirs) do
    %Row{
      name: "second_name",
      title: "Files.stage, known 4 KiB, second name",
      entries: @some,
      operations: @some,
      disk?: true,
      sides: [
        side(
          :codex_files,
          fn _, number ->
            {:ok, %{name: "second.bin"}} =
              Codex.Files.stage(Sources.path(number), name: "second.bin")
          end,
          prepare: fn _ -> fill(@some) end,
          tidy: fn _ -> :ok = Codex.Files.reset!() end
        ),
        side(:scheduled, fn _, number -> true = BareNif.link(number, "second.bin") end,
          prepare: fn _ -> Bare.publish(dirs.bare, 1, 0, @some, Sources.size()) end,
          tidy: fn _ ->
            for dir <- File.ls!(dirs.bare), do: File.rm_rf!(Path.join(dirs.bare, dir))
          end
        )
      ],
      bars: [{:at_most_times, 1.6, [:scheduled], "the bare link by a dirty NIF"}]
    }
  end

  defp owner_end(dirs) do
    %Row{
      name: "owner_end",
      title: "end of an owner of all, a file",
      entries: @entries,
      operations: @entries,
      disk?: true,
      sides: [
        Side.new(
          :codex_files,
          fn owner, 1, _operations ->
            start = Measure.now()
            Process.exit(owner, :kill)
            until_none(:total_count)
            Measure.now() - start
          end,
          prepare: &fill_for_owner/1
        ),
        Side.new(:bare, fn _, _, count -> Bare.remove(dirs.bare, 0, count) end,
          prepare: fn count -> Bare.publish(dirs.bare, 16, 0, count, Sources.size()) end
        )
      ],
      bars: [{:at_most_times, 1.4, [:bare], "unlink and rmdir"}]
    }
  end

  defp fill_for_owner(count) do
    owner = spawn(Process, :sleep, [:infinity])
    stage = fn _, number -> {:ok, _} = Codex.Files.stage(Sources.path(number), owner: owner) end
    calls(stage, nil, 16, count)
    owner
  end

  # To ask without a pause would take a core from those who do the work.
  defp until_none(key) do
    if Codex.Files.metrics()[key] > 0 do
      Process.sleep(1)
      until_none(key)
    end
  end
end
