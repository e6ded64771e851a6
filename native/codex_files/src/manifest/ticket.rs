//! The right to work on one checksum: committed, given up, or dropped.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::attachment::{Attachment, File};
use super::out::{Out, Waits};
use super::reservation::Reservation;
use super::shared::Shared;
use super::state::State;
use super::waiting::Outcome;
use crate::checksum::Checksum;
use crate::error::{Error, Result};
use crate::name::Want;
use crate::retention::Keep;
use crate::time::Now;

/// Dropped, it is given back and all who wait ask again.
struct Ticket<F: File> {
    state: Arc<Shared<F>>,
    key: Checksum,
    /// Not given back yet: the next ticket for this checksum is not ours to give back.
    out: bool,
}

/// Those who waited for a ticket that has been given back. They are told without the lock.
struct GivenBack<F: File> {
    /// Each of them, and how the work has ended for it.
    told: Vec<(Waits<F>, Outcome<F>)>,
    /// The one that has the ticket now, and the entry that it is to remove.
    handed_on: Option<(Waits<F>, Attachment<F>)>,
}

impl<F: File> Ticket<F> {
    /// Gives the ticket back, or on to the first who waits to remove the entry that is there. Those
    /// who came after that one go on waiting. `outcome` is that of one who waits to stage.
    fn give_back(
        &mut self,
        state: &mut State<F>,
        mut outcome: impl FnMut(&mut State<F>, Keep) -> Outcome<F>,
    ) -> GivenBack<F> {
        self.out = false;
        let out = state.tickets.remove(&self.key);
        let mut waiting = out.map_or_else(Vec::new, |out| out.waiting).into_iter();
        let mut told = Vec::with_capacity(waiting.len());
        let mut handed_on = None;
        for waits in waiting.by_ref() {
            let outcome = match waits {
                Waits::Staging { keep, .. } => outcome(state, keep),
                Waits::Removal { since, .. } => {
                    if let Some(attachment) = state.unless_kept(&self.key, since) {
                        handed_on = Some((waits, attachment));
                        break;
                    }
                    Outcome::Retry
                }
            };
            told.push((waits, outcome));
        }
        if handed_on.is_some() {
            let later = Out::to_remove(waiting.collect());
            state.tickets.insert(self.key.clone(), later);
        }
        GivenBack { told, handed_on }
    }

    /// Gives the ticket back after `change`, all at once, and tells those who wait. What `change`
    /// leaves over is dropped without the lock.
    fn end<T>(mut self, change: impl FnOnce(&mut State<F>) -> T, outcome: &Outcome<F>) {
        let shared = self.state.clone();
        let (_left_over, given_back) = {
            let mut state = shared.lock("manifest-end");
            let left_over = change(&mut state);
            (
                left_over,
                self.give_back(&mut state, |_, _| outcome.clone()),
            )
        };
        given_back.tell();
    }
}

impl<F: File> GivenBack<F> {
    /// Tells one after the other.
    fn tell(self) {
        // Whoever has the ticket now comes first: were somebody else's answer to panic, the ticket would
        // be out for ever.
        if let Some((Waits::Removal { given, .. }, attachment)) = self.handed_on {
            given(Some(attachment));
        }
        for (waits, outcome) in self.told {
            waits.tell(outcome);
        }
    }
}

impl<F: File> Drop for Ticket<F> {
    fn drop(&mut self) {
        if !self.out {
            return;
        }
        let shared = self.state.clone();
        let given_back = self.give_back(&mut shared.lock_in_drop(), |_, _| Outcome::Retry);
        given_back.tell();
    }
}

/// The ticket to put a checksum's file in place.
#[must_use]
pub struct Staging<F: File> {
    ticket: Ticket<F>,
    keep: Keep,
    /// The file of the entry that is there, found missing or changed.
    replaces: Option<F>,
    /// The bytes of its file, and of the other names of that.
    reservation: Option<Reservation<F>>,
}

impl<F: File> Staging<F> {
    /// For a ticket that has been noted in the state.
    pub(super) fn new(
        state: Arc<Shared<F>>,
        key: Checksum,
        keep: Keep,
        replaces: Option<F>,
    ) -> Self {
        let ticket = Ticket {
            state,
            key,
            out: true,
        };
        Self {
            ticket,
            keep,
            replaces,
            reservation: None,
        }
    }

    /// Takes the bytes that the commit is to spend.
    pub fn spending(mut self, reservation: Reservation<F>) -> Self {
        self.reservation = Some(reservation);
        self
    }

    /// The checksum admitted.
    #[must_use]
    pub fn checksum(&self) -> &Checksum {
        &self.ticket.key
    }

    /// The file that was found missing or changed, if that is why this one is staged.
    #[must_use]
    pub fn replaces(&self) -> Option<&F> {
        self.replaces.as_ref()
    }

    /// What those who wait want of the file, by now.
    #[must_use]
    pub fn wanted(&self) -> BTreeSet<Arc<Want<'static>>> {
        let wanted: Vec<_> = {
            let state = self.ticket.state.lock("manifest-wanted");
            let out = state.tickets.get(&self.ticket.key);
            let waiting = out.iter().flat_map(|out| &out.waiting);
            waiting
                .filter_map(|waits| match waits {
                    Waits::Staging { waiter, .. } => waiter.want.clone(),
                    Waits::Removal { .. } => None,
                })
                .collect()
        };
        // Sorted without the lock.
        wanted.into_iter().collect()
    }

    /// Enters `file`, which is in place, spends what was reserved for it, and answers those who wait as stagings of a known
    /// checksum, in order of arrival.
    ///
    /// # Errors
    /// [`Error::Stopped`]: nobody keeps the file then, and it should be removed.
    pub fn commit(mut self, file: &F, now: Now) -> Result<Attachment<F>> {
        let shared = self.ticket.state.clone();
        let (attachment, given_back) = {
            let mut state = shared.lock("manifest-commit");
            if state.stopped {
                self.ticket.out = false;
                return Err(Error::Stopped);
            }
            let attachment = state.enter(file, self.keep, now);
            if let Some(reservation) = self.reservation.as_mut() {
                reservation.spend(&mut state);
            }
            let refresh = |state: &mut State<F>, keep| {
                let known = state.refresh(file, keep, now);
                known.map_or(Outcome::Retry, Outcome::known)
            };
            (attachment, self.ticket.give_back(&mut state, refresh))
        };
        given_back.tell();
        Ok(attachment)
    }

    /// Gives up: the error goes to all who wait.
    pub fn fail(self, error: Error) {
        self.ticket.end(|_| (), &Outcome::Failed(error));
    }
}

/// The ticket to remove one attachment. Dropped, the attachment stays.
#[must_use]
pub struct Removal<F: File> {
    ticket: Ticket<F>,
    attachment: Attachment<F>,
}

impl<F: File> Removal<F> {
    /// For a ticket that has been noted in the state.
    pub(super) fn new(state: Arc<Shared<F>>, attachment: Attachment<F>) -> Self {
        let ticket = Ticket {
            state,
            key: attachment.file.key().clone(),
            out: true,
        };
        Self { ticket, attachment }
    }

    /// What is to be removed.
    #[must_use]
    pub fn attachment(&self) -> &Attachment<F> {
        &self.attachment
    }

    /// Takes the entry out: its file is gone.
    pub fn commit(self) -> Attachment<F> {
        let Self { ticket, attachment } = self;
        ticket.end(|state| state.take(&attachment.file), &Outcome::Retry);
        attachment
    }
}
