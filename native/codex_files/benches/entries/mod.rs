//! Entries for a manifest, without a file on the disk. Shared by the benchmarks and the examples.

#![allow(dead_code, reason = "not every program needs all of it")]

use std::path::Path;
use std::sync::Arc;

use codex_files::attachment::{Attachment, Checksum, Now, Retention, StagedFile, Ttl};
use codex_files::manifest::{Admission, Manifest, Waiter};
use codex_files::staging_area::Place;

pub const DAY: Retention = Retention {
    persist: false,
    ttl: Ttl::Millis(86_400_000),
};

pub const NOTHING: Retention = Retention {
    persist: false,
    ttl: Ttl::Millis(0),
};

/// 64 hexadecimal digits, as spread as a digest's and cheaper.
pub fn digits(number: usize) -> String {
    (1..=4_u64)
        .map(|part| format!("{:016x}", scramble(number as u64 * 4 + part)))
        .collect()
}

/// The finaliser of SplitMix64.
pub fn scramble(number: u64) -> u64 {
    let number = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

pub fn checksum(number: usize) -> Checksum {
    digits(number).into_bytes().into()
}

/// A file that is said to be where a staged one would be.
pub fn file(number: usize) -> StagedFile {
    let name = format!("{number:08}.bin");
    let checksum = digits(number);
    let path = format!("/tmp/codex_files/codex_files-0123456789abcdef/{checksum}/{name}");
    StagedFile {
        checksum: checksum.into_bytes().into(),
        name: name.into_bytes().into(),
        path: Path::new(&path).into(),
        size: 4096,
        file_id: None,
        place: Place::FileModule,
    }
}

/// Enters a file whose checksum is not known yet.
pub fn enter(manifest: &Arc<Manifest>, file: &Arc<StagedFile>, retention: Retention) -> Attachment {
    let admission = manifest.admit(&file.checksum, retention, None, || Waiter::new(drop));
    match admission.expect("it has not been stopped") {
        Admission::Lead(staging) => staging
            .commit(file, Now::read())
            .expect("it has not been stopped"),
        Admission::Known(_) | Admission::Waiting => panic!("expected a new checksum"),
    }
}
