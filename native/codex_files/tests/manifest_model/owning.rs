//! Owners: what they let go of, and what they leave.

use std::sync::{Arc, Mutex};

use codex_files::manifest::{Later, Removal};
use codex_files::registry::owner::Owner;

use super::entry::Snapshot;
use super::model::{LetGo, Waiting};
use super::run::{Given, Run, take};
use super::{Staged, checksum};

impl Run {
    /// The owner that has a place now.
    pub fn owner(&mut self, place: usize) -> Arc<Owner> {
        let ended = self.ended.clone();
        let new = || Owner::new(move |id| ended.lock().unwrap().push(id));
        self.owners[place].get_or_insert_with(new).clone()
    }

    pub fn release(&mut self, place: usize, key: u8) {
        let owner = self.owner(place);
        let id = self.model.entry(key).map(|entry| entry.id);
        let first = self.callers;
        let manifest = &self.manifest;
        let later = laters(&mut self.callers, &self.given);
        let removal = manifest.release(owner.id(), &checksum(key), self.now, later);
        let let_go = id.map(|id| self.model.let_go(owner.id(), id, self.now));
        self.enter_let_go(let_go, removal.into_iter().collect(), first);
    }

    /// The cleanup thread hears of an owner that has ended.
    pub fn take_owned(&mut self, pick: usize) {
        let Some(owner) = take(&mut self.ended.lock().unwrap(), pick) else {
            return;
        };
        let owned = self.manifest.take_owned(owner);
        let there: Vec<_> = self.model.entries.iter().map(|entry| entry.id).collect();
        let mut taken: Vec<_> = owned.entries().filter(|id| there.contains(id)).collect();
        // In the order in which they were staged.
        taken.reverse();
        let expected: Vec<_> = self.model.owned_by(owner).map(|entry| entry.id).collect();
        assert_eq!(taken, expected);
        self.owned.push((owner, owned));
    }

    pub fn disown(&mut self, pick: usize, limit: usize) {
        let Some((owner, mut owned)) = take(&mut self.owned, pick) else {
            return;
        };
        let before: Vec<_> = owned.entries().collect();
        let first = self.callers;
        let manifest = &self.manifest;
        let later = laters(&mut self.callers, &self.given);
        let removals = manifest.disown(&mut owned, limit, self.now, later);
        assert_eq!(removals.is_none(), before.is_empty());
        let after: Vec<_> = owned.entries().collect();
        let (rest, done) = before.split_at(after.len());
        assert_eq!(rest, after);
        assert_eq!(done.len(), limit.min(before.len()));
        let let_go: Vec<_> = done
            .iter()
            .rev()
            .map(|id| self.model.let_go(owner, *id, self.now))
            .collect();
        if let Some(removals) = removals {
            self.owned.push((owner, owned));
            self.enter_let_go(let_go, removals, first);
        }
    }

    /// What nothing keeps must have been claimed, or somebody waits to remove it: the first of them is
    /// the caller `first`.
    fn enter_let_go(
        &mut self,
        let_go: impl IntoIterator<Item = LetGo>,
        claimed: Vec<Removal<Staged>>,
        first: usize,
    ) {
        let mut expected = Vec::new();
        let mut waiting = first..;
        for let_go in let_go {
            match let_go {
                LetGo::Stays => {}
                LetGo::Left(snapshot) => expected.push(snapshot),
                LetGo::Waits(key) => {
                    let who = waiting.next().expect("it has no end");
                    self.model.wait(key, Waiting::Removal(who, Some(self.now)));
                }
            }
        }
        assert_eq!(waiting.start, self.callers, "each waits once");
        let got: Vec<_> = claimed
            .iter()
            .map(|removal| Snapshot::of(removal.attachment()))
            .collect();
        assert_eq!(got, expected);
        self.enter_removals(claimed);
    }
}

/// Makes those who wait to remove something.
pub fn laters<'a>(
    callers: &'a mut usize,
    given: &'a Arc<Mutex<Vec<Given>>>,
) -> impl FnMut() -> Later<Staged> + use<'a> {
    move || {
        let (who, given) = (*callers, given.clone());
        *callers += 1;
        Box::new(move |removal| given.lock().unwrap().push((who, removal)))
    }
}
