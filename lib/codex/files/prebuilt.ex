defmodule Codex.Files.Prebuilt do
  @moduledoc false
  # Reads a native library that somebody else has built, and everything that can be known of it before a
  # VM loads it. For the Mix compiler. Names, archives and sums are those of precompiled NIFs.

  @checksums "checksum-Elixir.Codex.Files.Native.exs"
  @machines %{3 => "i686", 40 => "arm", 62 => "x86_64", 183 => "aarch64", 243 => "riscv64"}

  @typedoc "What is asked of a library: the version of codex_files, the target, and the VM's NIF version."
  @type wanted :: %{version: String.t(), target: String.t(), nif: String.t()}

  @doc """
  Reads the library that `path` names, which may be one, an archive of one, or a folder of archives.

  Returns the path of the file that it was read from too.
  """
  @spec read(Path.t(), wanted()) ::
          {:ok, Path.t(), binary()} | {:refused | :error, Path.t(), reason :: String.t() | atom()}
  def read(path, wanted) do
    with {:ok, path} <- choose(path, wanted) do
      case read_file(path, wanted) do
        {:ok, library} -> {:ok, path, library}
        {unfit, reason} -> {unfit, path, reason}
      end
    end
  end

  defp read_file(path, wanted) do
    # Reading a device or a pipe may never end.
    with {:ok, %{type: :regular}} <- File.stat(path),
         {:ok, content} <- File.read(path),
         {:ok, name, library} <- unpack(path, content),
         :ok <- check_name(name, wanted),
         :ok <- check_elf(library, wanted) do
      {:ok, library}
    else
      {:ok, %{type: _other}} -> {:refused, "expected a regular file"}
      unfit -> unfit
    end
  end

  @doc "The target of this system, or of another one that calls itself `system`, in the words of Rust."
  @spec target(String.t()) :: String.t()
  def target(system \\ to_string(:erlang.system_info(:system_architecture))) do
    # Distributions call themselves the vendor.
    system
    |> String.replace(~r/^(\w+)-(\w+-)?linux-/, "\\1-unknown-linux-")
    |> String.replace(~r/-darwin[\d.]+$/, "-darwin")
  end

  ## Folders and names

  defp choose(path, wanted) do
    case File.ls(path) do
      {:ok, names} ->
        archives = names |> Enum.filter(&String.ends_with?(&1, ".tar.gz")) |> Enum.sort()

        case Enum.filter(archives, &(parse(&1) != nil and check_name(&1, wanted) == :ok)) do
          [] ->
            {:refused, path,
             "expected an archive in it of version #{wanted.version} for #{wanted.target} and NIF " <>
               "version #{wanted.nif} or older, got: #{listed(archives)}"}

          fitting ->
            {:ok, Path.join(path, Enum.max_by(fitting, &number(parse(&1).nif)))}
        end

      {:error, :enotdir} ->
        {:ok, path}

      {:error, reason} ->
        {:error, path, reason}
    end
  end

  defp listed([]), do: "none"
  defp listed(names), do: Enum.join(names, ", ")

  defp parse(name) do
    pattern = ~r/^libcodex_files_nif-v(.+)-nif-(\d+\.\d+)-(.+)\.so(?:\.tar\.gz)?$/

    with [version, nif, target] <- Regex.run(pattern, name, capture: :all_but_first),
         do: %{version: version, nif: nif, target: target}
  end

  # A file of another name may be called what it likes.
  defp check_name(name, wanted) do
    case parse(name) do
      %{version: version} when version != wanted.version ->
        {:refused, "expected a library of version #{wanted.version}, got: #{version}"}

      %{target: target} when target != wanted.target ->
        {:refused, "expected a library for #{wanted.target}, got: #{target}"}

      %{nif: nif} ->
        if number(nif) <= number(wanted.nif),
          do: :ok,
          else:
            {:refused, "expected a library of NIF version #{wanted.nif} or older, got: #{nif}"}

      nil ->
        :ok
    end
  end

  # As a list, "2.9" is less than "2.17".
  defp number(version), do: version |> String.split(".") |> Enum.map(&String.to_integer/1)

  ## Archives

  defp unpack(path, content) do
    if String.ends_with?(path, ".tar.gz") or match?(<<0x1F, 0x8B, _::binary>>, content) do
      with :ok <- check_sum(path, content),
           {:ok, tar} <- gunzip(content),
           {:ok, [{name, :regular, _, _, _, _, _}]} <- :erl_tar.table({:binary, tar}, [:verbose]),
           {:ok, [{_name, library}]} <- :erl_tar.extract({:binary, tar}, [:memory]) do
        {:ok, Path.basename(name), library}
      else
        {:ok, members} ->
          names = for {name, type, _, _, _, _, _} <- members, do: "#{name} (#{type})"
          {:refused, "expected one regular file in the archive, got: #{listed(names)}"}

        {:refused, reason} ->
          {:refused, reason}

        {:error, _reason} ->
          {:refused, "expected a whole archive made by tar and gzip, got: #{beginning(content)}"}
      end
    else
      {:ok, Path.basename(path), content}
    end
  end

  defp gunzip(content) do
    {:ok, :zlib.gunzip(content)}
  rescue
    error in ErlangError -> {:error, error.original}
  end

  # Without sums beside it an archive is taken as it is.
  defp check_sum(path, content) do
    checksums = Path.join(Path.dirname(path), @checksums)
    name = Path.basename(path)

    case File.read(checksums) do
      {:ok, source} ->
        got = "sha256:" <> Base.encode16(:crypto.hash(:sha256, content), case: :lower)

        case parse_sums(source) do
          %{^name => ^got} -> :ok
          %{^name => expected} -> {:refused, "expected its sum to be #{expected}, got: #{got}"}
          %{} -> {:refused, "expected its sum to be in #{checksums}, got none"}
          nil -> {:refused, "expected #{checksums} to be a map of sums"}
        end

      {:error, :enoent} ->
        :ok

      {:error, reason} ->
        {:refused, "could not read #{checksums}: #{:file.format_error(reason)}"}
    end
  end

  # It is read and not evaluated: what is downloaded may be anything.
  defp parse_sums(source) do
    with {:ok, {:%{}, _, pairs}} <- Code.string_to_quoted(source, existing_atoms_only: true),
         true <-
           Enum.all?(pairs, &match?({name, sum} when is_binary(name) and is_binary(sum), &1)) do
      Map.new(pairs)
    else
      _ -> nil
    end
  end

  ## The header of the library

  # Where it is not Linux that is asked for, nothing is known of it.
  defp check_elf(library, wanted) do
    if wanted.target =~ "-linux-" do
      with {:ok, machine, whole} <- header(library),
           :ok <- check_machine(machine, wanted),
           :ok <- check_size(library, whole),
           do: check_glibc(library, wanted)
    else
      :ok
    end
  end

  # The table of its sections is at the very end of the file.
  defp header(
         <<0x7F, "ELF", 2, 1, _::binary-12, machine::16-little, _::binary-20, table::64-little,
           _::binary-10, entry::16-little, entries::16-little, _::16, _::binary>>
       ),
       do: {:ok, machine, table + entry * entries}

  defp header(<<0x7F, "ELF", 2, 1, _::binary>> = library) when byte_size(library) < 64,
    do: {:refused, "expected at least 64 bytes, got: #{byte_size(library)}"}

  defp header(<<0x7F, "ELF", _::binary>>),
    do: {:refused, "expected a library of 64 bits and little endian, got another"}

  defp header(library),
    do: {:refused, "expected a library in the ELF format, got: #{beginning(library)}"}

  defp beginning(""), do: "an empty file"

  defp beginning(content) do
    first = binary_part(content, 0, min(8, byte_size(content)))
    "#{byte_size(content)} bytes that begin with #{inspect(first)}"
  end

  defp check_machine(machine, wanted) do
    [expected | _] = String.split(wanted.target, "-")
    got = Map.get(@machines, machine, "machine #{machine}")

    if got == expected or expected not in Map.values(@machines),
      do: :ok,
      else: {:refused, "expected a library for #{expected}, got: #{got}"}
  end

  # Where the file ends too early, in the last page that is loaded, a VM sees zeros and may go on for a
  # while.
  defp check_size(library, whole) when byte_size(library) < whole,
    do: {:refused, "expected #{whole} bytes, got: #{byte_size(library)}"}

  defp check_size(_library, _whole), do: :ok

  # The versions of the symbols that it asks glibc for are among its strings.
  defp check_glibc(library, wanted) do
    needed =
      ~r/(?<=\0)GLIBC_(\d+(?:\.\d+)+)(?=\0)/
      |> Regex.scan(library, capture: :all_but_first)
      |> List.flatten()

    with [_ | _] <- needed,
         true <- wanted.target == target(),
         {:ok, has} <- glibc(),
         newest when newest != has <- Enum.max_by([has | needed], &number/1) do
      {:refused, "expected a library for glibc #{has} or older, got one that needs #{newest}"}
    else
      _ -> :ok
    end
  end

  defp glibc do
    with getconf when is_binary(getconf) <- System.find_executable("getconf"),
         {output, 0} <- System.cmd(getconf, ["GNU_LIBC_VERSION"], stderr_to_stdout: true),
         [_, version] <- Regex.run(~r/^glibc (\d+(?:\.\d+)+)$/m, output),
         do: {:ok, version}
  end
end
