defmodule Codex.Files.P18RandomTermsTest do
  @moduledoc """
  P18: no term takes the VM down, makes the native side panic, or harms the manifest.

  `RANDOM_TERMS` says how many calls are made, 20,000 unless it is set; `mix test --seed` repeats
  those of an earlier run.
  """

  use Codex.Files.StagingCase, async: false

  alias Codex.Files.{ChildVM, RandomTerms}

  @tag timeout: :infinity
  test "terms that are nearly right are taken, or raise", %{folder: folder} = context do
    calls = "RANDOM_TERMS" |> System.get_env("20000") |> String.to_integer()
    seed = ExUnit.configuration()[:seed]
    vm = ChildVM.start(context.staging_dir)

    # In parts, so that none takes longer than an answer is waited for: seconds, or minutes on an emulator.
    for part <- 0..div(calls - 1, 20_000) do
      calls = min(calls - part * 20_000, 20_000)
      run = quote(do: RandomTerms.run(unquote(folder), unquote(seed + part), unquote(calls)))
      assert %{returned: returned, raised: raised} = ChildVM.eval(vm, run, 600_000)
      assert returned + raised == calls
      # Most of them go through some of the decoding, and many through all.
      assert returned > div(calls, 4)
      assert raised > div(calls, 20)
    end
  end
end
