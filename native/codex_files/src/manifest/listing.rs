//! A listing of what is staged.

use super::attachment::Attachment;
use super::slots::Slots;
use super::state::Entry;

/// A snapshot of the attachments. Later changes do not show in it.
pub struct Listing<F>(pub(super) Slots<Option<Entry<F>>>);

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
