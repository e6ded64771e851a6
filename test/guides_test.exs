defmodule Codex.Files.GuidesTest do
  # What the guides show is what happens. Their lines that begin with `iex>` are doctests.

  use Codex.Files.StagingCase, async: false

  import ExUnit.CaptureIO
  import ExUnit.CaptureLog

  alias Codex.Files.ChildVM

  @moduletag :capture_log
  @guides Path.expand("../guides", __DIR__)

  doctest Codex.Files.Guides.README
  doctest Codex.Files.Guides.MovingOver
  doctest Codex.Files.Guides.Registries
  doctest Codex.Files.Guides.TelemetryAndMetrics

  # The blocks of Elixir in a guide, as `{source, output}`; the output is that of a notebook, or nil.
  defp blocks(guide) do
    output = ~S/(?:\n<!-- livebook:{"output":true} -->\n\n```\n(.*?)\n```\n)?/

    Regex.compile!("^( *)```elixir\n(.*?)^\\1```\n" <> output, "ms")
    |> Regex.scan(File.read!(Path.expand(guide, @guides)), capture: :all_but_first)
    |> Enum.map(fn [indentation, source | output] ->
      {String.replace(source, ~r/^#{indentation}/m, ""), List.first(output)}
    end)
  end

  # Evaluates sources one after the other, in one binding, and returns their values.
  defp evaluate(sources, guide) do
    {values, _binding} =
      Enum.map_reduce(sources, [], &Code.eval_string(&1, &2, file: "guides/#{guide}"))

    values
  end

  test "every block is code as the formatter writes it" do
    for path <- Path.wildcard(Path.join(@guides, "*.{md,livemd}")),
        {source, _output} <- blocks(Path.basename(path)),
        not String.starts_with?(source, "iex>") do
      assert IO.iodata_to_binary([Code.format_string!(source), ?\n]) == source
    end
  end

  test "the notebook runs from top to bottom, and shows what it says" do
    [{install, nil} | cells] = blocks("usage.livemd")
    assert install =~ "Mix.install"
    {sources, outputs} = Enum.unzip(cells)

    {values, printed} = with_io(fn -> evaluate(sources, "usage.livemd") end)

    for {value, output} <- Enum.zip(values, outputs), output != nil do
      assert inspect(value, pretty: true) == output
    end

    assert printed =~ ":enoent: no such file or directory\n"
    assert printed =~ "{:unsupported_file_type, :device}: expected a regular file, got a device\n"
  end

  test "what the README shows works as it stands", %{folder: folder, staging_dir: staging_dir} do
    [_dependency, {usage, nil} | _errors] = blocks("../README.md")
    File.write!(Path.join(folder, "report.pdf"), "content")
    given = [options: %{attachments: []}, png: "pixels", body: ["a ", "body"], path: "report.pdf"]

    shown =
      staging_dir
      |> ChildVM.start()
      |> ChildVM.eval(
        quote do
          File.cd!(unquote(folder))
          Code.eval_string(unquote(usage), unquote(Macro.escape(given)))
        end
      )

    assert {%{total_count: 2}, binding} = shown
    assert [%{name: "q3.pdf"} = first] = binding[:options].attachments
    assert %{name: "report.pdf"} = binding[:same]
    assert binding[:first].path == first.path
  end

  # What the guide to moving over says of a table that is not the default registry's.
  test "the table of a registry with a file module has the attachments", %{folder: folder} do
    registry = start_registry(manifest_table: :of_file_module, file_module: Codex.Files.Copy)
    opts = stage_opts(write(folder, "source", "content"))
    {:ok, attachment} = GenServer.call(registry, {:stage, opts})

    assert [tuple] = :ets.lookup(:of_file_module, attachment.checksum)
    assert elem(tuple, 1) == attachment
  end

  describe "the guide to registries" do
    setup do
      sources = for {source, nil} <- blocks("registries.md"), do: source
      %{sources: Enum.reject(sources, &String.starts_with?(&1, "iex>"))}
    end

    test "has an application that works as it says", %{sources: [application, calls | _tests]} do
      evaluate([application], "registries.md")
      on_exit(fn -> unload(MyApp.Application) end)
      {:ok, supervisor} = apply(MyApp.Application, :start, [:normal, []])
      evaluate([calls], "registries.md")
      assert Codex.Files.metrics(MyApp.Uploads).max_bytes == 1_000_000_000
      Supervisor.stop(supervisor)
    end

    # Whatever is defined as a test while tests run belongs to another VM's.
    test "has tests that pass, and use nothing of the default registry", context do
      [_application, _calls | tests] = context.sources
      vm = ChildVM.start(context.staging_dir)

      {result, default} =
        ChildVM.eval(
          vm,
          quote do
            File.cd!(unquote(context.folder))
            File.write!("mix.exs", "content")
            {:ok, _started} = Application.ensure_all_started(:ex_unit)
            ExUnit.start(autorun: false, formatters: [])
            for source <- unquote(tests), do: Code.eval_string(source)
            {ExUnit.run(), Process.whereis(Codex.Files.Registry)}
          end
        )

      assert %{total: 2, failures: 0} = result
      assert default == nil
    end
  end

  describe "the guide to telemetry" do
    setup do
      start_telemetry()

      sources =
        for {source, nil} <- blocks("telemetry_and_metrics.md"),
            not String.starts_with?(source, "iex>"),
            do: source

      on_exit(fn -> Enum.each([MyApp.AttachmentLog, MyApp.AttachmentMetrics], &unload/1) end)
      %{sources: sources}
    end

    test "has a handler that logs what it says", %{sources: sources} do
      log = capture_log(fn -> evaluate(sources, "telemetry_and_metrics.md") end)
      size = File.stat!("mix.exs").size

      for verb <- ["staged", "renewed", "removed"] do
        assert log =~ ~r/\[info\]\s+#{verb} "mix.exs", #{size} bytes/
      end

      failed = fn ->
        execute([:codex, :attachment, :cleanup_failed], %{}, %{name: "a", reason: :ebusy})
      end

      assert capture_log(failed) =~ ~s(could not remove "a": file busy)
    end

    test "has a function that reports the metrics", %{sources: sources} do
      evaluate(sources, "telemetry_and_metrics.md")
      test = self()

      report = fn _event, measurements, _metadata, _config ->
        send(test, {:report, measurements})
      end

      apply(:telemetry, :attach_many, ["test", [[:my_app, :attachments]], report, nil])

      apply(MyApp.AttachmentMetrics, :report, [])
      assert_received {:report, measurements}
      assert measurements == Map.take(Codex.Files.metrics(), Map.keys(measurements))
      assert map_size(measurements) == 4
    end
  end

  # As much of the package telemetry as the guide uses. The library has to do without the package.
  defp start_telemetry do
    :ets.new(:telemetry_handlers, [:named_table, :public])

    Module.create(
      :telemetry,
      quote do
        def attach_many(id, events, handler, config) do
          :ets.insert(:telemetry_handlers, {id, events, handler, config})
          :ok
        end

        def execute(event, measurements, metadata) do
          for {_id, events, handler, config} <- :ets.tab2list(:telemetry_handlers),
              event in events,
              do: handler.(event, measurements, metadata, config)

          :ok
        end
      end,
      Macro.Env.location(__ENV__)
    )

    on_exit(fn -> unload(:telemetry) end)
  end

  defp execute(event, measurements, metadata),
    do: apply(:telemetry, :execute, [event, measurements, metadata])

  defp unload(module) do
    :code.purge(module)
    :code.delete(module)
    :code.purge(module)
  end
end
