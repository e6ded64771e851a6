//! The atoms of the boundary.

rustler::atoms! {
    ok, error, nil, wait, retry, miss, new, unseen, infinity, cleaned, evicted, codex_files,

    missing_option, invalid_option, invalid_name, invalid_ttl, checksum_mismatch,
    unsupported_file_type, unsupported_destination, destination_is_source, insecure_staging_dir,
    foreign_owner, foreign_link, cleanup_failed, damaged, changed, native_panic, stopped, already_started, not_staged,
    over_budget, refuse, evict, fifo, socket, device, directory, symlink, other,

    opts, dir, staging_dir, ttl_ms, size, persist, name, path, checksum, source_path,
    destination_path, inserted_at, id, owner, source,

    total_count, total_bytes, persistent_count, persistent_bytes, expirable_count,
    expirable_bytes, next_expiry_at, owned_count, max_bytes, when_full,

    struct_key = "__struct__",
    attachment = "Elixir.Codex.Files.Attachment",
    date_time = "Elixir.DateTime",
    iso = "Elixir.Calendar.ISO",
    calendar, year, month, day, hour, minute, second, microsecond, time_zone, zone_abbr,
    utc_offset, std_offset,
}
