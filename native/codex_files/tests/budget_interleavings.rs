//! The budget under every order of events that shuttle's schedulers think of (P22): the disk never
//! holds more than it, nobody is evicted who may not be, and what was reserved is given back.
//!
//! `INTERLEAVINGS` says how many schedules of each kind are run for each scene.

#![cfg(feature = "shuttle")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use codex_files::checksum::Checksum;
use codex_files::error::{Error, Result};
use codex_files::manifest::attachment::File;
use codex_files::manifest::budget::{Budget, WhenFull};
use codex_files::manifest::waiting::Waiter;
use codex_files::manifest::{Admission, ExpiryCursor, Manifest, Removal, Room};
use codex_files::registry::Why;
use codex_files::registry::remove::{RemoveAll, remove_one};
use codex_files::registry::room::reserve_in;
use codex_files::retention::{Keep, OwnerId, Ttl};
use codex_files::time::Now;
use shuttle::sync::{Mutex, mpsc};
use shuttle::thread;

/// What the disk may hold.
const MAX: u64 = 20;

/// What a file takes, if nothing else is said.
const SIZE: u64 = 10;

/// A file that is nothing but a number.
#[derive(Clone)]
struct Staged {
    checksum: Checksum,
    number: u64,
    size: u64,
}

impl File for Staged {
    fn key(&self) -> &Checksum {
        &self.checksum
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn same(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

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

/// When it is known what a content is.
#[derive(Clone, Copy, PartialEq)]
enum Known {
    /// Before it is written, as of a small file.
    Before,
    /// After, as of a large file or a stream.
    After,
}

/// A manifest with a budget, and the disk that it is about.
#[derive(Clone)]
struct World {
    manifest: Arc<Manifest<Staged>>,
    /// The files that there are, by number, and their bytes.
    disk: Arc<Mutex<HashMap<u64, u64>>>,
    next: Arc<AtomicU64>,
    /// The number of the file that cannot be removed.
    stuck: Arc<AtomicU64>,
}

fn ttl(millis: u64) -> Keep {
    Keep {
        persist: false,
        ttl: Some(Ttl::Millis(millis)),
        owner: None,
    }
}

/// An hour: nothing expires in a test.
const HOUR: u64 = 3_600_000;

impl World {
    fn new(when_full: WhenFull) -> Self {
        let manifest = Manifest::default();
        manifest.set_budget(Budget {
            max_bytes: Some(MAX),
            when_full,
        });
        Self {
            manifest: Arc::new(manifest),
            disk: Arc::default(),
            next: Arc::new(AtomicU64::new(1)),
            stuck: Arc::default(),
        }
    }

    /// A full one, in which `soon` would expire before `late`.
    fn full() -> Self {
        let world = Self::new(WhenFull::Evict);
        world.stage("soon", ttl(HOUR), Known::Before).unwrap();
        world.stage("late", ttl(2 * HOUR), Known::Before).unwrap();
        world
    }

    fn write(&self, key: &str, size: u64) -> Staged {
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        let mut disk = self.disk.lock().unwrap();
        disk.insert(number, size);
        let there: u64 = disk.values().sum();
        assert!(there <= MAX, "{there} bytes are there");
        Staged {
            checksum: key.as_bytes().into(),
            number,
            size,
        }
    }

    fn unlink(&self, number: u64) -> Result<()> {
        if self.stuck.load(Ordering::SeqCst) == number {
            return Err(Error::Panic("it is stuck".into()));
        }
        let removed = self.disk.lock().unwrap().remove(&number);
        assert!(removed.is_some(), "removed twice");
        Ok(())
    }

    fn is_there(&self, file: &Staged) -> bool {
        self.disk.lock().unwrap().contains_key(&file.number)
    }

    fn remove(&self, _why: Why, removals: Vec<Removal<Staged>>) {
        for removal in removals {
            let _ = remove_one(removal, |file: &Staged| self.unlink(file.number));
        }
    }

    /// Stages as the verbs of a registry do.
    fn stage(&self, key: &str, keep: Keep, when: Known) -> Result<Staged> {
        self.stage_sized(key, keep, when, SIZE)
    }

    fn stage_sized(&self, key: &str, keep: Keep, when: Known, size: u64) -> Result<Staged> {
        let checksum: Checksum = key.as_bytes().into();
        let mut lost: Option<Staged> = None;
        loop {
            let mut written = None;
            if when == Known::After && lost.is_none() {
                let remove = |why, removals| self.remove(why, removals);
                let (reservation, _) =
                    reserve_in(&self.manifest, size, None, WhenFull::Evict, remove)?;
                written = Some((self.write(key, size), reservation));
            }
            let give_up = |written: Option<(Staged, _)>| {
                if let Some((file, reservation)) = written {
                    self.unlink(file.number).unwrap();
                    drop(reservation);
                }
            };
            let (answers, answer) = mpsc::channel();
            let waiter = || Waiter::new(move |_| answers.send(()).unwrap());
            match self
                .manifest
                .admit(&checksum, keep, lost.as_ref(), waiter)
                .unwrap()
            {
                Admission::Waiting => {
                    give_up(written);
                    answer.recv().unwrap();
                    // As a registry's callers do: what was staged for them is renewed the next time.
                    lost = None;
                }
                Admission::Known(file) => {
                    give_up(written);
                    if !self.is_there(&file) {
                        lost = Some(file);
                    } else if self.manifest.refresh(&file, keep, Now::read()).is_some() {
                        return Ok(file);
                    }
                }
                Admission::Lead(staging) => {
                    let (file, reservation) = match written {
                        Some(written) => written,
                        None => {
                            let remove = |why, removals| self.remove(why, removals);
                            let replaces = staging.replaces().cloned();
                            let reserved = reserve_in(
                                &self.manifest,
                                size,
                                replaces.as_ref(),
                                WhenFull::Evict,
                                remove,
                            );
                            match reserved {
                                Ok((reservation, _)) => (self.write(key, size), reservation),
                                Err(error) => {
                                    staging.fail(error.clone());
                                    return Err(error);
                                }
                            }
                        }
                    };
                    staging
                        .spending(reservation)
                        .commit(&file, Now::read())
                        .unwrap();
                    return Ok(file);
                }
            }
        }
    }

    /// Begins to stage, and dies before the commit.
    fn die(&self, key: &str) {
        let remove = |why, removals| self.remove(why, removals);
        if let Ok((reservation, _)) =
            reserve_in(&self.manifest, SIZE, None, WhenFull::Evict, remove)
        {
            let file = self.write(key, SIZE);
            self.unlink(file.number).unwrap();
            drop(reservation);
        }
    }

    fn reset(&self) {
        let mut all = RemoveAll::default();
        let remove = |removal| self.remove(Why::Expired, vec![removal]);
        while all.batch(&self.manifest, || None, remove) {}
    }

    fn listed(&self) -> Vec<String> {
        let listing = self.manifest.list();
        let mut keys: Vec<_> = listing
            .iter()
            .map(|one| String::from_utf8_lossy(&one.file.checksum).into_owned())
            .collect();
        keys.sort();
        keys
    }

    /// What is listed is what is there, and what is left of the budget can be had to the last byte.
    fn check_end(&self) {
        let listing = self.manifest.list();
        let listed: HashMap<_, _> = listing
            .iter()
            .map(|one| (one.file.number, one.file.size))
            .collect();
        assert_eq!(listed, *self.disk.lock().unwrap());
        let left = MAX - listed.values().sum::<u64>();
        let mut budget = Budget {
            max_bytes: Some(MAX),
            when_full: WhenFull::Refuse,
        };
        self.manifest.set_budget(budget);
        let reserve = |bytes| {
            let mut cursor = ExpiryCursor::start();
            let at_most = WhenFull::Evict;
            self.manifest
                .reserve(bytes, None, at_most, Now::read(), &mut cursor)
        };
        assert!(matches!(reserve(left), Ok(Room::Reserved { .. })));
        assert!(matches!(reserve(left + 1), Err(Error::OverBudget { .. })));
        budget.when_full = WhenFull::Evict;
        self.manifest.set_budget(budget);
    }
}

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
fn p22_of_two_that_fit_alone_and_not_together_one_is_staged() {
    for when in [Known::Before, Known::After] {
        explore(move || {
            let world = World::new(WhenFull::Refuse);
            let staged = Arc::new(AtomicUsize::new(0));
            let (one, two) = (staged.clone(), staged.clone());
            let stage = move |world: &World, key, staged: &AtomicUsize| match world.stage_sized(
                key,
                ttl(HOUR),
                when,
                15,
            ) {
                Ok(_) => {
                    staged.fetch_add(1, Ordering::SeqCst);
                }
                Err(error) => assert!(matches!(error, Error::OverBudget { size: 15, .. })),
            };
            at_once!(world:
                stage(&world, "a", &one),
                stage(&world, "b", &two),
                world.die("c"),
            );
            // The one that dies may have had the room of both.
            assert!(staged.load(Ordering::SeqCst) <= 1);
            world.check_end();
        });
        explore(move || {
            let world = World::new(WhenFull::Refuse);
            at_once!(world:
                drop(world.stage_sized("a", ttl(HOUR), when, 15)),
                drop(world.stage_sized("b", ttl(HOUR), when, 15)),
            );
            assert_eq!(world.listed().len(), 1);
            world.check_end();
        });
    }
}

#[test]
fn p22_two_that_evict_take_two_victims() {
    for when in [Known::Before, Known::After] {
        explore(move || {
            let world = World::full();
            at_once!(world:
                drop(world.stage("a", ttl(5 * HOUR), when)),
                drop(world.stage("b", ttl(5 * HOUR), when)),
            );
            // One alone would have had both victims' room, and the other one's too.
            let listed = world.listed();
            assert!(listed.iter().any(|key| key == "a" || key == "b"));
            world.check_end();
        });
    }
}

#[test]
fn p22_a_victim_that_is_refreshed_before_it_is_claimed_stays_and_another_goes() {
    for when in [Known::Before, Known::After] {
        explore(move || {
            let world = World::full();
            at_once!(world:
                drop(world.stage("new", ttl(4 * HOUR), when).unwrap()),
                drop(world.stage("soon", ttl(3 * HOUR), Known::Before).unwrap()),
            );
            // If it was claimed first it is staged anew, and the other one goes for it.
            assert_eq!(world.listed(), ["new", "soon"]);
            world.check_end();
        });
    }
}

#[test]
fn p22_what_gets_an_owner_is_not_evicted_any_more() {
    explore(|| {
        let world = World::full();
        let owned = Keep {
            persist: false,
            ttl: None,
            owner: Some(OwnerId(1)),
        };
        let kept = Arc::new(AtomicU64::new(0));
        let seen = kept.clone();
        at_once!(world:
            drop(world.stage("new", ttl(4 * HOUR), Known::After)),
            // It may have been evicted before, and the room be others' then.
            if let Ok(file) = world.stage("soon", owned, Known::Before) {
                assert!(world.is_there(&file));
                seen.store(file.number, Ordering::SeqCst);
            },
            drop(world.stage("other", ttl(4 * HOUR), Known::Before)),
        );
        let owned = kept.load(Ordering::SeqCst);
        assert!(owned == 0 || world.disk.lock().unwrap().contains_key(&owned));
        world.check_end();
    });
}

#[test]
fn p22_an_eviction_beside_a_reset_gives_everything_back() {
    explore(|| {
        let world = World::full();
        at_once!(world:
            drop(world.stage("new", ttl(4 * HOUR), Known::After)),
            world.reset(),
            drop(world.stage("other", ttl(4 * HOUR), Known::Before)),
        );
        world.check_end();
    });
}

#[test]
fn p22_a_victim_that_cannot_be_removed_stays_and_another_goes() {
    explore(|| {
        let world = World::full();
        let soon = world.manifest.lookup(b"soon").unwrap();
        world.stuck.store(soon.number, Ordering::SeqCst);
        at_once!(world:
            drop(world.stage("new", ttl(4 * HOUR), Known::After).unwrap()),
            drop(world.stage("soon", ttl(HOUR), Known::Before).unwrap()),
        );
        let listed = world.listed();
        assert!(listed.contains(&"soon".to_owned()), "{listed:?}");
        world.check_end();
    });
}

#[test]
fn p22_a_lost_file_is_staged_anew_with_its_own_bytes() {
    explore(|| {
        let world = World::full();
        let soon = world.manifest.lookup(b"soon").unwrap();
        world.unlink(soon.number).unwrap();
        world.manifest.set_budget(Budget {
            max_bytes: Some(MAX),
            when_full: WhenFull::Refuse,
        });
        at_once!(world:
            drop(world.stage("soon", ttl(HOUR), Known::Before).unwrap()),
            drop(world.stage("soon", ttl(HOUR), Known::Before).unwrap()),
            assert!(world.stage("new", ttl(HOUR), Known::Before).is_err()),
        );
        assert_eq!(world.listed(), ["late", "soon"]);
        world.check_end();
    });
}
