//! Room for a file in the budget, and what has to go to make some.

use std::ops::Bound;

use super::attachment::{Attachment, File};
use super::budget::WhenFull;
use super::expiry::ExpiryCursor;
use super::reservation::Reservation;
use super::shared::Manifest;
use super::state::{Due, State};
use super::ticket::Removal;
use crate::error::{Error, Result};
use crate::time::{Deadline, Now};

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

impl<F: File> Manifest<F> {
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
        // As in `Manifest::claim_expired`.
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
}

/// What is to go to make room.
struct Victims<F> {
    expired: Vec<Attachment<F>>,
    evicted: Vec<Attachment<F>>,
    /// The last of them.
    last: Option<Due>,
}

impl<F> Default for Victims<F> {
    fn default() -> Self {
        Self {
            expired: Vec::new(),
            evicted: Vec::new(),
            last: None,
        }
    }
}

impl<F: File> State<F> {
    /// What is to go, after `from`, so that `lacking` bytes are there; `None` if what may go does not do.
    fn victims(
        &self,
        from: Bound<Due>,
        lacking: u128,
        when_full: WhenFull,
        now: Now,
    ) -> Option<Victims<F>> {
        let until = match when_full {
            WhenFull::Evict if self.usage.evictable < lacking => return None,
            WhenFull::Evict => Deadline::NEVER,
            WhenFull::Refuse => Deadline(now.monotonic_ns),
        };
        let mut victims = Victims::default();
        let mut freed = 0;
        for (due, entry) in self.expiring(from, until) {
            if entry.stored == 0 || self.tickets.contains_key(entry.attachment.file.key()) {
                continue;
            }
            freed += u128::from(entry.stored);
            victims.last = Some(due);
            if entry.has_expired(now) {
                victims.expired.push(entry.attachment.clone());
            } else {
                victims.evicted.push(entry.attachment.clone());
            }
            if freed >= lacking {
                return Some(victims);
            }
        }
        None
    }
}
