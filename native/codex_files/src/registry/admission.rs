//! Where a staging meets the manifest: it asks to be admitted, and enters the file that it has put in
//! place.

use std::sync::Arc;

use super::{Attachment, Outcome, Registry, Reservation, StagedFile, Staging, Waiter};
use crate::checksum::Checksum;
use crate::error::{Error, Result};
use crate::manifest::Admission;
use crate::manifest::waiting::Origin;
use crate::panics::contained;
use crate::retention::Keep;
use crate::time::Now;

/// How a caller hears of the outcome.
pub enum Answer {
    /// This is it.
    Now(Outcome),
    /// A waiter that the caller has made gets it.
    ByWaiter,
}

/// What becomes of a request to stage.
pub(super) enum Admitted {
    /// The checksum is known, its file is there, and it has been renewed.
    Known(Attachment),
    /// Put the file in place, and [`enter`] it.
    Lead(Staging),
    /// Somebody else is at work on the checksum, and the waiter waits for that.
    Waiting,
}

/// Asks the manifest until it has an answer that holds: a known checksum counts only if its file is
/// still there. `make_waiter` is called if the caller has to wait.
pub(super) fn admit(
    registry: &Registry,
    checksum: &Checksum,
    keep: Keep,
    mut make_waiter: impl FnMut() -> Waiter,
) -> Result<Admitted> {
    let mut lost: Option<Arc<StagedFile>> = None;
    loop {
        match registry
            .manifest
            .admit(checksum, keep, lost.as_ref(), &mut make_waiter)?
        {
            Admission::Waiting => return Ok(Admitted::Waiting),
            Admission::Lead(staging) => return Ok(Admitted::Lead(staging)),
            Admission::Known(file) if file.is_intact() => {
                if let Some(known) = registry.manifest.refresh(&file, keep, Now::read()) {
                    return Ok(Admitted::Known(known));
                }
            }
            Admission::Known(file) => lost = Some(file),
        }
    }
}

/// Renews what is staged, if the file is still there and nobody is at work on it.
pub(super) fn renew(registry: &Registry, file: &Arc<StagedFile>, keep: Keep) -> Option<Attachment> {
    if !file.is_intact() {
        return None;
    }
    registry.manifest.refresh(file, keep, Now::read())
}

/// Enters a file that is in place under the ticket for its checksum.
pub(super) fn enter(staging: Staging, file: StagedFile, room: Reservation) -> Outcome {
    let file = Arc::new(file);
    // The ticket is still out: nobody else works on what belongs to this checksum.
    if let Some(lost) = staging.replaces() {
        lost.give_way_to(&file);
    }
    match staging.spending(room).commit(&file, Now::read()) {
        Ok(attachment) => Outcome::Staged {
            attachment,
            origin: Origin::Copied,
        },
        Err(error) => {
            // Nobody keeps it. If it cannot be removed now, the next start does it.
            let _ = file.remove();
            file.area().remove_if_empty();
            Outcome::Failed(error)
        }
    }
}

/// The error is the outcome, also for all who wait for the ticket.
pub(super) fn fail(staging: Staging, error: Error) -> Outcome {
    staging.fail(error.clone());
    Outcome::Failed(error)
}

/// Runs what stages; an error or a panic is the outcome.
pub(super) fn answer(run: impl FnOnce() -> Result<Answer>) -> Answer {
    contained(run)
        .and_then(|result| result)
        .unwrap_or_else(|error| Answer::Now(Outcome::Failed(error)))
}
