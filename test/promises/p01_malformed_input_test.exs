defmodule Codex.Files.P01MalformedInputTest do
  @moduledoc """
  P1: malformed input gives `{:error, {:missing_option, key}}` or
  `{:error, {:invalid_option, key, value}}`; nothing else changes.
  """

  use Codex.Files.StagingCase, async: false

  @too_big 0x1_0000_0000_0000_0000

  # What is none of these, by key.
  @mistyped %{
    checksum: [nil, :checksum, 1, 1.5, ~c"checksum", ["checksum"], %{}, {"checksum"}, <<1::3>>],
    name: [nil, :name, 1, ~c"name", ["name"], %{}, <<1::3>>],
    persist: [nil, 0, 1, "true", ~c"true", :yes, [], %{}],
    ttl_ms: [nil, -1, 1.5, "1", ~c"1", :never, [], @too_big, -@too_big],
    size: [nil, -1, 1.0, "1", :infinity, [], @too_big],
    source_path: [
      nil,
      1,
      :path,
      %{},
      {"path"},
      [nil],
      [:a],
      [-1],
      <<1::3>>,
      "a\0b",
      ~c"a\0b",
      [<<255>>, 300]
    ],
    destination_path: [nil, 1, :path, %{}, {"path"}, [nil], [-1], <<1::3>>, "/a\0b", ~c"/a\0b"]
  }

  @not_options [nil, :opts, 1, "opts", [], [checksum: "a"], {}, {:ok, %{}}]

  setup context do
    [_default, other] = registries = start_registries(context)
    source = write(context.folder, "source/notes.txt", "some notes")
    {:ok, earlier} = Codex.Files.stage(write(context.folder, "earlier", "earlier"), persist: true)
    opts = stage_opts(earlier.path, destination_path: Path.join(context.folder, "copy"))
    {:ok, _attachment} = GenServer.call(other, {:stage, opts})
    ways = ways_to_stage(other)
    %{source: source, registries: registries, other: other, ways: ways}
  end

  defp state(registries), do: for(pid <- registries, do: {pid, GenServer.call(pid, :list)})

  # Asserts that the call is refused, and that nothing else happens.
  defp assert_refused(context, call, reason) do
    before = {Process.whereis(Registry), state(context.registries), files_below(context.folder)}
    assert call.() == {:error, reason}

    after_call =
      {Process.whereis(Registry), state(context.registries), files_below(context.folder)}

    assert after_call == before

    for {_pid, attachments} <- state(context.registries), do: assert_intact(attachments)
    refute Codex.Files.format_error(reason) =~ "unexpected"
  end

  for opts <- registries() do
    describe "a registry with #{inspect(opts)}" do
      @describetag registry_opts: opts

      test "a missing option is named", context do
        opts = stage_opts(context.source)

        for {_name, stage} <- context.ways, {key, _value} <- opts do
          assert_refused(context, fn -> stage.(Map.delete(opts, key)) end, {:missing_option, key})
        end

        for {_name, stage} <- context.ways do
          assert {:error, {:missing_option, _key}} = stage.(%{})
        end
      end

      test "a mistyped option is named, with its value", context do
        opts = stage_opts(context.source)

        for {_name, stage} <- context.ways,
            {key, values} <- @mistyped,
            value <- values do
          reason = {:invalid_option, key, value}
          assert_refused(context, fn -> stage.(Map.put(opts, key, value)) end, reason)
        end
      end

      test "so is one of a known key", context do
        opts = stage_opts(context.source)

        for {_name, stage} <- context.ways do
          {:ok, _attachment} = stage.(opts)

          for {key, [value | _values]} <- @mistyped do
            reason = {:invalid_option, key, value}
            assert_refused(context, fn -> stage.(Map.put(opts, key, value)) end, reason)
          end
        end
      end

      test "options that are no map are named", context do
        for {_name, stage} <- context.ways, opts <- @not_options do
          assert_refused(context, fn -> stage.(opts) end, {:invalid_option, :opts, opts})
        end
      end

      test "a directory to reset that is no path is named", context do
        for reset <- [&Registry.reset/1, &GenServer.call(context.other, {:reset, &1})],
            dir <- @mistyped.destination_path do
          assert_refused(context, fn -> reset.(dir) end, {:invalid_option, :dir, dir})
        end
      end
    end

    describe "Codex.Files.stage/2, with #{inspect(opts)}" do
      @describetag registry_opts: opts

      test "names a path that is none", context do
        for path <- @mistyped.source_path do
          reason = {:invalid_option, :path, path}
          assert_refused(context, fn -> Codex.Files.stage(path) end, reason)
        end
      end

      test "names options that are no keyword list", context do
        for opts <- [nil, %{}, %{name: "a"}, 1, "opts", [:name], [{"name", "a"}], [name: 1] ++ 2] do
          reason = {:invalid_option, :opts, opts}
          assert_refused(context, fn -> Codex.Files.stage(context.source, opts) end, reason)
        end
      end

      test "names a mistyped option, with its value", context do
        # As an internal default might be called.
        rows =
          for(value <- [:default, :error | @mistyped.name], do: {:name, value}) ++
            for(value <- @mistyped.persist, do: {:persist, value})

        for {key, value} <- rows do
          reason = {:invalid_option, key, value}
          call = fn -> Codex.Files.stage(context.source, [{key, value}]) end
          assert_refused(context, call, reason)
        end

        for value <- @mistyped.ttl_ms do
          for opts <- [[ttl_ms: value], [ttl_ms: value, persist: true]] do
            call = fn -> Codex.Files.stage(context.source, opts) end
            assert_refused(context, call, {:invalid_ttl, value})
          end
        end
      end

      test "fails as clearly for what the file system says", context do
        for {path, reason} <- [
              {"", :enoent},
              {Path.join(context.folder, "missing"), :enoent},
              {context.folder, :eisdir},
              {Path.join(context.source, "below"), :enotdir}
            ] do
          assert_refused(context, fn -> Codex.Files.stage(path) end, reason)

          for {_name, stage} <- context.ways do
            opts = %{stage_opts(context.source) | source_path: path}
            assert_refused(context, fn -> stage.(opts) end, reason)
          end
        end
      end
    end
  end
end
