defmodule Codex.Files.RandomTerms do
  @moduledoc false
  # Calls every function of the native library with terms that are nearly right: valid arguments of
  # which some are replaced, or changed in a byte of their external format. In a VM of its own, that
  # may fall.

  alias Codex.Files.{Config, Native}

  @contents ["", "some bytes", "more"]

  @doc """
  Makes `calls` calls with files below `folder`, chosen by `seed`; how many of them returned, and how
  many raised. Fails at once if a call panics, or if what is listed is not what is counted.
  """
  def run(folder, seed, calls) do
    :rand.seed(:exsss, {seed, seed, seed})
    # What is no absolute path is relative to it.
    File.cd!(folder)
    source = Path.join(folder, "source")
    File.write!(source, "some notes")
    {:ok, handle} = Native.open("random terms", :a_table, 0xFFFF_FFFF, {nil, :refuse}, true)

    counts =
      Enum.reduce(1..calls, %{returned: 0, raised: 0}, fn number, counts ->
        if rem(number, 500) == 0, do: check(handle, number)
        flush()
        {name, args} = valid(handle, folder, source)
        args = args |> mutate() |> Enum.map(&below(&1, folder))
        Map.update!(counts, call(name, args, number), &(&1 + 1))
      end)

    check(handle, calls)
    ref = make_ref()
    :wait = Native.stop(handle, ref)
    receive do: ({^ref, _result} -> counts)
  end

  defp call(name, args, number) do
    case apply(Native, name, args) do
      {:error, {:native_panic, message}} ->
        raise "call #{number}, #{name}#{inspect(args)}, panicked: #{message}"

      {:ok, handle} when name == :open ->
        Native.stop(handle, make_ref())

      _result ->
        :ok
    end

    :returned
  rescue
    ArgumentError -> :raised
  end

  # Answers to calls that nobody waits for.
  defp flush do
    receive do
      _message -> flush()
    after
      0 -> :ok
    end
  end

  defp check(handle, number) do
    ref = make_ref()
    :wait = Native.force_cleanup(handle, ref)
    receive do: ({^ref, _report} -> :ok)
    {attachments, metrics} = look(handle)
    %{total_count: count, total_bytes: bytes} = metrics
    true = metrics.persistent_count + metrics.expirable_count == count

    # Sizes are what callers say, and their sum may be more than is counted.
    sum = attachments |> Enum.map(& &1.size) |> Enum.sum() |> min(0xFFFF_FFFF_FFFF_FFFF)

    if {length(attachments), sum} != {count, bytes} do
      raise "after call #{number} #{length(attachments)} are listed, #{count} counted"
    end
  end

  # What an owner leaves may go between the two looks, since nobody waits until those of before have ended.
  defp look(handle) do
    attachments = Native.list(handle)
    metrics = Native.metrics(handle)
    if Native.list(handle) == attachments, do: {attachments, metrics}, else: look(handle)
  end

  defp valid(handle, folder, source) do
    opts = fn ->
      %{
        checksum: Enum.random(["a", "b", "c", <<255>>, String.duplicate("0", 64)]),
        name: Enum.random(["name", <<1, 2, 255>>]),
        persist: Enum.random([true, false]),
        ttl_ms: Enum.random([0, 1, 60_000, 0xFFFF_FFFF_FFFF_FFFF, :infinity]),
        size: Enum.random([0, 10, 0xFFFF_FFFF_FFFF_FFFF]),
        source_path: source,
        destination_path: Path.join(folder, Enum.random(["copy", "deep/copy"]))
      }
    end

    {:ok, dir} = Config.staging_dir()
    name = fn -> Enum.random([:error, {:ok, "name"}]) end
    miss = fn -> Enum.random([:new, :unseen]) end

    case :rand.uniform(30) do
      1 -> {:open, open()}
      2 -> {:stop, [stoppable(), make_ref()]}
      3 -> {:purge, [handle, dir]}
      n when n in 4..5 -> {:refresh_at, [handle, opts.()]}
      n when n in 6..7 -> {:refresh_file, [handle, source, name.(), keep(handle)]}
      n when n in 8..9 -> {:stage_at, [handle, dir, opts.(), make_ref()]}
      n when n in 10..11 -> {:stage_file, stage_file(handle, dir, source, name.(), miss.())}
      12 -> {:list, [handle]}
      13 -> {:metrics, [handle]}
      14 -> {:try_metrics, [handle]}
      15 -> {:force_cleanup, [handle, make_ref()]}
      16 -> {:reset, [handle, folder, make_ref()]}
      17 -> {:try_fetch, [handle, id(handle)]}
      18 -> {:fetch, [handle, id(handle)]}
      19 -> {:unstage, [handle, id(handle), make_ref()]}
      20 -> {:release, [handle, id(handle), self()]}
      21 -> {:temporary_owner, [handle]}
      22 -> {:end_owner, [Native.temporary_owner(handle)]}
      23 -> {:table, [self()]}
      24 -> {:stage_data, stage_data(handle, dir)}
      25 -> {:open_stream, open_stream(handle, dir)}
      26 -> {:write_stream, [stream(handle, dir), [:rand.bytes(9), "more"], make_ref()]}
      27 -> {:commit_stream, [stream(handle, dir), make_ref()]}
      28 -> {:abort_stream, [stream(handle, dir)]}
      29 -> {:verify, [handle, make_ref()]}
      30 -> {:refresh_data, [handle, Enum.random(@contents), "name", keep(handle)]}
    end
  end

  defp open do
    budget = {Enum.random([nil, 100]), Enum.random([:refuse, :evict])}
    [Enum.random(["one", "two"]), :a_table, 60_000, budget, true]
  end

  defp stage_file(handle, dir, source, name, miss),
    do: [handle, dir, source, name, keep(handle), miss, make_ref()]

  defp stage_data(handle, dir),
    do: [handle, dir, Enum.random(@contents), "name", keep(handle), make_ref()]

  defp open_stream(handle, dir),
    do: [handle, dir, "name", keep(handle), Enum.random([true, false])]

  # With or without something in it.
  defp stream(handle, dir) do
    stream = apply(Native, :open_stream, open_stream(handle, dir))
    if :rand.uniform(2) == 1, do: Native.write_stream(stream, [:rand.bytes(9)], make_ref())
    stream
  end

  defp keep(handle) do
    owner = Enum.random([nil, self(), spawn(fn -> :ok end), Native.temporary_owner(handle)])
    {Enum.random([true, false]), Enum.random([0, 60_000, nil, :infinity]), owner}
  end

  defp id(handle) do
    case Native.list(handle) do
      [] -> "a"
      attachments -> Enum.random(attachments).id
    end
  end

  # The one before, if that could not be stopped: nobody else may open it while this process lives.
  defp stoppable do
    case Native.open("stoppable", :a_table, 60_000, {nil, :refuse}, true) do
      {:ok, handle} ->
        Process.put(:stoppable, handle)
        handle

      {:error, {:already_started, pid}} when pid == self() ->
        Process.get(:stoppable)
    end
  end

  ## Mutations

  # Some calls stay as they are, so that the manifest is not always empty.
  defp mutate(args) do
    if :rand.uniform(3) == 1 do
      args
    else
      index = :rand.uniform(length(args)) - 1
      List.update_at(args, index, &mutate_term/1)
    end
  end

  defp mutate_term(%{checksum: _checksum} = opts) do
    case :rand.uniform(4) do
      1 -> random_term(3)
      2 -> Map.delete(opts, Enum.random(Map.keys(opts)))
      _ -> Map.update!(opts, Enum.random(Map.keys(opts)), &mutate_term/1)
    end
  end

  defp mutate_term(term) do
    case :rand.uniform(4) do
      1 -> change_bytes(term)
      2 when is_binary(term) -> change_binary(term)
      3 when is_integer(term) -> term + Enum.random([-1, 1, 0x8000_0000_0000_0000, -term - 1])
      _ -> random_term(3)
    end
  end

  # Its external format with some other bytes, if that is the format of another term.
  defp change_bytes(term) do
    term |> :erlang.term_to_binary() |> change_binary() |> :erlang.binary_to_term([:safe])
  rescue
    ArgumentError -> random_term(2)
  end

  defp change_binary(<<>>), do: <<:rand.uniform(256) - 1>>

  defp change_binary(binary) do
    Enum.reduce(1..:rand.uniform(3), binary, fn _, binary ->
      position = :rand.uniform(byte_size(binary)) - 1
      before = binary_part(binary, 0, position)
      rest = binary_part(binary, position + 1, byte_size(binary) - position - 1)
      <<before::binary, :rand.uniform(256) - 1, rest::binary>>
    end)
  end

  defp random_term(0), do: Enum.random([nil, 0, -1, "", [], %{}, {}, :infinity, <<0>>, 1.0e300])

  defp random_term(depth) do
    case :rand.uniform(14) do
      1 -> :rand.bytes(:rand.uniform(300))
      2 -> Enum.random([0, 1, 0xFFFF_FFFF_FFFF_FFFF, 0x1_0000_0000_0000_0000, -1])
      3 -> :rand.uniform() * 1.0e18
      4 -> Enum.random([true, false, nil, :infinity, :ok, :"Elixir.Codex.Files.Attachment"])
      5 -> for _ <- 1..:rand.uniform(4), do: random_term(depth - 1)
      6 -> [random_term(depth - 1) | random_term(depth - 1)]
      7 -> List.to_tuple(for _ <- 1..:rand.uniform(4), do: random_term(depth - 1))
      8 -> Map.new(1..3, fn _ -> {random_term(depth - 1), random_term(depth - 1)} end)
      9 -> <<:rand.uniform(256) - 1, :rand.uniform(8)::3>>
      10 -> make_ref()
      11 -> self()
      12 -> fn -> :ok end
      13 -> {:ok, random_term(depth - 1)}
      14 -> {random_term(depth - 1), Enum.random([true, false])}
    end
  end

  # Whatever is a path afterwards must not lead out of the folder.
  defp below(binary, folder) when is_binary(binary) do
    if binary == folder or String.starts_with?(binary, folder <> "/"),
      do: String.replace(binary, "..", "__"),
      else: String.replace(binary, ["/", ".."], "_")
  end

  defp below({dir, default?}, folder) when is_binary(dir), do: {below(dir, folder), default?}

  defp below(%{} = opts, folder) do
    Map.new(opts, fn {key, term} ->
      {key, if(key in [:source_path, :destination_path], do: below(term, folder), else: term)}
    end)
  end

  defp below(term, _folder), do: term
end
