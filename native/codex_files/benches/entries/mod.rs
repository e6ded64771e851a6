//! Entries for a manifest, without a file on the disk. Shared by the benchmarks and the examples.

#![allow(dead_code, reason = "not every program needs all of it")]

use std::path::Path;
use std::sync::Arc;

use codex_files::checksum::Checksum;
use codex_files::disk::staged_file::StagedFile;
use codex_files::manifest::attachment::{Attachment, File};
use codex_files::manifest::waiting::Waiter;
use codex_files::manifest::{Admission, ExpiryCursor, Manifest};
use codex_files::registry::remove::sweep_a_batch;
use codex_files::retention::{Retention, Ttl};
use codex_files::time::Now;

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

/// A file that takes as much memory as a staged one, and is nowhere.
pub struct Sample {
    pub checksum: Checksum,
    pub name: Box<[u8]>,
    pub path: Box<Path>,
    _rest: [usize; REST],
}

/// What a staged file knows besides its strings, in words.
const REST: usize = (size_of::<StagedFile>() - 6 * size_of::<usize>()) / size_of::<usize>();

#[derive(Clone)]
pub struct Handle(pub Arc<Sample>);

impl File for Handle {
    fn key(&self) -> &Checksum {
        &self.0.checksum
    }

    fn size(&self) -> u64 {
        4096
    }

    fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

pub type Samples = Manifest<Handle>;

/// A file that is said to be where a staged one would be.
pub fn file(number: usize) -> Handle {
    let name = format!("{number:08}.bin");
    let checksum = digits(number);
    let path = format!("/tmp/codex_files/codex_files-0123456789abcdef/{checksum}/{name}");
    Handle(Arc::new(Sample {
        checksum: checksum.into_bytes().into(),
        name: name.into_bytes().into(),
        path: Path::new(&path).into(),
        _rest: [0; REST],
    }))
}

/// Enters a file whose checksum is not known yet.
pub fn enter<F: File + 'static>(
    manifest: &Manifest<F>,
    file: &F,
    retention: Retention,
) -> Attachment<F> {
    let admission = manifest.admit(file.key(), retention.into(), None, || Waiter::new(drop));
    match admission.expect("it has not been stopped") {
        Admission::Lead(staging) => staging
            .commit(file, Now::read())
            .expect("it has not been stopped"),
        Admission::Known(_) | Admission::Waiting => panic!("expected a new checksum"),
    }
}

/// A whole cleanup, of files that are nowhere.
pub fn sweep(manifest: &Samples) -> usize {
    let mut cursor = Some(ExpiryCursor::start());
    let mut cleaned = 0;
    while let Some(part) = sweep_a_batch(manifest, Now::read(), &mut cursor, |_| Ok(())) {
        cleaned += part.cleaned.len();
    }
    cleaned
}
