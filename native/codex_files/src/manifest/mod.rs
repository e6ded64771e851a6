//! The manifest: which checksums are staged, for how long, and who is working on which of them.
//!
//! A pure data structure behind one mutex: it knows no path, makes no system call and reads no clock.
//! Work on the disk is *admitted* here and gets a ticket ([`Staging`] or [`Removal`]), runs without any
//! lock, and is *committed*. A ticket that is dropped instead leaves the manifest as if nothing had begun.
//! While a ticket for a checksum is out, everybody else who wants to work on it waits.

pub mod attachment;
pub mod budget;
mod claim;
mod expiry;
mod listing;
mod out;
mod owned;
mod reservation;
mod room;
mod shared;
mod slots;
mod state;
mod ticket;
mod totals;
pub mod waiting;

use self::attachment::{Attachment, File};
use self::budget::Budget;
use self::out::{Out, Waits};
use self::waiting::{Outcome, Waiter};
use crate::checksum::Checksum;
use crate::error::{Error, Result};
use crate::retention::Keep;
use crate::time::Now;

pub use self::claim::Later;
pub use self::expiry::ExpiryCursor;
pub use self::listing::Listing;
pub use self::owned::Owned;
pub use self::reservation::Reservation;
pub use self::room::Room;
pub use self::shared::Manifest;
pub use self::ticket::{Removal, Staging};
pub use self::totals::{Metrics, Totals};

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
