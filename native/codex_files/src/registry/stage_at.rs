//! Staging under a checksum and at a destination that the caller chose.

use std::path::PathBuf;
use std::sync::Arc;

use super::admission::{Admitted, Answer, admit, answer, enter, fail, renew};
use super::room::ForSource;
use super::{Ask, Attachment, MakeWaiter, Outcome, Registry, Staging, names};
use crate::checksum::Checksum;
use crate::disk::elsewhere;
use crate::disk::file_id::FileId;
use crate::disk::source::{self, INLINE_LIMIT, Source};
use crate::disk::staged_file::StagedFile;
use crate::disk::staging_dir::StagingDir;
use crate::error::{Error, Result};
use crate::name::Want;
use crate::panics::{self, contained};
use crate::retention::Keep;
use crate::threads::copiers;

/// What is to be staged, and where.
#[derive(Clone, Debug)]
pub struct StageAt {
    /// The manifest key. In the form of a SHA-256 digest it is verified against the content.
    pub checksum: Checksum,
    /// The name to report.
    pub name: Box<[u8]>,
    /// How long to keep it.
    pub keep: Keep,
    /// The size to report, in bytes.
    pub size: u64,
    /// What to copy.
    pub source: PathBuf,
    /// Where to.
    pub destination: PathBuf,
    /// Where the records of what lies elsewhere are kept.
    pub staging_dir: StagingDir,
}

impl StageAt {
    /// A known checksum is staged again as it is.
    fn ask(&self) -> Ask<'_> {
        Ask {
            keep: self.keep,
            want: Want::default(),
            staging_dir: &self.staging_dir,
            may_take_long: false,
        }
    }
}

/// Stages a known checksum again if that takes no more than a look at a file of this machine. That
/// is short enough for a scheduler's thread, if not for nothing: what no cache leads to any more is
/// read from the disk.
#[must_use]
pub fn refresh(registry: &Registry, checksum: &[u8], keep: Keep) -> Option<Attachment> {
    let file = registry.manifest.lookup(checksum)?;
    renew(registry, &file, keep, &Want::default())
}

/// Stages a file under the caller's checksum.
pub fn stage_at(
    registry: &Arc<Registry>,
    request: &StageAt,
    make_waiter: MakeWaiter<'_>,
) -> Answer {
    answer(|| {
        let staging = match admit(registry, &request.checksum, &request.ask(), make_waiter)? {
            Admitted::Known(attachment) => return Ok(Answer::Now(Outcome::known(attachment))),
            Admitted::Waiting => return Ok(Answer::ByWaiter),
            Admitted::Lead(staging) => staging,
        };
        // From here on the ticket gives an error to all who wait.
        let source = open(registry, request);
        let size = source.as_ref().map_or(0, Source::size);
        if size <= INLINE_LIMIT as u64 {
            let outcome = put_in_place(registry, request, source, staging);
            return Ok(Answer::Now(outcome));
        }
        let (registry, request, waiter) = (registry.clone(), request.clone(), make_waiter());
        copiers::run(size, move || {
            let copied = contained(|| {
                panics::point("copier");
                put_in_place(&registry, &request, open(&registry, &request), staging)
            });
            waiter.answer(copied.unwrap_or_else(Outcome::Failed));
        });
        Ok(Answer::ByWaiter)
    })
}

fn open<'a>(registry: &'a Registry, request: &'a StageAt) -> Result<Source<'a>> {
    let seen = FileId::of(&source::look(&request.source)?);
    let there = elsewhere::look_at_destination(&request.destination)?;
    if there.is_some_and(|there| there == seen) {
        return Err(Error::DestinationIsSource(request.source.as_path().into()));
    }
    Ok(Source::open(&request.source)?.until(&registry.stopping))
}

fn put_in_place(
    registry: &Registry,
    request: &StageAt,
    source: Result<Source<'_>>,
    staging: Staging,
) -> Outcome {
    let copied = source.and_then(|source| {
        let work = registry.work()?;
        let room = ForSource::reserve(registry, &source, Some(&staging))?;
        let file = copy(registry, request, &source, &staging, &room)?;
        Ok((file, room.into_reservation(), work))
    });
    match copied {
        Ok((file, room, _work)) => enter(registry, staging, file, room, &request.ask()),
        Err(error) => fail(staging, error),
    }
}

fn copy(
    registry: &Registry,
    request: &StageAt,
    source: &Source<'_>,
    staging: &Staging,
    room: &ForSource<'_>,
) -> Result<StagedFile> {
    registry.areas.with_area(&request.staging_dir, |area| {
        let replaces = staging.replaces().map(|file| &**file);
        let mode = names::mode(staging, source.is_executable());
        let scratch = elsewhere::scratch_beside(area, &request.destination, replaces, mode)?;
        let content = scratch.fill(source, &|bytes| room.cover(bytes))?;
        content.verify(&request.checksum)?;
        Ok(scratch.publish(
            request.checksum.clone(),
            request.name.clone(),
            request.size,
            mode,
        )?)
    })
}
