defmodule Codex.Files.ErrorMessageTest do
  use ExUnit.Case, async: true

  import Codex.Files, only: [format_error: 1]

  # As a supervisor describes the child that it could not start.
  @child {:child, :undefined, Codex.Files.Registry, {Codex.Files.Registry, :start_link, [[]]},
          :permanent, false, 5_000, :worker, [Codex.Files.Registry]}
  @taken "could not create the ETS table :codex_files_manifest: the name is taken"

  defp messages,
    do: [
      # What the file system says.
      {:enoent, "no such file or directory"},
      {:eacces, "permission denied"},
      {:eisdir, "illegal operation on a directory"},
      {:enotdir, "not a directory"},
      {:enospc, "no space left on device"},
      {:edquot, "disk quota exceeded"},
      {:erofs, "read-only file system"},
      {:eio, "I/O error"},
      {:emfile, "too many open files"},
      {:eloop, "too many levels of symbolic links"},
      {:enametoolong, "file name too long"},
      {:eperm, "not owner"},
      {:ebusy, "file busy"},
      {:estale, "stale remote file handle"},
      # What the library says.
      {{:missing_option, :checksum}, "expected the option :checksum, which is missing"},
      {{:invalid_option, :persist, 1}, "expected :persist to be a boolean, got: 1"},
      {{:invalid_option, :name, nil},
       "expected :name to be a string, for a registry an atom, {:global, term} or {:via, module, term}, got: nil"},
      {{:invalid_option, :checksum, ~c"c"},
       "expected :checksum to be a string, got: #{inspect(~c"c")}"},
      {{:invalid_option, :size, -1},
       "expected :size to be a number of bytes from 0 to 2^64 - 1, got: -1"},
      {{:invalid_option, :ttl_ms, -1},
       "expected :ttl_ms to be :infinity or a number of milliseconds from 0 to 2^64 - 1, got: -1"},
      {{:invalid_option, :source_path, "a\0"},
       ~S(expected :source_path to be a path without null bytes, got: <<97, 0>>)},
      {{:invalid_option, :destination_path, 1},
       "expected :destination_path to be a path without null bytes, got: 1"},
      {{:invalid_option, :path, 1}, "expected :path to be a path without null bytes, got: 1"},
      {{:invalid_option, :dir, 1}, "expected :dir to be a path without null bytes, got: 1"},
      {{:invalid_option, :source, [256]},
       "expected :source to be iodata: binaries, or lists of them and of bytes, got: [256]"},
      {{:invalid_config, :staging_dir, 1},
       "expected the configured :staging_dir to be a path without null bytes, got: 1"},
      {{:invalid_config, :attachment_ttl_ms, "1000"},
       "expected the configured :attachment_ttl_ms to be :infinity or a number of milliseconds " <>
         ~S(from 0 to 2^64 - 1, got: "1000")},
      {{:invalid_config, :attachment_cleanup_interval_ms, 0},
       "expected the configured :attachment_cleanup_interval_ms to be a number of milliseconds " <>
         "from 1, got: 0"},
      {{:invalid_config, :attachment_recognise_unchanged, 1},
       "expected the configured :attachment_recognise_unchanged to be a boolean, got: 1"},
      {{:invalid_option, :registry, "r"},
       ~S(expected :registry to be the name or the pid of a registry of this node, got: "r")},
      {{:invalid_option, :staging_dir, nil},
       "expected :staging_dir to be a path without null bytes, got: nil"},
      {{:invalid_option, :cleanup_interval_ms, 0},
       "expected :cleanup_interval_ms to be a number of milliseconds from 1, got: 0"},
      {{:invalid_option, :recognise_unchanged, nil},
       "expected :recognise_unchanged to be a boolean, got: nil"},
      {{:invalid_option, :max_bytes, 0},
       "expected :max_bytes to be nil or a number of bytes from 1 to 2^64 - 1, with a file module " <>
         "absent, got: 0"},
      {{:invalid_config, :attachment_max_bytes, 1.5},
       "expected the configured :attachment_max_bytes to be nil or a number of bytes from 1 to " <>
         "2^64 - 1, got: 1.5"},
      {{:invalid_option, :when_full, :drop},
       "expected :when_full to be :refuse or :evict, with a file module absent, got: :drop"},
      {{:invalid_config, :attachment_when_full, nil},
       "expected the configured :attachment_when_full to be :refuse or :evict, got: nil"},
      {{:missing_option, :manifest_table},
       "expected the option :manifest_table, which is missing"},
      {{:already_started, :a_pid}, "could not start the registry: :a_pid has its name"},
      {{:invalid_option, :opts, 1},
       "expected :opts to be a keyword list, for the registry's stage/1 a map, got: 1"},
      {{:invalid_option, :manifest_table, "t"},
       ~S(expected :manifest_table to be an atom other than nil, got: "t")},
      {{:invalid_name, "../x"},
       ~S(expected the name to be one path component of 1 to 255 bytes, got: "../x")},
      {{:invalid_name, <<255>>},
       "expected the name to be one path component of 1 to 255 bytes, got: <<255>>"},
      {{:invalid_ttl, -1},
       "expected :ttl_ms to be :infinity or a number of milliseconds from 0 to 2^64 - 1, got: -1"},
      {{:checksum_mismatch, "abc"},
       "expected the checksum to be the content's SHA-256 digest, which is abc"},
      {{:unsupported_file_type, :fifo}, "expected a regular file, got a named pipe"},
      {{:unsupported_file_type, :socket}, "expected a regular file, got a socket"},
      {{:unsupported_file_type, :device}, "expected a regular file, got a device"},
      {{:unsupported_file_type, :other}, "expected a regular file, got a special file"},
      {{:destination_is_source, "/a"},
       ~S(expected a destination other than the source file "/a")},
      {{:unsupported_destination, :directory},
       "expected a destination that does not exist or is a regular file, got a directory"},
      {{:unsupported_destination, :symlink},
       "expected a destination that does not exist or is a regular file, got a symbolic link"},
      {{:unsupported_destination, :fifo},
       "expected a destination that does not exist or is a regular file, got a named pipe"},
      {{:unsupported_destination, :other},
       "expected a destination that does not exist or is a regular file, got a special file"},
      {{:staging_dir, "/a", :enotdir},
       "could not use the staging directory \"/a\": not a directory; " <>
         "make it usable or configure another :staging_dir"},
      {{:staging_dir, "", :enoent},
       "could not use the staging directory \"\": no such file or directory; " <>
         "make it usable or configure another :staging_dir"},
      {{:insecure_staging_dir, "/a", :foreign_owner},
       ~S(could not use the staging directory "/a": it belongs to another user; ) <>
         "remove it or configure another :staging_dir"},
      {{:insecure_staging_dir, "/a", :foreign_link},
       ~S(could not use the staging directory "/a": it is a symbolic link made by another user; ) <>
         "remove it or configure another :staging_dir"},
      {{:cleanup_failed, [{"/a", :eacces}]}, "could not remove /a: permission denied"},
      {{:cleanup_failed, [{"/a", :eacces}, {"/b", :eio}]},
       "could not remove /a: permission denied, /b: I/O error"},
      {{:cleanup_failed, for(n <- 1..10_000, do: {"/#{n}", :eacces})},
       "could not remove /1: permission denied, /2: permission denied, /3: permission denied " <>
         "and 9997 others"},
      {{:native_panic, "index out of bounds"},
       "native code failed unexpectedly, please report it: index out of bounds"},
      {{:manifest_table_taken, :codex_files_manifest}, @taken},
      {{:unknown_request, :what}, "expected a request that the registry knows, got: :what"},
      # What becomes of a call to a registry that is not there, or goes.
      {:noproc, "the registry is not running"},
      {:stopped, "the registry has been stopped"},
      {:normal, "the registry, or the process of a file operation, has been stopped"},
      {:shutdown, "the registry, or the process of a file operation, has been stopped"},
      {{:shutdown, :left}, "the registry, or the process of a file operation, has been stopped"},
      {:killed, "the registry, or the process of a file operation, has been killed"},
      {:native_library_not_loaded, "the native library is not loaded; standard error says why"},
      {:not_started,
       "the registry is not running: the system is being stopped, or its supervisor does not start it"},
      # What supervisors and applications make of a start that failed.
      {{{:manifest_table_taken, :codex_files_manifest}, @child}, @taken},
      {{:shutdown,
        {:failed_to_start_child, Codex.Files.Registry,
         {:manifest_table_taken, :codex_files_manifest}}}, @taken},
      {{:codex_sdk,
        {{:shutdown,
          {:failed_to_start_child, Codex.Files.Registry,
           {:manifest_table_taken, :codex_files_manifest}}},
         {Codex.Application, :start, [:normal, []]}}}, @taken},
      {{%RuntimeError{message: "boom"}, [{Registry, :init, 1, []}]}, "boom"},
      {{:shutdown,
        {:failed_to_start_child, Codex.Files.Registry, {%RuntimeError{message: "boom"}, []}}},
       "boom"},
      # That of an application that stopped itself is not the registry's.
      {{:codex_sdk, {{:shutdown, :no_key}, {Codex.Application, :start, [:normal, []]}}},
       "unexpected error: {:codex_sdk, {{:shutdown, :no_key}, " <>
         "{Codex.Application, :start, [:normal, []]}}}"},
      # What a file module fails with.
      {%RuntimeError{message: "boom"}, "boom"},
      {%File.Error{reason: :enoent, action: "read file", path: "/a"},
       ~S(could not read file "/a": no such file or directory)},
      # As it is returned.
      {{:error, :enoent}, "no such file or directory"}
    ]

  test "says what each reason means" do
    for {reason, message} <- messages() do
      assert {reason, format_error(reason)} == {reason, message}
    end
  end

  test "says of any other term what it is, in one line" do
    for reason <- [
          nil,
          true,
          :no_such_reason,
          :terminated,
          :badarg,
          42,
          1.5,
          "",
          "text",
          "two\nlines",
          <<255, 0, 10>>,
          ~c"charlist",
          [],
          [1 | 2],
          {},
          {:nocatch, :value},
          {:enoent},
          %{},
          %{__exception__: true},
          %{__struct__: 1},
          self(),
          make_ref(),
          &format_error/1,
          {:error, {:error, :enoent}},
          {:missing_option, "a\nb"},
          {:missing_option},
          {:invalid_option, nil, nil},
          {:invalid_option, {1, 2}, "a\nb"},
          {:invalid_name, {:not, "a name"}},
          {:invalid_ttl, %{}},
          {:checksum_mismatch, nil},
          {:checksum_mismatch, {1}},
          {:checksum_mismatch, <<255>>},
          {:unsupported_file_type, "type"},
          {:unsupported_file_type, nil},
          {:destination_is_source, nil},
          {:destination_is_source, "/a\nb"},
          {:unsupported_destination, "type"},
          {:unsupported_destination, nil},
          {:staging_dir, nil, :enotdir},
          {:staging_dir, "/a\nb", :enotdir},
          {:staging_dir, "/a", nil},
          {:staging_dir, "/a", "no atom"},
          {:insecure_staging_dir, nil, :foreign_owner},
          {:insecure_staging_dir, "/a\nb", :foreign_link},
          {:insecure_staging_dir, "/a", :another},
          {:cleanup_failed, nil},
          {:cleanup_failed, []},
          {:cleanup_failed, [1]},
          {:cleanup_failed, [{"/a", :eacces} | :improper]},
          {:cleanup_failed, [{"/a\nb", :eacces}, {<<255>>, {:cleanup_failed, nil}}]},
          {:cleanup_failed, [{nil, nil}, {~c"/a", %{}}]},
          {:native_panic, nil},
          {:native_panic, {1}},
          {:native_panic, "two\nlines"},
          {:native_panic, <<255>>},
          {:manifest_table_taken, {}},
          {:shutdown, :anything},
          {:shutdown, {:failed_to_start_child, 1, {%RuntimeError{message: nil}, []}}},
          {%RuntimeError{message: "two\nlines"}, []},
          {%RuntimeError{message: "boom"}, :no_stacktrace},
          {:shutdown, {:failed_to_start_child, 1, {:native_panic, nil}}},
          {{:native_panic, nil}, @child},
          %RuntimeError{message: "two\r\nlines"},
          %RuntimeError{message: nil},
          %RuntimeError{message: <<255>>},
          %UndefinedFunctionError{module: Codex.File, function: :stage, arity: 1},
          %Protocol.UndefinedError{protocol: Enumerable, value: %{a: "b\nc"}},
          String.duplicate("long", 100_000),
          Enum.to_list(1..100_000)
        ] do
      message = format_error(reason)
      assert {reason, String.valid?(message)} == {reason, true}
      assert {reason, String.trim(message)} == {reason, message}
      assert message != ""
      refute message =~ ~r/[\r\n]/
      assert String.length(message) < 5_000
    end
  end
end
