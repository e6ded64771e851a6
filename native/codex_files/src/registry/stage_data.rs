//! Staging a content that is in memory, in the registry's own area.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use sha2::{Digest, Sha256};

use super::admission::{Admitted, Answer, admit, answer, enter, fail, renew};
use super::room::reserve;
use super::{
    Ask, Attachment, MakeWaiter, Outcome, Registry, Request, StagedFile, Staging, Waiter, names,
};
use crate::bytes::{Bytes, PIECE};
use crate::checksum::{self, Content};
use crate::disk::area::{Area, PublishError};
use crate::disk::scratch;
use crate::disk::source::INLINE_LIMIT;
use crate::error::{Error, Result};
use crate::name::Want;
use crate::panics::{self, contained};
use crate::retention::Keep;
use crate::threads::copiers;
use crate::turns;

/// Up to so many bytes are hashed on a scheduler's thread: some 15 us of work, 50 where the processor
/// has no instructions for it.
const REFRESH_LIMIT: usize = 16 * 1024;

/// Stages a known content again, if that takes no more than a hash of few bytes and a look at its copy,
/// as [`super::stage_at::refresh`] takes.
#[must_use]
pub fn refresh(registry: &Registry, content: &[u8], name: &[u8], keep: Keep) -> Option<Attachment> {
    if content.len() > REFRESH_LIMIT {
        return None;
    }
    let checksum = checksum::key(&checksum::digest(content));
    let file = registry.manifest.lookup(&checksum)?;
    renew(registry, &file, keep, &Want::named(name, false))
}

/// Stages a content. If that takes long it is `kept` for a copier.
pub fn stage_data(
    registry: &Arc<Registry>,
    content: &[u8],
    kept: impl FnOnce() -> Box<dyn Bytes>,
    to: &Request,
    make_waiter: MakeWaiter<'_>,
) -> Answer {
    answer(|| {
        if content.len() <= INLINE_LIMIT {
            let ask = to.ask(false);
            return stage_small(registry, content, &ask, make_waiter).map(|(_, answer)| answer);
        }
        let (registry, to, kept) = (registry.clone(), to.clone(), kept());
        let size = content.len() as u64;
        Ok(by_copier(size, make_waiter(), move |waiter| {
            stage_large(&registry, &*kept, size, &to, waiter)
        }))
    })
}

/// Stages a small content, at once. It is written only if it is new.
pub(super) fn stage_small(
    registry: &Registry,
    content: &[u8],
    ask: &Ask<'_>,
    make_waiter: MakeWaiter<'_>,
) -> Result<(Content, Answer)> {
    let _work = registry.work()?;
    let digest = checksum::digest(content);
    let checksum = checksum::key(&digest);
    let size = content.len() as u64;
    let answer = match admit(registry, &checksum, ask, make_waiter)? {
        Admitted::Known(attachment) => Answer::Now(Outcome::known(attachment)),
        Admitted::Waiting => Answer::ByWaiter,
        Admitted::Lead(staging) => {
            let write = |area: &Arc<Area>, staging: &Staging| {
                let (name, mode) = names::first_name(staging, ask);
                let replaces = staging.replaces().map(|file| &**file);
                scratch::publish_content(area, &checksum, name, content, replaces, mode)
            };
            Answer::Now(put_in_place(registry, staging, size, ask, write))
        }
    };
    Ok((Content { digest, size }, answer))
}

/// Has a copier stage something of `size` bytes. The outcome is the waiter's, if that is still here in
/// the end: whoever holds the ticket that is waited for has it otherwise.
pub(super) fn by_copier(
    size: u64,
    waiter: Waiter,
    stage: impl FnOnce(&mut Option<Waiter>) -> Result<Outcome> + Send + 'static,
) -> Answer {
    copiers::run(size, move || {
        let mut waiter = Some(waiter);
        let staged = contained(|| {
            panics::point("copier");
            stage(&mut waiter)
        });
        if let Some(waiter) = waiter {
            waiter.answer(
                staged
                    .and_then(|staged| staged)
                    .unwrap_or_else(Outcome::Failed),
            );
        }
    });
    Answer::ByWaiter
}

/// The waiter, for whoever is at work on the same checksum.
pub(super) fn hand_over(waiter: &mut Option<Waiter>) -> Waiter {
    waiter.take().unwrap_or_else(|| Waiter::new(drop))
}

/// Stages a large content. It is written only if it is new.
fn stage_large(
    registry: &Registry,
    content: &dyn Bytes,
    size: u64,
    to: &Request,
    waiter: &mut Option<Waiter>,
) -> Result<Outcome> {
    let _work = registry.work()?;
    let mut hasher = Sha256::new();
    each_piece(registry, content, |piece| {
        let _turn = turns::turn();
        hasher.update(piece);
        Ok(())
    })?;
    let checksum = checksum::key(&hasher.finalize().into());
    let ask = Ask {
        may_take_long: true,
        ..to.ask(false)
    };
    let staging = match admit(registry, &checksum, &ask, || hand_over(waiter))? {
        Admitted::Known(attachment) => return Ok(Outcome::known(attachment)),
        Admitted::Waiting => return Ok(Outcome::Retry),
        Admitted::Lead(staging) => staging,
    };
    let write = |area: &Arc<Area>, staging: &Staging| {
        let (name, mode) = names::first_name(staging, &ask);
        let scratch = scratch::numbered(area, mode)?;
        each_piece(registry, content, |piece| scratch.write(piece))?;
        scratch.publish(&checksum, name, size, mode)
    };
    Ok(put_in_place(registry, staging, size, &ask, write))
}

/// Has `write` put a file of `size` bytes in place, and enters it.
fn put_in_place(
    registry: &Registry,
    staging: Staging,
    size: u64,
    ask: &Ask<'_>,
    mut write: impl FnMut(&Arc<Area>, &Staging) -> Result<StagedFile, PublishError>,
) -> Outcome {
    let put = reserve(registry, size, staging.replaces()).and_then(|room| {
        let write = |area: &Arc<Area>| write(area, &staging);
        let file = registry.areas.with_area(ask.staging_dir, write)?;
        Ok((file, room))
    });
    match put {
        Ok((file, room)) => enter(registry, staging, file, room, ask),
        Err(error) => fail(staging, error),
    }
}

/// Shows a content to `see`, piece by piece, until the registry stops.
fn each_piece(
    registry: &Registry,
    content: &dyn Bytes,
    mut see: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    content.each(&mut |bytes| {
        bytes.chunks(PIECE).try_for_each(|piece| {
            if registry.stopping.load(Ordering::Relaxed) {
                return Err(Error::Stopped);
            }
            see(piece)
        })
    })
}
