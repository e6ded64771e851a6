//! A registry: the manifest, the disk it describes, and the threads that work on it.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use crate::attachment::{Attachment, Listing, Manifest, Outcome, StagedFile, Staging, Waiter};
use crate::checksum::{self, Checksum};
use crate::copiers;
use crate::disk::{self, Buffer, Fingerprint, INLINE_LIMIT, SMALL_BUFFER, Source};
use crate::error::{Error, Failures, Result};
use crate::large_copies::LargeCopies;
use crate::manifest::waiting::Origin;
use crate::manifest::{Admission, Metrics};
use crate::recognition::{Likeness, Recognition};
use crate::retention::Retention;
use crate::staging_area::{self, Area, PublishError, Published, StagingDir};
use crate::sweeper::{self, Command, Reply, Report, Sweeper};
use crate::time::Now;

/// A staging under a checksum and at a destination that the caller chose.
#[derive(Clone, Debug)]
pub struct StageRequest {
    /// The manifest key. In the form of a SHA-256 digest it is verified against the content.
    pub checksum: Checksum,
    /// The name to report.
    pub name: Box<[u8]>,
    /// How long to keep it.
    pub retention: Retention,
    /// The size to report, in bytes.
    pub size: u64,
    /// What to copy.
    pub source: PathBuf,
    /// Where to.
    pub destination: PathBuf,
    /// Where the records of what lies elsewhere are kept.
    pub staging_dir: StagingDir,
}

/// A staging of a file under the digest of its content, in the registry's own area.
#[derive(Clone, Debug)]
pub struct FileRequest {
    /// What to copy.
    pub source: PathBuf,
    /// The name to stage it under.
    pub name: Box<[u8]>,
    /// How long to keep it.
    pub retention: Retention,
    /// Where.
    pub staging_dir: StagingDir,
}

/// Why [`Registry::refresh_file`] did not stage a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// A regular file is there, which is not recognised: it is to be read.
    New,
    /// It takes more than a glance to tell.
    Unclear,
}

/// Makes the waiter of a call that cannot be answered at once.
pub type MakeWaiter<'a> = &'a dyn Fn() -> Waiter;

/// How a registry is set up.
pub struct Options {
    /// The time between two cleanups.
    pub cleanup_interval: Duration,
    /// For how long the attachments of a registry process that was killed wait for its successor.
    pub orphan_grace: Duration,
    /// Recognise unchanged files by their times, without reading them.
    pub recognise_unchanged: bool,
    /// Who is told what the cleanup thread does of itself.
    pub observer: Box<dyn Observer>,
}

/// Hears, on the cleanup thread, what it does without being asked.
pub trait Observer: Send {
    /// A periodic cleanup has removed some files, or could not. It tells so of few at a time.
    fn cleaned(&self, report: Report);
    /// No successor came in time, and the registry has stopped.
    fn ended(&self);
}

/// One owner of a registry, of all that it has in the course of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner(u64);

/// Whether a process answers for a registry. A killed one leaves it to its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ownership {
    Owned(Owner),
    AbandonedSince(Instant),
    Ended,
}

/// A registry. See the module's description.
pub struct Registry {
    manifest: Manifest,
    /// By staging directory, as asked for; `None` once the registry has stopped, so that none is
    /// opened any more. Not the manifest's lock: an area may be opened meanwhile.
    areas: Mutex<Option<HashMap<PathBuf, Arc<Area>>>>,
    /// The staging directories, as asked for, in which dead registries' files have been looked for.
    purged: Mutex<HashSet<PathBuf>>,
    recognition: Option<Recognition<StagedFile>>,
    ownership: Mutex<Ownership>,
    /// Set at the end: copies that are under way give up.
    ending: AtomicBool,
    /// Shared by those who stage; the end waits for them.
    at_work: RwLock<()>,
    /// The copies of large files, under their own digest, that are under way.
    large_copies: LargeCopies,
    sweeper: Sweeper,
}

/// How long the end waits for those who stage. They give up at once, unless the file system does not
/// answer.
const LAST_WAIT: Duration = Duration::from_secs(2);

/// For how long a copy that had no room beside others is tried again, by a copier that does nothing
/// else meanwhile.
const ROOM_WAIT: Duration = Duration::from_secs(10);

thread_local! {
    /// One small file's content, kept so that staging one allocates nothing that large.
    static SMALL_CONTENT: RefCell<Buffer> = RefCell::new(disk::buffer(SMALL_BUFFER));
}

impl Registry {
    /// An empty registry, with its cleanup thread. It waits for its owner as for a successor.
    ///
    /// # Errors
    /// [`Error::Io`] if the system has no thread left.
    pub fn start(options: Options) -> Result<Arc<Self>> {
        let (sweeper, inbox) = sweeper::channel();
        let registry = Arc::new(Self {
            manifest: Manifest::new(),
            areas: Mutex::new(Some(HashMap::new())),
            purged: Mutex::new(HashSet::new()),
            recognition: options.recognise_unchanged.then(Recognition::default),
            ownership: Mutex::new(Ownership::AbandonedSince(Instant::now())),
            ending: AtomicBool::new(false),
            at_work: RwLock::new(()),
            large_copies: LargeCopies::default(),
            sweeper,
        });
        sweeper::start(Arc::downgrade(&registry), inbox, options)?;
        Ok(registry)
    }

    /// The manifest, for those who do the disk work themselves.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The attachments.
    #[must_use]
    pub fn list(&self) -> Listing {
        self.manifest.list()
    }

    /// The counters.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.manifest.metrics()
    }

    /// The counters, unless somebody is at the manifest right now.
    #[must_use]
    pub fn try_metrics(&self) -> Option<Metrics> {
        self.manifest.try_metrics()
    }

    /// Hands the cleanup thread a command. It does one after the other.
    pub fn command(&self, command: Command) {
        self.sweeper.send(command);
    }

    /// Has the cleanup thread remove what dead registries left below a staging directory. That is also
    /// done when a directory is first used for which nobody has asked for it.
    pub fn purge(&self, staging_dir: StagingDir) {
        self.purged.lock().insert(staging_dir.path.clone());
        self.command(Command::Purge(staging_dir));
    }

    /// Gives it to a new owner, whether the one before is known to have gone or not; `None` if it has
    /// ended.
    #[must_use]
    pub fn adopt(&self) -> Option<Owner> {
        static OWNERS: AtomicU64 = AtomicU64::new(0);
        let mut ownership = self.ownership.lock();
        if *ownership == Ownership::Ended {
            return None;
        }
        let owner = Owner(OWNERS.fetch_add(1, Ordering::Relaxed));
        *ownership = Ownership::Owned(owner);
        drop(ownership);
        self.command(Command::OwnerChanged);
        Some(owner)
    }

    /// Notes that `owner` has gone, which may be heard of only after its successor has come. Unless
    /// one comes in time, the registry ends.
    pub fn abandon(&self, owner: Owner) {
        let mut ownership = self.ownership.lock();
        if *ownership == Ownership::Owned(owner) {
            *ownership = Ownership::AbandonedSince(Instant::now());
            drop(ownership);
            self.command(Command::OwnerChanged);
        }
    }

    /// Ends it in order: nothing can be staged any more, and what was is removed, by the cleanup
    /// thread, before it replies.
    pub fn end(&self, reply: Reply<Failures>) {
        *self.ownership.lock() = Ownership::Ended;
        self.call_off();
        self.command(Command::Stop(reply));
    }

    /// When it ends if no owner comes before.
    pub(crate) fn ends_at(&self, grace: Duration) -> Option<Instant> {
        match *self.ownership.lock() {
            Ownership::AbandonedSince(since) => since.checked_add(grace),
            Ownership::Owned(_) | Ownership::Ended => None,
        }
    }

    /// Whether its time is up; if so, nobody can adopt it any more.
    pub(crate) fn end_if_abandoned(&self, grace: Duration, now: Instant) -> bool {
        let mut ownership = self.ownership.lock();
        let ends = match *ownership {
            Ownership::AbandonedSince(since) => {
                since.checked_add(grace).is_some_and(|end| end <= now)
            }
            Ownership::Owned(_) | Ownership::Ended => false,
        };
        if ends {
            *ownership = Ownership::Ended;
        }
        ends
    }

    /// Stages a known checksum again if that takes no more than a look at a file of this machine. That
    /// is short enough for a scheduler's thread, if not for nothing: what no cache leads to any more is
    /// read from the disk.
    #[must_use]
    pub fn refresh(&self, checksum: &[u8], retention: Retention) -> Option<Attachment> {
        let file = self.manifest.lookup(checksum)?;
        self.refresh_at_once(&file, retention)
    }

    fn refresh_at_once(&self, file: &Arc<StagedFile>, retention: Retention) -> Option<Attachment> {
        if !file.is_local() {
            return None;
        }
        self.refresh_if_intact(file, retention)
    }

    /// Stages a file again that is recognised, if that takes no more than a look at it, which waits
    /// for nothing, and at its copy as [`Registry::refresh`] does.
    ///
    /// # Errors
    /// [`Miss`], for [`Registry::stage_file`] to go on from.
    pub fn refresh_file(
        &self,
        source: &Path,
        retention: Retention,
    ) -> std::result::Result<Attachment, Miss> {
        let recognition = self.recognition.as_ref().ok_or(Miss::Unclear)?;
        let seen = disk::glance(source).ok_or(Miss::Unclear)?;
        let file = recognition.find(&seen, Likeness::Proof).ok_or(Miss::New)?;
        self.refresh_at_once(&file, retention).ok_or(Miss::Unclear)
    }

    /// Stages a file under the caller's checksum. `None`: a waiter gets the answer.
    pub fn stage(
        self: &Arc<Self>,
        request: &StageRequest,
        make_waiter: MakeWaiter<'_>,
    ) -> Option<Outcome> {
        outcome(|| {
            let staging = match self.admit(&request.checksum, request.retention, make_waiter)? {
                Admitted::Lead(staging) => staging,
                Admitted::Done(outcome) => return Ok(outcome),
            };
            // The ticket gives the error to all who wait.
            let source = match self.open_for_stage(request) {
                Ok(source) => source,
                Err(error) => return Ok(Some(fail(staging, error))),
            };
            if source.size() <= INLINE_LIMIT as u64 {
                return Ok(Some(self.stage_here(request, &source, staging)));
            }
            let size = source.size();
            let (registry, request, waiter) = (self.clone(), request.clone(), make_waiter());
            copiers::run(
                size,
                move |_| match registry.open_for_stage(&request) {
                    Ok(source) => registry.stage_here(&request, &source, staging),
                    Err(error) => fail(staging, error),
                },
                waiter,
            );
            Ok(None)
        })
    }

    fn open_for_stage<'a>(&'a self, request: &'a StageRequest) -> Result<Source<'a>> {
        let seen = disk::FileId::of(&disk::look(&request.source)?);
        let there = staging_area::look_at_destination(&request.destination)?;
        if there.is_some_and(|there| there.same_file(&seen)) {
            return Err(Error::DestinationIsSource(request.source.as_path().into()));
        }
        Ok(Source::open(&request.source)?.until(&self.ending))
    }

    fn stage_here(
        self: &Arc<Self>,
        request: &StageRequest,
        source: &Source<'_>,
        staging: Staging,
    ) -> Outcome {
        let _work = match self.work() {
            Ok(work) => work,
            Err(error) => return fail(staging, error),
        };
        let published = self.with_area(&request.staging_dir, |area| {
            let replaces = staging.replaces().map(|file| &**file);
            let scratch =
                area.scratch_beside(&request.destination, replaces, source.staged_mode())?;
            let (_, digest) = source.copy_into(scratch.file()?, scratch.path())?;
            if checksum::is_digest(&request.checksum) {
                let actual = checksum::hex(&digest);
                if actual.as_bytes() != &*request.checksum {
                    return Err(Error::ChecksumMismatch { actual }.into());
                }
            }
            Ok(scratch.publish_elsewhere(source.staged_mode())?)
        });
        match published {
            Ok(published) => enter(staging, published, request.name.clone(), request.size),
            Err(error) => fail(staging, error),
        }
    }

    /// Stages a file under its own digest. `miss` is what a glance has told of it just now: a file
    /// that is new is not looked at again before it is opened. `None`: a waiter gets the answer.
    pub fn stage_file(
        self: &Arc<Self>,
        request: &FileRequest,
        miss: Miss,
        make_waiter: MakeWaiter<'_>,
    ) -> Option<Outcome> {
        outcome(|| {
            if miss == Miss::Unclear {
                let seen = Fingerprint::of(&disk::look(&request.source)?);
                if let Some(attachment) = self.stage_unchanged(&seen, request) {
                    return Ok(Some(known(attachment)));
                }
            }
            let size = match self.stage_small_file(request, make_waiter)? {
                SmallFile::Staged(outcome) => return Ok(outcome),
                SmallFile::Large { size } => size,
            };
            let (registry, request, waiter) = (self.clone(), request.clone(), make_waiter());
            copiers::run(
                size,
                move |waiter| {
                    registry
                        .stage_large_file(&request, waiter)
                        .unwrap_or_else(Outcome::Failed)
                },
                waiter,
            );
            Ok(None)
        })
    }

    /// Stages a file again that is recognised as one that was hashed before.
    fn stage_unchanged(&self, seen: &Fingerprint, request: &FileRequest) -> Option<Attachment> {
        let recognition = self.recognition.as_ref()?;
        let file = recognition.find(seen, Likeness::Proof)?;
        self.refresh_if_intact(&file, request.retention)
    }

    /// Stages what is staged again, if its file is still there.
    fn refresh_if_intact(
        &self,
        file: &Arc<StagedFile>,
        retention: Retention,
    ) -> Option<Attachment> {
        if !file.is_intact() {
            return None;
        }
        self.manifest.refresh(file, retention, Now::read())
    }

    fn stage_small_file(
        self: &Arc<Self>,
        request: &FileRequest,
        make_waiter: MakeWaiter<'_>,
    ) -> Result<SmallFile> {
        let _work = self.work()?;
        let started = Now::read();
        let source = Source::open(&request.source)?;
        SMALL_CONTENT.with_borrow_mut(|buffer| {
            let Some(length) = source.read_small(buffer)? else {
                let size = source.size();
                return Ok(SmallFile::Large { size });
            };
            let content = &buffer[..length];
            let size = length as u64;
            let checksum = checksum::key(&checksum::digest(content));
            let outcome = match self.admit(&checksum, request.retention, make_waiter)? {
                Admitted::Lead(staging) => {
                    let published = self.with_area(&request.staging_dir, |area| {
                        area.publish_small(&checksum, &request.name, content, source.staged_mode())
                    });
                    Some(match published {
                        Ok(published) => enter(staging, published, request.name.clone(), size),
                        Err(error) => fail(staging, error),
                    })
                }
                Admitted::Done(outcome) => outcome,
            };
            self.remember(&source, started, size, outcome.as_ref());
            Ok(SmallFile::Staged(outcome))
        })
    }

    /// The outcome is the waiter's, if that is still here in the end.
    fn stage_large_file(
        &self,
        request: &FileRequest,
        waiter: &mut Option<Waiter>,
    ) -> Result<Outcome> {
        let _work = self.work()?;
        let started = Now::read();
        let source = Source::open(&request.source)?.until(&self.ending);
        let Some(recognition) = &self.recognition else {
            return self.read_large_file(request, &source, started, false, waiter);
        };
        let seen = source.fingerprint();
        // If somebody copies it right now, it will be recognised afterwards.
        let copying = if source.would_show_changes_since(started) {
            match recognition.copying(seen, waiter) {
                None => return Ok(Outcome::Retry),
                copying => copying,
            }
        } else {
            None
        };
        // While this copy waited for its turn, somebody else may have.
        if let Some(attachment) = self.stage_unchanged(&seen, request) {
            return Ok(known(attachment));
        }
        let familiar = [Likeness::Hint, Likeness::Proof].iter().any(|&likeness| {
            let file = recognition.find(&seen, likeness);
            file.is_some_and(|file| file.is_intact())
        });
        let result = self.read_large_file(request, &source, started, familiar, waiter);
        if let (Some(copying), Err(error) | Ok(Outcome::Failed(error))) = (copying, &result)
            && error.is_lack_of_room()
        {
            copying.fail(error);
        }
        result
    }

    /// Reads and copies it at once, or reads it first if its content may well be staged.
    fn read_large_file(
        &self,
        request: &FileRequest,
        source: &Source<'_>,
        started: Now,
        familiar: bool,
        waiter: &mut Option<Waiter>,
    ) -> Result<Outcome> {
        let mut staging = None;
        let mut short = None;
        let mut deadline = None;
        let mut turn = None;
        loop {
            // To read a file once more costs less than a copy in vain, and takes no room.
            if staging.is_none() && (familiar || short.is_some()) {
                let (digest, size) = source.digest()?;
                let checksum = checksum::key(&digest);
                match self.admit(&checksum, request.retention, || hand_over(waiter))? {
                    Admitted::Lead(lead) => staging = Some(lead),
                    Admitted::Done(outcome) => {
                        self.remember(source, started, size, outcome.as_ref());
                        return Ok(outcome.unwrap_or(Outcome::Retry));
                    }
                }
            }
            // There was no room, and the content is not known.
            if let Some((error, beside_others)) = short.take() {
                let Some(since) = beside_others else {
                    return fail_if_lead(staging, error);
                };
                // Others may have taken it.
                let until = *deadline.get_or_insert_with(|| Instant::now() + ROOM_WAIT);
                if Instant::now() >= until {
                    return fail_if_lead(staging, error);
                }
                if turn.is_none() {
                    turn = self.large_copies.turn_to_make_again(until);
                }
                self.large_copies.wait_for_an_end(since, until);
            }
            let copy = self.large_copies.begin();
            match self.copy_large_file(request, source, started, &mut staging, waiter) {
                Err(error) if error.is_lack_of_room() => {
                    short = Some((error, copy.end_if_beside_others()));
                }
                Err(error) => return fail_if_lead(staging, error),
                outcome => return outcome,
            }
        }
    }

    /// `staging` is a ticket for what the content was a moment ago, if that is known; after an error
    /// the one for what it is, if there is one.
    fn copy_large_file(
        &self,
        request: &FileRequest,
        source: &Source<'_>,
        started: Now,
        staging: &mut Option<Staging>,
        waiter: &mut Option<Waiter>,
    ) -> Result<Outcome> {
        let mode = source.staged_mode();
        let published = self.with_area(&request.staging_dir, |area| {
            let scratch = area.large_scratch(mode)?;
            let (size, digest) = source.copy_into(scratch.file()?, scratch.path())?;
            let checksum = checksum::key(&digest);
            // One of another content is of no use.
            let ticket = staging
                .take()
                .filter(|staging| *staging.checksum() == checksum);
            let lead = match ticket {
                Some(ticket) => ticket,
                None => {
                    match self.admit(&checksum, request.retention, || hand_over(waiter))? {
                        Admitted::Lead(lead) => lead,
                        // The waiter waits for whoever holds the ticket; this copy was in vain.
                        Admitted::Done(outcome) => {
                            return Ok((size, Err(outcome.unwrap_or(Outcome::Retry))));
                        }
                    }
                }
            };
            let lead = staging.insert(lead);
            let published = area.publish_large(scratch, lead.checksum(), &request.name, mode);
            if matches!(published, Err(PublishError::AreaLost)) {
                // The copy went with its area, and the next one may have another content.
                *staging = None;
            }
            Ok((size, Ok(published?)))
        });
        let (size, published) = published?;
        let outcome = match published {
            Ok(published) => match staging.take() {
                Some(staging) => enter(staging, published, request.name.clone(), size),
                None => Outcome::Retry,
            },
            Err(outcome) => outcome,
        };
        self.remember(source, started, size, Some(&outcome));
        Ok(outcome)
    }

    /// Remembers the source of what was staged. `size` is how many bytes have been read: a file that
    /// says that it has another number of them may say anything of its times.
    fn remember(&self, source: &Source<'_>, started: Now, size: u64, outcome: Option<&Outcome>) {
        let (Some(recognition), Some(Outcome::Staged { attachment, .. })) =
            (&self.recognition, outcome)
        else {
            return;
        };
        let likeness = if source.size() == size && source.would_show_changes_since(started) {
            Likeness::Proof
        } else if size > INLINE_LIMIT as u64 {
            Likeness::Hint
        } else {
            // A small file is read in any case.
            return;
        };
        recognition.remember(&source.fingerprint(), likeness, &attachment.file, || {
            let totals = self.manifest.metrics().totals;
            let staged = totals.persistent_count + totals.expirable_count;
            usize::try_from(staged).unwrap_or(usize::MAX)
        });
    }

    /// Forgets the sources of files that have been removed.
    pub(crate) fn forget_removed(&self) {
        if let Some(recognition) = &self.recognition {
            recognition.forget_removed();
        }
    }

    /// Asks the manifest until it has an answer that holds: a known checksum counts only if its
    /// file is still there.
    fn admit(
        &self,
        checksum: &Checksum,
        retention: Retention,
        mut make_waiter: impl FnMut() -> Waiter,
    ) -> Result<Admitted> {
        let mut lost: Option<Arc<StagedFile>> = None;
        loop {
            match self
                .manifest
                .admit(checksum, retention, lost.as_ref(), &mut make_waiter)?
            {
                Admission::Waiting => return Ok(Admitted::Done(None)),
                Admission::Lead(staging) => return Ok(Admitted::Lead(staging)),
                Admission::Known(file) if file.is_intact() => {
                    if let Some(attachment) = self.manifest.refresh(&file, retention, Now::read()) {
                        return Ok(Admitted::Done(Some(known(attachment))));
                    }
                }
                Admission::Known(file) => lost = Some(file),
            }
        }
    }

    /// Runs `work` in the area of a staging directory; once more in a new one if somebody has taken
    /// the area away.
    fn with_area<T>(
        &self,
        staging_dir: &StagingDir,
        mut work: impl FnMut(&Arc<Area>) -> Result<T, PublishError>,
    ) -> Result<T> {
        for _ in 0..3 {
            let area = self.area(staging_dir)?;
            match work(&area) {
                Ok(done) => return Ok(done),
                Err(PublishError::Failed(error)) => {
                    // After the end nobody else will.
                    if self.areas.lock().is_none() {
                        area.remove_if_empty();
                    }
                    return Err(error);
                }
                Err(PublishError::AreaLost) => {
                    self.forget(&area);
                    // If it is only the directory in it that has gone.
                    area.remove_if_empty();
                }
            }
        }
        Err(Error::StagingDir {
            path: staging_dir.path.as_path().into(),
            errno: nix::errno::Errno::ENOENT,
        })
    }

    fn area(&self, staging_dir: &StagingDir) -> Result<Arc<Area>> {
        let areas = self.areas.lock();
        if let Some(area) = areas.as_ref().ok_or(Error::Stopped)?.get(&staging_dir.path) {
            return Ok(area.clone());
        }
        drop(areas);
        let opened = Area::open(staging_dir)?;
        let area = self.areas.lock().as_mut().map(|areas| {
            areas
                .entry(staging_dir.path.clone())
                .or_insert_with(|| opened.clone())
                .clone()
        });
        if self.purged.lock().insert(staging_dir.path.clone()) {
            self.command(Command::Purge(staging_dir.clone()));
        }
        // Opened without the lock: if another was quicker, or the end, ours goes again.
        if !area.as_ref().is_some_and(|area| Arc::ptr_eq(area, &opened)) {
            opened.remove_if_empty();
        }
        area.ok_or(Error::Stopped)
    }

    fn forget(&self, lost: &Arc<Area>) {
        if let Some(areas) = self.areas.lock().as_mut() {
            areas.retain(|_, area| !Arc::ptr_eq(area, lost));
        }
    }

    /// Lets go of the areas that are empty.
    pub(crate) fn drop_empty_areas(&self) {
        let areas: Vec<_> = match self.areas.lock().as_ref() {
            Some(areas) => areas.values().cloned().collect(),
            None => return,
        };
        for area in areas {
            if area.remove_if_empty() {
                self.forget(&area);
            }
        }
    }

    /// Removes the expired attachments, and reports on some of them at a time.
    pub(crate) fn sweep(&self, reported: impl FnMut(Report)) {
        sweeper::sweep_in_batches(
            &self.manifest,
            Now::read(),
            |file| self.remove(file),
            reported,
        );
    }

    /// Removes all attachments, and what dead registries left below `dir`.
    pub(crate) fn reset(&self, dir: &Path) -> Failures {
        let mut failures = self.remove_all();
        failures.extend(staging_area::purge(&StagingDir {
            path: dir.to_owned(),
            is_default: false,
        }));
        self.drop_empty_areas();
        failures
    }

    /// Ends it: nothing can be staged any more, and what was is removed.
    pub(crate) fn stop(&self) -> Failures {
        self.call_off();
        let failures = self.remove_all();
        // Whoever is still at work in an area after that takes it away when it is done.
        let _nobody_at_work = self.at_work.try_write_for(LAST_WAIT);
        let areas = self.areas.lock().take();
        for area in areas.iter().flat_map(HashMap::values) {
            area.remove_if_empty();
        }
        failures
    }

    fn remove(&self, file: &StagedFile) -> Result<()> {
        file.remove()?;
        if let Some(recognition) = &self.recognition {
            recognition.one_was_removed();
        }
        Ok(())
    }

    fn remove_all(&self) -> Failures {
        sweeper::remove_all(&self.manifest, |file| self.remove(file))
            .into_iter()
            .map(|(attachment, error)| (attachment.file.path.to_path_buf(), error))
            .collect()
    }

    fn call_off(&self) {
        self.manifest.stop();
        self.ending.store(true, Ordering::Relaxed);
        // They ask again, and are told.
        if let Some(recognition) = &self.recognition {
            recognition.call_off();
        }
    }

    /// To be held by whoever stages, from before the first file is written to the end.
    fn work(&self) -> Result<RwLockReadGuard<'_, ()>> {
        // Only the end has it to itself.
        self.at_work.try_read().ok_or(Error::Stopped)
    }

    /// Asks to stage a file that a file module of the host's is to copy.
    pub fn admit_file_module(
        &self,
        request: &StageRequest,
        make_waiter: MakeWaiter<'_>,
    ) -> FileModuleAdmission {
        match self.admit(&request.checksum, request.retention, make_waiter) {
            Ok(Admitted::Lead(staging)) => FileModuleAdmission::Lead(staging),
            Ok(Admitted::Done(outcome)) => FileModuleAdmission::Done(outcome),
            Err(error) => FileModuleAdmission::Done(Some(Outcome::Failed(error))),
        }
    }

    /// The digest of a file that a file module of the host's is to copy, and its size in bytes.
    pub fn describe_file_module(source: PathBuf, reply: Reply<([u8; 32], u64)>) {
        let size = size_of(&source);
        copiers::answer(size, move || disk::digest_of_file(&source), reply);
    }

    /// Reads a file that a file module of the host's has put in place, if its checksum has the
    /// form of a digest. The reply is [`Error::ChecksumMismatch`] if it is another's, and as reading
    /// the file.
    pub fn verify_file_module(request: StageRequest, reply: Reply<()>) {
        if !checksum::is_digest(&request.checksum) {
            return copiers::answer(0, || Ok(()), reply);
        }
        let size = size_of(&request.destination);
        let verify = move || {
            let (digest, _) = disk::digest_of_file(&request.destination)?;
            let actual = checksum::hex(&digest);
            if actual.as_bytes() == &*request.checksum {
                Ok(())
            } else {
                Err(Error::ChecksumMismatch { actual })
            }
        };
        copiers::answer(size, verify, reply);
    }

    /// Enters a file that a file module of the host's has put in place.
    #[must_use]
    pub fn commit_file_module(staging: Staging, request: &StageRequest) -> Outcome {
        let file = StagedFile::of_file_module(
            request.checksum.clone(),
            request.name.clone(),
            &request.destination,
            request.size,
        );
        commit(staging, file)
    }
}

/// What became of a request to stage through a file module.
pub enum FileModuleAdmission {
    /// Copy the file, then [`Registry::verify_file_module`] and [`Registry::commit_file_module`].
    Lead(Staging),
    /// There is nothing to copy. `None`: a waiter gets the answer.
    Done(Option<Outcome>),
}

/// What became of a file that may be small.
enum SmallFile {
    /// `None`: a waiter gets the answer.
    Staged(Option<Outcome>),
    /// It is not small.
    Large { size: u64 },
}

enum Admitted {
    Lead(Staging),
    Done(Option<Outcome>),
}

/// The waiter, for whoever is at work on the same checksum.
fn hand_over(waiter: &mut Option<Waiter>) -> Waiter {
    waiter.take().unwrap_or_else(|| Waiter::new(drop))
}

fn known(attachment: Attachment) -> Outcome {
    Outcome::Staged {
        attachment,
        origin: Origin::Known,
    }
}

fn fail(staging: Staging, error: Error) -> Outcome {
    staging.fail(error.clone());
    Outcome::Failed(error)
}

/// The error, also for those who wait for the ticket, if there is one.
fn fail_if_lead(staging: Option<Staging>, error: Error) -> Result<Outcome> {
    match staging {
        Some(staging) => Ok(fail(staging, error)),
        None => Err(error),
    }
}

fn enter(staging: Staging, published: Published, name: Box<[u8]>, size: u64) -> Outcome {
    let file = published.into_file(staging.checksum().clone(), name, size);
    commit(staging, file)
}

fn commit(staging: Staging, file: StagedFile) -> Outcome {
    let file = Arc::new(file);
    // The ticket is still out: nobody else works on what belongs to this checksum.
    if let Some(lost) = staging.replaces() {
        lost.give_way_to(&file);
    }
    match staging.commit(&file, Now::read()) {
        Ok(attachment) => Outcome::Staged {
            attachment,
            origin: Origin::Copied,
        },
        Err(error) => {
            // It has no owner. If it cannot be removed now, the next start does it.
            let _ = file.remove();
            if let Some(area) = file.area() {
                area.remove_if_empty();
            }
            Outcome::Failed(error)
        }
    }
}

fn outcome(run: impl FnOnce() -> Result<Option<Outcome>>) -> Option<Outcome> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => Some(Outcome::Failed(error)),
        Err(panic) => Some(Outcome::Failed(Error::from_panic(&*panic))),
    }
}

/// 0 if it cannot be told: whoever opens the file says why.
fn size_of(path: &Path) -> u64 {
    disk::look(path).map_or(0, |stat| disk::FileId::of(&stat).size())
}

/// Checks that a name is one path component.
///
/// # Errors
/// [`Error::InvalidName`].
pub fn check_name(name: &[u8]) -> Result<()> {
    let valid = !matches!(name, b"" | b"." | b"..")
        && name.len() <= 255
        && !name.iter().any(|&byte| byte == b'/' || byte == 0);
    if valid {
        Ok(())
    } else {
        Err(Error::InvalidName(name.into()))
    }
}

/// The last component of a path: the name a file is staged under unless the caller says otherwise.
#[must_use]
pub fn default_name(path: &Path) -> &[u8] {
    path.file_name().map_or(&[], OsStr::as_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retention::Ttl;

    struct Deaf;

    impl Observer for Deaf {
        fn cleaned(&self, _report: Report) {}
        fn ended(&self) {}
    }

    #[test]
    fn p3_a_file_of_which_other_bytes_were_read_than_its_size_says_is_not_recognised() {
        let dir = tempfile::tempdir().expect("a directory");
        let registry = Registry::start(Options {
            cleanup_interval: Duration::MAX,
            orphan_grace: Duration::MAX,
            recognise_unchanged: true,
            observer: Box::new(Deaf),
        })
        .expect("a thread can be had");
        let request = FileRequest {
            source: dir.path().join("source"),
            name: Box::from(&b"name"[..]),
            retention: Retention {
                persist: true,
                ttl: Ttl::Infinity,
            },
            staging_dir: StagingDir {
                path: dir.path().join("staging"),
                is_default: false,
            },
        };
        std::fs::write(&request.source, b"content").expect("a source");
        let outcome = registry.stage_file(&request, Miss::New, &|| Waiter::new(drop));
        assert!(matches!(outcome, Some(Outcome::Staged { .. })));

        let source = Source::open(&request.source).expect("it is there");
        let mut later = Now::read();
        later.wall_ms += 10_000;
        for (size, recognised) in [(6, false), (8, false), (0, false), (7, true)] {
            registry.remember(&source, later, size, outcome.as_ref());
            let again = registry.refresh_file(&request.source, request.retention);
            assert_eq!(again.is_ok(), recognised, "{size} bytes");
        }
    }
}
