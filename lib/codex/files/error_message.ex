defmodule Codex.Files.ErrorMessage do
  @moduledoc false
  # The English of every reason, in one place.

  # How many of the files that could not be removed, or are damaged, are named.
  @named_failures 3

  @doc "Says a reason in one line. What a file module fails with may be any term."
  @spec format(term()) :: String.t()
  def format(reason) do
    reason |> say() |> printable() |> String.split(["\r", "\n"], trim: true) |> Enum.join(" ")
  end

  defp say({:error, reason}), do: say(reason)

  defp say({:missing_option, key}), do: "expected the option #{inspect(key)}, which is missing"

  defp say({:invalid_option, key, value}),
    do: "expected #{inspect(key)} to be #{expected(key)}, got: #{inspect(value)}"

  defp say({:invalid_config, key, value}),
    do: "expected the configured #{inspect(key)} to be #{expected(key)}, got: #{inspect(value)}"

  defp say({:invalid_name, name}),
    do: "expected the name to be one path component of 1 to 255 bytes, got: #{inspect(name)}"

  defp say({:invalid_ttl, ttl_ms}),
    do: "expected :ttl_ms to be #{expected(:ttl_ms)}, got: #{inspect(ttl_ms)}"

  defp say({:checksum_mismatch, actual}) when is_binary(actual),
    do: "expected the checksum to be the content's SHA-256 digest, which is #{printable(actual)}"

  defp say({:unsupported_file_type, type}),
    do: "expected a regular file, got a #{type_name(type)}"

  defp say({:unsupported_destination, type}) do
    "expected a destination that does not exist or is a regular file, got a #{type_name(type)}"
  end

  defp say({:destination_is_source, path}),
    do: "expected a destination other than the source file #{inspect(path)}"

  defp say({:staging_dir, path, reason}) when is_atom(reason) do
    "could not use the staging directory #{inspect(path)}: #{say(reason)}; " <>
      "make it usable or configure another :staging_dir"
  end

  defp say({:insecure_staging_dir, path, :foreign_owner}) do
    "could not use the staging directory #{inspect(path)}: it belongs to another user; " <>
      "remove it or configure another :staging_dir"
  end

  defp say({:insecure_staging_dir, path, :foreign_link}) do
    "could not use the staging directory #{inspect(path)}: it is a symbolic link made by " <>
      "another user; remove it or configure another :staging_dir"
  end

  # `length/1` fails for an improper list, and these clauses with it.
  defp say({:cleanup_failed, failures}) when length(failures) > 0,
    do: "could not remove #{failures(failures)}"

  defp say({:damaged, failures}) when length(failures) > 0,
    do: "damaged: #{failures(failures)}; what is damaged is copied anew when it is next staged"

  defp say({:native_panic, message}) when is_binary(message),
    do: "native code failed unexpectedly, please report it: #{printable(message)}"

  defp say({:manifest_table_taken, table}),
    do: "could not create the ETS table #{inspect(table)}: the name is taken"

  defp say({:already_started, pid}),
    do: "could not start the registry: #{inspect(pid)} has its name"

  defp say({:unknown_request, request}),
    do: "expected a request that the registry knows, got: #{inspect(request)}"

  defp say({:over_budget, size, max_bytes}) do
    "no room for #{size} bytes: the registry may store #{max_bytes} in all; " <>
      "remove attachments, raise :max_bytes or have it evict with when_full: :evict"
  end

  defp say(:changed), do: "its size or its times are not those that it was staged with"

  defp say(:not_staged), do: "no attachment of that id is staged, or its file has gone"

  defp say(:not_supported),
    do: "a registry with a file module stages files and nothing else, and knows no owners"

  defp say(:noproc), do: "the registry is not running"

  defp say(:stopped), do: "the registry has been stopped"

  # What a file module's function exits with is told as it is.
  defp say(reason) when reason in [:normal, :shutdown],
    do: "the registry, or the process of a file operation, has been stopped"

  defp say(:killed), do: "the registry, or the process of a file operation, has been killed"

  defp say(:native_library_not_loaded),
    do: "the native library is not loaded; standard error says why"

  defp say(:not_started) do
    "the registry is not running: the system is being stopped, or its supervisor does not start it"
  end

  # What a supervisor says of a child that could not be started.
  defp say({:shutdown, {:failed_to_start_child, _child, reason}}), do: say(reason)
  defp say({reason, child}) when elem(child, 0) == :child, do: say(reason)

  defp say({_app, {{:shutdown, {:failed_to_start_child, _, reason}}, {_module, :start, _args}}}),
    do: say(reason)

  # What a start that raised gives.
  defp say({exception, stacktrace}) when is_exception(exception) and is_list(stacktrace),
    do: say(exception)

  defp say({:shutdown, _detail}), do: say(:shutdown)

  defp say(reason) when is_atom(reason) do
    case :file.format_error(reason) do
      ~c"unknown POSIX error" ++ _rest -> "unexpected error: #{inspect(reason)}"
      message -> List.to_string(message)
    end
  end

  defp say(exception) when is_exception(exception), do: Exception.message(exception)
  defp say(reason), do: "unexpected error: #{inspect(reason)}"

  defp failures(failures) do
    {named, others} = Enum.split(failures, @named_failures)
    Enum.map_join(named, ", ", &failure/1) <> others(length(others))
  end

  defp failure({path, reason}) when is_binary(path), do: "#{printable(path)}: #{say(reason)}"
  defp failure(failure), do: inspect(failure)

  defp others(0), do: ""
  defp others(1), do: " and one other"
  defp others(count), do: " and #{count} others"

  # Paths are bytes, and messages may be anything.
  defp printable(text), do: if(String.valid?(text), do: text, else: inspect(text))

  defp expected(:opts), do: "a keyword list (for Codex.Files.Registry.stage/1 a map)"

  defp expected(key)
       when key in [:persist, :recognise_unchanged, :attachment_recognise_unchanged],
       do: "a boolean"

  defp expected(key) when key in [:cleanup_interval_ms, :attachment_cleanup_interval_ms],
    do: "a number of milliseconds from 1"

  defp expected(key) when key in [:ttl_ms, :attachment_ttl_ms],
    do: ":infinity or a number of milliseconds from 0 to 2^64 - 1"

  defp expected(:attachment_max_bytes), do: "nil or a number of bytes from 1 to 2^64 - 1"
  defp expected(:attachment_when_full), do: ":refuse or :evict"

  # There is no budget then, whatever the value.
  defp expected(key) when key in [:max_bytes, :when_full],
    do: expected(:"attachment_#{key}") <> " (a registry with a file module has no budget)"

  defp expected(:registry),
    do: "the name or the pid of a registry of this node"

  defp expected(:size), do: "a number of bytes from 0 to 2^64 - 1"
  defp expected(:checksum), do: "a string"

  defp expected(:name),
    do: "a string (for a registry an atom, {:global, term} or {:via, module, term})"

  defp expected(:manifest_table), do: "an atom other than nil"
  defp expected(:file_module), do: "a module"
  defp expected(:id), do: "the id of an attachment, a string"
  defp expected(:owner), do: "the pid of a living process of this node (temporary/3 takes none)"

  defp expected(:source),
    do: "iodata (binaries, or lists of them and of bytes) or, for a stream, enumerable"

  defp expected(:fun), do: "a function of one argument"
  defp expected(_path), do: "a path without null bytes"

  defp type_name(:fifo), do: "named pipe"
  defp type_name(:socket), do: "socket"
  defp type_name(:device), do: "device"
  defp type_name(:directory), do: "directory"
  defp type_name(:symlink), do: "symbolic link"
  defp type_name(_other), do: "special file"
end
