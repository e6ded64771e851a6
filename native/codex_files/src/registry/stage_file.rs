//! Staging a file under the digest of its content, in the registry's own area.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::admission::{Admitted, Answer, admit, answer, enter, fail, renew};
use super::room::ForSource;
use super::stage_data::{by_copier, hand_over, stage_small};
use super::{Ask, Attachment, MakeWaiter, Outcome, Registry, Request, Staging, Waiter, names};
use crate::checksum::{self, Content};
use crate::disk::area::PublishError;
use crate::disk::buffer::Buffer;
use crate::disk::file_id::Fingerprint;
use crate::disk::scratch;
use crate::disk::source::{self, INLINE_LIMIT, SMALL_BUFFER, Source};
use crate::disk::staged_file::staged_mode;
use crate::error::{Error, Result};
use crate::name::Want;
use crate::recognition::Likeness;
use crate::retention::Keep;

/// What is to be staged, and how.
#[derive(Clone, Debug)]
pub struct StageFile {
    /// What to copy.
    pub source: PathBuf,
    /// How to stage it.
    pub to: Request,
}

/// Why [`refresh`] did not stage a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// A regular file is there that is not recognised: it is to be read.
    New,
    /// A glance was not enough to tell: it is to be looked at.
    Unseen,
}

/// For how long a copy that had no room beside others is tried again, by a copier that does nothing
/// else meanwhile.
const ROOM_WAIT: Duration = Duration::from_secs(10);

thread_local! {
    /// One small file's content, kept so that staging one allocates nothing that large.
    static SMALL_CONTENT: RefCell<Buffer> = RefCell::new(Buffer::new(SMALL_BUFFER));
}

/// Stages a file again that is recognised, if that takes no more than a look at it that waits for
/// nothing, and one at its copy as [`super::stage_at::refresh`] takes.
///
/// # Errors
/// [`Miss`], for [`stage_file`] to go on from.
pub fn refresh(
    registry: &Registry,
    source: &Path,
    name: &[u8],
    keep: Keep,
) -> std::result::Result<Attachment, Miss> {
    let recognition = registry.recognition.as_ref().ok_or(Miss::Unseen)?;
    let seen = source::glance(source).ok_or(Miss::Unseen)?;
    let file = recognition.find(&seen, Likeness::Proof).ok_or(Miss::New)?;
    // Its mode is what it was when it was read, and what follows from that was done then.
    renew(registry, &file, keep, &Want::named(name, false)).ok_or(Miss::Unseen)
}

/// Stages a file under its own digest. `miss` is what a glance has told of it just now: a file that
/// is new is not looked at again before it is opened.
pub fn stage_file(
    registry: &Arc<Registry>,
    request: &StageFile,
    miss: Miss,
    make_waiter: MakeWaiter<'_>,
) -> Answer {
    answer(|| {
        if miss == Miss::Unseen {
            let seen = Fingerprint::of(&source::look(&request.source)?);
            // As in `refresh`.
            let ask = request.to.ask(false);
            if let Some(answer) = stage_unchanged(registry, &seen, &ask, make_waiter) {
                return Ok(answer);
            }
        }
        let source = Source::open(&request.source)?;
        let small = SMALL_CONTENT.with_borrow_mut(|buffer| {
            let Some(length) = source.read_small(buffer)? else {
                return Ok(None);
            };
            let ask = request.to.ask(source.is_executable());
            let (content, answer) = stage_small(registry, &buffer[..length], &ask, make_waiter)?;
            if let Answer::Now(outcome) = &answer {
                remember(registry, &source, content, outcome);
            }
            Ok(Some(answer))
        })?;
        if let Some(answer) = small {
            return Ok(answer);
        }
        let (size, waiter) = (source.size(), make_waiter());
        let (registry, request) = (registry.clone(), request.clone());
        Ok(by_copier(size, waiter, move |waiter| {
            stage_large(&registry, &request, waiter)
        }))
    })
}

/// Stages a file that is recognised as one that was hashed before, without reading it. `None` if it has to
/// be read all the same: its copy is lost, or cannot be had under that name in no time.
fn stage_unchanged(
    registry: &Registry,
    seen: &Fingerprint,
    ask: &Ask<'_>,
    make_waiter: impl FnMut() -> Waiter,
) -> Option<Answer> {
    let recognition = registry.recognition.as_ref()?;
    let file = recognition.find(seen, Likeness::Proof)?;
    match admit(registry, &file.checksum, ask, make_waiter) {
        Ok(Admitted::Known(attachment)) => Some(Answer::Now(Outcome::known(attachment))),
        Ok(Admitted::Waiting) => Some(Answer::ByWaiter),
        Ok(Admitted::Lead(_)) | Err(_) => None,
    }
}

/// Stages a large file. It is copied and hashed at once, and entered if its content turns out to be new.
/// The outcome is the waiter's, if that is still here in the end.
fn stage_large(
    registry: &Registry,
    request: &StageFile,
    waiter: &mut Option<Waiter>,
) -> Result<Outcome> {
    let _work = registry.work()?;
    let source = Source::open(&request.source)?.until(&registry.stopping);
    let ask = Ask {
        may_take_long: true,
        ..request.to.ask(source.is_executable())
    };
    let Some(recognition) = &registry.recognition else {
        return copy_large(registry, &ask, &source, false, waiter);
    };
    let seen = source.fingerprint();
    // If somebody copies it right now, it will be recognised afterwards.
    let copying = if source.would_show_changes() {
        match recognition.copying(seen, waiter) {
            None => return Ok(Outcome::Retry),
            copying => copying,
        }
    } else {
        None
    };
    // While this copy waited for its turn, somebody else may have made it.
    match stage_unchanged(registry, &seen, &ask, || hand_over(waiter)) {
        Some(Answer::Now(outcome)) => return Ok(outcome),
        Some(Answer::ByWaiter) => return Ok(Outcome::Retry),
        None => {}
    }
    // What was staged before, and looks the same, is probably staged still.
    let read_first = [Likeness::Hint, Likeness::Proof].iter().any(|&likeness| {
        let file = recognition.find(&seen, likeness);
        file.is_some_and(|file| file.is_intact())
    });
    let result = copy_large(registry, &ask, &source, read_first, waiter);
    if let (Some(copying), Err(error) | Ok(Outcome::Failed(error))) = (copying, &result)
        && error.is_lack_of_room()
    {
        copying.fail(error);
    }
    result
}

/// Copies a large file, or reads it first: to read a file once more costs less than a copy in vain, and takes no
/// room.
fn copy_large(
    registry: &Registry,
    ask: &Ask<'_>,
    source: &Source<'_>,
    read_first: bool,
    waiter: &mut Option<Waiter>,
) -> Result<Outcome> {
    let mut staging = None;
    let mut lack_of_room = None;
    let mut deadline = None;
    let mut turn = None;
    loop {
        if staging.is_none() && (read_first || lack_of_room.is_some()) {
            let content = source.content()?;
            let checksum = checksum::key(&content.digest);
            match admit(registry, &checksum, ask, || hand_over(waiter))? {
                Admitted::Lead(lead) => {
                    // The bytes of a lost file may be had now, and those of what may be evicted.
                    lack_of_room = lack_of_room.filter(|lack| !is_over_budget(lack));
                    staging = Some(lead);
                }
                Admitted::Waiting => return Ok(Outcome::Retry),
                Admitted::Known(attachment) => {
                    let outcome = Outcome::known(attachment);
                    remember(registry, source, content, &outcome);
                    return Ok(outcome);
                }
            }
        }
        // There was no room, and the content is not known.
        if let Some((error, beside_others)) = lack_of_room.take() {
            let Some(since) = beside_others else {
                return fail_if_lead(staging, error);
            };
            // Others may have taken it.
            let until = *deadline.get_or_insert_with(|| Instant::now() + ROOM_WAIT);
            if Instant::now() >= until {
                return fail_if_lead(staging, error);
            }
            if turn.is_none() {
                turn = registry.space.turn_to_make_again(until);
            }
            registry.space.wait_for_an_end(since, until);
        }
        let copy = registry.space.begin();
        match copy_once(registry, ask, source, &mut staging, waiter) {
            Err(error) if error.is_lack_of_room() => {
                lack_of_room = Some((error, copy.end_if_beside_others()));
            }
            Err(error) => return fail_if_lead(staging, error),
            outcome => return outcome,
        }
    }
}

fn is_over_budget<T>((error, _): &(Error, T)) -> bool {
    matches!(error, Error::OverBudget { .. })
}

/// Copies a large file once, and enters the copy if its content is new. `staging` is a ticket for what
/// the content was a moment ago, if that is known; after an error it is the one for what the content is.
fn copy_once(
    registry: &Registry,
    ask: &Ask<'_>,
    source: &Source<'_>,
    staging: &mut Option<Staging>,
    waiter: &mut Option<Waiter>,
) -> Result<Outcome> {
    let room = ForSource::reserve(registry, source, staging.as_ref())?;
    let copied = registry.areas.with_area(ask.staging_dir, |area| {
        let scratch = scratch::numbered(area, staged_mode(ask.want.executable))?;
        let content = scratch.fill(source, &|bytes| room.cover(bytes))?;
        let checksum = checksum::key(&content.digest);
        // A ticket for another content is of no use.
        let ticket = staging
            .take()
            .filter(|staging| *staging.checksum() == checksum);
        let admitted = match ticket {
            Some(ticket) => Admitted::Lead(ticket),
            None => admit(registry, &checksum, ask, || hand_over(waiter))?,
        };
        let lead = match admitted {
            Admitted::Lead(lead) => staging.insert(lead),
            // This copy was in vain.
            Admitted::Known(attachment) => return Ok((content, Err(Outcome::known(attachment)))),
            Admitted::Waiting => return Ok((content, Err(Outcome::Retry))),
        };
        let (name, mode) = names::first_name(lead, ask);
        let published = scratch.publish(lead.checksum(), name, content.size, mode);
        if matches!(published, Err(PublishError::AreaLost)) {
            // The copy went with its area, and the next one may have another content.
            *staging = None;
        }
        Ok((content, Ok(published?)))
    });
    let (content, published) = copied?;
    let outcome = match (published, staging.take()) {
        (Ok(file), Some(staging)) => enter(registry, staging, file, room.into_reservation(), ask),
        (Ok(_), None) => Outcome::Retry,
        (Err(outcome), _) => outcome,
    };
    remember(registry, source, content, &outcome);
    Ok(outcome)
}

/// Remembers the source of what was staged. A file that says that it has another number of bytes than
/// have been read may say anything of its times.
fn remember(registry: &Registry, source: &Source<'_>, content: Content, outcome: &Outcome) {
    let (Some(recognition), Outcome::Staged { attachment, .. }) = (&registry.recognition, outcome)
    else {
        return;
    };
    let likeness = if source.size() == content.size && source.would_show_changes() {
        Likeness::Proof
    } else if content.size > INLINE_LIMIT as u64 {
        Likeness::Hint
    } else {
        // A small file is read in any case.
        return;
    };
    recognition.remember(&source.fingerprint(), likeness, &attachment.file, || {
        let totals = registry.manifest.metrics().totals;
        let staged = totals.persistent_count + totals.expirable_count;
        usize::try_from(staged).unwrap_or(usize::MAX)
    });
}

/// The error, also for those who wait for the ticket, if there is one.
fn fail_if_lead(staging: Option<Staging>, error: Error) -> Result<Outcome> {
    match staging {
        Some(staging) => Ok(fail(staging, error)),
        None => Err(error),
    }
}
