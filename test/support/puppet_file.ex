defmodule Codex.Files.PuppetFile do
  @moduledoc false
  # A file module that does what the test tells it, and tells the test what it is called with: each
  # call of a callback sends `{:callback, pid, function, args}` to the process that called
  # `start/0`, where `pid` is the process that it runs in.

  @doc "Makes the calling process the one that is told; every callback does what `File`'s does."
  def start do
    :persistent_term.put(__MODULE__, {self(), %{}})
    ExUnit.Callbacks.on_exit(fn -> :persistent_term.erase(__MODULE__) end)
  end

  @doc """
  Says what a callback does from now on: `:run`, `:block` until `release/1`, or `{:return, value}`,
  `{:raise, exception}`, `{:exit, reason}`, `{:throw, value}`.
  """
  def tell(function, behaviour) do
    {test, behaviours} = :persistent_term.get(__MODULE__)
    :persistent_term.put(__MODULE__, {test, Map.put(behaviours, function, behaviour)})
  end

  @doc "Lets a blocked callback go on, and do what `File`'s does unless it is told otherwise."
  def release(pid, behaviour \\ :run), do: send(pid, {__MODULE__, behaviour})

  def mkdir_p!(path), do: act(:mkdir_p!, [path])
  def cp!(source, destination), do: act(:cp!, [source, destination])
  def rm_rf(path), do: act(:rm_rf, [path])

  defp act(function, args) do
    {test, behaviours} = :persistent_term.get(__MODULE__)
    send(test, {:callback, self(), function, args})
    perform(Map.get(behaviours, function, :run), function, args)
  end

  defp perform(:run, function, args), do: apply(File, function, args)
  defp perform({:return, value}, _function, _args), do: value
  defp perform({:raise, exception}, _function, _args), do: raise(exception)
  defp perform({:exit, reason}, _function, _args), do: exit(reason)
  defp perform({:throw, value}, _function, _args), do: throw(value)

  defp perform(:block, function, args) do
    receive do
      {__MODULE__, behaviour} -> perform(behaviour, function, args)
    end
  end
end
