defmodule Soak.Damage do
  @moduledoc false
  # Reading all that is staged finds what somebody has damaged, and nothing else.

  alias Soak.{Account, Context, Operations, Problems, Sources}

  # What is damaged on purpose is called so, for all others who verify.
  @prefix "damaged-"

  def on_purpose?(path), do: String.starts_with?(Path.basename(path), @prefix)

  @doc "Again and again, while all goes on."
  def watch(context) do
    unless Context.stopped?(context) do
      _damaged = verify(context)
      Process.sleep(200)
      watch(context)
    end
  end

  @doc """
  Damages a file that nobody else has, by removing it or by changing its content: that is found, and
  staged again it is whole. Unless a reset came first.
  """
  def round(context, number) do
    source = Sources.write(Path.join(context.dir, "#{@prefix}#{number}"))
    epoch = Account.epoch(context.account)

    with {:ok, %{path: path, checksum: checksum}} <-
           Operations.stage(context, :path, source, owner: self()),
         :ok <- Enum.random([&File.rm/1, &spoil/1]).(path) do
      damaged = verify(context)

      unless damaged == :unknown or path in damaged,
        do: Account.problem(context.account, epoch, :wrong_content, "#{path} is not damaged")

      with {:ok, %{path: path}} <- Operations.stage(context, :data, source, owner: self()),
           do: Account.check(context.account, checksum, path, epoch, "damaged before")
    end

    Operations.release(context, source.checksum)
  end

  # The times look the same, if not to the nanosecond.
  defp spoil(path) do
    with {:ok, stat} <- File.stat(path, time: :posix),
         :ok <- File.chmod(path, 0o600),
         :ok <- File.write(path, "spoilt", [:read, :write]),
         :ok <- File.touch(path, stat.mtime),
         do: File.chmod(path, stat.mode)
  end

  # The paths; `:unknown` if the registry has been killed.
  defp verify(context) do
    case Operations.verify(context) do
      {:ok, _count} ->
        []

      {:error, {:damaged, damaged}} ->
        paths = for {path, _reason} <- damaged, do: path

        for {path, reason} <- damaged,
            not on_purpose?(path),
            do: Problems.add(context.problems, :wrong_content, "#{path}: #{inspect(reason)}")

        paths

      {:error, _reason} ->
        :unknown
    end
  end
end
