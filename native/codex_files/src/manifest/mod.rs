//! The manifest: which checksums are staged, for how long, and who is working on which of them.
//!
//! A pure data structure behind one mutex: it knows no path, makes no system call and reads no clock.
//! Work on the disk is *admitted* here and gets a ticket ([`Staging`] or [`Removal`]), runs without any
//! lock, and is *committed*. A ticket that is dropped instead leaves the manifest as if nothing had begun.
//! While a ticket for a checksum is out, everybody else who wants to work on it waits.

pub mod attachment;
mod slots;
mod state;
mod ticket;
pub mod waiting;

use std::ops::Bound;
use std::sync::Arc;

use self::attachment::{Attachment, File};
use self::slots::Slots;
use self::state::{Due, Entry, Shared, State, Waits};
use self::waiting::{Outcome, Waiter};
use crate::checksum::Checksum;
use crate::error::{Error, Result};
use crate::panics;
use crate::retention::Retention;
use crate::time::Now;

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
/// work has ended, or `None` if the attachment has gone with it.
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

    /// Asks to stage `checksum`. `waiter` is called for, under the lock, only if the caller must
    /// wait. `lost` is a file that was found to be missing: its entry does not count as known.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn admit(
        &self,
        checksum: &Checksum,
        retention: Retention,
        lost: Option<&F>,
        waiter: impl FnOnce() -> Waiter<F>,
    ) -> Result<Admission<F>> {
        let mut state = self.state.lock("manifest-admit");
        if state.stopped {
            return Err(Error::Stopped);
        }
        if let Some(waiting) = state.tickets.get_mut(checksum) {
            waiting.push(Waits::Staging {
                retention,
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
        state.tickets.insert(checksum.clone(), Vec::new());
        Ok(Admission::Lead(Staging::new(
            self.state.clone(),
            checksum.clone(),
            retention,
            replaces,
        )))
    }

    /// Stages a known file again: its insertion time becomes `now`, its retention the merged one.
    /// `None` if it has been removed, or is being removed, since it was looked up.
    #[must_use]
    pub fn refresh(&self, file: &F, retention: Retention, now: Now) -> Option<Attachment<F>> {
        let mut state = self.state.lock("manifest-refresh");
        if state.stopped || state.tickets.contains_key(file.key()) {
            return None;
        }
        state.refresh(file, retention, now)
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
                Some(waiting) => waiting.extend(later().map(|later| self.waits(later))),
            }
            panics::point("manifest-claimed");
        }
        removals
    }

    fn waits(&self, later: Later<F>) -> Waits<F> {
        let shared = self.state.clone();
        Waits::Removal(Box::new(move |attachment| {
            later(attachment.map(|attachment| Removal::new(shared, attachment)));
        }))
    }

    /// The ticket to remove an attachment that nobody is working on.
    fn removal(&self, state: &mut State<F>, attachment: Attachment<F>) -> Removal<F> {
        state
            .tickets
            .insert(attachment.file.key().clone(), Vec::new());
        Removal::new(self.state.clone(), attachment)
    }

    /// Gives no more tickets to stage, takes none back, and tells all who wait.
    pub fn stop(&self) {
        let waiting = {
            let mut state = self.state.lock("manifest-stop");
            state.stopped = true;
            std::mem::take(&mut state.tickets)
        };
        for waits in waiting.into_values().flatten() {
            waits.tell(Outcome::Failed(Error::Stopped));
        }
    }
}

/// Where a walk over the expired attachments stands.
pub struct ExpiryCursor(Bound<Due>);

impl ExpiryCursor {
    /// Before the first.
    #[must_use]
    pub fn start() -> Self {
        Self(Bound::Unbounded)
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

    /// The attachments, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &Attachment<F>> {
        self.0.iter().flatten().map(|entry| &entry.attachment)
    }
}
