//! What owners keep, and what is left when they end.

use super::attachment::{EntryId, File};
use super::claim::Later;
use super::shared::Manifest;
use super::state::{OwnedEntry, State};
use super::ticket::Removal;
use crate::retention::OwnerId;
use crate::time::Now;

/// What an owner that has ended kept, the last staged first.
pub struct Owned(Vec<OwnedEntry>);

impl Owned {
    /// The entries that are still to be disowned, the last of which is the next. Some may have gone.
    pub fn entries(&self) -> impl Iterator<Item = EntryId> {
        self.0.iter().map(|&(_, entry)| entry)
    }
}

impl<F: File> Manifest<F> {
    /// Ends an owner's hold on the attachment of a checksum. If nothing else keeps that `now`, the ticket
    /// to remove it; for one that somebody is working on `later` is called as in [`Manifest::claim`].
    pub fn release(
        &self,
        owner: OwnerId,
        checksum: &[u8],
        now: Now,
        later: impl FnMut() -> Later<F>,
    ) -> Option<Removal<F>> {
        let mut removals = Vec::new();
        let mut state = self.state.lock("manifest-release");
        let owned = state.release(owner, checksum)?;
        self.disown_each(&mut state, [owned], now, later, &mut removals);
        removals.pop()
    }

    /// What an owner that has ended kept: to be disowned, and not the owner's any more.
    #[must_use]
    pub fn take_owned(&self, owner: OwnerId) -> Owned {
        let owned = self.state.lock("manifest-take_owned").take_owned(owner);
        // The order in which they were staged, for the most part, is the one in which they lie on the disk.
        let mut owned: Vec<_> = owned.into_iter().collect();
        owned.sort_unstable_by_key(|&(_, entry)| std::cmp::Reverse(entry.0));
        Owned(owned)
    }

    /// Counts one owner less of up to `limit` of what an owner kept. Of those that nothing else keeps
    /// `now`, the tickets to remove them, and `later` as in [`Manifest::release`]; `None` at the end.
    pub fn disown(
        &self,
        owned: &mut Owned,
        limit: usize,
        now: Now,
        later: impl FnMut() -> Later<F>,
    ) -> Option<Vec<Removal<F>>> {
        if owned.0.is_empty() {
            return None;
        }
        // As in `Manifest::claim_expired`.
        let mut removals = Vec::new();
        let mut state = self.state.lock("manifest-disown");
        // One by one: were one of them to panic, the others are still to be disowned.
        let batch = std::iter::from_fn(|| owned.0.pop()).take(limit);
        self.disown_each(&mut state, batch, now, later, &mut removals);
        Some(removals)
    }

    fn disown_each(
        &self,
        state: &mut State<F>,
        owned: impl IntoIterator<Item = OwnedEntry>,
        now: Now,
        mut later: impl FnMut() -> Later<F>,
        removals: &mut Vec<Removal<F>>,
    ) {
        for owned in owned {
            let Some(left) = state.disown(owned, now) else {
                continue;
            };
            // After the stop all are removed anyway.
            if state.stopped {
                continue;
            }
            match state.tickets.get_mut(left.file.key()) {
                None => removals.push(self.removal(state, left)),
                Some(out) => out.waiting.push(self.waits(Some(now), later())),
            }
        }
    }
}
