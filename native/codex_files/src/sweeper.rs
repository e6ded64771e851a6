//! Cleanup: the thread that does it on time and on request, and what it does.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use nix::errno::Errno;

use crate::attachment::{self, StagedFile};
use crate::error::{Error, Failures, Result};
use crate::manifest::attachment::{Attachment, File};
use crate::manifest::{ExpiryCursor, Manifest, Removal};
use crate::panics::{self, contained};
use crate::registry::{Options, Registry};
use crate::staging_area::{self, StagingDir};
use crate::time::Now;

/// How many removals are admitted at once: few enough to keep the lock short.
const BATCH: usize = 64;

/// What a cleanup of files of the kind `F` did.
#[derive(Debug)]
pub struct Removed<F> {
    /// The attachments whose files are gone.
    pub cleaned: Vec<Attachment<F>>,
    /// Those whose files could not be removed; they stay, and are tried again.
    pub failed: Vec<(Attachment<F>, Error)>,
}

impl<F> Default for Removed<F> {
    fn default() -> Self {
        Self {
            cleaned: Vec::new(),
            failed: Vec::new(),
        }
    }
}

impl<F> Removed<F> {
    fn append(&mut self, mut other: Self) {
        self.cleaned.append(&mut other.cleaned);
        self.failed.append(&mut other.failed);
    }
}

/// What a cleanup did.
pub type Report = Removed<Arc<StagedFile>>;

/// The answer to a command. Dropped unsent, because the thread has ended, it says so: nobody who
/// gave a command waits for ever.
pub struct Reply<T>(Option<Box<dyn FnOnce(Result<T>) + Send>>);

impl<T> Reply<T> {
    /// `send` is called once, on any thread.
    pub fn new(send: impl FnOnce(Result<T>) + Send + 'static) -> Self {
        Self(Some(Box::new(send)))
    }

    fn send(mut self, result: Result<T>) {
        if let Some(send) = self.0.take() {
            send(result);
        }
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        if let Some(send) = self.0.take() {
            send(Err(Error::Stopped));
        }
    }
}

/// What the cleanup thread can be told to do.
pub enum Command {
    /// Remove what has expired.
    Cleanup(Reply<Report>),
    /// Remove every attachment, and what dead registries left below a directory.
    Reset(PathBuf, Reply<Failures>),
    /// Remove what dead registries left below a directory.
    Purge(StagingDir),
    /// Look again at whether the registry has an owner.
    OwnerChanged,
    /// Change the time between two cleanups.
    Interval(Duration),
    /// Remove everything and end.
    Stop(Reply<Failures>),
}

/// The handle of a cleanup thread. The thread ends when the last one is dropped.
pub(crate) struct Sweeper(Sender<Command>);

impl Sweeper {
    pub(crate) fn send(&self, command: Command) {
        // If the thread has ended, dropping the command answers it.
        let _ = self.0.send(command);
    }
}

/// What is sent here, the thread does; what nobody will do any more is answered with `Stopped`.
pub(crate) fn channel() -> (Sweeper, Receiver<Command>) {
    let (commands, inbox) = crossbeam_channel::unbounded();
    (Sweeper(commands), inbox)
}

pub(crate) fn start(
    registry: Weak<Registry>,
    inbox: Receiver<Command>,
    options: Options,
) -> Result<()> {
    let name = "codex_sweeper";
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || run(&registry, &inbox, options))
        .map(drop)
        .map_err(|error| {
            let errno = error.raw_os_error().map_or(Errno::EAGAIN, Errno::from_raw);
            Error::io("start the thread", Path::new(name), errno)
        })
}

/// The thread. It holds no strong reference while it waits: a registry that nobody needs any more
/// goes, and takes the channel along.
fn run(registry: &Weak<Registry>, inbox: &Receiver<Command>, mut options: Options) {
    let mut next_cleanup = deadline(options.cleanup_interval);
    // It has no owner yet.
    let mut ends_at = deadline(options.orphan_grace);
    loop {
        let wake_at = [next_cleanup, ends_at].into_iter().flatten().min();
        let command = match wake_at {
            Some(at) => inbox.recv_deadline(at),
            None => inbox.recv().map_err(RecvTimeoutError::from),
        };
        let Some(registry) = registry.upgrade() else {
            return;
        };
        match command {
            Ok(Command::Cleanup(reply)) => answer(reply, || {
                let mut whole = Report::default();
                registry.sweep(|report| whole.append(report));
                Ok(whole)
            }),
            Ok(Command::Reset(dir, reply)) => answer(reply, || Ok(registry.reset(&dir))),
            Ok(Command::Purge(dir)) => {
                // What could not be removed is tried again at the next start.
                let _ = contained(|| staging_area::purge(&dir));
            }
            Ok(Command::OwnerChanged) => {}
            Ok(Command::Interval(interval)) => {
                options.cleanup_interval = interval;
                next_cleanup = deadline(interval);
            }
            Ok(Command::Stop(reply)) => {
                answer(reply, || Ok(registry.stop()));
                return;
            }
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {}
        }
        let now = Instant::now();
        if registry.end_if_abandoned(options.orphan_grace, now) {
            let _ = contained(|| registry.stop());
            options.observer.ended();
            return;
        }
        if next_cleanup.is_some_and(|at| at <= now) {
            let _ = contained(|| {
                registry.sweep(|report| {
                    let _ = contained(|| options.observer.cleaned(report));
                });
            });
            next_cleanup = deadline(options.cleanup_interval);
        }
        // Whoever was told of the removed files has let go of them by now.
        let _ = contained(|| registry.forget_removed());
        ends_at = registry.ends_at(options.orphan_grace);
    }
}

/// `None`: later than time is counted.
fn deadline(from_now: Duration) -> Option<Instant> {
    Instant::now().checked_add(from_now)
}

/// Whatever fails, the work or the answer: the next command is done.
pub(crate) fn answer<T>(reply: Reply<T>, work: impl FnOnce() -> Result<T>) {
    let result = contained(work).and_then(|result| result);
    let _ = contained(|| reply.send(result));
}

/// Removes what has expired `now`.
pub fn sweep<F: File>(
    manifest: &Manifest<F>,
    now: Now,
    remove: impl Fn(&F) -> Result<()>,
) -> Removed<F> {
    let mut whole = Removed::default();
    sweep_in_batches(manifest, now, remove, |report| whole.append(report));
    whole
}

/// Removes what has expired `now`, and reports on some files at a time: whoever is told of very many
/// at once needs the memory for it.
pub(crate) fn sweep_in_batches<F: File>(
    manifest: &Manifest<F>,
    now: Now,
    remove: impl Fn(&F) -> Result<()>,
    mut reported: impl FnMut(Removed<F>),
) {
    panics::point("sweep");
    let mut cursor = Some(ExpiryCursor::start());
    while cursor.is_some() {
        let mut report = Removed::default();
        for removal in manifest.claim_expired(now, &mut cursor, BATCH) {
            remove_one(removal, &remove, &mut report);
        }
        reported(report);
    }
}

/// The tickets to remove all that has expired, for those who do the disk work themselves.
#[must_use]
pub fn claim_all_expired(manifest: &attachment::Manifest) -> Vec<attachment::Removal> {
    manifest.claim_expired(Now::read(), &mut Some(ExpiryCursor::start()), usize::MAX)
}

/// The tickets to remove every attachment, for those who do the disk work themselves.
#[must_use]
pub fn claim_all(manifest: &attachment::Manifest) -> Vec<attachment::Removal> {
    let files: Vec<_> = manifest
        .list()
        .iter()
        .map(|attachment| attachment.file.clone())
        .collect();
    manifest.claim_files(&files, || None)
}

/// Removes every attachment that is there when it begins; those that could not be removed.
pub fn remove_all<F: File + Send + Sync + 'static>(
    manifest: &Manifest<F>,
    remove: impl Fn(&F) -> Result<()>,
) -> Vec<(Attachment<F>, Error)> {
    panics::point("remove_all");
    let mut report = Removed::default();
    let listing = manifest.list();
    let mut files = listing.iter().map(|attachment| attachment.file.clone());
    loop {
        let batch: Vec<_> = files.by_ref().take(BATCH).collect();
        if batch.is_empty() {
            break;
        }
        for removal in manifest.claim_files(&batch, || None) {
            remove_one(removal, &remove, &mut report);
        }
        report.cleaned.clear();
    }
    report.failed
}

fn remove_one<F: File>(
    removal: Removal<F>,
    remove: impl Fn(&F) -> Result<()>,
    report: &mut Removed<F>,
) {
    panics::point("remove");
    let removed = remove(&removal.attachment().file);
    panics::point("removed");
    match removed {
        Ok(()) => report.cleaned.push(removal.commit()),
        Err(error) => report.failed.push((removal.attachment().clone(), error)),
    }
}
