//! The budget of a registry (P22): how many bytes it stores at most, and what makes room.

#![cfg(not(feature = "shuttle"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use codex_files::error::Error;
use codex_files::manifest::budget::{Budget, WhenFull};
use codex_files::registry::{Attachment, Outcome, keeper, owners};
use codex_files::retention::{Retention, Ttl};
use common::*;

fn lab(max_bytes: u64, when_full: WhenFull) -> Lab {
    let lab = Lab::new();
    limit(&lab, max_bytes, when_full);
    lab
}

fn limit(lab: &Lab, max_bytes: u64, when_full: WhenFull) {
    let max_bytes = Some(max_bytes);
    keeper::set_budget(
        &lab.registry,
        Budget {
            max_bytes,
            when_full,
        },
    );
}

fn for_ms(ttl: u64) -> Retention {
    Retention {
        persist: false,
        ttl: Ttl::Millis(ttl),
    }
}

const DAY: u64 = 86_400_000;

fn stage(lab: &Lab, seed: u64, size: usize) -> Outcome {
    let source = lab.source(&format!("source-{seed}"), &content(size, seed));
    lab.stage_file(&source)
}

#[track_caller]
fn refused(outcome: &Outcome) -> (u64, u64) {
    match outcome {
        Outcome::Failed(Error::OverBudget { size, max_bytes }) => (*size, *max_bytes),
        other => panic!("expected that there is no room, got: {other:?}"),
    }
}

fn is_there(attachment: &Attachment) -> bool {
    attachment.file.path.exists()
}

/// The bytes of all regular files below a directory, each inode once.
fn bytes_below(dir: &Path) -> u64 {
    let mut seen = std::collections::HashSet::new();
    tree(dir)
        .into_keys()
        .filter_map(|path| fs::symlink_metadata(path).ok())
        .filter(|stat| stat.is_file() && seen.insert(stat.ino()))
        .map(|stat| stat.len())
        .sum()
}

#[test]
fn p22_a_full_registry_refuses_what_is_new_and_changes_nothing() {
    for size in [SMALL, LARGE] {
        let lab = lab(2 * size as u64, WhenFull::Refuse);
        let two = [1, 2].map(|seed| staged(stage(&lab, seed, size)));
        let (wanted, max_bytes) = refused(&stage(&lab, 3, 1));
        assert_eq!((wanted, max_bytes), (1, 2 * size as u64));
        assert_eq!(refused(&stage(&lab, 4, size)).0, size as u64);
        assert!(two.iter().all(is_there));
        assert_eq!(bytes_below(&lab.staging_path()), 2 * size as u64);
        // What is known needs no room, recognised or read.
        for seed in [1, 2] {
            known(stage(&lab, seed, size));
            let again = lab.source("the same", &content(size, seed));
            known(lab.stage_file(&again));
        }
        // An empty file needs none either.
        staged(stage(&lab, 5, 0));
        lab.assert_consistent();
        lab.reset();
        staged(stage(&lab, 3, 2 * size));
    }
}

#[test]
fn p22_what_has_expired_goes_first_whatever_the_setting() {
    for when_full in [WhenFull::Refuse, WhenFull::Evict] {
        let mut lab = lab(3 * SMALL as u64, when_full);
        lab.retention = for_ms(0);
        let expired = staged(stage(&lab, 1, SMALL));
        lab.retention = for_ms(DAY);
        let others = [2, 3].map(|seed| staged(stage(&lab, seed, SMALL)));
        staged(stage(&lab, 4, SMALL));
        assert!(!is_there(&expired));
        assert!(others.iter().all(is_there));
        assert_eq!(bytes_below(&lab.staging_path()), 3 * SMALL as u64);
        lab.assert_consistent();
    }
}

#[test]
fn p22_those_that_would_expire_soonest_are_evicted_and_nobody_else() {
    for size in [SMALL, LARGE] {
        let mut lab = lab(5 * size as u64, WhenFull::Evict);
        lab.retention = Retention {
            persist: true,
            ttl: Ttl::Infinity,
        };
        let persistent = staged(stage(&lab, 1, size));
        lab.retention = KEPT;
        let infinite = staged(stage(&lab, 2, size));
        lab.retention = for_ms(DAY);
        let late = staged(stage(&lab, 3, size));
        lab.retention = for_ms(DAY / 2);
        let soon = staged(stage(&lab, 4, size));
        let owner = owners::owner(&lab.registry);
        let mut request = lab.file_request(&lab.source("owned", &content(size, 5)), "o".as_ref());
        request.to.keep.ttl = None;
        request.to.keep.owner = Some(owner.id());
        request.to.owner = Some(owner.clone());
        let owned = staged(stage_file(&lab.registry, &request));

        staged(stage(&lab, 6, size));
        assert!(!is_there(&soon));
        assert!(is_there(&late));
        // The new one would expire before the late one.
        staged(stage(&lab, 7, size));
        assert!(is_there(&late));
        staged(stage(&lab, 8, 2 * size));
        assert!(!is_there(&late));
        // What may go does not do: nothing goes.
        let before = lab.attachments().len();
        assert_eq!(
            refused(&stage(&lab, 9, 2 * size + 1)).0,
            2 * size as u64 + 1
        );
        assert_eq!(lab.attachments().len(), before);
        assert!(
            [&persistent, &infinite, &owned]
                .map(is_there)
                .iter()
                .all(|there| *there)
        );
        lab.assert_areas_whole(Scratch::Forbidden);
        assert_eq!(bytes_below(&lab.staging_path()), 5 * size as u64);
        drop((owner, request));
    }
}

#[test]
fn p22_a_file_that_is_staged_anew_takes_over_the_bytes_of_the_lost_one() {
    for size in [SMALL, LARGE] {
        let lab = lab(size as u64, WhenFull::Refuse);
        let first = staged(stage(&lab, 1, size));
        fs::remove_file(&first.file.path).unwrap();
        copied(stage(&lab, 1, size));
        // A longer one in its place goes before the copy is made.
        let there = lab.attachments().remove(0).file.path.clone();
        fs::remove_file(&there).unwrap();
        fs::write(&there, content(2 * size, 9)).unwrap();
        let again = copied(stage(&lab, 1, size));
        assert_eq!(bytes_below(&lab.staging_path()), size as u64);
        assert_whole(&again);
        // At a destination of the caller's.
        lab.reset();
        let source = lab.source("source", &content(size, 2));
        let destination = lab.root.join("elsewhere");
        let first = copied(lab.stage(b"key", &source, &destination));
        fs::remove_file(&first.file.path).unwrap();
        copied(lab.stage(b"key", &source, &destination));
        refused(&stage(&lab, 3, 1));
    }
}

#[test]
fn p22_bytes_count_as_written_and_not_as_claimed() {
    let lab = lab(SMALL as u64, WhenFull::Refuse);
    let source = lab.source("source", &content(SMALL, 1));
    let mut request = lab.request(b"key", &source, &lab.root.join("there"));
    request.size = u64::MAX;
    staged(common::stage(&lab.registry, &request));
    let mut request = lab.request(b"other", &source, &lab.root.join("over there"));
    request.size = 0;
    assert_eq!(
        refused(&common::stage(&lab.registry, &request)).0,
        SMALL as u64
    );
    assert!(!lab.root.join("over there").exists());
}

#[test]
fn p22_a_file_of_unknown_size_is_refused_before_it_passes_the_budget() {
    let lab = lab(8, WhenFull::Refuse);
    let source = Path::new("/proc/self/status");
    assert_eq!(fs::metadata(source).unwrap().len(), 0);
    refused(&lab.stage_file(source));
    refused(&lab.stage(b"key", source, &lab.root.join("there")));
    assert_eq!(bytes_below(&lab.staging_path()), 0);
    limit(&lab, 1_000_000, WhenFull::Refuse);
    staged(lab.stage(b"key", source, &lab.root.join("there")));
}

#[test]
fn p22_a_large_file_that_is_known_needs_no_room_even_if_it_is_not_recognised() {
    let lab = lab(LARGE as u64, WhenFull::Refuse);
    staged(stage(&lab, 1, LARGE));
    known(lab.stage_file(&lab.source("another", &content(LARGE, 1))));
}

#[test]
fn p22_nothing_is_evicted_for_a_large_file_that_turns_out_to_be_known() {
    let mut lab = lab(2 * LARGE as u64, WhenFull::Evict);
    lab.retention = for_ms(DAY);
    let two = [1, 2].map(|seed| staged(stage(&lab, seed, LARGE)));
    known(lab.stage_file(&lab.source("another", &content(LARGE, 2))));
    assert!(two.iter().all(is_there));
    // One that has been lost takes over its own bytes.
    fs::remove_dir_all(two[1].file.path.parent().unwrap()).unwrap();
    copied(lab.stage_file(&lab.source("once more", &content(LARGE, 2))));
    assert!(is_there(&two[0]));
    // What is new needs room.
    copied(lab.stage_file(&lab.source("new", &content(LARGE, 3))));
    assert!(!is_there(&two[0]));
}

#[test]
fn p22_what_is_still_there_under_another_name_is_counted_once_for_each_file() {
    for size in [SMALL, LARGE] {
        let lab = lab(size as u64, WhenFull::Refuse);
        let content = content(size, 1);
        let source = lab.source("source", &content);
        let first = lab.root.join("first");
        copied(lab.stage(&key(&content), &source, &first));
        for name in ["second", "third"] {
            known(lab.stage_file_as(&source, name));
        }
        // A copy at the destination is another file: those in the area stay what they are.
        fs::remove_file(&first).unwrap();
        fs::write(&first, b"somebody else's").unwrap();
        refused(&lab.stage(&key(&content), &source, &first));
        limit(&lab, 2 * size as u64, WhenFull::Refuse);
        copied(lab.stage(&key(&content), &source, &first));
        limit(&lab, 2 * size as u64 + 1, WhenFull::Refuse);
        refused(&stage(&lab, 2, 2));
        staged(stage(&lab, 2, 1));
    }
}

#[test]
fn p22_a_smaller_budget_evicts_nothing_by_itself() {
    let lab = lab(10 * SMALL as u64, WhenFull::Evict);
    let three = [1, 2, 3].map(|seed| staged(stage(&lab, seed, SMALL)));
    limit(&lab, SMALL as u64, WhenFull::Refuse);
    lab.cleanup();
    assert!(three.iter().all(is_there));
    refused(&stage(&lab, 4, 1));
    known(stage(&lab, 1, SMALL));
}

#[test]
fn p22_the_budget_is_never_passed_by_many_at_once() {
    for (when_full, size) in [
        (WhenFull::Refuse, SMALL),
        (WhenFull::Evict, SMALL),
        (WhenFull::Refuse, LARGE),
        (WhenFull::Evict, LARGE),
    ] {
        let max_bytes = 20 * size as u64;
        let mut lab = lab(max_bytes, when_full);
        lab.retention = for_ms(DAY);
        let (done, highest) = (AtomicBool::new(false), AtomicU64::new(0));
        let succeeded = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut was_done = false;
                while !was_done {
                    // Once more in the end: it may not have had its turn before.
                    was_done = done.load(Ordering::Relaxed);
                    highest.fetch_max(bytes_below(&lab.staging_path()), Ordering::Relaxed);
                }
            });
            let stagers: Vec<_> = (0..16_u64)
                .map(|thread| {
                    let (lab, succeeded) = (&lab, &succeeded);
                    scope.spawn(move || {
                        for number in 0..12 {
                            let seed = 1_000 * thread + number;
                            match stage(lab, seed, size - (seed as usize % 7)) {
                                Outcome::Staged { .. } => {
                                    succeeded.fetch_add(1, Ordering::Relaxed);
                                }
                                outcome => drop(refused(&outcome)),
                            }
                        }
                    })
                })
                .collect();
            for stager in stagers {
                stager.join().unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        let highest = highest.into_inner();
        assert!(highest <= max_bytes, "{highest} of {max_bytes}");
        assert!(highest > 0, "nobody has looked");
        assert!(succeeded.into_inner() >= 20);
        lab.assert_consistent();
        lab.assert_areas_whole(Scratch::Forbidden);
        let stored: u64 = lab.attachments().iter().map(|one| one.file.size).sum();
        assert_eq!(bytes_below(&lab.staging_path()), stored);
        // All that was reserved has been given back.
        lab.reset();
        staged(stage(&lab, 999_999, 20 * size));
    }
}
