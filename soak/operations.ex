defmodule Soak.Operations do
  @moduledoc false
  # What can be asked of the library, each call counted, timed and watched.

  alias Codex.Files.Registry
  alias Soak.{Problems, Sources, Tally, Watch}

  # What a call may say while the registry is being killed and restarted.
  @away [:noproc, :killed, :not_started, :shutdown, :stopped, :normal]

  @ways [:stage, :registry_stage, :call]

  @doc "One of the three ways to stage."
  def random_way, do: Enum.random(@ways)

  @doc "Stages a source; `:again` says that its content has been staged before."
  def stage(context, way, source, opts) do
    {again?, opts} = Keyword.pop(opts, :again, false)
    state = if again?, do: "again", else: "new"
    size = if Sources.large?(source), do: "over 256 KiB", else: "small"
    result = run(context, "#{title(way)}, #{state}, #{size}", fn -> call(way, source, opts) end)

    with {:ok, %{checksum: checksum}} when checksum != source.checksum <- result do
      detail = "#{source.path} of the digest #{source.checksum} was staged as #{checksum}"
      Problems.add(context.problems, :wrong_content, detail)
    end

    result
  end

  @doc "Stages a source, not watched: for a process that is to be killed."
  def call(:stage, source, opts), do: Codex.Files.stage(source.path, opts)
  def call(:registry_stage, source, opts), do: Registry.stage(request(source, opts))

  def call(:call, source, opts),
    do: GenServer.call(Registry, {:stage, request(source, opts)}, :infinity)

  defp title(:stage), do: "stage/2"
  defp title(:registry_stage), do: "Registry.stage/1"
  defp title(:call), do: "GenServer.call stage"

  # At a destination of the caller's choice, one for each content.
  defp request(source, opts) do
    persist = Keyword.get(opts, :persist, false)
    dir = Application.fetch_env!(:codex_files, :soak_elsewhere)

    %{
      checksum: source.checksum,
      name: Path.basename(source.path),
      persist: persist,
      ttl_ms: if(persist, do: :infinity, else: Keyword.fetch!(opts, :ttl_ms)),
      size: source.size,
      source_path: source.path,
      destination_path: Path.join(dir, source.checksum)
    }
  end

  def list(context), do: run(context, "list", &Codex.Files.list_staged_result/0)

  def metrics(context), do: run(context, "metrics", &Codex.Files.metrics/0)

  def reset(context), do: run(context, "reset!", &Codex.Files.reset!/0)

  def force_cleanup(context) do
    cleanup =
      Enum.random([
        &Codex.Files.force_cleanup/0,
        &Registry.force_cleanup/0,
        fn -> GenServer.call(Registry, :force_cleanup, :infinity) end
      ])

    run(context, "force_cleanup", cleanup)
  end

  defp run(context, kind, call) do
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

    case result do
      {:error, reason} -> failed(context, kind, cause(reason))
      _success -> Tally.add(context.tally, kind, took)
    end

    result
  end

  # An exit says which call it was, too.
  defp cause({reason, {_module, _function, args}}) when is_list(args), do: cause(reason)
  defp cause({:shutdown, _detail}), do: :shutdown
  defp cause(reason), do: reason

  defp failed(context, kind, reason) do
    Tally.add_error(context.tally, kind, reason)

    if reason not in @away,
      do: Problems.add(context.problems, :error, "#{kind}: #{inspect(reason)}")
  end
end
