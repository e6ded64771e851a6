defmodule Soak.Report do
  @moduledoc false
  # The outcome of a phase, and of all, as text.

  alias Soak.{Outcome, Problems, Tally}

  @percentiles [50, 99, 99.9, 100]
  @columns [52, 9, 10, 10, 10, 10]

  # So many problems of a phase are shown.
  @shown 10

  def phase(%Outcome{} = outcome) do
    IO.puts("\n#{outcome.title}: #{decimal(outcome.seconds)} s")
    operations(outcome.counts)
    errors(Tally.errors(outcome.counts))

    figures =
      outcome.figures ++
        for(
          {title, event} <- [
            {"callers killed in a call", :caller_killed},
            {"owners ended", :owner_ended},
            {"registry killed", :registry_killed},
            {"registry with a budget killed", :limited_killed},
            {"supervisor killed", :supervisor_killed},
            {"attachments that expired", {:told, :cleaned}},
            {"attachments evicted", {:told, :evicted}},
            {"attachments unstaged", {:told, :unstaged}},
            {"removals that failed", {:told, :cleanup_failed}}
          ],
          (count = Tally.event(outcome.counts, event)) > 0,
          do: {title, count}
        ) ++ [{"files checked", outcome.checks}]

    for {title, number} <- figures, do: figure(title, grouped(number))
    resources(outcome.resources)
    for {title, kind} <- titles(), do: figure(title, grouped(count(outcome.problems, kind)))

    for {kind, detail} <- Enum.take(outcome.problems, @shown),
        do: IO.puts("  #{kind}: #{detail}")
  end

  defp titles do
    [
      {"losses", :loss},
      {"wrong contents", :wrong_content},
      {"wrong names", :wrong_name},
      {"budgets passed", :over_budget},
      {"hanging callers", :hanging},
      {"leaks", :leak},
      {"left behind", :leftover},
      {"stray messages", :stray},
      {"unexpected errors", :error},
      {"crashes of the soak itself", :crash}
    ]
  end

  defp operations(counts) do
    rows = Tally.operations(counts, @percentiles)

    if rows != [] do
      IO.puts(line(["operation", "count", "median", "99 %", "99.9 %", "longest"]))

      for {kind, count, times} <- rows,
          do: IO.puts(line([kind, grouped(count) | Enum.map(times, &time/1)]))
    end
  end

  defp errors([]), do: :ok

  # All of a kind in one line.
  defp errors(errors) do
    counts = Enum.group_by(errors, &elem(&1, 1), &elem(&1, 2))
    texts = for {reason, counts} <- counts, do: "#{inspect(reason)} #{grouped(Enum.sum(counts))}"
    figure("calls that failed", Enum.join(texts, ", "))
  end

  defp resources(nil), do: :ok

  defp resources({from, till}) do
    figure("memory at start and end", "#{mib(from.rss_kib)} and #{mib(till.rss_kib)} MiB")
    figure("threads at start and end", "#{from.threads} and #{till.threads}")
    figure("descriptors at start and end", "#{from.descriptors} and #{till.descriptors}")
    figure("Erlang processes at start and end", "#{from.processes} and #{till.processes}")
  end

  @doc "The last line, and whether all is well."
  def summary(outcomes) do
    counts = Tally.merge(for outcome <- outcomes, do: outcome.counts)
    problems = Enum.flat_map(outcomes, & &1.problems)

    phases = for outcome <- outcomes, do: "#{outcome.title} #{decimal(outcome.seconds)} s"
    IO.puts("\nphases: #{Enum.join(phases, ", ")}")

    found =
      for kind <- Problems.kinds(),
          count = count(problems, kind),
          count > 0 or kind in [:loss, :wrong_content, :hanging, :leak] do
        "#{grouped(count)} #{name(kind)}"
      end

    verdict = if problems == [], do: "passed", else: "FAILED"
    operations = grouped(Tally.total(counts))
    checks = grouped(Enum.sum(for outcome <- outcomes, do: outcome.checks))

    IO.puts(
      "#{verdict}: #{operations} operations, #{checks} files checked, #{Enum.join(found, ", ")}"
    )

    problems == []
  end

  defp name(:loss), do: "lost"
  defp name(:wrong_content), do: "wrong"
  defp name(:wrong_name), do: "under a wrong name"
  defp name(:over_budget), do: "over budget"
  defp name(:hanging), do: "hanging"
  defp name(:leak), do: "leaking"
  defp name(:leftover), do: "left behind"
  defp name(:stray), do: "stray messages"
  defp name(:error), do: "unexpected errors"
  defp name(:crash), do: "crashes"

  defp count(problems, kind), do: Enum.count(problems, &(elem(&1, 0) == kind))

  defp figure(title, value),
    do: IO.puts("  #{String.pad_trailing(to_string(title), 42)}  #{value}")

  defp line(texts) do
    [first | rest] = Enum.zip(texts, @columns)
    {kind, width} = first

    Enum.join([
      "  ",
      String.pad_trailing(kind, width)
      | for({text, width} <- rest, do: String.pad_leading(text, width))
    ])
  end

  defp time(microseconds) when microseconds < 10_000, do: "#{microseconds} us"
  defp time(microseconds), do: "#{div(microseconds, 1000)} ms"

  defp mib(kib), do: decimal(kib / 1024)

  defp decimal(number), do: :erlang.float_to_binary(number / 1, decimals: 1)

  defp grouped(number) do
    number
    |> Integer.to_string()
    |> String.reverse()
    |> String.replace(~r/\d{3}(?=\d)/, "\\0,")
    |> String.reverse()
  end
end
