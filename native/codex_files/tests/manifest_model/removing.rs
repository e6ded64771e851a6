//! Removing: the tickets of sweeps, resets and of one that is unstaged.

use std::collections::BTreeSet;

use codex_files::error::Error;
use codex_files::manifest::attachment::Attachment;
use codex_files::manifest::{ExpiryCursor, Removal};
use codex_files::registry::remove::{self, RemoveAll, remove_one};
use codex_files::registry::removed::Removed;

use super::entry::{Entry, Snapshot};
use super::model::Waiting;
use super::owning::laters;
use super::run::{Run, Sweep, take};
use super::{Staged, checksum, key_of};

impl Run {
    pub fn claim_all(&mut self, wait: bool) {
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
        let mut later = laters(&mut self.callers, &self.given);
        let claimed = self.manifest.claim(&all, || wait.then(&mut later));
        drop(later);
        let busy = entries
            .iter()
            .map(Entry::key)
            .filter(|key| wait && self.model.has_ticket(*key));
        for (who, key) in (first..).zip(busy.collect::<Vec<_>>()) {
            self.model.wait(key, Waiting::Removal(who, None));
        }
        self.enter_claims(claimed, entries, Order::Any);
    }

    /// A stale attachment is of an entry that has gone, or has got another file since.
    pub fn claim_one(&mut self, key: u8, stale: bool) {
        let one = if stale {
            let mut seen = self.seen.iter();
            seen.find(|seen| key_of(&seen.file.checksum) == key)
                .cloned()
        } else {
            self.manifest.entry(&checksum(key))
        };
        let id = one.as_ref().map(|one| one.entry);
        let entry = self.model.entry(key).cloned();
        let entry = entry.filter(|entry| Some(entry.id) == id);
        let who = self.callers;
        let mut later = laters(&mut self.callers, &self.given);
        let claimed = self.manifest.claim(one.as_slice(), || Some(later()));
        drop(later);
        if entry.is_some() && self.model.has_ticket(key) {
            self.model.wait(key, Waiting::Removal(who, None));
        }
        self.enter_claims(claimed, entry.into_iter().collect(), Order::Any);
    }

    pub fn claim(&mut self, pick: usize, limit: usize) {
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
        self.enter_removals(claimed);
    }

    /// Somebody has tickets to remove these.
    pub fn enter_removals(&mut self, claimed: Vec<Removal<Staged>>) {
        for removal in &claimed {
            let key = key_of(&removal.attachment().file.checksum);
            self.model.take_ticket(key, true);
        }
        self.removals.extend(claimed);
    }

    pub fn commit_removal(&mut self, pick: usize) {
        let Some(removal) = take(&mut self.removals, pick) else {
            return;
        };
        let attachment = removal.attachment().clone();
        self.model.removed(&attachment.file);
        assert_eq!(
            Snapshot::of(&removal.commit()),
            Snapshot::of(&attachment),
            "what was removed is what was claimed"
        );
    }

    pub fn sweep(&mut self, failing: u8) {
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

    pub fn remove_all(&mut self, failing: u8) {
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
    pub fn settle(
        &mut self,
        wanted: Vec<Entry>,
        failing: u8,
    ) -> (BTreeSet<usize>, BTreeSet<usize>) {
        let (failed, cleaned): (Vec<_>, Vec<_>) = wanted
            .into_iter()
            .filter(|entry| !self.model.has_ticket(entry.key()))
            .partition(|entry| fails(&entry.file, failing));
        for entry in &cleaned {
            self.model.removed(&entry.file);
        }
        let identities =
            |entries: Vec<Entry>| entries.iter().map(|entry| entry.file.number).collect();
        (identities(failed), identities(cleaned))
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
