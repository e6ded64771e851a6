//! Tickets that are out, and who waits for them to come back.

use super::attachment::Attachment;
use super::waiting::{Outcome, Waiter};
use crate::retention::Keep;
use crate::time::Now;

/// The ticket for a checksum, which is out.
pub(super) struct Out<F> {
    /// It is one to remove the attachment.
    pub(super) removes: bool,
    /// Who waits for it to come back, in order of arrival: to be told without the lock.
    pub(super) waiting: Vec<Waits<F>>,
}

impl<F> Out<F> {
    pub(super) fn to_stage() -> Self {
        Self {
            removes: false,
            waiting: Vec::new(),
        }
    }

    pub(super) fn to_remove(waiting: Vec<Waits<F>>) -> Self {
        Self {
            removes: true,
            waiting,
        }
    }
}

/// Somebody who waits for the ticket of a checksum to come back.
pub(super) enum Waits<F> {
    /// To stage the same checksum.
    Staging { keep: Keep, waiter: Waiter<F> },
    /// To remove the entry that is being worked on.
    Removal {
        /// When nothing kept it, if it is to stay where something has kept it since.
        since: Option<Now>,
        /// Told of the entry as it is then, it has the ticket for it; `None` if there is nothing to
        /// remove.
        given: Box<dyn FnOnce(Option<Attachment<F>>) + Send>,
    },
}

impl<F> Waits<F> {
    /// Tells that the work has ended, and that this one has no ticket.
    pub(super) fn tell(self, outcome: Outcome<F>) {
        match self {
            Self::Staging { waiter, .. } => waiter.answer(outcome),
            Self::Removal { given, .. } => given(None),
        }
    }
}
