//! The naive model: lists that are searched and folded.

use std::collections::BTreeMap;

use codex_files::manifest::Totals;
use codex_files::manifest::attachment::{EntryId, File};
use codex_files::manifest::waiting::{Origin, Outcome};
use codex_files::retention::{OwnerId, Retention, Ttl};
use codex_files::time::Now;

use super::entry::{Ask, Entry, Snapshot};
use super::{Staged, key_of};

/// What a caller is told, in a form that can be compared.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
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

/// Who waits: the number of the caller, and what it asked for.
#[derive(Clone, Debug)]
pub enum Waiting {
    Staging(usize, Ask),
    /// To remove the entry, if nothing has come to keep it since that time.
    Removal(usize, Option<Now>),
}

/// What those hear who wait for a ticket.
pub enum End<'a> {
    /// The file is in place.
    Known(&'a Staged, Now),
    Tell(Answer),
}

struct Ticket {
    key: u8,
    removes: bool,
    waiting: Vec<Waiting>,
}

/// What letting go of an entry has come to.
pub enum LetGo {
    /// It stays.
    Stays,
    /// Nothing keeps it, and nobody is at work on it: it is to be removed.
    Left(Snapshot),
    /// Nothing keeps it, and somebody is at work on it: who is to remove it waits.
    Waits(u8),
}

#[derive(Default)]
pub struct Model {
    pub entries: Vec<Entry>,
    tickets: Vec<Ticket>,
    pub stopped: bool,
    /// What callers who wait must have been told since the last look.
    pub answers: Vec<(usize, Answer)>,
    /// What those who wait to remove something must have been given: the entry, or nothing.
    pub granted: Vec<(usize, Option<Snapshot>)>,
}

impl Model {
    pub fn entry(&mut self, key: u8) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.key() == key)
    }

    pub fn has_ticket(&self, key: u8) -> bool {
        self.tickets.iter().any(|ticket| ticket.key == key)
    }

    pub fn is_being_removed(&self, key: u8) -> bool {
        let mut tickets = self.tickets.iter();
        tickets.any(|ticket| ticket.key == key && ticket.removes)
    }

    pub fn take_ticket(&mut self, key: u8, removes: bool) {
        assert!(!self.has_ticket(key), "a ticket that is out");
        self.tickets.push(Ticket {
            key,
            removes,
            waiting: Vec::new(),
        });
    }

    pub fn wait(&mut self, key: u8, waits: Waiting) {
        let ticket = self.tickets.iter_mut().find(|ticket| ticket.key == key);
        ticket
            .expect("there is something to wait for")
            .waiting
            .push(waits);
    }

    /// The ticket of a key comes back. The first who waits to remove the entry that is there, and still
    /// may, has it next, and those who came later wait for that one.
    fn end_ticket(&mut self, key: u8, end: &End<'_>) {
        let Some(index) = self.tickets.iter().position(|ticket| ticket.key == key) else {
            return;
        };
        let mut waiting = self.tickets.remove(index).waiting.into_iter();
        while let Some(waits) = waiting.next() {
            match (waits, end) {
                (Waiting::Staging(who, ask), End::Known(file, now)) => {
                    let answer = match self.refresh(file, &ask, *now) {
                        Some(snapshot) => Answer::Staged(snapshot, Origin::Known),
                        None => Answer::Retry,
                    };
                    self.answers.push((who, answer));
                }
                (Waiting::Staging(who, _), End::Tell(answer)) => {
                    self.answers.push((who, answer.clone()));
                }
                (Waiting::Removal(who, since), _) => {
                    let entry = self.entry(key);
                    let entry =
                        entry.filter(|entry| since.is_none_or(|since| entry.expired(since)));
                    let snapshot = entry.map(|entry| entry.snapshot());
                    let is_next = snapshot.is_some();
                    self.granted.push((who, snapshot));
                    if is_next {
                        self.tickets.push(Ticket {
                            key,
                            removes: true,
                            waiting: waiting.collect(),
                        });
                        return;
                    }
                }
            }
        }
    }

    pub fn stop(&mut self, answer: &Answer) {
        self.stopped = true;
        for waits in std::mem::take(&mut self.tickets)
            .into_iter()
            .flat_map(|ticket| ticket.waiting)
        {
            match waits {
                Waiting::Staging(who, _) => self.answers.push((who, answer.clone())),
                Waiting::Removal(who, _) => self.granted.push((who, None)),
            }
        }
    }

    pub fn refresh(&mut self, file: &Staged, ask: &Ask, now: Now) -> Option<Snapshot> {
        let entry = self.entry(key_of(&file.checksum))?;
        if !entry.file.same(file) {
            return None;
        }
        entry.stage_again(ask, now);
        Some(entry.snapshot())
    }

    /// Enters a file. An entry that is there has lost its own, and goes on with this one; another is
    /// new, and the manifest has called it `id`.
    pub fn commit(&mut self, file: &Staged, id: EntryId, ask: &Ask, now: Now) -> Snapshot {
        let key = key_of(&file.checksum);
        assert!(!self.stopped);
        let snapshot = if let Some(entry) = self.entry(key) {
            assert_eq!(entry.id, id, "a lost file staged anew is no new entry");
            entry.file = file.clone();
            entry.stage_again(ask, now);
            entry.snapshot()
        } else {
            let entry = Entry {
                id,
                file: file.clone(),
                // SPEC: without a TTL it is 0.
                retention: Retention {
                    persist: ask.persist,
                    ttl: ask.ttl.unwrap_or(Ttl::Millis(0)),
                },
                inserted: now,
                owners: ask.owner().into_iter().collect(),
            };
            let snapshot = entry.snapshot();
            self.entries.push(entry);
            snapshot
        };
        self.end_ticket(key, &End::Known(file, now));
        snapshot
    }

    pub fn removed(&mut self, file: &Staged) {
        self.entries.retain(|entry| !entry.file.same(file));
        self.end_ticket(key_of(&file.checksum), &End::Tell(Answer::Retry));
    }

    pub fn given_back(&mut self, key: u8, answer: &Answer) {
        self.end_ticket(key, &End::Tell(answer.clone()));
    }

    /// SPEC: an owner counts once, and one release ends it.
    pub fn let_go(&mut self, owner: OwnerId, id: EntryId, now: Now) -> LetGo {
        let entry = self.entries.iter_mut().find(|entry| entry.id == id);
        let Some(entry) = entry.filter(|entry| entry.owners.contains(&owner)) else {
            return LetGo::Stays;
        };
        entry.owners.remove(&owner);
        let (key, expired, snapshot) = (entry.key(), entry.expired(now), entry.snapshot());
        if !expired || self.stopped {
            LetGo::Stays
        } else if self.has_ticket(key) {
            LetGo::Waits(key)
        } else {
            LetGo::Left(snapshot)
        }
    }

    /// The entries that an owner keeps.
    pub fn owned_by(&self, owner: OwnerId) -> impl Iterator<Item = &Entry> {
        let owned = move |entry: &&Entry| entry.owners.contains(&owner);
        self.entries.iter().filter(owned)
    }

    /// What a sweep may claim, the first to expire first.
    pub fn due(&self, now: Now) -> Vec<Entry> {
        let mut due: Vec<_> = self
            .entries
            .iter()
            .filter(|entry| entry.expired(now))
            .cloned()
            .collect();
        due.sort_by_key(Entry::expires_at);
        due
    }

    pub fn list(&self) -> BTreeMap<u8, Snapshot> {
        self.entries
            .iter()
            .map(|entry| (entry.key(), entry.snapshot()))
            .collect()
    }

    pub fn totals(&self) -> Totals {
        let of = |persist| {
            self.entries
                .iter()
                .filter(move |entry| entry.retention.persist == persist)
        };
        let bytes = |persist| of(persist).map(|entry| u128::from(entry.file.size)).sum();
        let owned = self.entries.iter().filter(|entry| !entry.owners.is_empty());
        Totals {
            persistent_count: of(true).count() as u64,
            persistent_bytes: bytes(true),
            expirable_count: of(false).count() as u64,
            expirable_bytes: bytes(false),
            owned_count: owned.count() as u64,
        }
    }

    /// The wall times at which the next attachment may be said to expire: several only if several
    /// expire at the same instant.
    pub fn next_expiries(&self) -> Vec<Option<i64>> {
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
