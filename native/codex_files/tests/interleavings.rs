//! The manifest under every order of events that shuttle's schedulers think of: after a staging
//! has been answered its file is there (P5), and nobody who waits is left hanging.
//!
//! `INTERLEAVINGS` says how many schedules of each kind are run for each scene.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use codex_files::checksum::Checksum;
use codex_files::error::{Error, Result};
use codex_files::manifest::attachment::File;
use codex_files::manifest::waiting::{Origin, Outcome, Waiter};
use codex_files::manifest::{Admission, ExpiryCursor, Later, Manifest, Removal, Totals};
use codex_files::registry::remove::{RemoveAll, remove_one, sweep_a_batch};
use codex_files::registry::removed::Removed;
use codex_files::retention::{Retention, Ttl};
use codex_files::time::Now;
use shuttle::sync::{Mutex, mpsc};
use shuttle::thread;

const BEFORE: Now = Now {
    monotonic_ns: 1_000_000,
    wall_ms: 1,
};
const NOW: Now = Now {
    monotonic_ns: 60_000_000_000,
    wall_ms: 60_000,
};
const SHORT: Retention = Retention {
    persist: false,
    ttl: Ttl::Millis(1),
};
const LONG: Retention = Retention {
    persist: false,
    ttl: Ttl::Millis(600_000),
};

/// A file that is nothing but a number, which is its size too.
#[derive(Clone)]
struct Staged {
    checksum: Checksum,
    number: u64,
}

impl File for Staged {
    fn key(&self) -> &Checksum {
        &self.checksum
    }

    fn size(&self) -> u64 {
        self.number
    }

    fn same(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

/// Explores a scene: at random, and with few but well-placed preemptions, which finds what needs
/// several things to happen in the right order.
fn explore(scene: impl Fn() + Send + Sync + Clone + 'static) {
    let schedules = std::env::var("INTERLEAVINGS")
        .ok()
        .and_then(|number| number.parse().ok())
        .unwrap_or(4_000);
    shuttle::check_random(scene.clone(), schedules);
    for depth in [2, 3] {
        shuttle::check_pct(scene.clone(), schedules / 2, depth);
    }
}

/// A manifest, and the files that it is about.
#[derive(Clone)]
struct World {
    manifest: Arc<Manifest<Staged>>,
    /// What is staged under each checksum: a number of its own for every copy.
    disk: Arc<Mutex<HashMap<Checksum, u64>>>,
    copies: Arc<AtomicUsize>,
    waiting: Arc<AtomicUsize>,
    answered: Arc<AtomicUsize>,
}

/// How copying ends.
#[derive(Clone, Copy, PartialEq)]
enum Copying {
    Succeeds,
    Fails,
    /// Ends by the death of whoever does it.
    IsKilled,
}

/// What became of a staging.
enum Told {
    Staged(Staged, Origin),
    Failed,
    Killed,
}

impl World {
    fn new() -> Self {
        Self {
            manifest: Arc::new(Manifest::default()),
            disk: Arc::default(),
            copies: Arc::default(),
            waiting: Arc::default(),
            answered: Arc::default(),
        }
    }

    /// A world in which `key` is staged, and expired by [`NOW`].
    fn with_expired(key: &str) -> Self {
        let world = Self::new();
        let Ok(Admission::Lead(staging)) = world.admit(key, SHORT, None).0 else {
            panic!("a new key is copied");
        };
        let file = world.copy(key);
        staging.commit(&file, BEFORE).unwrap();
        world
    }

    fn admit(
        &self,
        key: &str,
        retention: Retention,
        lost: Option<&Staged>,
    ) -> (Result<Admission<Staged>>, mpsc::Receiver<Outcome<Staged>>) {
        let (sender, receiver) = mpsc::channel();
        let (waiting, answered) = (self.waiting.clone(), self.answered.clone());
        let admission = self
            .manifest
            .admit(&checksum(key), retention.into(), lost, || {
                waiting.fetch_add(1, Ordering::SeqCst);
                Waiter::new(move |outcome| {
                    answered.fetch_add(1, Ordering::SeqCst);
                    sender.send(outcome).expect("somebody waits for it");
                })
            });
        (admission, receiver)
    }

    /// Puts a file in place.
    fn copy(&self, key: &str) -> Staged {
        let number = self.copies.fetch_add(1, Ordering::SeqCst) as u64;
        self.disk.lock().unwrap().insert(checksum(key), number);
        Staged {
            checksum: checksum(key),
            number,
        }
    }

    /// Removes what is staged under a file's checksum, whatever it is: a removal that comes too late takes the
    /// file of somebody else.
    fn remove(&self, file: &Staged) {
        self.disk.lock().unwrap().remove(&file.checksum);
    }

    fn is_there(&self, file: &Staged) -> bool {
        self.disk.lock().unwrap().get(&file.checksum) == Some(&file.number)
    }

    /// Stages a key as a registry does it.
    fn stage(&self, key: &str, retention: Retention, copying: Copying) -> Told {
        let mut lost: Option<Staged> = None;
        loop {
            let (admission, answer) = self.admit(key, retention, lost.as_ref());
            match admission {
                Err(Error::Stopped) => return Told::Failed,
                Err(other) => panic!("{other}"),
                Ok(Admission::Waiting) => match answer.recv().expect("nobody hangs") {
                    Outcome::Staged { attachment, origin } => {
                        assert_eq!(origin, Origin::Known);
                        return Told::Staged(attachment.file, origin);
                    }
                    Outcome::Failed(_) => return Told::Failed,
                    Outcome::Retry => {}
                },
                Ok(Admission::Known(file)) => {
                    if !self.is_there(&file) {
                        lost = Some(file);
                    } else if self
                        .manifest
                        .refresh(&file, retention.into(), NOW)
                        .is_some()
                    {
                        return Told::Staged(file, Origin::Known);
                    }
                }
                Ok(Admission::Lead(staging)) => match copying {
                    Copying::Succeeds => {
                        let file = self.copy(key);
                        return match staging.commit(&file, NOW) {
                            Ok(_) => Told::Staged(file, Origin::Copied),
                            Err(_) => {
                                self.remove(&file);
                                Told::Failed
                            }
                        };
                    }
                    Copying::Fails => {
                        thread::yield_now();
                        staging.fail(Error::Panic("of the copy".into()));
                        return Told::Failed;
                    }
                    Copying::IsKilled => {
                        thread::yield_now();
                        drop(staging);
                        return Told::Killed;
                    }
                },
            }
        }
    }

    /// Stages, and looks at once whether the promise holds.
    fn stage_and_look(&self, key: &str, retention: Retention) {
        if let Told::Staged(file, _) = self.stage(key, retention, Copying::Succeeds) {
            assert!(self.is_there(&file), "answered, and not there");
            thread::yield_now();
            assert!(self.is_there(&file), "answered, and gone again");
        }
    }

    fn sweep(&self) -> Removed<Staged> {
        self.sweep_by(|file| {
            self.remove(file);
            Ok(())
        })
    }

    fn sweep_by(&self, remove: impl Fn(&Staged) -> Result<()>) -> Removed<Staged> {
        let mut cursor = Some(ExpiryCursor::start());
        let mut whole = Removed::default();
        while let Some(mut part) = sweep_a_batch(&self.manifest, NOW, &mut cursor, &remove) {
            whole.cleaned.append(&mut part.cleaned);
            whole.failed.append(&mut part.failed);
        }
        whole
    }

    fn commit_removal(&self, removal: Removal<Staged>) {
        let removed = remove_one(removal, |file| {
            self.remove(file);
            Ok(())
        });
        assert!(removed.is_ok());
    }

    /// Removes everything, and waits for what somebody is at work on.
    fn reset(&self) {
        let (sender, receiver) = mpsc::channel();
        let later = || -> Option<Later<Staged>> {
            let sender = sender.clone();
            Some(Box::new(move |removal| {
                sender.send(removal).expect("somebody waits for it");
            }))
        };
        let mut all = RemoveAll::default();
        while all.batch(&self.manifest, later, |removal| {
            self.commit_removal(removal)
        }) {}
        drop(sender);
        while let Ok(removal) = receiver.recv() {
            removal
                .into_iter()
                .for_each(|removal| self.commit_removal(removal));
        }
    }

    fn stop(&self) {
        self.manifest.stop();
        let mut all = RemoveAll::default();
        let remove = |removal| self.commit_removal(removal);
        while all.batch(&self.manifest, || None, remove) {}
    }

    fn listed(&self) -> Vec<Staged> {
        self.manifest
            .list()
            .iter()
            .map(|attachment| attachment.file.clone())
            .collect()
    }

    /// When everybody is done: what is listed is there, what is there is listed, the counters are
    /// right and everybody who waited was answered once.
    fn check_end(&self) {
        let listed = self.listed();
        let disk = self.disk.lock().unwrap();
        assert_eq!(listed.len(), disk.len(), "a file that nobody has on a list");
        for file in &listed {
            assert_eq!(
                disk.get(&file.checksum),
                Some(&file.number),
                "listed, and gone"
            );
        }
        let totals = self.manifest.metrics().totals;
        assert_eq!(
            totals,
            Totals {
                expirable_count: listed.len() as u64,
                expirable_bytes: listed.iter().map(|file| u128::from(file.number)).sum(),
                ..Totals::default()
            }
        );
        assert_eq!(
            self.waiting.load(Ordering::SeqCst),
            self.answered.load(Ordering::SeqCst),
            "everybody who waits is answered once"
        );
        // No ticket is out any more: all that is listed can be claimed.
        drop(disk);
        let all: Vec<_> = self.manifest.list().iter().cloned().collect();
        let claimed = self.manifest.claim(&all, || None);
        assert_eq!(claimed.len(), all.len(), "a ticket was never given back");
    }
}

fn checksum(key: &str) -> Checksum {
    key.as_bytes().into()
}

/// Runs all at once and waits for all.
fn all(tasks: Vec<Box<dyn FnOnce() + Send>>) {
    let threads: Vec<_> = tasks.into_iter().map(thread::spawn).collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

macro_rules! at_once {
    ($world:ident: $($task:expr),+ $(,)?) => {
        all(vec![$({
            let $world = $world.clone();
            Box::new(move || { $task; })
        }),+])
    };
}

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
        let Ok(Admission::Lead(staging)) = world.admit("a", LONG, Some(&lost)).0 else {
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
