defmodule Soak.Resources do
  @moduledoc false
  # The memory, threads and open files of a VM, as the system counts them.

  defstruct [:rss_kib, :threads, :descriptors]

  def of(os_pid) do
    status = File.read!("/proc/#{os_pid}/status")

    %__MODULE__{
      rss_kib: number(status, "VmRSS"),
      threads: number(status, "Threads"),
      descriptors: length(File.ls!("/proc/#{os_pid}/fd"))
    }
  end

  defp number(status, key) do
    [number] = Regex.run(~r/^#{key}:\s+(\d+)/m, status, capture: :all_but_first)
    String.to_integer(number)
  end
end
