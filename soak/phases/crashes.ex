defmodule Soak.Phases.Crashes do
  @moduledoc false
  # A whole VM is killed under load, at a random moment. Another takes its place and removes what it
  # left; a neighbour lives on.

  alias Codex.Files.ChildVM
  alias Soak.{Account, Outcome, Problems, Published, Sources, Station, Wait}

  @longest_life_ms 800
  @neighbours_files 20

  # Every so many times the next VM is killed too, while it removes what the dead one left.
  @twice 4

  defstruct [:work, :staging_dir, :elsewhere, :shared, :problems, :neighbour, :attachments]

  def run(work, seconds, minimum, problems) do
    until = System.monotonic_time(:millisecond) + seconds * 1000
    Sources.prepare()
    staging_dir = Path.join(work, "staging")

    state = %__MODULE__{
      work: work,
      staging_dir: staging_dir,
      elsewhere: Path.join(work, "victim/elsewhere"),
      shared: Sources.write_shared(Path.join(work, "shared")),
      problems: problems,
      neighbour: Station.start(staging_dir, 5)
    }

    state = %{state | attachments: stage_there(state)}
    victim = Station.start(staging_dir, 5)
    {victim, found} = rounds(victim, state, until, minimum, [])
    ChildVM.stop(victim)
    ChildVM.stop(state.neighbour)

    if Published.areas(staging_dir) != [],
      do: Problems.add(problems, :leftover, inspect(Published.areas(staging_dir)))

    {files, copies} = Enum.unzip(found)

    %Outcome{
      figures: [
        kills: length(found),
        "files at staged paths": Enum.sum(files),
        "copies under way when killed": Enum.sum(copies),
        "kills in the middle of a copy": Enum.count(copies, &(&1 > 0))
      ],
      checks: Enum.sum(files) + length(found) * @neighbours_files
    }
  end

  defp stage_there(state) do
    for number <- 1..@neighbours_files do
      source = Sources.write(Path.join(state.work, "neighbour"))
      opts = [name: "neighbour-#{number}", ttl_ms: Account.long_ms()]

      {:ok, attachment} =
        ChildVM.eval(
          state.neighbour,
          quote(do: Codex.Files.stage(unquote(source.path), unquote(opts)))
        )

      attachment
    end
  end

  defp rounds(victim, state, until, minimum, found) do
    if length(found) < minimum or System.monotonic_time(:millisecond) < until do
      {files, copies, victim} = round(victim, state, length(found) + 1)
      rounds(victim, state, until, minimum, [{files, copies} | found])
    else
      {victim, found}
    end
  end

  defp round(victim, state, number) do
    Station.open(victim,
      dir: Path.join(state.work, "victim"),
      shared: state.shared,
      problems: state.problems,
      reset_ms: 2_000,
      registry_ms: 500,
      limited_ms: 500
    )

    Process.sleep(:rand.uniform(@longest_life_ms))
    ChildVM.kill(victim)
    dead = Published.areas(state.staging_dir) -- [area(hd(state.attachments))]
    {files, copies} = Published.check(dead, state.elsewhere, state.problems)
    if rem(number, @twice) == 0, do: kill_in_purge(state)
    victim = Station.start(state.staging_dir, 5)
    purged(victim, state, dead)
    neighbour_intact(state)
    {files, copies, victim}
  end

  defp kill_in_purge(state) do
    vm = Station.start(state.staging_dir, 5)
    ChildVM.request(vm, quote(do: Codex.Files.list_staged()))
    Process.sleep(:rand.uniform(30))
    ChildVM.kill(vm)
  end

  # The start has what dead VMs left removed in the background.
  defp purged(vm, state, dead) do
    # It starts the registry.
    [] = ChildVM.eval(vm, quote(do: Codex.Files.list_staged()))

    left = fn ->
      Enum.filter(dead, &File.exists?/1) ++
        Path.wildcard(Path.join(state.elsewhere, "*"), match_dot: true)
    end

    if !Wait.until(fn -> left.() == [] end) do
      names = inspect(Enum.take(left.(), 5))
      Problems.add(state.problems, :leftover, "of a dead VM: #{names}")
    end
  end

  defp neighbour_intact(state) do
    listed = ChildVM.eval(state.neighbour, quote(do: Codex.Files.list_staged()))

    if Enum.sort(listed) != Enum.sort(state.attachments),
      do: Problems.add(state.problems, :loss, "the neighbour lists #{length(listed)} files")

    for %{path: path, checksum: checksum} <- state.attachments do
      case Sources.digest_of_file(path) do
        {:ok, ^checksum} ->
          :ok

        {:ok, _other} ->
          Problems.add(state.problems, :wrong_content, "the neighbour's #{path}")

        {:error, reason} ->
          Problems.add(state.problems, :loss, "the neighbour's #{path}: #{reason}")
      end
    end
  end

  defp area(attachment), do: attachment.path |> Path.dirname() |> Path.dirname()
end
