defmodule Soak.Operations do
  @moduledoc false
  # What can be asked of the library, each call counted, timed and watched.

  alias Codex.Files.Registry
  alias Soak.{Context, Problems, Sources, Streams, Tally, Watch}

  # What a call may say while the registry is being killed and restarted.
  @away [:noproc, :killed, :not_started, :shutdown, :stopped, :normal]

  # Those of `Codex.Files` come first.
  @sources [:path, :data, :stream]
  @ways @sources ++ [:registry_stage, :call]

  # Names that known contents are staged under.
  @names ["another name", "third name", ".staging"]

  @doc "One of the ways to stage."
  def random_way(context) do
    if Context.limited?(context), do: random_source(), else: Enum.random(@ways)
  end

  @doc "One of those that take a name, and an owner."
  def random_source, do: Enum.random(@sources)

  @doc "Stages a source; `:again` says that its content has been staged before."
  def stage(context, way, source, opts) do
    {again?, opts} = Keyword.pop(opts, :again, false)
    state = if again?, do: "again", else: "new"
    size = if Sources.large?(source), do: "over 256 KiB", else: "small"
    opts = if again?, do: Keyword.put_new_lazy(opts, :name, &random_name/0), else: opts
    kind = "#{title(way)}, #{state}, #{size}"

    context
    |> run(kind, fn -> call(context, way, source, opts) end)
    |> tap(&compare(context, way, source, opts, &1))
  end

  defp random_name, do: Enum.random(@names ++ List.duplicate("name", 7))

  @doc "Stages a source, not watched: for a process that is to be killed."
  def call(_context, :registry_stage, source, opts), do: Registry.stage(request(source, opts))

  def call(_context, :call, source, opts),
    do: GenServer.call(Registry, {:stage, request(source, opts)}, :infinity)

  def call(context, way, source, opts),
    do: Codex.Files.stage(taken(way, source), named(context, source, opts))

  defp taken(:path, source), do: source.path
  defp taken(:data, source), do: {:data, Sources.read(source)}
  defp taken(:stream, source), do: {:stream, Streams.of(source)}
  defp taken(source, _source), do: source

  defp named(context, source, opts) do
    opts
    |> Keyword.put_new(:name, Path.basename(source.path))
    |> Keyword.put(:registry, context.registry)
  end

  defp title(:path), do: "stage/2"
  defp title(:data), do: "stage/2 of data"
  defp title(:stream), do: "stage/2 of a stream"
  defp title(:registry_stage), do: "Registry.stage/1"
  defp title(:call), do: "GenServer.call stage"

  defp compare(context, way, source, opts, {:ok, attachment}) do
    %{checksum: checksum, name: name, path: path} = attachment

    if checksum != source.checksum do
      detail = "#{source.path} of the digest #{source.checksum} was staged as #{checksum}"
      Problems.add(context.problems, :wrong_content, detail)
    end

    wanted = Keyword.get(opts, :name, Path.basename(source.path))

    if way in @sources and {name, Path.basename(path)} != {wanted, wanted} do
      detail = "#{source.path} was to be #{wanted} and is #{name} at #{path}"
      Problems.add(context.problems, :wrong_name, detail)
    end
  end

  defp compare(_context, _way, _source, _opts, {:error, _reason}), do: :ok

  # At a destination of the caller's choice, one for each content.
  defp request(source, opts) do
    persist = Keyword.get(opts, :persist, false)
    dir = Application.fetch_env!(:codex_files, :soak_elsewhere)

    %{
      checksum: source.checksum,
      name: Keyword.get(opts, :name, Path.basename(source.path)),
      persist: persist,
      ttl_ms: if(persist, do: :infinity, else: Keyword.fetch!(opts, :ttl_ms)),
      size: source.size,
      source_path: source.path,
      destination_path: Path.join(dir, source.checksum)
    }
  end

  @doc """
  Runs `fun` with a temporary attachment: `{:ok, result}`, `{:error, reason}`, or `{:failed, kind, reason}`
  with what `fun` raises, throws or exits with.
  """
  def temporary(context, way, source, fun) do
    opts = named(context, source, [])

    run(context, "temporary", fn ->
      try do
        Codex.Files.temporary(taken(way, source), opts, fun)
      catch
        kind, {Soak, reason} -> {:failed, kind, reason}
      end
    end)
  end

  @doc "Stages an enumerable that does not come to its end: `{:failed, kind, reason}`."
  def fail(context, stream, opts) do
    opts = Keyword.put(opts, :registry, context.registry)

    run(context, "stage/2 of a failing stream", fn ->
      try do
        Codex.Files.stage({:stream, stream}, opts)
      catch
        kind, {Soak, reason} -> {:failed, kind, reason}
      end
    end)
  end

  def release(context, attachment_or_id),
    do: run(context, "release", fn -> Codex.Files.release(attachment_or_id, on(context)) end)

  def fetch(context, id), do: run(context, "fetch", fn -> Codex.Files.fetch(id, on(context)) end)

  def unstage(context, id),
    do: run(context, "unstage", fn -> Codex.Files.unstage(id, on(context)) end)

  def verify(context), do: run(context, "verify", fn -> Codex.Files.verify(context.registry) end)

  def list(context),
    do: run(context, "list", fn -> Codex.Files.list_staged_result(context.registry) end)

  def metrics(context),
    do: run(context, "metrics", fn -> Codex.Files.metrics(context.registry) end)

  def reset(context), do: run(context, "reset!", fn -> Codex.Files.reset!(context.registry) end)

  def force_cleanup(context) do
    run(context, "force_cleanup", fn ->
      case if(Context.limited?(context), do: 1, else: :rand.uniform(3)) do
        1 -> Codex.Files.force_cleanup(context.registry)
        2 -> Registry.force_cleanup()
        3 -> GenServer.call(Registry, :force_cleanup, :infinity)
      end
    end)
  end

  defp on(context), do: [registry: context.registry]

  defp run(context, kind, call) do
    kind = if Context.limited?(context), do: "#{kind}, limited", else: kind
    Watch.enter(context.watch, kind)
    started = System.monotonic_time(:microsecond)

    result =
      try do
        call.()
      catch
        :exit, reason -> {:error, reason}
      end

    took = System.monotonic_time(:microsecond) - started
    Watch.leave(context.watch)
    with {:error, reason} <- result, do: note(context, kind, cause(reason))
    unless match?({:error, _reason}, result), do: Tally.add(context.tally, kind, took)
    result
  end

  # An exit says which call it was, too.
  defp cause({reason, {_module, _function, args}}) when is_list(args), do: cause(reason)
  defp cause({:shutdown, _detail}), do: :shutdown
  defp cause(reason), do: reason

  # These are answers.
  defp note(context, kind, :not_staged), do: answered(context, "#{kind}: not staged")

  defp note(context, kind, {:invalid_option, :owner, _pid}),
    do: answered(context, "#{kind}: no owner")

  defp note(%{registry: Soak.Limited} = context, kind, {:over_budget, _size, _max_bytes}),
    do: answered(context, "#{kind}: no room")

  defp note(context, kind, {:damaged, _paths}), do: answered(context, "#{kind}: damaged")

  defp note(context, kind, reason) do
    Tally.add_error(context.tally, kind, reason)

    if reason not in @away,
      do: Problems.add(context.problems, :error, "#{kind}: #{inspect(reason)}")
  end

  defp answered(context, event), do: Tally.add_event(context.tally, event)
end
