//! Removing attachments: those that have expired, and all of them.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use super::removed::Removed;
use super::reply::{Reply, replying};
use super::{Registry, Report, StagedFile};
use crate::disk::purge::Purge;
use crate::disk::removing;
use crate::disk::staging_dir::StagingDir;
use crate::error::{Error, Failures, Result};
use crate::manifest::attachment::{Attachment, File};
use crate::manifest::{ExpiryCursor, Later, Listing, Manifest, Removal};
use crate::panics;
use crate::threads::sweeper::{Progress, Work};
use crate::time::Now;

/// How many removals are admitted at once: few enough to keep the lock short, and other work of the
/// cleanup thread waiting only for a moment.
pub(super) const BATCH: usize = 64;

/// Removes what has expired by now, and replies with a report on all of it. What expires meanwhile is the
/// next one's: it would never end if files expired as fast as they are removed.
pub fn cleanup(registry: &Arc<Registry>, reply: Reply<Report>) {
    let mut whole = Report::default();
    let mut next_part = sweeping(registry);
    registry
        .sweeper
        .give(replying(reply, move || match next_part() {
            Some(part) => {
                whole.cleaned.extend(part.cleaned);
                whole.failed.extend(part.failed);
                None
            }
            None => Some(Ok(std::mem::take(&mut whole))),
        }));
}

/// Removes the attachment of a checksum, whoever keeps it, once the work on it that is under way has ended.
/// The reply says what has become of it: nothing, if it is not staged.
pub fn unstage(registry: &Arc<Registry>, checksum: &[u8], reply: Reply<Report>) {
    let mut reply = Some(reply);
    let there = registry.manifest.entry(checksum);
    let removals = registry.manifest.claim(there.as_slice(), || {
        let (registry, reply) = (registry.clone(), reply.take()?);
        Some(Box::new(move |removal| {
            give_unstaging(&registry, removal, reply);
        }))
    });
    if let Some(reply) = reply {
        give_unstaging(registry, removals.into_iter().next(), reply);
    }
}

fn give_unstaging(
    registry: &Arc<Registry>,
    mut removal: Option<Removal<Arc<StagedFile>>>,
    reply: Reply<Report>,
) {
    let given_to = registry.clone();
    registry.sweeper.give(replying(reply, move || {
        let mut report = Report::default();
        if let Some(removal) = removal.take() {
            report.note(remove_from(&given_to, removal));
            forget_removed(&given_to);
        }
        Some(Ok(report))
    }));
}

/// Removes, part by part, what has expired by now.
pub(super) fn sweeping(registry: &Arc<Registry>) -> impl FnMut() -> Option<Report> + Send + use<> {
    let registry = registry.clone();
    let now = Now::read();
    let mut cursor = Some(ExpiryCursor::start());
    move || {
        let part = sweep_a_batch(&registry.manifest, now, &mut cursor, remover(&registry));
        if part.is_none() {
            forget_removed(&registry);
        }
        part
    }
}

/// Has what dead registries left below a staging directory removed, unless it has been in use already.
pub fn purge(registry: &Registry, staging_dir: &StagingDir) {
    registry.areas.note_use(staging_dir);
}

/// Removes what dead registries left below a staging directory. What could not be removed is tried again
/// at the next start.
pub(super) fn purging(staging_dir: StagingDir) -> Work {
    let mut purge = Purge::Of(staging_dir);
    Box::new(move || match purge.batch(BATCH) {
        Some(_) => Progress::More,
        None => Progress::Done,
    })
}

/// Removes every attachment that is there when it begins, and what dead registries left below `dir`. One
/// that somebody is at work on is removed when that work has ended. The reply comes when all is done.
pub fn reset(registry: &Arc<Registry>, dir: PathBuf, reply: Reply<Failures>) {
    let reset = Arc::new(Reset {
        registry: registry.clone(),
        failures: Mutex::default(),
        end: Mutex::new(Err(Error::Stopped)),
        reply: Mutex::new(reply),
    });
    let mut all = RemoveAll::default();
    let mut purge = Purge::Of(StagingDir {
        path: dir,
        is_default: false,
    });
    registry.sweeper.give(move || {
        reset.contained(|| {
            let manifest = &reset.registry.manifest;
            let later = || Some(reset.clone().later());
            if all.batch(manifest, later, |removal| reset.remove(removal)) {
                return Progress::More;
            }
            match purge.batch(BATCH) {
                Some(failures) => {
                    reset.failures.lock().extend(failures);
                    Progress::More
                }
                None => {
                    let mut end = reset.end.lock();
                    // What was removed later may have panicked before.
                    if matches!(*end, Err(Error::Stopped)) {
                        *end = Ok(());
                    }
                    Progress::Done
                }
            }
        })
    });
}

/// A reset under way, held by all that is still to be removed. The last to let go of it has the reply
/// sent.
struct Reset {
    registry: Arc<Registry>,
    failures: Mutex<Failures>,
    /// How the walk over the attachments ended. If the thread ended before, it has not.
    end: Mutex<Result<()>>,
    reply: Mutex<Reply<Failures>>,
}

impl Reset {
    /// Runs a part of it. A panic is its result.
    fn contained(&self, part: impl FnOnce() -> Progress) -> Progress {
        panics::contained(part).unwrap_or_else(|panic| {
            *self.end.lock() = Err(panic);
            Progress::Done
        })
    }

    fn remove(&self, removal: Removal<Arc<StagedFile>>) {
        let failed = remove_now(&self.registry, removal);
        self.failures.lock().extend(failed);
    }

    /// Has the cleanup thread remove an attachment once somebody else has ended the work on it.
    fn later(self: Arc<Self>) -> Later<Arc<StagedFile>> {
        Box::new(move |mut removal| {
            let sweeper = self.registry.sweeper.clone();
            sweeper.give(move || {
                self.contained(|| {
                    if let Some(removal) = removal.take() {
                        self.remove(removal);
                    }
                    Progress::Done
                })
            });
        })
    }
}

impl Drop for Reset {
    fn drop(&mut self) {
        self.registry.areas.drop_empty();
        forget_removed(&self.registry);
        let failures = std::mem::take(&mut *self.failures.lock());
        let end = self.end.lock().clone();
        self.reply.lock().send(end.map(|()| failures));
    }
}

/// Removes the next ones that have expired `now`, from `cursor` on; `None` if there are no more.
pub fn sweep_a_batch<F: File>(
    manifest: &Manifest<F>,
    now: Now,
    cursor: &mut Option<ExpiryCursor>,
    remove: impl Fn(&F) -> Result<()>,
) -> Option<Removed<F>> {
    panics::point("sweep");
    cursor.as_ref()?;
    let mut part = Removed::default();
    for removal in manifest.claim_expired(now, cursor, BATCH) {
        part.note(remove_one(removal, &remove));
    }
    Some(part)
}

/// A walk over every attachment that is there when it begins.
pub struct RemoveAll<F> {
    /// `None` before the first step.
    listing: Option<Listing<F>>,
    next: usize,
}

impl<F> Default for RemoveAll<F> {
    fn default() -> Self {
        Self {
            listing: None,
            next: 0,
        }
    }
}

impl<F: File> RemoveAll<F> {
    /// Has the next ones removed by `remove`, those that somebody is at work on by `later` (see
    /// [`Manifest::claim`]); whether there were any.
    pub fn batch(
        &mut self,
        manifest: &Manifest<F>,
        later: impl FnMut() -> Option<Later<F>>,
        remove: impl FnMut(Removal<F>),
    ) -> bool {
        panics::point("remove_all");
        let listing = self.listing.get_or_insert_with(|| manifest.list());
        let Some((batch, next)) = listing.part(self.next, BATCH) else {
            return false;
        };
        self.next = next;
        manifest.claim(&batch, later).into_iter().for_each(remove);
        true
    }
}

/// Removes an attachment's file, and the attachment with it. If that fails it stays.
///
/// # Errors
/// The attachment, and why `remove` failed.
pub fn remove_one<F: File>(
    removal: Removal<F>,
    remove: impl Fn(&F) -> Result<()>,
) -> Result<Attachment<F>, (Attachment<F>, Error)> {
    panics::point("remove");
    let removed = remove(&removal.attachment().file);
    panics::point("removed");
    match removed {
        Ok(()) => Ok(removal.commit()),
        Err(error) => Err((removal.attachment().clone(), error)),
    }
}

/// Removes an attachment of a registry; its path, and the reason, if that fails.
pub(super) fn remove_now(
    registry: &Registry,
    removal: Removal<Arc<StagedFile>>,
) -> Option<(PathBuf, Error)> {
    let failed = remove_from(registry, removal).err()?;
    Some((failed.0.file.path.to_path_buf(), failed.1))
}

/// Removes an attachment of a registry.
pub(super) fn remove_from(
    registry: &Registry,
    removal: Removal<Arc<StagedFile>>,
) -> Result<super::Attachment, (super::Attachment, Error)> {
    remove_one(removal, remover(registry))
}

/// What removes the files of a registry.
fn remover(registry: &Registry) -> impl Fn(&Arc<StagedFile>) -> Result<()> {
    |file| {
        removing::remove(file)?;
        if let Some(recognition) = &registry.recognition {
            recognition.one_was_removed();
        }
        Ok(())
    }
}

/// Forgets the sources of files that have been removed.
pub(super) fn forget_removed(registry: &Registry) {
    if let Some(recognition) = &registry.recognition {
        recognition.forget_removed();
    }
}
