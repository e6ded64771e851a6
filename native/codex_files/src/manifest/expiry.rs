//! What has expired, the oldest deadline first.

use std::ops::Bound;

use super::attachment::{Attachment, File};
use super::shared::Manifest;
use super::state::{Due, State};
use super::ticket::Removal;
use crate::panics;
use crate::time::{Deadline, Now};

/// Where a walk over the attachments that expire stands.
pub struct ExpiryCursor(pub(super) Bound<Due>);

impl ExpiryCursor {
    /// Before the first.
    #[must_use]
    pub fn start() -> Self {
        Self(Bound::Unbounded)
    }
}

impl<F: File> Manifest<F> {
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
}

impl<F: File> State<F> {
    /// Up to `limit` attachments that have expired `now`, the oldest deadline first, after `from`;
    /// and where the last of them is.
    fn due(&self, from: Bound<Due>, now: Now, limit: usize) -> (Vec<Attachment<F>>, Option<Due>) {
        let (due, attachments): (Vec<_>, _) = self
            .expiring(from, Deadline(now.monotonic_ns))
            .take(limit)
            .map(|(due, entry)| (due, entry.attachment.clone()))
            .unzip();
        (attachments, due.last().copied())
    }
}
