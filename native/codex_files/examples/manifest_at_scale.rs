//! The manifest, and what recognises the sources, at each of the sizes given: what an entry costs in
//! memory, and what the operations cost in time. No file is touched. `bin/bench` runs it with 1,000,000; the output is
//! `entries,operation,unit,value,value,...`, one value for each repetition.

#![allow(unsafe_code, reason = "an allocator cannot be written without")]

#[path = "../benches/entries/mod.rs"]
mod entries;

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicIsize, Ordering};
use std::time::{Duration, Instant};

use codex_files::checksum::Checksum;
use codex_files::disk::file_id::Fingerprint;
use codex_files::manifest::attachment::File;
use codex_files::recognition::{Likeness, Recognition};
use codex_files::time::Now;
use entries::{DAY, Handle, NOTHING, Samples, checksum, enter, file, scramble, sweep};
use nix::sys::stat::FileStat;
use once_cell::sync::Lazy;

/// Counts the bytes that are allocated.
struct Counting;

static ALLOCATED: AtomicIsize = AtomicIsize::new(0);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size().cast_signed(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size().cast_signed(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How many operations one value of a short operation is the mean of.
const BATCH: usize = 1_000;

/// How many values there are.
const REPETITIONS: usize = 15;

fn main() {
    for argument in std::env::args().skip(1) {
        let entries = argument.parse().expect("the arguments are sizes");
        measure(entries);
    }
}

fn measure(entries: usize) {
    let before = (ALLOCATED.load(Ordering::Relaxed), resident());
    let manifest = Samples::default();
    let recognition = Recognition::default();
    let mut strings = 0;
    let mut inserts = Vec::new();
    for first in (0..entries).step_by(BATCH) {
        let files: Vec<_> = (first..entries.min(first + BATCH)).map(file).collect();
        strings += files.iter().map(string_bytes).sum::<usize>();
        let count = files.len();
        let start = Instant::now();
        for file in &files {
            enter(&manifest, file, DAY);
        }
        inserts.push(start.elapsed() / u32::try_from(count).expect("a batch is small"));
        for (number, file) in (first..).zip(&files) {
            recognition.remember(&source(number), Likeness::Proof, &file.0, || first);
        }
    }
    // The last ones: at this size.
    let last = inserts.split_off(inserts.len().saturating_sub(REPETITIONS));
    print(entries, "insert", &last);
    drop(inserts);

    let per_entry = |bytes: isize| bytes as f64 / entries as f64;
    let strings = strings as f64 / entries as f64;
    let allocated = per_entry(ALLOCATED.load(Ordering::Relaxed) - before.0);
    let grown = per_entry(resident() - before.1);
    println!("{entries},strings,bytes,{strings}");
    println!("{entries},memory,bytes,{allocated}");
    println!("{entries},resident,bytes,{grown}");

    let keys: Vec<Checksum> = (0..BATCH)
        .map(|number| checksum(scramble(number as u64) as usize % entries))
        .collect();
    repeat(entries, "lookup", keys.len(), || {
        for key in &keys {
            black_box(manifest.lookup(key));
        }
    });
    repeat(entries, "refresh", keys.len(), || {
        for key in &keys {
            let file = manifest.lookup(key).expect("it is there");
            black_box(manifest.refresh(&file, DAY.into(), Now::read()));
        }
    });
    let sources: Vec<_> = (0..BATCH)
        .map(|number| source(scramble(number as u64) as usize % entries))
        .collect();
    repeat(entries, "recognise", sources.len(), || {
        for source in &sources {
            let found = recognition.find(source, Likeness::Proof);
            black_box(found.expect("as many are remembered as are staged"));
        }
    });
    repeat(entries, "metrics", BATCH, || {
        for _ in 0..BATCH {
            black_box(manifest.metrics());
        }
    });
    repeat(entries, "snapshot", BATCH, || {
        for _ in 0..BATCH {
            black_box(manifest.list());
        }
    });
    repeat(entries, "walk", 1, || {
        let listing = manifest.list();
        let bytes: u64 = listing
            .iter()
            .map(|attachment| attachment.file.size())
            .sum();
        black_box(bytes);
    });
    repeat(entries, "sweep of nothing", BATCH, || {
        for _ in 0..BATCH {
            black_box(sweep(&manifest));
        }
    });
    let sweeps: Vec<_> = (0..REPETITIONS)
        .map(|_| {
            for number in entries..entries + BATCH {
                enter(&manifest, &file(number), NOTHING);
            }
            let start = Instant::now();
            assert_eq!(sweep(&manifest), BATCH);
            start.elapsed() / u32::try_from(BATCH).expect("a batch is small")
        })
        .collect();
    print(entries, "sweep", &sweeps);
}

/// What a look at the source of a file would show.
fn source(number: usize) -> Fingerprint {
    static LOOK: Lazy<FileStat> = Lazy::new(|| nix::sys::stat::stat("/").expect("it is there"));
    let mut stat = *LOOK;
    stat.st_ino = number as _;
    Fingerprint::of(&stat)
}

/// Runs `work`, which is `operations` operations, a few times.
fn repeat(entries: usize, name: &str, operations: usize, mut work: impl FnMut()) {
    work();
    let operations = u32::try_from(operations).expect("a batch is small");
    let times: Vec<_> = (0..REPETITIONS)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed() / operations
        })
        .collect();
    print(entries, name, &times);
}

fn print(entries: usize, name: &str, times: &[Duration]) {
    let times: Vec<_> = times
        .iter()
        .map(|time| time.as_nanos().to_string())
        .collect();
    println!("{entries},{name},ns,{}", times.join(","));
}

/// What a caller's strings take, whoever keeps them.
fn string_bytes(Handle(file): &Handle) -> usize {
    file.checksum.len() + file.name.len() + file.path.as_os_str().len()
}

/// The bytes of memory that the process has in use, as the system sees it; 0 where it does not say.
fn resident() -> isize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kibibytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<isize>().ok());
    kibibytes.unwrap_or(0) * 1024
}
