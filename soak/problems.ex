defmodule Soak.Problems do
  @moduledoc false
  # What should not have been, one line each. In a file, because the VM that found it may be killed
  # right after.

  # More of them tell nothing more.
  @most 1_000

  @kinds [:loss, :wrong_content, :wrong_name, :over_budget, :hanging, :leak, :leftover] ++
           [:stray, :error, :crash]

  @doc "All kinds of problem."
  def kinds, do: @kinds

  def add(file, kind, detail) when kind in @kinds do
    line = "#{kind} #{String.replace(detail, "\n", " ")}\n"

    case File.stat(file) do
      {:ok, %{size: size}} when size > @most * 200 -> :ok
      _ -> File.write!(file, line, [:append])
    end
  end

  @doc "`{kind, detail}` of each."
  def all(file) do
    case File.read(file) do
      {:ok, content} ->
        for line <- String.split(content, "\n", trim: true) do
          [kind, detail] = String.split(line, " ", parts: 2)
          {String.to_existing_atom(kind), detail}
        end

      {:error, :enoent} ->
        []
    end
  end
end
