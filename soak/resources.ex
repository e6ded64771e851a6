defmodule Soak.Resources do
  @moduledoc false
  # The memory, threads and open files of a VM, as the system counts them, and its Erlang processes.

  alias Codex.Files.ChildVM

  defstruct [:rss_kib, :threads, :descriptors, :processes]

  def of(vm) do
    status = File.read!("/proc/#{vm.os_pid}/status")

    %__MODULE__{
      rss_kib: number(status, "VmRSS"),
      threads: number(status, "Threads"),
      descriptors: length(File.ls!("/proc/#{vm.os_pid}/fd")),
      processes: ChildVM.eval(vm, quote(do: length(Process.list())))
    }
  end

  defp number(status, key) do
    [number] = Regex.run(~r/^#{key}:\s+(\d+)/m, status, capture: :all_but_first)
    String.to_integer(number)
  end
end
