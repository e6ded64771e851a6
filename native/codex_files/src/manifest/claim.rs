//! Tickets to remove what is staged.

use super::attachment::{Attachment, File};
use super::out::{Out, Waits};
use super::shared::Manifest;
use super::state::State;
use super::ticket::Removal;
use crate::panics;
use crate::time::Now;

/// Whoever waits to remove an attachment that somebody else is at work on. It gets the ticket when that
/// work has ended, or `None` if the attachment has gone with it, or is to stay.
pub type Later<F> = Box<dyn FnOnce(Option<Removal<F>>) + Send>;

impl<F: File> Manifest<F> {
    /// Tickets to remove those of `attachments` whose entries are still there. For one that somebody is
    /// working on `later` is called, under the lock, and may leave somebody who waits for that.
    pub fn claim(
        &self,
        attachments: &[Attachment<F>],
        mut later: impl FnMut() -> Option<Later<F>>,
    ) -> Vec<Removal<F>> {
        // As in `Manifest::claim_expired`.
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

    pub(super) fn waits(&self, since: Option<Now>, later: Later<F>) -> Waits<F> {
        let shared = self.state.clone();
        let given = Box::new(move |attachment: Option<_>| {
            later(attachment.map(|attachment| Removal::new(shared, attachment)));
        });
        Waits::Removal { since, given }
    }

    /// The ticket to remove an attachment that nobody is working on.
    pub(super) fn removal(&self, state: &mut State<F>, attachment: Attachment<F>) -> Removal<F> {
        state
            .tickets
            .insert(attachment.file.key().clone(), Out::to_remove(Vec::new()));
        Removal::new(self.state.clone(), attachment)
    }
}
