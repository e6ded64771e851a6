//! What must hold after each operation, and at the end.

use std::collections::BTreeMap;

use codex_files::manifest::{Metrics, Removal};
use codex_files::registry::remove::RemoveAll;

use super::entry::Snapshot;
use super::model::Answer;
use super::operations::KEYS;
use super::run::Run;
use super::{checksum, key_of};

impl Run {
    pub fn check(&mut self) {
        self.check_entries();
        let Metrics {
            totals,
            next_expiry_at_ms,
            max_bytes,
        } = self.manifest.metrics();
        assert_eq!(max_bytes, None);
        assert_eq!(totals, self.model.totals());
        assert!(
            self.model.next_expiries().contains(&next_expiry_at_ms),
            "next expiry {next_expiry_at_ms:?}, expected one of {:?}",
            self.model.next_expiries()
        );
        self.check_answers();
        self.check_given();
    }

    /// What is there, whichever way one asks.
    fn check_entries(&mut self) {
        let listed: BTreeMap<u8, Snapshot> = self
            .manifest
            .list()
            .iter()
            .map(|attachment| (key_of(&attachment.file.checksum), Snapshot::of(attachment)))
            .collect();
        assert_eq!(listed, self.model.list());
        assert_eq!(self.manifest.list().iter().count(), listed.len());
        for key in 0..KEYS {
            let there = listed.get(&key).cloned();
            let unless = |hidden: bool| there.clone().filter(|_| !hidden);
            let entry = self.manifest.entry(&checksum(key));
            assert_eq!(entry.as_ref().map(Snapshot::of), there);
            let got = self.manifest.get(&checksum(key));
            let expected = unless(self.model.is_being_removed(key));
            assert_eq!(got.as_ref().map(Snapshot::of), expected);
            let found = self.manifest.lookup(&checksum(key));
            let expected = unless(self.model.has_ticket(key)).map(|there| there.file);
            assert_eq!(found.map(|file| file.number), expected);
        }
    }

    fn check_answers(&mut self) {
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
            let (key, ask) = waits.remove(&who).expect("nobody is answered twice");
            if answer == Answer::Retry {
                self.asking_again.push((key, ask));
            }
        }
        self.waits = waits;
    }

    fn check_given(&mut self) {
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

    /// When everybody is done nobody is left waiting, nothing is left of owners, and nothing is counted.
    pub fn end(mut self) {
        for (staging, _) in std::mem::take(&mut self.stagings) {
            self.model
                .given_back(key_of(staging.checksum()), &Answer::Retry);
        }
        self.check();
        self.owners = Default::default();
        // Those who wait for a removal are owners until they are answered, and what these leave is to be
        // removed.
        loop {
            self.knowing.clear();
            self.asking_again.clear();
            self.end_owners();
            if self.removals.is_empty() {
                break;
            }
            self.commit_removal(0);
            self.check();
        }
        assert!(self.waits.is_empty(), "left waiting: {:?}", self.waits);
        assert_eq!(self.manifest.metrics().totals.owned_count, 0);
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

    /// The cleanup thread lets go of all that owners have kept that have ended.
    fn end_owners(&mut self) {
        while !self.ended.lock().unwrap().is_empty() {
            self.take_owned(0);
        }
        while !self.owned.is_empty() {
            self.disown(0, 2);
            self.check();
        }
    }
}
