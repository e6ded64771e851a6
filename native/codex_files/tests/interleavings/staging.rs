//! Stagings, cleanups and resets: after a staging has been answered its file is there (P5), and nobody who
//! waits is left hanging.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use codex_files::error::Error;
use codex_files::manifest::waiting::Origin;
use codex_files::manifest::{Admission, ExpiryCursor};
use shuttle::sync::Mutex;
use shuttle::thread;

use super::scene::*;
use super::world::*;

#[test]
fn p5_a_sweep_cannot_take_what_is_staged_again_meanwhile() {
    explore(|| {
        let world = World::with_expired("a");
        at_once!(world:
            world.stage_and_look("a", LONG),
            world.sweep(),
            world.stage_and_look("a", LONG),
        );
        assert_eq!(world.listed().len(), 1, "staged again, so it stays");
        world.check_end();
    });
}

#[test]
fn p5_a_quick_refresh_holds_against_a_sweep() {
    explore(|| {
        let world = World::with_expired("a");
        let refreshed = Arc::new(AtomicUsize::new(0));
        let seen = refreshed.clone();
        at_once!(world:
            world.sweep(),
            if let Some(file) = world.manifest.lookup(b"a")
                && world.is_there(&file)
                && world.manifest.refresh(&file, LONG.into(), NOW).is_some()
            {
                assert!(world.is_there(&file));
                seen.fetch_add(1, Ordering::SeqCst);
            },
        );
        assert_eq!(world.listed().len(), refreshed.load(Ordering::SeqCst));
        world.check_end();
    });
}

#[test]
fn p5_what_is_staged_after_a_reset_stays() {
    explore(|| {
        let world = World::with_expired("a");
        let reset = Arc::new(AtomicUsize::new(0));
        let (done, seen) = (reset.clone(), reset.clone());
        at_once!(world:
            {
                world.reset();
                done.store(1, Ordering::SeqCst);
            },
            {
                let after = seen.load(Ordering::SeqCst) == 1;
                if let Told::Staged(file, _) = world.stage("a", LONG, Copying::Succeeds) && after {
                    assert!(world.is_there(&file));
                }
            },
            {
                world.stage("b", LONG, Copying::Succeeds);
            },
        );
        world.check_end();
    });
}

#[test]
fn two_sweeps_remove_each_file_once() {
    explore(|| {
        let world = World::with_expired("a");
        let cleaned = Arc::new(AtomicUsize::new(0));
        let (one, two) = (cleaned.clone(), cleaned.clone());
        at_once!(world:
            one.fetch_add(world.sweep().cleaned.len(), Ordering::SeqCst),
            two.fetch_add(world.sweep().cleaned.len(), Ordering::SeqCst),
            world.stage_and_look("a", LONG),
        );
        assert!(cleaned.load(Ordering::SeqCst) <= 1, "reported twice");
        assert_eq!(world.listed().len(), 1);
        world.check_end();
    });
}

#[test]
fn concurrent_stagings_of_one_key_copy_once() {
    explore(|| {
        let world = World::new();
        at_once!(world:
            world.stage_and_look("a", LONG),
            world.stage_and_look("a", LONG),
            world.stage_and_look("a", LONG),
        );
        assert_eq!(world.copies.load(Ordering::SeqCst), 1);
        world.check_end();
    });
}

#[test]
fn when_whoever_copies_is_killed_another_takes_over() {
    explore(|| {
        let world = World::new();
        at_once!(world:
            {
                let told = world.stage("a", LONG, Copying::IsKilled);
                assert!(matches!(told, Told::Killed | Told::Staged(_, Origin::Known)));
            },
            world.stage_and_look("a", LONG),
            world.stage_and_look("a", LONG),
        );
        assert_eq!(world.listed().len(), 1, "two of three want it");
        assert_eq!(world.copies.load(Ordering::SeqCst), 1);
        world.check_end();
    });
}

#[test]
fn a_copy_that_fails_fails_for_those_who_wait_and_for_nobody_else() {
    explore(|| {
        let world = World::new();
        let failed = Arc::new(AtomicUsize::new(0));
        let (one, two) = (failed.clone(), failed.clone());
        let count = |failed: &AtomicUsize, told: &Told| {
            failed.fetch_add(usize::from(matches!(told, Told::Failed)), Ordering::SeqCst);
        };
        at_once!(world:
            count(&one, &world.stage("a", LONG, Copying::Fails)),
            count(&two, &world.stage("a", LONG, Copying::Succeeds)),
            {
                world.stage("b", LONG, Copying::Succeeds);
            },
        );
        let there = world.manifest.lookup(b"a").is_some();
        match failed.load(Ordering::SeqCst) {
            0 | 1 => assert!(there, "one of the two had to copy it"),
            _ => assert!(!there, "both heard that it failed"),
        }
        assert!(world.manifest.lookup(b"b").is_some());
        world.check_end();
    });
}

#[test]
fn a_removal_that_fails_leaves_the_file_to_those_who_wait() {
    explore(|| {
        let world = World::with_expired("a");
        let before = world.copies.load(Ordering::SeqCst);
        at_once!(world:
            {
                let report = world.sweep_by(|_| {
                    thread::yield_now();
                    Err(Error::Panic("of the removal".into()))
                });
                assert!(report.cleaned.is_empty());
            },
            world.stage_and_look("a", LONG),
            world.stage_and_look("a", LONG),
        );
        assert_eq!(world.copies.load(Ordering::SeqCst), before);
        assert_eq!(world.listed().len(), 1);
        world.check_end();
    });
}

#[test]
fn a_panic_during_a_removal_gives_its_ticket_back() {
    explore(|| {
        let world = World::with_expired("a");
        at_once!(world:
            {
                // The sweep is stopped where a panic would stop it: its ticket is dropped.
                let mut cursor = Some(ExpiryCursor::start());
                let removals = world.manifest.claim_expired(NOW, &mut cursor, usize::MAX);
                thread::yield_now();
                drop(removals);
            },
            world.stage_and_look("a", LONG),
        );
        assert_eq!(world.listed().len(), 1);
        world.check_end();
    });
}

#[test]
fn a_file_that_was_lost_is_copied_once_for_all_who_miss_it() {
    explore(|| {
        let world = World::with_expired("a");
        let lost = world.manifest.lookup(b"a").unwrap();
        world.remove(&lost);
        let before = world.copies.load(Ordering::SeqCst);
        at_once!(world:
            world.stage_and_look("a", LONG),
            world.stage_and_look("a", LONG),
            world.sweep(),
        );
        assert_eq!(world.copies.load(Ordering::SeqCst), before + 1);
        assert_eq!(world.listed().len(), 1);
        world.check_end();
    });
}

#[test]
fn a_stop_leaves_no_file_and_nobody_waiting() {
    explore(|| {
        let world = World::with_expired("a");
        at_once!(world:
            world.stop(),
            {
                world.stage("b", LONG, Copying::Succeeds);
            },
            {
                world.stage("b", LONG, Copying::IsKilled);
            },
        );
        assert!(world.listed().is_empty());
        world.check_end();
    });
}

#[test]
fn a_stop_during_a_sweep_leaves_no_file_and_nobody_waiting() {
    explore(|| {
        let world = World::with_expired("a");
        at_once!(world:
            world.stop(),
            world.sweep(),
            {
                world.stage("a", LONG, Copying::Succeeds);
            },
        );
        // What the sweep held when the stop came it has removed by now.
        assert!(world.listed().is_empty());
        world.check_end();
    });
}

#[test]
fn a_reset_during_a_sweep_and_a_staging_leaves_what_is_listed() {
    explore(|| {
        let world = World::with_expired("a");
        at_once!(world:
            world.reset(),
            world.sweep(),
            {
                world.stage("a", LONG, Copying::Succeeds);
            },
            {
                world.stage("a", LONG, Copying::Fails);
            },
        );
        world.check_end();
    });
}

/// What is put in place of a lost file is the same entry: a reset that began before removes it.
#[test]
fn a_reset_waits_for_the_work_on_an_entry_and_removes_it() {
    explore(|| {
        let world = World::with_expired("a");
        let lost = world.manifest.lookup(b"a").unwrap();
        world.remove(&lost);
        let Ok(Admission::Lead(staging)) = world.admit("a", &LONG.into(), Some(&lost)).0 else {
            panic!("its file is lost");
        };
        let staging = Arc::new(Mutex::new(Some(staging)));
        at_once!(world:
            world.reset(),
            {
                let staging = staging.lock().unwrap().take().unwrap();
                let file = world.copy("a");
                staging.commit(&file, NOW).unwrap();
            },
        );
        assert!(world.listed().is_empty(), "an entry that a reset has left");
        world.check_end();
    });
}

/// Whoever comes after a reset that waits neither overtakes it nor waits for ever.
#[test]
fn who_stages_while_a_reset_waits_is_answered() {
    explore(|| {
        let world = World::with_expired("a");
        at_once!(world:
            world.sweep_by(|_| Err(Error::Panic("of the removal".into()))),
            world.reset(),
            world.reset(),
            {
                world.stage("a", LONG, Copying::Succeeds);
            },
        );
        world.check_end();
    });
}
