//! Where a staging meets the manifest: it asks to be admitted, and enters the file that it has put in
//! place.

use std::sync::Arc;

use super::{Ask, Attachment, Outcome, Registry, Reservation, StagedFile, Staging, Waiter, names};
use crate::checksum::Checksum;
use crate::disk::removing;
use crate::error::{Error, Result};
use crate::manifest::Admission;
use crate::manifest::waiting::Origin;
use crate::name::Want;
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
/// still there, as it is asked for. What it lacks of that, it is given. `make_waiter` is called if the caller
/// has to wait.
pub(super) fn admit(
    registry: &Registry,
    checksum: &Checksum,
    ask: &Ask<'_>,
    mut make_waiter: impl FnMut() -> Waiter,
) -> Result<Admitted> {
    let mut lost: Option<Arc<StagedFile>> = None;
    loop {
        let waiter = || wanting(&ask.want, make_waiter());
        match registry
            .manifest
            .admit(checksum, ask.keep, lost.as_ref(), waiter)?
        {
            Admission::Waiting => return Ok(Admitted::Waiting),
            Admission::Lead(staging) => {
                // Until the names that it is given are entered, or have gone again.
                let _work = registry.work()?;
                return Ok(match names::complete(registry, &staging, ask)? {
                    Some((file, room)) => Admitted::Known(commit(staging, &file, room)?),
                    None => Admitted::Lead(staging),
                });
            }
            Admission::Known(file) if file.has(&ask.want) => {
                if let Some(known) = registry.manifest.refresh(&file, ask.keep, Now::read()) {
                    return Ok(Admitted::Known(known));
                }
            }
            Admission::Known(file) => lost = Some(file),
        }
    }
}

/// The waiter of a caller that is not content with any name: it asks again if the file has not got what
/// it wants.
fn wanting(want: &Want<'_>, waiter: Waiter) -> Waiter {
    if *want == Want::default() {
        return waiter;
    }
    let want = Arc::new(want.clone().into_owned());
    let wanted = want.clone();
    let answer = move |outcome| {
        waiter.answer(match outcome {
            Outcome::Staged { attachment, .. } if !attachment.file.has_too(&wanted) => {
                Outcome::Retry
            }
            outcome => outcome,
        });
    };
    Waiter::new(answer).wanting(want)
}

/// Renews what is staged, if the file is still there as it is wanted, nobody is at work on it, and a look
/// at it waits for no network and no other program.
pub(super) fn renew(
    registry: &Registry,
    file: &Arc<StagedFile>,
    keep: Keep,
    want: &Want<'_>,
) -> Option<Attachment> {
    let named = file.named(want.name.as_deref())?;
    if !file.is_local() || !named.is_local() || !file.has(want) {
        return None;
    }
    registry.manifest.refresh(file, keep, Now::read())
}

/// Enters a file that is in place under the ticket for its checksum, as it is asked for.
pub(super) fn enter(
    registry: &Registry,
    staging: Staging,
    file: StagedFile,
    room: Reservation,
    ask: &Ask<'_>,
) -> Outcome {
    let file = Arc::new(file);
    let mut room = Some(room);
    // The ticket is still out: nobody else works on what belongs to this checksum.
    if let Err(error) = names::complete_new(registry, &staging, &file, ask, &mut room) {
        discard(&file);
        return Outcome::Failed(error);
    }
    if let Some(lost) = staging.replaces() {
        removing::give_way(lost, &file);
    }
    match commit(staging, &file, room) {
        Ok(attachment) => Outcome::Staged {
            attachment,
            origin: Origin::Copied,
        },
        Err(error) => Outcome::Failed(error),
    }
}

fn commit(
    staging: Staging,
    file: &Arc<StagedFile>,
    room: Option<Reservation>,
) -> Result<Attachment> {
    let staging = match room {
        Some(room) => staging.spending(room),
        None => staging,
    };
    let committed = staging.commit(file, Now::read());
    committed.inspect_err(|_| discard(file))
}

/// Removes a file that nobody keeps. If it cannot be removed now, the next start does it.
fn discard(file: &StagedFile) {
    let _ = removing::remove(file);
    file.area().remove_if_empty();
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
