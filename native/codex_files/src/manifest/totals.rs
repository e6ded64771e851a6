//! What the manifest counts.

use super::attachment::{Attachment, File};

/// What the manifest counts, kept up to date with every change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Attachments whose `persist` is true.
    pub persistent_count: u64,
    /// Their bytes. Sizes may be claims of callers: 128 bits hold any sum of them.
    pub persistent_bytes: u128,
    /// Attachments whose `persist` is false, even if their TTL is infinite.
    pub expirable_count: u64,
    /// Their bytes.
    pub expirable_bytes: u128,
    /// Attachments that have an owner.
    pub owned_count: u64,
}

impl Totals {
    /// The count and the bytes that an attachment is a part of.
    pub(super) fn of<F: File>(&mut self, attachment: &Attachment<F>) -> (&mut u64, &mut u128) {
        if attachment.retention.persist {
            (&mut self.persistent_count, &mut self.persistent_bytes)
        } else {
            (&mut self.expirable_count, &mut self.expirable_bytes)
        }
    }
}

/// [`Totals`], and what comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// The counters.
    pub totals: Totals,
    /// The budget, if there is one.
    pub max_bytes: Option<u64>,
    /// When the first attachment without an owner expires, in milliseconds since the Unix epoch, UTC, on a wall
    /// clock that has not been set since the attachment was staged.
    pub next_expiry_at_ms: Option<i64>,
}
