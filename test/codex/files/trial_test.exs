defmodule Codex.Files.TrialTest do
  # A library is tried in another VM before this one loads it.

  use ExUnit.Case, async: true

  import Codex.Files.HostProject

  alias Codex.Files.Trial

  @moduletag timeout: 300_000

  setup do
    %{folder: temporary_folder(), ebin: Application.app_dir(:codex_files, "ebin")}
  end

  # A library of one function, which the VM calls when it loads it.
  defp compile(folder, nif_init) do
    write(folder, %{
      "library.rs" => """
      #[unsafe(no_mangle)]
      pub extern "C" fn nif_init() -> *const u8 {
          #{nif_init}
      }
      """
    })

    args = ~w(--crate-type cdylib --edition 2024 -o library.so library.rs)
    {output, status} = System.cmd("rustc", args, cd: folder, stderr_to_stdout: true)
    assert status == 0, output
    Path.join(folder, "library.so")
  end

  test "one that works stages a file, and leaves nothing behind", %{ebin: ebin} do
    assert Trial.run(library(), ebin) == :ok
    assert Path.wildcard("#{System.tmp_dir!()}/codex_files-trial-#{System.pid()}-*") == []
  end

  test "one that blocks is given up", %{folder: folder, ebin: ebin} do
    blocks = compile(folder, "loop { std::thread::park() }")
    assert Trial.run(blocks, ebin, 3_000) == {:refused, "it blocks the VM that tries it"}
    # It does not go on by itself.
    assert {"", 1} = System.cmd("pgrep", ["-f", Path.rootname(blocks)])
  end

  test "one that kills the VM is damaged", %{folder: folder, ebin: ebin} do
    for {signal, status} <- [SIGBUS: 135, SIGSEGV: 139] do
      number = status - 128

      kills =
        compile(folder, """
        unsafe extern "C" { fn raise(signal: i32) -> i32; }
        unsafe { raise(#{number}) };
        loop {}
        """)

      assert {signal, Trial.run(kills, ebin)} ==
               {signal,
                {:refused, "it is damaged: the VM that tries it ends with status #{status}"}}
    end
  end

  test "one for a newer VM is told by the function that it lacks", context do
    newer =
      compile(context.folder, """
      unsafe extern "C" { fn enif_of_tomorrow() -> *const u8; }
      unsafe { enif_of_tomorrow() }
      """)

    nif = :erlang.system_info(:nif_version)

    assert Trial.run(newer, context.ebin) ==
             {:refused,
              "expected a library of NIF version #{nif} or older, got one that calls enif_of_tomorrow"}
  end

  # The table of constants of SHA-256, of which a bit is another.
  test "one with a hole where it loads all the same is found by what it stages", context do
    constant = <<0x428A2F98::32-little>>
    damaged = <<0x428A2F99::32-little>>
    whole = File.read!(library())
    assert whole =~ constant

    library =
      Path.join(
        write(context.folder, %{"library.so" => String.replace(whole, constant, damaged)}),
        "library.so"
      )

    assert {:refused, reason} = Trial.run(library, context.ebin)
    assert reason =~ ~r/^expected it to stage a file with the checksum \w{64}, got: /
  end
end
