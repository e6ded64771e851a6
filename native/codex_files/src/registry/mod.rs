//! A registry: the manifest, the disk that it describes, and the threads that work on it.
//!
//! Its parts are here; what can be done with it is in a file for each verb.

pub mod admission;
pub mod fetch;
pub mod keeper;
pub mod keeping;
mod names;
pub mod owner;
pub mod owners;
pub mod remove;
pub mod removed;
pub mod reply;
pub mod room;
pub mod stage_at;
pub mod stage_data;
pub mod stage_file;
pub mod stage_stream;
mod streams;
pub mod verify;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{RwLock, RwLockReadGuard};

use self::keeping::Keeping;
use self::owner::Owner;
use self::removed::Removed;
use self::streams::Streams;
use crate::checksum::Checksum;
use crate::disk::areas::Areas;
use crate::disk::staged_file::StagedFile;
use crate::disk::staging_dir::StagingDir;
use crate::error::{Error, Result};
use crate::manifest::attachment::File;
use crate::manifest::{self, Manifest};
use crate::name::Want;
use crate::panics::contained;
use crate::recognition::Recognition;
use crate::retention::Keep;
use crate::space::Space;
use crate::threads::sweeper::Sweeper;

/// One attachment as it stood at one moment.
pub type Attachment = manifest::attachment::Attachment<Arc<StagedFile>>;
/// How a staging ended.
pub type Outcome = manifest::waiting::Outcome<Arc<StagedFile>>;
/// A caller that waits for the outcome of somebody else's work.
pub type Waiter = manifest::waiting::Waiter<Arc<StagedFile>>;
/// What a cleanup did.
pub type Report = Removed<Arc<StagedFile>>;
/// Bytes of the budget that are about to be written.
type Reservation = manifest::Reservation<Arc<StagedFile>>;
/// The ticket to put a checksum's file in place.
type Staging = manifest::Staging<Arc<StagedFile>>;

/// How to stage a content, wherever it comes from.
#[derive(Clone, Debug)]
pub struct Request {
    /// The name to stage it under.
    pub name: Box<[u8]>,
    /// What to keep it by.
    pub keep: Keep,
    /// The owner that it is to be kept by, held until the staging has been answered.
    pub owner: Option<Arc<Owner>>,
    /// Where.
    pub staging_dir: StagingDir,
}

/// What a staging asks for, wherever it is to go.
#[derive(Clone, Debug)]
struct Ask<'a> {
    keep: Keep,
    want: Want<'a>,
    /// Where a name goes if the file is at a destination that its caller chose.
    staging_dir: &'a StagingDir,
    /// On a copier nobody is kept waiting by a copy of a large file, where it cannot have a name without.
    may_take_long: bool,
}

impl Request {
    /// What it asks for, if the source is one that its owner may execute, or not.
    fn ask(&self, executable: bool) -> Ask<'_> {
        Ask {
            keep: self.keep,
            want: Want::named(&self.name, executable),
            staging_dir: &self.staging_dir,
            may_take_long: false,
        }
    }
}

/// Why files were removed that nobody asked to remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Nothing keeps them any more.
    Expired,
    /// They had to make room for others.
    Evicted,
}

/// Hears, on any thread but those of schedulers that must not wait, what is done without being asked for.
pub trait Observer: Send + Sync {
    /// Some files have been removed, or could not be. It tells so of few at a time.
    fn removed(&self, why: Why, report: Report);
    /// No successor came in time, and the registry has stopped.
    fn stopped(&self);
}

/// Makes the waiter of a call that cannot be answered at once.
pub type MakeWaiter<'a> = &'a dyn Fn() -> Waiter;

impl File for Arc<StagedFile> {
    fn key(&self) -> &Checksum {
        &self.checksum
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn stored(&self) -> u64 {
        StagedFile::stored(self)
    }

    fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(self, other)
    }
}

/// A registry. See the module's description.
pub struct Registry {
    manifest: Manifest<Arc<StagedFile>>,
    areas: Areas,
    recognition: Option<Recognition<StagedFile>>,
    keeping: Keeping,
    /// Set at the stop: copies that are under way give up.
    stopping: AtomicBool,
    /// Shared by those who stage; the stop waits for them.
    at_work: RwLock<()>,
    streams: Streams,
    /// The copies of large files, under their own digest, that are under way.
    space: Space,
    sweeper: Sweeper,
    observer: Arc<dyn Observer>,
}

impl Registry {
    /// What is staged: to list, and to count.
    #[must_use]
    pub fn manifest(&self) -> &Manifest<Arc<StagedFile>> {
        &self.manifest
    }

    /// To be held by whoever stages, from before the first file is written to the end.
    fn work(&self) -> Result<RwLockReadGuard<'_, ()>> {
        // Only the stop has it to itself.
        self.at_work.try_read().ok_or(Error::Stopped)
    }

    /// Tells of what was removed without being asked for, if there is any.
    fn tell_removed(&self, why: Why, report: Report) {
        if !(report.cleaned.is_empty() && report.failed.is_empty()) {
            // A panic of one who hears of it harms nobody else.
            let _ = contained(|| self.observer.removed(why, report));
        }
    }

    /// Has all who stage give up.
    fn give_up_staging(&self) {
        // First: the manifest takes no ticket back after the stop, so that what is being removed looks
        // lost.
        self.stopping.store(true, Ordering::Relaxed);
        self.manifest.stop();
        // They ask again, and are told.
        if let Some(recognition) = &self.recognition {
            recognition.stop();
        }
    }
}
