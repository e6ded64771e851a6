defmodule Codex.Files.PrebuiltTest do
  # What can be known of a library that somebody else has built, before a VM loads it.

  use ExUnit.Case, async: true

  import Codex.Files.HostProject

  alias Codex.Files.Prebuilt

  @checksums "checksum-Elixir.Codex.Files.Native.exs"
  @target Prebuilt.target()
  @wanted %{version: "1.2.0", target: @target, nif: "2.17"}

  setup do
    %{folder: temporary_folder()}
  end

  defp name(nif, opts \\ []) do
    version = Keyword.get(opts, :version, "1.2.0")
    "libcodex_files_nif-v#{version}-nif-#{nif}-#{Keyword.get(opts, :target, @target)}.so"
  end

  # An archive, of `{member, content}` in the order given.
  defp archive(folder, name, members) do
    path = Path.join(folder, name)
    members = for {member, content} <- members, do: {String.to_charlist(member), content}
    :ok = :erl_tar.create(path, members, [:compressed])
    path
  end

  defp archive(folder, name), do: archive(folder, "#{name}.tar.gz", [{name, elf(name)}])

  defp sum(path),
    do: "sha256:" <> Base.encode16(:crypto.hash(:sha256, File.read!(path)), case: :lower)

  defp read(path, wanted \\ []), do: Prebuilt.read(path, Map.merge(@wanted, Map.new(wanted)))

  defp file(folder, content) do
    write(folder, %{"library.so" => content})
    Path.join(folder, "library.so")
  end

  test "a library, an archive of one and a folder of archives are read", context do
    content = elf("content")
    library = file(context.folder, content)
    assert read(library) == {:ok, library, content}

    archives = Path.join(context.folder, "archives")
    File.mkdir!(archives)
    archive = archive(archives, "#{name("2.15")}.tar.gz", [{name("2.15"), content}])
    assert read(archive) == {:ok, archive, content}
    assert read(archives) == {:ok, archive, content}

    # By its content it is one, too.
    renamed = Path.join(context.folder, "renamed")
    File.rename!(archive, renamed)
    assert read(renamed) == {:ok, renamed, content}
  end

  test "targets have the names of Rust" do
    for {system, target} <- [
          {"x86_64-pc-linux-gnu", "x86_64-unknown-linux-gnu"},
          {"x86_64-linux-gnu", "x86_64-unknown-linux-gnu"},
          {"aarch64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"},
          {"x86_64-alpine-linux-musl", "x86_64-unknown-linux-musl"},
          {"aarch64-apple-darwin23.1.0", "aarch64-apple-darwin"}
        ] do
      assert {system, Prebuilt.target(system)} == {system, target}
    end
  end

  test "what is not there, and what is no file, is said so", context do
    fifo = Path.join(context.folder, "fifo")
    {"", 0} = System.cmd("mkfifo", [fifo])
    assert read(fifo) == {:refused, fifo, "expected a regular file"}

    missing = Path.join(context.folder, "missing")
    assert read(missing) == {:error, missing, :enoent}
  end

  describe "in a folder" do
    test "the highest NIF version that is not above the VM's is chosen", %{folder: folder} do
      for nif <- ["2.9", "2.15", "2.16", "2.18"], do: archive(folder, name(nif))
      archive(folder, name("2.17", version: "1.1.0"))
      archive(folder, name("2.17", target: "another-unknown-linux-gnu"))
      write(folder, %{"notes.tar.gz" => "", "notes.txt" => ""})

      for {vm, chosen} <- [{"2.17", "2.16"}, {"2.15", "2.15"}, {"2.14", "2.9"}, {"3.0", "2.18"}] do
        content = elf(name(chosen))
        path = Path.join(folder, "#{name(chosen)}.tar.gz")
        assert read(folder, nif: vm) == {:ok, path, content}
      end
    end

    test "that has none for this system, the message says which there are", %{folder: folder} do
      expected =
        "expected an archive in it of version 1.2.0 for #{@target} and NIF version 2.17 or older, got: "

      assert read(folder) == {:refused, folder, expected <> "none"}

      names = for opts <- [[version: "1.1.0"], [target: "z-linux-gnu"]], do: name("2.15", opts)
      for name <- names, do: archive(folder, name)
      listed = names |> Enum.map_join(", ", &"#{&1}.tar.gz")
      assert read(folder) == {:refused, folder, expected <> listed}
    end
  end

  describe "a sum" do
    setup %{folder: folder} do
      archive = archive(folder, name("2.15"))
      %{archive: archive, checksums: Path.join(folder, @checksums)}
    end

    # As bin/precompile and rustler_precompiled write it.
    defp sums(context, sum) do
      name = Path.basename(context.archive)
      File.write!(context.checksums, "%{\n  #{inspect(name)} => #{inspect(sum)},\n}\n")
    end

    test "that lies beside an archive is checked", context do
      sums(context, sum(context.archive))
      assert {:ok, _path, _library} = read(context.archive)

      other = "sha256:" <> String.duplicate("0", 64)
      sums(context, other)

      assert read(context.folder) ==
               {:refused, context.archive,
                "expected its sum to be #{other}, got: #{sum(context.archive)}"}
    end

    test "has to be there where those of others are", context do
      File.write!(context.checksums, ~s(%{"another" => "sha256:00"}))

      assert read(context.archive) ==
               {:refused, context.archive,
                "expected its sum to be in #{context.checksums}, got none"}
    end

    test "is read, and not evaluated", context do
      written = Path.join(context.folder, "written")

      for source <- [
            "File.write!(#{inspect(written)}, \"\")",
            "%{a: File.write!(#{inspect(written)}, \"\")}",
            "%{",
            ""
          ] do
        File.write!(context.checksums, source)

        assert read(context.archive) ==
                 {:refused, context.archive, "expected #{context.checksums} to be a map of sums"}
      end

      refute File.exists?(written)
    end
  end

  describe "an archive" do
    test "has one member", %{folder: folder} do
      for {members, got} <- [
            {[], "none"},
            {[{"a.so", elf("a")}, {"b.so", elf("b")}], "a.so (regular), b.so (regular)"}
          ] do
        path = archive(folder, "archive.tar.gz", members)

        assert read(path) ==
                 {:refused, path, "expected one regular file in the archive, got: #{got}"}
      end
    end

    test "has no link for a library", %{folder: folder} do
      File.ln_s!("/etc/passwd", Path.join(folder, "link.so"))
      {_, 0} = System.cmd("tar", ~w(-czf archive.tar.gz link.so), cd: folder)
      path = Path.join(folder, "archive.tar.gz")

      assert read(path) ==
               {:refused, path,
                "expected one regular file in the archive, got: link.so (symlink)"}
    end

    test "is whole", %{folder: folder} do
      path = archive(folder, name("2.15"))
      whole = File.read!(path)
      # In the middle of it a byte is another.
      <<before::binary-90, byte, rest::binary>> = whole
      holed = <<before::binary, Bitwise.bxor(byte, 1), rest::binary>>

      for {content, got} <- [
            {"", "an empty file"},
            {"<html>Not found</html>", ~s(22 bytes that begin with "<html>No")},
            {:zlib.gzip("no archive"), nil},
            {binary_part(whole, 0, 100), nil},
            {binary_part(whole, 0, byte_size(whole) - 1), nil},
            {holed, nil}
          ] do
        File.write!(path, content)
        assert {:refused, ^path, reason} = read(path)
        assert reason =~ "expected a whole archive made by tar and gzip, got: #{got}"
      end
    end
  end

  describe "a name" do
    test "says of which version, for which target and NIF version a library is", context do
      %{folder: folder} = context

      for {name, reason} <- [
            {name("2.18"), "expected a library of NIF version 2.17 or older, got: 2.18"},
            {name("2.100"), "expected a library of NIF version 2.17 or older, got: 2.100"},
            {name("2.15", version: "1.3.0-rc.1"),
             "expected a library of version 1.2.0, got: 1.3.0-rc.1"},
            {name("2.15", target: "x86_64-unknown-linux-musl"),
             "expected a library for #{@target}, got: x86_64-unknown-linux-musl"}
          ] do
        library = Path.join(folder, name)
        File.write!(library, elf(""))
        assert read(library) == {:refused, library, reason}

        archive = archive(folder, name)
        assert read(archive) == {:refused, archive, reason}

        # The name of what is in it counts.
        renamed = archive(folder, "renamed.tar.gz", [{name, elf("")}])
        assert read(renamed) == {:refused, renamed, reason}
      end
    end
  end

  describe "a header" do
    test "says for which machine a library is", %{folder: folder} do
      <<head::binary-18, own::16-little, rest::binary>> = elf("")

      for {machine, name} <- [{183, "aarch64"}, {62, "x86_64"}, {9_999, "machine 9999"}],
          machine != own do
        library = file(folder, <<head::binary, machine::16-little, rest::binary>>)
        [expected | _] = String.split(@target, "-")

        assert read(library) ==
                 {:refused, library, "expected a library for #{expected}, got: #{name}"}
      end

      # It may be for the other that it is taken.
      library = file(folder, <<head::binary, 183::16-little, rest::binary>>)
      assert {:ok, _, _} = read(library, target: "aarch64-unknown-linux-gnu")
    end

    test "has its section table inside the file", %{folder: folder} do
      whole = File.read!(library())
      size = byte_size(whole)
      assert {:ok, _, ^whole} = read(file(folder, whole))

      for length <- [64, 4_096, div(size, 2), size - 1] do
        library = file(folder, binary_part(whole, 0, length))
        assert read(library) == {:refused, library, "expected #{size} bytes, got: #{length}"}
      end
    end

    test "is one of ELF, of 64 bits", %{folder: folder} do
      <<"\x7FELF", 2, 1, rest::binary>> = elf("")

      for {content, reason} <- [
            {"", "expected a library in the ELF format, got: an empty file"},
            {"MZ!", "expected a library in the ELF format, got: 3 bytes that begin with \"MZ!\""},
            {"\x7FELF\x02\x01", "expected at least 64 bytes, got: 6"},
            {<<"\x7FELF", 1, 1, rest::binary>>,
             "expected a library of 64 bits and little endian, got another"},
            {<<"\x7FELF", 2, 2, rest::binary>>,
             "expected a library of 64 bits and little endian, got another"}
          ] do
        library = file(folder, content)
        assert read(library) == {:refused, library, reason}
      end

      # Elsewhere libraries are of another format.
      library = file(folder, "\xCF\xFA\xED\xFE")
      assert {:ok, ^library, _} = read(library, target: "aarch64-apple-darwin")
    end
  end

  test "symbols of a glibc that is newer than this system's are refused", %{folder: folder} do
    {"glibc " <> version, 0} = System.cmd("getconf", ["GNU_LIBC_VERSION"])
    has = String.trim(version)

    library = file(folder, elf("\0GLIBC_2.2.5\0GLIBC_2.1000\0GLIBC_2.999\0GLIBC_#{has}\0"))

    assert read(library) ==
             {:refused, library,
              "expected a library for glibc #{has} or older, got one that needs 2.1000"}

    assert {:ok, _, _} = read(file(folder, elf("\0GLIBC_2.2.5\0GLIBC_#{has}\0")))
  end
end
