//! What a staging allocates is part of its price: more is to be noticed.

// Other systems do not recognise a file without a dirty scheduler.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(unsafe_code, reason = "an allocator cannot be written without")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

use codex_files::registry::admission::Answer;
use codex_files::registry::stage_file::{self, Miss};
use common::*;

/// Counts the allocations of each thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

fn count() {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
}

// SAFETY: every call goes to the system's allocator as it came; counting allocates nothing, since a
// thread's counter needs neither a lazy start nor a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = ALLOCATIONS.get();
    let result = work();
    (result, ALLOCATIONS.get() - before)
}

#[test]
fn a_small_file_takes_no_more_allocations_than_these() {
    const NEW: usize = 15;
    let lab = Lab::new();
    let sources: Vec<_> = (0..100_u8)
        .map(|number| lab.source(&format!("source-{number}"), &[number]))
        .collect();
    let requests: Vec<_> = sources
        .iter()
        .map(|source| lab.file_request(source, source.file_name().unwrap()))
        .collect();
    // Old enough to be recognised.
    std::thread::sleep(Duration::from_millis(2_100));
    let mut new: Vec<_> = requests
        .iter()
        .map(|request| {
            let stage =
                || stage_file::stage_file(&lab.registry, request, Miss::New, &|| unreachable!());
            let (outcome, count) = allocations(stage);
            let Answer::Now(outcome) = outcome else {
                panic!("a small file is staged at once");
            };
            copied(outcome);
            count
        })
        .collect();
    let deadline = Instant::now() + PATIENCE;
    let unchanged = requests.iter().map(|request| {
        let refresh = || {
            stage_file::refresh(
                &lab.registry,
                &request.source,
                &request.to.name,
                request.to.keep,
            )
        };
        // A glance fails while anybody on this machine renames something.
        loop {
            let (attachment, count) = allocations(refresh);
            if attachment.is_ok() {
                return count;
            }
            assert!(
                Instant::now() < deadline,
                "in vain: it is seen to be unchanged"
            );
        }
    });
    // Tables grow now and then: the median counts.
    new.sort_unstable();
    let (new, unchanged) = (new[new.len() / 2], unchanged.max().unwrap());
    assert!(new <= NEW, "a new file took {new}");
    assert_eq!(unchanged, 0, "of an unchanged file");
}
