//! The manifest: which checksums are staged, for how long, and who is working on which of them.
//!
//! A pure data structure behind one mutex: it knows no path, makes no system call and reads no clock.
//! Work on the disk is *admitted* here and gets a ticket ([`Staging`] or [`Removal`]), runs without any
//! lock, and is *committed*. A ticket that is dropped instead leaves the manifest as if nothing had begun.
//! While a ticket for a checksum is out, everybody else who wants to work on it waits.

pub mod attachment;
pub mod budget;
mod reservation;
mod slots;
mod state;
mod ticket;
pub mod waiting;

use std::ops::Bound;
use std::sync::Arc;

use self::attachment::{Attachment, EntryId, File};
use self::budget::{Budget, WhenFull};
use self::slots::Slots;
use self::state::{Due, Entry, Out, OwnedEntry, Shared, State, Waits};
use self::waiting::{Outcome, Waiter};
use crate::checksum::Checksum;
use crate::error::{Error, Result};
use crate::panics;
use crate::retention::{Keep, OwnerId};
use crate::time::Now;

pub use self::reservation::Reservation;
pub use self::state::{Metrics, Totals};
pub use self::ticket::{Removal, Staging};

/// What became of a request to stage.
#[must_use]
pub enum Admission<F: File> {
    /// The checksum is known. Look whether its file is still there, then [`Manifest::refresh`] it,
    /// or, if the file has gone, ask for admission again with it as `lost`.
    Known(F),
    /// Copy the file, then commit.
    Lead(Staging<F>),
    /// Somebody else is at work on this checksum; the waiter will be answered.
    Waiting,
}

/// Whoever waits to remove an attachment that somebody else is at work on. It gets the ticket when that
/// work has ended, or `None` if the attachment has gone with it, or is to stay.
pub type Later<F> = Box<dyn FnOnce(Option<Removal<F>>) + Send>;

/// The manifest. See the module's description.
pub struct Manifest<F: File> {
    state: Arc<Shared<F>>,
}

impl<F: File> Default for Manifest<F> {
    fn default() -> Self {
        Self {
            state: Arc::default(),
        }
    }
}

impl<F: File> Manifest<F> {
    /// The file of a checksum that is known and that nobody is working on.
    #[must_use]
    pub fn lookup(&self, checksum: &[u8]) -> Option<F> {
        let state = self.state.lock("manifest-lookup");
        if state.tickets.contains_key(checksum) {
            return None;
        }
        Some(state.attachment(checksum)?.file.clone())
    }

    /// The attachment of a checksum, whoever is at work on it, unless that one removes it.
    #[must_use]
    pub fn get(&self, checksum: &[u8]) -> Option<Attachment<F>> {
        let state = self.state.lock("manifest-get");
        let removed = state.tickets.get(checksum).is_some_and(|out| out.removes);
        (!removed).then(|| state.attachment(checksum).cloned())?
    }

    /// The entry of a checksum, whoever is at work on it.
    #[must_use]
    pub fn entry(&self, checksum: &[u8]) -> Option<Attachment<F>> {
        let state = self.state.lock("manifest-entry");
        state.attachment(checksum).cloned()
    }

    /// Asks to stage `checksum`. `waiter` is called for, under the lock, only if the caller must
    /// wait. `lost` is a file that was found to be missing: its entry does not count as known.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn admit(
        &self,
        checksum: &Checksum,
        keep: Keep,
        lost: Option<&F>,
        waiter: impl FnOnce() -> Waiter<F>,
    ) -> Result<Admission<F>> {
        let mut state = self.state.lock("manifest-admit");
        if state.stopped {
            return Err(Error::Stopped);
        }
        if let Some(out) = state.tickets.get_mut(checksum) {
            out.waiting.push(Waits::Staging {
                keep,
                waiter: waiter(),
            });
            return Ok(Admission::Waiting);
        }
        let replaces = state
            .attachment(checksum)
            .map(|attachment| attachment.file.clone());
        if let Some(file) = &replaces
            && !lost.is_some_and(|lost| lost.same(file))
        {
            return Ok(Admission::Known(file.clone()));
        }
        state.tickets.insert(checksum.clone(), Out::to_stage());
        Ok(Admission::Lead(Staging::new(
            self.state.clone(),
            checksum.clone(),
            keep,
            replaces,
        )))
    }

    /// Stages a known file again: its insertion time becomes `now`, unless it has no TTL to
    /// give, its retention the merged one.
    /// `None` if it has been removed, or is being removed, since it was looked up.
    #[must_use]
    pub fn refresh(&self, file: &F, keep: Keep, now: Now) -> Option<Attachment<F>> {
        let mut state = self.state.lock("manifest-refresh");
        if state.stopped || state.tickets.contains_key(file.key()) {
            return None;
        }
        state.refresh(file, keep, now)
    }

    /// All attachments, those being removed included, in no particular order.
    #[must_use]
    pub fn list(&self) -> Listing<F> {
        Listing(self.state.lock("manifest-list").entries.clone())
    }

    /// The counters.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.state.lock("manifest-metrics").metrics()
    }

    /// The counters, unless somebody has the lock.
    #[must_use]
    pub fn try_metrics(&self) -> Option<Metrics> {
        Some(self.state.try_lock("manifest-try_metrics")?.metrics())
    }

    /// Bounds the bytes of all attachments, and of all that are being written. What is there stays.
    pub fn set_budget(&self, budget: Budget) {
        self.state.lock("manifest-set_budget").budget = budget;
    }

    /// Reserves bytes of the budget, `now`, for a file that is to be written. It takes over those of the
    /// `lost` one, for which the caller has the ticket. If there is no room the caller has to make some,
    /// and to ask again with the same `cursor`: it moves past what was to go, so that one whose removal
    /// fails is not met again. `at_most` is the most that may be done to make it, whatever the budget says.
    ///
    /// # Errors
    /// [`Error::OverBudget`], and nothing is to go; [`Error::Stopped`].
    pub fn reserve(
        &self,
        bytes: u64,
        lost: Option<&F>,
        at_most: WhenFull,
        now: Now,
        cursor: &mut ExpiryCursor,
    ) -> Result<Room<F>> {
        // As in `claim_expired`.
        let mut room = (Vec::new(), Vec::new());
        let mut state = self.state.lock("manifest-reserve");
        if state.stopped {
            return Err(Error::Stopped);
        }
        let more = bytes.saturating_sub(lost.map_or(0, |lost| state.stored_of(lost)));
        let Some(lacking) = state.usage.lacks(more, state.budget) else {
            state.usage.reserved += u128::from(more);
            return Ok(Room::Reserved {
                reservation: Reservation::new(self.state.clone(), more),
                took_over: more < bytes && state.budget.max_bytes.is_some(),
            });
        };
        let when_full = state.budget.when_full.min(at_most);
        let Some(victims) = state.victims(cursor.0, lacking, when_full, now) else {
            let max_bytes = state.budget.max_bytes.unwrap_or(u64::MAX);
            return Err(Error::OverBudget {
                size: bytes,
                max_bytes,
            });
        };
        cursor.0 = victims.last.map_or(cursor.0, Bound::Excluded);
        for expired in victims.expired {
            room.0.push(self.removal(&mut state, expired));
        }
        for evicted in victims.evicted {
            room.1.push(self.removal(&mut state, evicted));
        }
        let (expired, evicted) = room;
        Ok(Room::ToMake { expired, evicted })
    }

    /// Tickets to remove up to `limit` attachments that have expired `now`, the oldest deadline
    /// first, from `cursor` on. `cursor` moves past what was looked at, so that one whose removal
    /// fails is not met again in the same round; `None` at the end.
    pub fn claim_expired(
        &self,
        now: Now,
        cursor: &mut Option<ExpiryCursor>,
        limit: usize,
    ) -> Vec<Removal<F>> {
        // Tickets that are dropped take the lock: a panic below must release that first.
        let mut removals = Vec::new();
        let mut state = self.state.lock("manifest-claim_expired");
        let Some(ExpiryCursor(from)) = cursor.take() else {
            return removals;
        };
        if state.stopped {
            return removals;
        }
        let (due, last) = state.due(from, now, limit);
        *cursor = last.map(|last| ExpiryCursor(Bound::Excluded(last)));
        for attachment in due {
            if !state.tickets.contains_key(attachment.file.key()) {
                removals.push(self.removal(&mut state, attachment));
            }
            panics::point("manifest-claimed");
        }
        removals
    }

    /// Tickets to remove those of `attachments` whose entries are still there. For one that somebody is
    /// working on `later` is called, under the lock, and may leave somebody who waits for that.
    pub fn claim(
        &self,
        attachments: &[Attachment<F>],
        mut later: impl FnMut() -> Option<Later<F>>,
    ) -> Vec<Removal<F>> {
        // As in `claim_expired`.
        let mut removals = Vec::new();
        let mut state = self.state.lock("manifest-claim");
        for Attachment { entry, file, .. } in attachments {
            let attachment = state.attachment(file.key()).cloned();
            let Some(attachment) = attachment.filter(|there| there.entry == *entry) else {
                continue;
            };
            match state.tickets.get_mut(file.key()) {
                None => removals.push(self.removal(&mut state, attachment)),
                Some(out) => {
                    let later = later().map(|later| self.waits(None, later));
                    out.waiting.extend(later);
                }
            }
            panics::point("manifest-claimed");
        }
        removals
    }

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
        // As in `claim_expired`.
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

    fn waits(&self, since: Option<Now>, later: Later<F>) -> Waits<F> {
        let shared = self.state.clone();
        let given = Box::new(move |attachment: Option<_>| {
            later(attachment.map(|attachment| Removal::new(shared, attachment)));
        });
        Waits::Removal { since, given }
    }

    /// The ticket to remove an attachment that nobody is working on.
    fn removal(&self, state: &mut State<F>, attachment: Attachment<F>) -> Removal<F> {
        state
            .tickets
            .insert(attachment.file.key().clone(), Out::to_remove(Vec::new()));
        Removal::new(self.state.clone(), attachment)
    }

    /// Gives no more tickets to stage, takes none back, and tells all who wait.
    pub fn stop(&self) {
        let waiting = {
            let mut state = self.state.lock("manifest-stop");
            state.stopped = true;
            std::mem::take(&mut state.tickets)
        };
        for waits in waiting.into_values().flat_map(|out| out.waiting) {
            waits.tell(Outcome::Failed(Error::Stopped));
        }
    }
}

/// What has come of asking for bytes of the budget.
#[must_use]
pub enum Room<F: File> {
    /// They are the caller's.
    Reserved {
        /// To be spent, or given back.
        reservation: Reservation<F>,
        /// Some are those of the lost file: what may be left of that has to go before.
        took_over: bool,
    },
    /// They will be there once these are gone.
    ToMake {
        /// What has expired.
        expired: Vec<Removal<F>>,
        /// What would have next.
        evicted: Vec<Removal<F>>,
    },
}

/// Where a walk over the attachments that expire stands.
pub struct ExpiryCursor(Bound<Due>);

impl ExpiryCursor {
    /// Before the first.
    #[must_use]
    pub fn start() -> Self {
        Self(Bound::Unbounded)
    }
}

/// What an owner that has ended kept, the last staged first.
pub struct Owned(Vec<OwnedEntry>);

impl Owned {
    /// The entries that are still to be disowned, the last of which is the next. Some may have gone.
    pub fn entries(&self) -> impl Iterator<Item = EntryId> {
        self.0.iter().map(|&(_, entry)| entry)
    }
}

/// A snapshot of the attachments. Later changes do not show in it.
pub struct Listing<F>(Slots<Option<Entry<F>>>);

impl<F: Clone> Listing<F> {
    /// The attachments from a place of the listing on, at most `limit`, and the place that comes after
    /// them; `None` at the end.
    #[must_use]
    pub fn part(&self, from: usize, limit: usize) -> Option<(Vec<Attachment<F>>, usize)> {
        let part: Vec<_> = (from..)
            .take(limit)
            .map_while(|slot| self.0.get(slot))
            .collect();
        let next = from + part.len();
        let entries = part.into_iter().flatten();
        let attachments = entries.map(|entry| entry.attachment.clone());
        (next > from).then(|| (attachments.collect(), next))
    }

    /// The place after the last attachment.
    #[must_use]
    pub fn end(&self) -> usize {
        self.0.len()
    }

    /// The attachments, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &Attachment<F>> {
        self.0.iter().flatten().map(|entry| &entry.attachment)
    }
}
