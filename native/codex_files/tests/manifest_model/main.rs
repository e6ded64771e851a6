//! The manifest against a naive model of it: lists that are searched and folded, no totals, no
//! index, no slots. Random sequences of operations must give the same answers, in the same order.
//!
//! `PROPTEST_CASES` says how many sequences; 2,000 unless it is set.

#![cfg(not(feature = "shuttle"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use codex_files::checksum::Checksum;
use codex_files::error::Error;
use codex_files::manifest::attachment::{Attachment, File};
use codex_files::manifest::waiting::{Origin, Outcome, Waiter};
use codex_files::manifest::{
    Admission, ExpiryCursor, Later, Manifest, Metrics, Removal, Staging, Totals,
};
use codex_files::registry::remove::{self, RemoveAll, remove_one};
use codex_files::registry::removed::Removed;
use codex_files::retention::{Retention, Ttl};
use codex_files::time::Now;
use proptest::prelude::*;

/// Few keys, so that operations meet.
const KEYS: u8 = 5;

const MILLISECOND: u64 = 1_000_000;

#[derive(Clone, Debug)]
enum Op {
    /// A caller stages a key. If it is known the answer is followed up at once, or later.
    Stage {
        key: u8,
        retention: Retention,
        follow_up: bool,
    },
    /// A caller has found a file missing that it was told of: the current one, or an older one.
    StageLost {
        key: u8,
        retention: Retention,
        stale: bool,
    },
    /// A caller that was told to ask again does so.
    AskAgain {
        pick: usize,
    },
    /// The copy that a staging was for is done.
    Commit {
        pick: usize,
        size: u64,
    },
    /// It failed.
    Fail {
        pick: usize,
    },
    /// Whoever was copying was killed.
    Drop {
        pick: usize,
    },
    /// A caller comes back to a file that it was told is known.
    Refresh {
        pick: usize,
    },
    /// Part of a sweep: the next tickets of one under way, or the first of a new one.
    Claim {
        pick: usize,
        limit: usize,
    },
    /// The file that a removal was for is gone.
    CommitRemoval {
        pick: usize,
    },
    /// It could not be removed.
    DropRemoval {
        pick: usize,
    },
    /// A whole cleanup; the removals of some keys fail.
    Sweep {
        failing: u8,
    },
    /// A whole reset; the removals of some keys fail.
    RemoveAll {
        failing: u8,
    },
    /// The tickets of a whole reset. Where somebody is at work it waits for that, or does not.
    ClaimAll {
        wait: bool,
    },
    Lookup {
        key: u8,
    },
    /// Time passes, and somebody may set the wall clock.
    Time {
        nanoseconds: u64,
        wall_step_ms: i64,
    },
    Stop,
}

fn retention() -> impl Strategy<Value = Retention> {
    let ttl = prop_oneof![
        2 => Just(Ttl::Infinity),
        3 => Just(Ttl::Millis(0)),
        8 => (1_u64..6).prop_map(Ttl::Millis),
        1 => Just(Ttl::Millis(u64::MAX)),
        1 => Just(Ttl::Millis(u64::MAX / MILLISECOND)),
    ];
    (prop::bool::weighted(0.15), ttl).prop_map(|(persist, ttl)| Retention { persist, ttl })
}

fn op() -> impl Strategy<Value = Op> {
    let key = || 0..KEYS;
    let pick = || any::<usize>();
    let size = prop_oneof![
        Just(0),
        1_u64..10_000,
        Just(u64::MAX), // a claim of the caller's: sums of these must not overflow
    ];
    prop_oneof![
        24 => (key(), retention(), prop::bool::weighted(0.8)).prop_map(
            |(key, retention, follow_up)| Op::Stage { key, retention, follow_up }
        ),
        4 => (key(), retention(), prop::bool::weighted(0.25)).prop_map(
            |(key, retention, stale)| Op::StageLost { key, retention, stale }
        ),
        6 => pick().prop_map(|pick| Op::AskAgain { pick }),
        16 => (pick(), size).prop_map(|(pick, size)| Op::Commit { pick, size }),
        3 => pick().prop_map(|pick| Op::Fail { pick }),
        3 => pick().prop_map(|pick| Op::Drop { pick }),
        4 => pick().prop_map(|pick| Op::Refresh { pick }),
        8 => (pick(), prop_oneof![1_usize..4, Just(usize::MAX)]).prop_map(
            |(pick, limit)| Op::Claim { pick, limit }
        ),
        6 => pick().prop_map(|pick| Op::CommitRemoval { pick }),
        3 => pick().prop_map(|pick| Op::DropRemoval { pick }),
        4 => any::<u8>().prop_map(|failing| Op::Sweep { failing: failing & (failing >> 4) }),
        1 => any::<u8>().prop_map(|failing| Op::RemoveAll { failing: failing & (failing >> 4) }),
        3 => any::<bool>().prop_map(|wait| Op::ClaimAll { wait }),
        2 => key().prop_map(|key| Op::Lookup { key }),
        10 => (0_u64..4, 0_u64..3, prop_oneof![4 => Just(0_i64), 1 => -5_000_i64..5_000]).prop_map(
            |(milliseconds, nanoseconds, wall_step_ms)| Op::Time {
                nanoseconds: milliseconds * MILLISECOND + nanoseconds,
                wall_step_ms,
            }
        ),
        1 => Just(Op::Stop),
    ]
}

/// A file that is nothing but its number.
#[derive(Clone, Debug)]
struct Staged {
    number: usize,
    checksum: Checksum,
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

/// What a caller is told, in a form that can be compared.
#[derive(Clone, Debug, PartialEq)]
enum Answer {
    Staged(Snapshot, Origin),
    Failed(String),
    Retry,
}

impl From<Outcome<Staged>> for Answer {
    fn from(outcome: Outcome<Staged>) -> Self {
        match outcome {
            Outcome::Staged { attachment, origin } => {
                Self::Staged(Snapshot::of(&attachment), origin)
            }
            Outcome::Failed(error) => Self::Failed(error.to_string()),
            Outcome::Retry => Self::Retry,
        }
    }
}

/// An attachment, with the file's identity instead of the file.
#[derive(Clone, Debug, PartialEq)]
struct Snapshot {
    file: usize,
    retention: Retention,
    inserted_at_ms: i64,
}

impl Snapshot {
    fn of(attachment: &Attachment<Staged>) -> Self {
        Self {
            file: attachment.file.number,
            retention: attachment.retention,
            inserted_at_ms: attachment.inserted_at_ms,
        }
    }
}

// ---- the model -----------------------------------------------------------------------------

#[derive(Clone)]
struct Entry {
    file: Staged,
    retention: Retention,
    inserted: Now,
}

impl Entry {
    fn key(&self) -> u8 {
        key_of(&self.file.checksum)
    }

    /// SPEC: `persist` is false, the TTL is an integer, and so much time has passed.
    fn expired(&self, now: Now) -> bool {
        match self.retention {
            Retention {
                persist: false,
                ttl: Ttl::Millis(ttl),
            } => {
                u128::from(now.monotonic_ns)
                    >= u128::from(self.inserted.monotonic_ns)
                        + u128::from(ttl) * u128::from(MILLISECOND)
            }
            _ => false,
        }
    }

    fn expires_at(&self) -> Option<u128> {
        match self.retention {
            Retention {
                persist: false,
                ttl: Ttl::Millis(ttl),
            } => Some(
                u128::from(self.inserted.monotonic_ns) + u128::from(ttl) * u128::from(MILLISECOND),
            ),
            _ => None,
        }
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            file: self.file.number,
            retention: self.retention,
            inserted_at_ms: self.inserted.wall_ms,
        }
    }
}

/// SPEC: persist becomes old or new; the TTL becomes infinite if the new persist is true or either
/// TTL is infinite, else the new one.
fn merged(old: Retention, new: Retention) -> Retention {
    let ttl = if new.persist {
        Ttl::Infinity
    } else {
        match (old.ttl, new.ttl) {
            (Ttl::Infinity, _) | (_, Ttl::Infinity) => Ttl::Infinity,
            (_, ttl) => ttl,
        }
    };
    Retention {
        persist: old.persist || new.persist,
        ttl,
    }
}

/// Who waits: the number of the caller, and what it asked for.
#[derive(Clone, Debug)]
enum Waiting {
    Staging(usize, Retention),
    Removal(usize),
}

/// What those hear who wait for a ticket.
enum End<'a> {
    /// The file is in place.
    Known(&'a Staged, Now),
    Tell(Answer),
}

#[derive(Default)]
struct Model {
    entries: Vec<Entry>,
    tickets: Vec<(u8, Vec<Waiting>)>,
    stopped: bool,
    /// What callers who wait must have been told since the last look.
    answers: Vec<(usize, Answer)>,
    /// What those who wait to remove something must have been given: the entry, or nothing.
    granted: Vec<(usize, Option<Snapshot>)>,
}

impl Model {
    fn entry(&mut self, key: u8) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.key() == key)
    }

    fn has_ticket(&self, key: u8) -> bool {
        self.tickets.iter().any(|(of, _)| *of == key)
    }

    /// The ticket of a key comes back. The first who waits to remove the entry that is there has it
    /// next, and those who came later wait for that one.
    fn end_ticket(&mut self, key: u8, end: &End<'_>) {
        let Some(index) = self.tickets.iter().position(|(of, _)| *of == key) else {
            return;
        };
        let mut waiting = self.tickets.remove(index).1;
        let removal = waiting
            .iter()
            .position(|waits| matches!(waits, Waiting::Removal(_)));
        let mut next = None;
        if let Some(at) = removal
            && self.entry(key).is_some()
        {
            let later = waiting.split_off(at + 1);
            next = waiting.pop();
            self.tickets.push((key, later));
        }
        for waits in waiting {
            match (waits, end) {
                (Waiting::Staging(who, retention), End::Known(file, now)) => {
                    let answer = match self.refresh(file, retention, *now) {
                        Some(snapshot) => Answer::Staged(snapshot, Origin::Known),
                        None => Answer::Retry,
                    };
                    self.answers.push((who, answer));
                }
                (Waiting::Staging(who, _), End::Tell(answer)) => {
                    self.answers.push((who, answer.clone()));
                }
                (Waiting::Removal(who), _) => self.granted.push((who, None)),
            }
        }
        if let Some(Waiting::Removal(who)) = next {
            let entry = self.entry(key).map(|entry| entry.snapshot());
            self.granted.push((who, entry));
        }
    }

    fn stop(&mut self, answer: &Answer) {
        self.stopped = true;
        for (_, waiting) in std::mem::take(&mut self.tickets) {
            for waits in waiting {
                match waits {
                    Waiting::Staging(who, _) => self.answers.push((who, answer.clone())),
                    Waiting::Removal(who) => self.granted.push((who, None)),
                }
            }
        }
    }

    fn refresh(&mut self, file: &Staged, retention: Retention, now: Now) -> Option<Snapshot> {
        let entry = self.entry(key_of(&file.checksum))?;
        if !entry.file.same(file) {
            return None;
        }
        entry.retention = merged(entry.retention, retention);
        entry.inserted = now;
        Some(entry.snapshot())
    }

    fn commit(&mut self, file: &Staged, retention: Retention, now: Now) -> Option<Snapshot> {
        let key = key_of(&file.checksum);
        if self.stopped {
            return None;
        }
        let retention = match self.entry(key) {
            Some(lost) => merged(lost.retention, retention),
            None => retention,
        };
        self.entries.retain(|entry| entry.key() != key);
        let entry = Entry {
            file: file.clone(),
            retention,
            inserted: now,
        };
        let snapshot = entry.snapshot();
        self.entries.push(entry);
        self.end_ticket(key, &End::Known(file, now));
        Some(snapshot)
    }

    fn removed(&mut self, file: &Staged) {
        self.entries.retain(|entry| !entry.file.same(file));
        self.end_ticket(key_of(&file.checksum), &End::Tell(Answer::Retry));
    }

    fn given_back(&mut self, key: u8, answer: &Answer) {
        self.end_ticket(key, &End::Tell(answer.clone()));
    }

    /// What a sweep may claim, the first to expire first.
    fn due(&self, now: Now) -> Vec<Entry> {
        let mut due: Vec<_> = self
            .entries
            .iter()
            .filter(|entry| entry.expired(now))
            .cloned()
            .collect();
        due.sort_by_key(Entry::expires_at);
        due
    }

    fn list(&self) -> BTreeMap<u8, Snapshot> {
        self.entries
            .iter()
            .map(|entry| (entry.key(), entry.snapshot()))
            .collect()
    }

    fn totals(&self) -> Totals {
        let of = |persist| {
            self.entries
                .iter()
                .filter(move |entry| entry.retention.persist == persist)
        };
        let bytes = |persist| of(persist).map(|entry| u128::from(entry.file.size)).sum();
        Totals {
            persistent_count: of(true).count() as u64,
            persistent_bytes: bytes(true),
            expirable_count: of(false).count() as u64,
            expirable_bytes: bytes(false),
            owned_count: 0,
        }
    }

    /// The wall times at which the next attachment may be said to expire: several only if several
    /// expire at the same instant.
    fn next_expiries(&self) -> Vec<Option<i64>> {
        let in_time = |entry: &&Entry| {
            entry
                .expires_at()
                .is_some_and(|at| at < u128::from(u64::MAX))
        };
        let Some(first) = self
            .entries
            .iter()
            .filter(in_time)
            .filter_map(Entry::expires_at)
            .min()
        else {
            return vec![None];
        };
        self.entries
            .iter()
            .filter(|entry| entry.expires_at() == Some(first))
            .map(|entry| match entry.retention.ttl {
                Ttl::Millis(ttl) => {
                    Some(entry.inserted.wall_ms + i64::try_from(ttl).expect("it comes in time"))
                }
                Ttl::Infinity => None,
            })
            .collect()
    }
}

// ---- the manifest under test ---------------------------------------------------------------

fn checksum(key: u8) -> Checksum {
    vec![b'k', key].into()
}

fn key_of(checksum: &[u8]) -> u8 {
    checksum[1]
}

/// What somebody who waited to remove something has been given.
type Given = (usize, Option<Removal<Staged>>);

/// A sweep under way: its time, and how far it has come, as the manifest and the model count it.
struct Sweep {
    now: Now,
    cursor: Option<ExpiryCursor>,
    passed: Option<u128>,
}

struct Run {
    manifest: Manifest<Staged>,
    model: Model,
    now: Now,
    /// Every instant is used once, so that no two attachments expire at the same one, and the
    /// order in which they are claimed is defined.
    distinct_times: bool,
    told: Arc<Mutex<Vec<(usize, Answer)>>>,
    given: Arc<Mutex<Vec<Given>>>,
    callers: usize,
    files: usize,
    waits: BTreeMap<usize, (u8, Retention)>,
    stagings: Vec<(Staging<Staged>, Retention)>,
    removals: Vec<Removal<Staged>>,
    sweeps: Vec<Sweep>,
    /// Callers that were told of a known file.
    knowing: Vec<(Staged, Retention)>,
    asking_again: Vec<(u8, Retention)>,
    /// Files that were known once.
    stale: Vec<Staged>,
}

impl Run {
    fn new(distinct_times: bool) -> Self {
        Self {
            manifest: Manifest::default(),
            model: Model::default(),
            now: Now {
                monotonic_ns: 1_000,
                wall_ms: 1_700_000_000_000,
            },
            distinct_times,
            told: Arc::default(),
            given: Arc::default(),
            callers: 0,
            files: 0,
            waits: BTreeMap::new(),
            stagings: Vec::new(),
            removals: Vec::new(),
            sweeps: Vec::new(),
            knowing: Vec::new(),
            asking_again: Vec::new(),
            stale: Vec::new(),
        }
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Stage {
                key,
                retention,
                follow_up,
            } => self.stage(key, retention, None, follow_up),
            Op::StageLost {
                key,
                retention,
                stale,
            } => {
                let lost = if stale {
                    self.stale
                        .iter()
                        .find(|file| key_of(&file.checksum) == key)
                        .cloned()
                } else {
                    self.model.entry(key).map(|entry| entry.file.clone())
                };
                self.stage(key, retention, lost, true);
            }
            Op::AskAgain { pick } => {
                if let Some((key, retention)) = take(&mut self.asking_again, pick) {
                    self.stage(key, retention, None, true);
                }
            }
            Op::Commit { pick, size } => self.commit(pick, size),
            Op::Fail { pick } => {
                if let Some((staging, _)) = take(&mut self.stagings, pick) {
                    let error = Error::InvalidName(b"of a copy that failed".as_slice().into());
                    let key = key_of(staging.checksum());
                    self.model
                        .given_back(key, &Answer::Failed(error.to_string()));
                    staging.fail(error);
                }
            }
            Op::Drop { pick } => {
                if let Some((staging, _)) = take(&mut self.stagings, pick) {
                    self.model
                        .given_back(key_of(staging.checksum()), &Answer::Retry);
                    drop(staging);
                }
            }
            Op::Refresh { pick } => {
                if let Some((file, retention)) = take(&mut self.knowing, pick) {
                    self.refresh(&file, retention);
                }
            }
            Op::Claim { pick, limit } => self.claim(pick, limit),
            Op::CommitRemoval { pick } => {
                if let Some(removal) = take(&mut self.removals, pick) {
                    let attachment = removal.attachment().clone();
                    self.model.removed(&attachment.file);
                    assert_eq!(
                        Snapshot::of(&removal.commit()),
                        Snapshot::of(&attachment),
                        "what was removed is what was claimed"
                    );
                    self.stale.push(attachment.file);
                }
            }
            Op::DropRemoval { pick } => {
                if let Some(removal) = take(&mut self.removals, pick) {
                    let key = key_of(&removal.attachment().file.checksum);
                    self.model.given_back(key, &Answer::Retry);
                    drop(removal);
                }
            }
            Op::Sweep { failing } => self.sweep(failing),
            Op::RemoveAll { failing } => self.remove_all(failing),
            Op::ClaimAll { wait } => self.claim_all(wait),
            Op::Lookup { key } => {
                let expected = if self.model.has_ticket(key) {
                    None
                } else {
                    self.model.entry(key).map(|entry| entry.file.number)
                };
                let found = self.manifest.lookup(&checksum(key));
                assert_eq!(found.as_ref().map(|file| file.number), expected);
            }
            Op::Time {
                nanoseconds,
                wall_step_ms,
            } => {
                self.now.monotonic_ns += nanoseconds;
                self.now.wall_ms += wall_step_ms;
            }
            Op::Stop => {
                self.manifest.stop();
                self.model.stop(&Answer::Failed(Error::Stopped.to_string()));
            }
        }
        if self.distinct_times {
            self.now.monotonic_ns += 1;
        }
        self.check();
    }

    fn stage(&mut self, key: u8, retention: Retention, lost: Option<Staged>, follow_up: bool) {
        let who = self.callers;
        self.callers += 1;
        let told = self.told.clone();
        let admission =
            self.manifest
                .admit(&checksum(key), retention.into(), lost.as_ref(), move || {
                    Waiter::new(move |outcome| told.lock().unwrap().push((who, outcome.into())))
                });
        match admission {
            Err(error) => {
                assert!(self.model.stopped && matches!(error, Error::Stopped));
            }
            Ok(Admission::Waiting) => {
                assert!(!self.model.stopped);
                let ticket = self.model.tickets.iter_mut().find(|(of, _)| *of == key);
                ticket
                    .expect("there is something to wait for")
                    .1
                    .push(Waiting::Staging(who, retention));
                self.waits.insert(who, (key, retention));
            }
            Ok(Admission::Known(file)) => {
                assert!(!self.model.stopped && !self.model.has_ticket(key));
                let entry = self.model.entry(key).expect("it is known");
                assert!(entry.file.same(&file));
                assert!(
                    !lost.is_some_and(|lost| lost.same(&file)),
                    "a lost file is not known"
                );
                if follow_up {
                    self.refresh(&file, retention);
                } else {
                    self.knowing.push((file, retention));
                }
            }
            Ok(Admission::Lead(staging)) => {
                assert!(!self.model.stopped && !self.model.has_ticket(key));
                if let Some(entry) = self.model.entry(key) {
                    assert!(
                        lost.is_some_and(|lost| lost.same(&entry.file)),
                        "only a key that is new, or whose file is lost, is copied"
                    );
                }
                self.model.tickets.push((key, Vec::new()));
                self.stagings.push((staging, retention));
            }
        }
    }

    fn refresh(&mut self, file: &Staged, retention: Retention) {
        let key = key_of(&file.checksum);
        let expected = if self.model.stopped || self.model.has_ticket(key) {
            None
        } else {
            self.model.refresh(file, retention, self.now)
        };
        let refreshed = self.manifest.refresh(file, retention.into(), self.now);
        assert_eq!(refreshed.as_ref().map(Snapshot::of), expected);
    }

    fn commit(&mut self, pick: usize, size: u64) {
        let Some((staging, retention)) = take(&mut self.stagings, pick) else {
            return;
        };
        self.files += 1;
        let file = Staged {
            number: self.files,
            checksum: staging.checksum().clone(),
            size,
        };
        let replaced = self
            .model
            .entry(key_of(&file.checksum))
            .map(|entry| entry.file.clone());
        let expected = self.model.commit(&file, retention, self.now);
        match (staging.commit(&file, self.now), expected) {
            (Ok(attachment), Some(expected)) => {
                assert_eq!(Snapshot::of(&attachment), expected);
                self.stale.extend(replaced);
            }
            (Err(Error::Stopped), None) => {}
            (got, expected) => panic!("got {got:?}, expected {expected:?}"),
        }
    }

    fn claim_all(&mut self, wait: bool) {
        let entries: Vec<_> = self.model.entries.clone();
        let all: Vec<_> = self.manifest.list().iter().cloned().collect();
        // In the order of the listing: so they are claimed, and so they wait.
        let place = |key: u8| {
            all.iter()
                .position(|there| key_of(&there.file.checksum) == key)
        };
        let mut entries = entries;
        entries.sort_by_key(|entry| place(entry.key()));
        let first = self.callers;
        let claimed = self.manifest.claim(&all, || {
            let who = self.callers;
            self.callers += 1;
            let given = self.given.clone();
            let later: Later<Staged> =
                Box::new(move |removal| given.lock().unwrap().push((who, removal)));
            wait.then_some(later)
        });
        let busy = entries
            .iter()
            .map(Entry::key)
            .filter(|key| self.model.has_ticket(*key));
        for (who, key) in (first..).zip(busy.collect::<Vec<_>>()) {
            let ticket = self.model.tickets.iter_mut().find(|(of, _)| *of == key);
            if wait {
                ticket.expect("it is busy").1.push(Waiting::Removal(who));
            }
        }
        self.enter_claims(claimed, entries, Order::Any);
    }

    fn claim(&mut self, pick: usize, limit: usize) {
        if !self.distinct_times {
            return self.claim_to_the_end(limit);
        }
        if self.sweeps.len() < 3 {
            self.sweeps.push(Sweep {
                now: self.now,
                cursor: Some(ExpiryCursor::start()),
                passed: None,
            });
        }
        let mut sweep = take(&mut self.sweeps, pick).expect("there is one");
        let mut looked_at: Vec<_> = self
            .model
            .due(sweep.now)
            .into_iter()
            .filter(|entry| entry.expires_at() > sweep.passed)
            .take(limit)
            .collect();
        if self.model.stopped {
            looked_at.clear();
        }
        let claimed = self
            .manifest
            .claim_expired(sweep.now, &mut sweep.cursor, limit);
        assert_eq!(
            sweep.cursor.is_none(),
            looked_at.is_empty(),
            "a sweep ends when there is nothing more to look at"
        );
        sweep.passed = looked_at.last().and_then(Entry::expires_at);
        self.enter_claims(claimed, looked_at, Order::FirstToExpireFirst);
        if sweep.cursor.is_some() {
            self.sweeps.push(sweep);
        }
    }

    /// Where attachments expire at the same instant the model cannot say which comes first, nor
    /// which of them part of a sweep has passed; only what the whole of it must meet.
    fn claim_to_the_end(&mut self, limit: usize) {
        let due = if self.model.stopped {
            Vec::new()
        } else {
            self.model.due(self.now)
        };
        let mut cursor = Some(ExpiryCursor::start());
        let mut claimed = Vec::new();
        while cursor.is_some() {
            claimed.extend(self.manifest.claim_expired(self.now, &mut cursor, limit));
        }
        self.enter_claims(claimed, due, Order::Any);
    }

    /// Those that nobody is working on must have been claimed.
    fn enter_claims(&mut self, claimed: Vec<Removal<Staged>>, wanted: Vec<Entry>, order: Order) {
        let wanted: Vec<_> = wanted
            .into_iter()
            .filter(|entry| !self.model.has_ticket(entry.key()))
            .collect();
        let expected: Vec<_> = wanted.iter().map(Entry::snapshot).collect();
        let got: Vec<_> = claimed
            .iter()
            .map(|removal| Snapshot::of(removal.attachment()))
            .collect();
        let sorted = |mut list: Vec<Snapshot>| {
            if order == Order::Any {
                list.sort_by_key(|snapshot| snapshot.file);
            }
            list
        };
        assert_eq!(sorted(got), sorted(expected));
        for entry in wanted {
            self.model.tickets.push((entry.key(), Vec::new()));
        }
        self.removals.extend(claimed);
    }

    fn sweep(&mut self, failing: u8) {
        let due = if self.model.stopped {
            Vec::new()
        } else {
            self.model.due(self.now)
        };
        let mut report = Removed::default();
        let mut cursor = Some(ExpiryCursor::start());
        let remove = |file: &Staged| {
            // Its ticket is out: nobody can stage it meanwhile.
            assert!(self.manifest.lookup(&file.checksum).is_none());
            removed(file, failing)
        };
        while let Some(mut part) =
            remove::sweep_a_batch(&self.manifest, self.now, &mut cursor, remove)
        {
            report.cleaned.append(&mut part.cleaned);
            report.failed.append(&mut part.failed);
        }
        let (failed, cleaned) = self.settle(due, failing);
        let files =
            |attachments: &mut dyn Iterator<Item = &Attachment<Staged>>| -> BTreeSet<usize> {
                attachments
                    .map(|attachment| attachment.file.number)
                    .collect()
            };
        assert_eq!(files(&mut report.cleaned.iter()), cleaned);
        assert_eq!(report.cleaned.len(), cleaned.len(), "each is reported once");
        assert_eq!(
            files(&mut report.failed.iter().map(|(attachment, _)| attachment)),
            failed
        );
        assert_eq!(report.failed.len(), failed.len());
    }

    fn remove_all(&mut self, failing: u8) {
        let all = self.model.entries.clone();
        let mut failures = Vec::new();
        let mut walk = RemoveAll::default();
        while walk.batch(
            &self.manifest,
            || None,
            |removal| {
                failures.extend(remove_one(removal, |file| removed(file, failing)).err());
            },
        ) {}
        let (failed, _) = self.settle(all, failing);
        assert_eq!(failures.len(), failed.len(), "each failure is reported");
    }

    /// Takes out what has been removed: what failed, and what did not.
    fn settle(&mut self, wanted: Vec<Entry>, failing: u8) -> (BTreeSet<usize>, BTreeSet<usize>) {
        let (failed, cleaned): (Vec<_>, Vec<_>) = wanted
            .into_iter()
            .filter(|entry| !self.model.has_ticket(entry.key()))
            .partition(|entry| fails(&entry.file, failing));
        for entry in &cleaned {
            self.model.removed(&entry.file);
            self.stale.push(entry.file.clone());
        }
        let identities =
            |entries: Vec<Entry>| entries.iter().map(|entry| entry.file.number).collect();
        (identities(failed), identities(cleaned))
    }

    fn check(&mut self) {
        let listed: BTreeMap<u8, Snapshot> = self
            .manifest
            .list()
            .iter()
            .map(|attachment| (key_of(&attachment.file.checksum), Snapshot::of(attachment)))
            .collect();
        assert_eq!(listed, self.model.list());
        assert_eq!(self.manifest.list().iter().count(), listed.len());
        let Metrics {
            totals,
            next_expiry_at_ms,
        } = self.manifest.metrics();
        assert_eq!(totals, self.model.totals());
        assert!(
            self.model.next_expiries().contains(&next_expiry_at_ms),
            "next expiry {next_expiry_at_ms:?}, expected one of {:?}",
            self.model.next_expiries()
        );
        let told = std::mem::take(&mut *self.told.lock().unwrap());
        let mut waits = std::mem::take(&mut self.waits);
        let expected = std::mem::take(&mut self.model.answers);
        // The order counts among those who wait for the same key.
        let by_key = |answers: &[(usize, Answer)]| {
            let mut sorted: BTreeMap<u8, Vec<(usize, Answer)>> = BTreeMap::new();
            for (who, answer) in answers {
                let (key, _) = waits[who];
                sorted.entry(key).or_default().push((*who, answer.clone()));
            }
            sorted
        };
        assert_eq!(by_key(&told), by_key(&expected));
        for (who, answer) in told {
            let (key, retention) = waits.remove(&who).expect("nobody is answered twice");
            if answer == Answer::Retry {
                self.asking_again.push((key, retention));
            }
        }
        self.waits = waits;
        let mut given = std::mem::take(&mut *self.given.lock().unwrap());
        given.sort_by_key(|(who, _)| *who);
        let mut expected = std::mem::take(&mut self.model.granted);
        expected.sort_by_key(|(who, _)| *who);
        let removals: Vec<_> = given
            .iter()
            .map(|(who, removal)| {
                let attachment = removal.as_ref().map(Removal::attachment);
                (*who, attachment.map(Snapshot::of))
            })
            .collect();
        assert_eq!(removals, expected);
        self.removals
            .extend(given.into_iter().filter_map(|(_, removal)| removal));
    }

    /// Nobody is left waiting when all tickets have come back.
    fn end(mut self) {
        for (staging, _) in std::mem::take(&mut self.stagings) {
            self.model
                .given_back(key_of(staging.checksum()), &Answer::Retry);
        }
        self.check();
        // What waits to be removed gets its ticket only now.
        while let Some(removal) = self.removals.pop() {
            let key = key_of(&removal.attachment().file.checksum);
            self.model.given_back(key, &Answer::Retry);
            drop(removal);
            self.check();
        }
        self.check();
        assert!(self.waits.is_empty(), "left waiting: {:?}", self.waits);
        // And when everything has been removed, nothing is counted any more.
        let all = self.model.entries.clone();
        let mut walk = RemoveAll::default();
        while walk.batch(
            &self.manifest,
            || None,
            |removal| {
                removal.commit();
            },
        ) {}
        self.settle(all, 0);
        self.check();
        assert_eq!(self.manifest.metrics(), Metrics::default());
    }
}

#[derive(PartialEq)]
enum Order {
    FirstToExpireFirst,
    Any,
}

fn fails(file: &Staged, failing: u8) -> bool {
    failing & (1 << key_of(&file.checksum)) != 0
}

fn removed(file: &Staged, failing: u8) -> codex_files::error::Result<()> {
    if fails(file, failing) {
        Err(Error::InvalidName(
            b"of a file that stays".as_slice().into(),
        ))
    } else {
        Ok(())
    }
}

fn take<T>(list: &mut Vec<T>, pick: usize) -> Option<T> {
    (!list.is_empty()).then(|| list.remove(pick % list.len()))
}

fn config() -> ProptestConfig {
    let mut config = ProptestConfig {
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 2_000;
    }
    config
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_manifest_does_what_the_naive_model_does(
        distinct_times in prop::bool::weighted(0.7),
        ops in prop::collection::vec(op(), 1..80),
    ) {
        let mut run = Run::new(distinct_times);
        for op in ops {
            run.step(op);
        }
        run.end();
    }
}
