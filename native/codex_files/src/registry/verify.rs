//! Verifying what is staged, by reading all of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::remove::BATCH;
use super::reply::{Reply, replying};
use super::{Attachment, Registry};
use crate::disk::verifying;
use crate::error::{Error, Failures, Result};
use crate::panics;
use crate::threads::copiers;

/// What reading all that is staged has come to.
#[derive(Debug, Default)]
pub struct Verified {
    /// How many attachments are as they were staged.
    pub intact: u64,
    /// The files of the others that are not, and why.
    pub damaged: Failures,
}

/// Reads every file that is staged when it begins, and replies with what is damaged, which is copied anew
/// when it is next staged. It holds up nobody: it has threads of its own, takes turns with whoever hashes
/// besides, and no ticket.
pub fn verify(registry: &Arc<Registry>, reply: Reply<Verified>) {
    let registry = registry.clone();
    let mut walk = Walk::default();
    copiers::read(replying(reply, move || walk.step(&registry)));
}

/// A walk over every attachment.
#[derive(Default)]
struct Walk {
    batch: std::vec::IntoIter<Attachment>,
    /// Where the next batch begins, in a listing.
    next: usize,
    /// Where the listing ended at first: what is staged later is not waited for.
    end: Option<usize>,
    verified: Verified,
}

impl Walk {
    /// Verifies the next attachment; the result, if there is none.
    fn step(&mut self, registry: &Registry) -> Option<Result<Verified>> {
        panics::point("verify");
        let next = self.next(registry);
        if registry.stopping.load(Ordering::Relaxed) {
            return Some(Err(Error::Stopped));
        }
        let Some(attachment) = next else {
            return Some(Ok(std::mem::take(&mut self.verified)));
        };
        self.verify(registry, &attachment).err().map(Err)
    }

    fn next(&mut self, registry: &Registry) -> Option<Attachment> {
        loop {
            if let Some(attachment) = self.batch.next() {
                return Some(attachment);
            }
            // One listing for all would keep whatever changes meanwhile.
            let listing = registry.manifest.list();
            let end = *self.end.get_or_insert_with(|| listing.end());
            let left = end.saturating_sub(self.next);
            let (batch, next) = listing.part(self.next, left.min(BATCH))?;
            (self.batch, self.next) = (batch.into_iter(), next);
        }
    }

    fn verify(&mut self, registry: &Registry, attachment: &Attachment) -> Result<()> {
        let file = &attachment.file;
        let damages = verifying::damages(file, &registry.stopping)?;
        if damages.is_empty() {
            self.verified.intact += 1;
            return Ok(());
        }
        // What has been removed or put in place anew meanwhile only looks lost.
        let there = registry.manifest.get(&file.checksum);
        if there.is_some_and(|there| Arc::ptr_eq(&there.file, file)) {
            self.verified.damaged.extend(damages);
        }
        Ok(())
    }
}
