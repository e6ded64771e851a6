defmodule Codex.Files.P16MonotonicTest do
  @moduledoc """
  P16: expiry runs on the monotonic clock: a step of the wall clock neither expires nor keeps
  anything.
  """

  use Codex.Files.StagingCase, async: false

  alias Codex.Files.ChildVM

  # A library that is loaded before the C library, and shows a VM a wall clock that is off by as
  # many seconds as a file says.
  @shim """
  #define _GNU_SOURCE
  #include <dlfcn.h>
  #include <stdio.h>
  #include <stdlib.h>
  #include <time.h>

  int clock_gettime(clockid_t id, struct timespec *time) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(id, time);
    if (id == CLOCK_REALTIME) {
      long seconds = 0;
      FILE *file = fopen(getenv("WALL_CLOCK_STEP"), "r");
      if (file) {
        if (fscanf(file, "%ld", &seconds) != 1) seconds = 0;
        fclose(file);
      }
      time->tv_sec += seconds;
    }
    return result;
  }
  """

  @compiler System.find_executable("cc")
  @moduletag skip: if(@compiler, do: false, else: "needs a C compiler")

  @day 86_400

  setup %{folder: folder, staging_dir: staging_dir} do
    shim = Path.join(folder, "shim.so")
    source = write(folder, "shim.c", @shim)
    sh!(@compiler, ["-shared", "-fPIC", "-o", shim, source, "-ldl"])
    step = Path.join(folder, "step")
    vm = ChildVM.start(staging_dir, [{"LD_PRELOAD", shim}, {"WALL_CLOCK_STEP", step}])
    %{vm: vm, step: step}
  end

  defp step_wall_clock(%{step: step}, seconds) do
    File.write!(step <> ".new", "#{seconds}")
    File.rename!(step <> ".new", step)
  end

  defp stage(%{vm: vm, folder: folder}, name, opts) do
    source = write(folder, name, name)

    {:ok, attachment} =
      ChildVM.eval(vm, quote(do: Codex.Files.stage(unquote(source), unquote(opts))))

    attachment
  end

  defp force_cleanup(%{vm: vm}), do: ChildVM.eval(vm, quote(do: Codex.Files.force_cleanup()))
  defp list(%{vm: vm}), do: ChildVM.eval(vm, quote(do: Codex.Files.list_staged()))

  # How far the wall clock of the VM is from ours, to the hour.
  defp offset(attachment) do
    hours = DateTime.diff(attachment.inserted_at, DateTime.utc_now()) / 3_600
    round(hours) * 3_600
  end

  test "a step forwards expires nothing", context do
    attachment = stage(context, "kept", ttl_ms: 60_000)
    assert offset(attachment) == 0

    step_wall_clock(context, 10 * @day)
    # The VM does see the other time.
    assert offset(stage(context, "marker", ttl_ms: 60_000)) == 10 * @day

    assert force_cleanup(context) == :ok
    assert attachment in list(context)
    assert_intact([attachment])
  end

  test "a step backwards keeps nothing", context do
    attachment = stage(context, "expires", ttl_ms: 200)
    step_wall_clock(context, -10 * @day)
    assert offset(stage(context, "marker", ttl_ms: 60_000)) == -10 * @day

    eventually(fn ->
      assert force_cleanup(context) == :ok
      not File.exists?(attachment.path)
    end)

    refute attachment in list(context)
  end

  test "what is staged after a step expires when its time has passed", context do
    for step <- [-10 * @day, 10 * @day] do
      step_wall_clock(context, step)
      expires = stage(context, "expires #{step}", ttl_ms: 100)
      kept = stage(context, "kept #{step}", ttl_ms: 60_000)
      step_wall_clock(context, 0)

      eventually(fn ->
        assert force_cleanup(context) == :ok
        not File.exists?(expires.path)
      end)

      assert kept in list(context)
    end
  end
end
