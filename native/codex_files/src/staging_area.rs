//! The directory on disk: its layout, who owns it, and who may delete what.
//!
//! ```text
//! <staging directory>/                        0700 if we make it; ours, or refused
//!   codex_files-<16 hex digits>/              an area: one registry's own, under a shared flock
//!     <checksum>/<name>                       a staged file, 0400 or 0500
//!     <checksum>/.staging                     a small file on its way in, renamed to <name>
//!     .staging-<number>                       a large file on its way in
//!     .elsewhere-<number>[+][-<file id>]      a symbolic link to a file staged at a destination
//!                                             that the caller chose; +: in a directory made for it
//! ```
//!
//! An area whose lock can be taken exclusively has no living owner, and is removed by the next
//! registry that starts on the same staging directory. What the library did not write stays.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg};
use nix::sys::stat::{FileStat, Mode};

use crate::attachment::StagedFile;
use crate::checksum::{self, Checksum};
use crate::disk::{self, FileId};
use crate::error::{Context, Error, Failures, FileType, Insecurity, Result};
use crate::panics;
use crate::sys;

const AREA_PREFIX: &str = "codex_files-";
const STAGING_PREFIX: &str = ".staging";
const ELSEWHERE_PREFIX: &str = ".elsewhere-";
const MADE_DIR: char = '+';

/// How often the directory of a destination is made again for a scratch file, if it goes meanwhile.
const ATTEMPTS: usize = 10;

/// Which staging directory to use.
#[derive(Clone, Debug)]
pub struct StagingDir {
    /// Its path; a relative one is taken from the current directory.
    pub path: PathBuf,
    /// Nobody configured it: if it belongs to somebody else, or is no directory, the name with our
    /// user id appended will do as well.
    pub is_default: bool,
}

impl StagingDir {
    /// For registries that keep nothing of their own on the disk.
    #[must_use]
    pub fn unused() -> Self {
        Self {
            path: PathBuf::new(),
            is_default: false,
        }
    }
}

/// Who may remove a staged file, and how.
#[derive(Debug)]
pub enum Place {
    /// `<checksum>/<name>` in an area.
    Area(Arc<Area>),
    /// A destination that the caller chose.
    Elsewhere {
        /// Where it is on record, in case we die.
        area: Arc<Area>,
        /// The name of the record.
        record: PathBuf,
        /// Its directory was made for it.
        made_dir: bool,
    },
    /// A file module of the host's takes care of it.
    FileModule,
}

/// A registry's own directory below a staging directory. Locked while it lives.
#[derive(Debug)]
pub struct Area {
    path: PathBuf,
    /// Also the reference point of every path below: a staging directory that is moved or replaced
    /// cannot lead a write or a removal astray.
    lock: Flock<OwnedFd>,
    local: bool,
    dev: u64,
    next_number: AtomicU64,
}

/// A way to fail that is worth another try.
pub(crate) enum PublishError {
    /// The area has gone from its path, removed or moved by somebody else.
    AreaLost,
    Failed(Error),
}

impl From<Error> for PublishError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Area {
    /// Makes a new area below a staging directory, which is made too if need be.
    pub(crate) fn open(staging_dir: &StagingDir) -> Result<Arc<Self>> {
        with_fallback(staging_dir, |path| {
            make_dirs(path)?;
            let dir = open_own_dir(path)?;
            loop {
                if let Some(area) = Self::make(path, &dir)? {
                    return Ok(Arc::new(area));
                }
            }
        })
    }

    /// `None` if somebody got in between.
    fn make(staging_dir: &Path, dir: &OwnedFd) -> Result<Option<Self>> {
        let mut random = [0; 8];
        getrandom::fill(&mut random)
            .map_err(|_| Error::io("draw a random name below", staging_dir, Errno::EIO))?;
        let name = PathBuf::from(format!("{AREA_PREFIX}{:016x}", u64::from_le_bytes(random)));
        let path = staging_dir.join(&name);
        match sys::mkdir_at(dir, &name) {
            Err(Errno::EEXIST) => return Ok(None),
            result => result.context("make directory", &path)?,
        }
        let made =
            sys::open_dir_at(dir, &name).and_then(|fd| sys::lock(fd, FlockArg::LockSharedNonblock));
        let lock = match made {
            Ok(lock) => lock,
            // A registry that starts right now took it for a dead one's.
            Err(Errno::EWOULDBLOCK | Errno::ENOENT) => return Ok(None),
            Err(errno) => {
                let _ = sys::rmdir_at(dir, &name);
                return Err(Error::io("lock", &path, errno));
            }
        };
        // And perhaps removed it before we had the lock.
        let ours = sys::fstat(&*lock).map(|stat| FileId::of(&stat));
        let there = sys::lstat_at(dir, &name).map(|stat| FileId::of(&stat));
        let dev = match (ours, there) {
            (Ok(ours), Ok(there)) if ours.same_file(&there) => ours.dev(),
            (_, Err(Errno::ENOENT)) | (Ok(_), Ok(_)) => return Ok(None),
            (Err(errno), _) | (_, Err(errno)) => return Err(Error::io("stat", &path, errno)),
        };
        Ok(Some(Self {
            path,
            dev,
            local: sys::is_local(&*lock),
            lock,
            next_number: AtomicU64::new(0),
        }))
    }

    fn dir(&self) -> &OwnedFd {
        &self.lock
    }

    /// Whether this is the device that the area is on, a file system of this machine.
    pub(crate) fn is_local_device(&self, dev: u64) -> bool {
        self.local && self.dev == dev
    }

    fn next_number(&self) -> u64 {
        // Only has to differ from call to call.
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }

    /// Where the file of a checksum goes, relative to the area.
    fn relative(checksum: &[u8], name: &[u8]) -> PathBuf {
        Path::new(OsStr::from_bytes(checksum)).join(OsStr::from_bytes(name))
    }

    /// Writes a small content and publishes it.
    pub(crate) fn publish_small(
        self: &Arc<Self>,
        checksum: &[u8],
        name: &[u8],
        content: &[u8],
        mode: Mode,
    ) -> Result<Published, PublishError> {
        // Two different names, whatever the file is called: one component more than a name has,
        // less the room that a name may take.
        let scratch_name = if name == STAGING_PREFIX.as_bytes() {
            ".staging-"
        } else {
            STAGING_PREFIX
        };
        self.in_checksum_dir(checksum, |dir| {
            // A ticket for the checksum is out: nobody else of this registry writes here.
            let scratch = self.scratch(dir.join(scratch_name), mode)?;
            scratch.write(content)?;
            self.publish(scratch, checksum, name, mode)
        })
    }

    /// Publishes a file that was written into a scratch file of this area.
    pub(crate) fn publish_large(
        self: &Arc<Self>,
        scratch: Scratch,
        checksum: &[u8],
        name: &[u8],
        mode: Mode,
    ) -> Result<Published, PublishError> {
        self.in_checksum_dir(checksum, |_| self.publish(scratch, checksum, name, mode))
    }

    /// Makes the directory of a checksum for `work`, and takes it away again if that fails.
    fn in_checksum_dir<T>(
        &self,
        checksum: &[u8],
        work: impl FnOnce(&Path) -> Result<T, PublishError>,
    ) -> Result<T, PublishError> {
        let dir = Path::new(OsStr::from_bytes(checksum));
        match sys::mkdir_at(self.dir(), dir) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(Errno::ENOENT) => return Err(PublishError::AreaLost),
            Err(errno) => {
                return Err(Error::io("make directory", &self.path.join(dir), errno).into());
            }
        }
        let result = work(dir);
        if result.is_err() {
            let _ = sys::rmdir_at(self.dir(), dir);
        }
        result
    }

    fn publish(
        self: &Arc<Self>,
        mut scratch: Scratch,
        checksum: &[u8],
        name: &[u8],
        mode: Mode,
    ) -> Result<Published, PublishError> {
        let relative = Self::relative(checksum, name);
        let path = self.path.join(&relative);
        let written = FileId::of(&sys::fstat(scratch.file()?).context("stat", &scratch.path)?);
        scratch.close()?;
        match sys::rename_at(self.dir(), &scratch.name, self.dir(), &relative) {
            Ok(()) => {
                scratch.gone = true;
                panics::point("published");
            }
            Err(Errno::ENOENT) => return Err(PublishError::AreaLost),
            Err(errno) => return Err(Error::io("rename", &path, errno).into()),
        }
        let published = Published {
            path,
            place: Place::Area(self.clone()),
            file_id: None,
        };
        // Through the whole path, as its readers go: it must lead to what was written.
        let checked = match sys::lstat(&published.path) {
            Ok(stat) if FileId::of(&stat).same_file(&written) => {
                published.checked(stat, mode).map_err(Into::into)
            }
            Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {
                Err(PublishError::AreaLost)
            }
            Err(errno) => Err(Error::io("stat", &published.path, errno).into()),
        };
        if checked.is_err() {
            let _ = sys::unlink_at(self.dir(), &relative);
        }
        checked
    }

    /// A new scratch file for a large content.
    pub(crate) fn large_scratch(self: &Arc<Self>, mode: Mode) -> Result<Scratch, PublishError> {
        self.scratch(self.numbered_scratch(), mode)
    }

    fn numbered_scratch(&self) -> PathBuf {
        PathBuf::from(format!("{STAGING_PREFIX}-{}", self.next_number()))
    }

    fn scratch(self: &Arc<Self>, mut name: PathBuf, mode: Mode) -> Result<Scratch, PublishError> {
        let created = loop {
            match sys::create_at(self.dir(), &name, mode) {
                Err(Errno::EEXIST) => match self.clear_scratch(&name) {
                    Ok(true) => {}
                    Ok(false) => name = self.numbered_scratch(),
                    Err(errno) => break Err(errno),
                },
                result => break result,
            }
        };
        match created {
            Ok(file) => Ok(Scratch {
                area: self.clone(),
                path: self.path.join(&name),
                name,
                file: Some(file),
                elsewhere: None,
                gone: false,
            }),
            Err(Errno::ENOENT) => Err(PublishError::AreaLost),
            Err(errno) => Err(Error::io("create", &self.path.join(&name), errno).into()),
        }
    }

    /// Removes what is where a scratch file is to be, left behind by a removal of its own that
    /// failed; `false` if it is somebody else's, and stays.
    fn clear_scratch(&self, name: &Path) -> nix::Result<bool> {
        match sys::lstat_at(self.dir(), name) {
            Ok(stat) if !looks_staged(&stat) => return Ok(false),
            result => forgive_missing(result.map(drop))?,
        }
        forgive_missing(sys::unlink_at(self.dir(), name))?;
        Ok(true)
    }

    /// A new scratch file beside a destination that the caller chose. `replaces` is a file that
    /// was found missing or changed.
    pub(crate) fn scratch_beside(
        self: &Arc<Self>,
        destination: &Path,
        replaces: Option<&StagedFile>,
        mode: Mode,
    ) -> Result<Scratch, PublishError> {
        let destination = std::path::absolute(destination)
            .map_err(|_| Error::io("use destination", destination, Errno::EINVAL))?;
        let mut attempts = 1..ATTEMPTS;
        loop {
            match self.try_scratch_beside(&destination, replaces, mode) {
                // A directory that another staging made goes when the file of that expires, be it
                // between our look at the directory and the scratch file in it.
                Err(PublishError::Failed(Error::Io {
                    errno: Errno::ENOENT,
                    ..
                })) if attempts.next().is_some() => {}
                result => return result,
            }
        }
    }

    fn try_scratch_beside(
        self: &Arc<Self>,
        destination: &Path,
        replaces: Option<&StagedFile>,
        mode: Mode,
    ) -> Result<Scratch, PublishError> {
        let parent = destination
            .parent()
            .ok_or_else(|| Error::io("use destination", destination, Errno::EISDIR))?;
        let made_before = replaces.is_some_and(|file| file.made_dir() == Some(parent));
        let made_dir = make_dirs(parent)? || made_before;
        let number = self.next_number();
        let mut record = format!("{ELSEWHERE_PREFIX}{number}");
        if made_dir {
            record.push(MADE_DIR);
        }
        let record = PathBuf::from(record);
        let path = beside(destination, &self.path, number);
        // Dropped on a failure from here on, it takes everything away again.
        let mut scratch = Scratch {
            area: self.clone(),
            path,
            name: PathBuf::new(),
            file: None,
            elsewhere: Some(Elsewhere {
                destination: destination.to_owned(),
                record: record.clone(),
                made_dir,
            }),
            gone: false,
        };
        // The record comes first: whenever we die, the next start finds all there is.
        match sys::symlink_at(destination, self.dir(), &record) {
            Ok(()) => {}
            Err(Errno::ENOENT) => return Err(PublishError::AreaLost),
            Err(errno) => {
                return Err(Error::io("create", &self.path.join(record), errno).into());
            }
        }
        scratch.file =
            Some(sys::create_at(AT_FDCWD, &scratch.path, mode).context("create", &scratch.path)?);
        Ok(scratch)
    }

    /// Removes the directory, if nothing is in it.
    pub(crate) fn remove_if_empty(&self) -> bool {
        // Through the path, since a directory cannot be removed by its descriptor; `rmdir` harms
        // nobody even if the path has come to mean another one.
        matches!(
            sys::rmdir_at(AT_FDCWD, &self.path),
            Ok(()) | Err(Errno::ENOENT)
        )
    }
}

/// The scratch file for a destination: its name tells the area and the record that it belongs to.
fn beside(destination: &Path, area: &Path, number: u64) -> PathBuf {
    let area = area.file_name().unwrap_or_default();
    let mut name = OsStr::new(".").to_owned();
    name.push(area);
    name.push(format!("-{number}"));
    destination.with_file_name(name)
}

/// Makes a directory and its parents; whether the last one had to be made.
fn make_dirs(path: &Path) -> Result<bool> {
    match sys::mkdir_at(AT_FDCWD, path) {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        Err(Errno::ENOENT) => {
            let parent = path
                .parent()
                .ok_or_else(|| Error::io("make directory", path, Errno::ENOENT))?;
            let made_parent = make_dirs(parent)?;
            match sys::mkdir_at(AT_FDCWD, path) {
                Ok(()) => Ok(true),
                Err(Errno::EEXIST) => Ok(false),
                Err(errno) => {
                    if made_parent {
                        let _ = sys::rmdir_at(AT_FDCWD, parent);
                    }
                    Err(Error::io("make directory", path, errno))
                }
            }
        }
        Err(errno) => Err(Error::io("make directory", path, errno)),
    }
}

/// A file on its way in. Dropped, it is removed.
pub(crate) struct Scratch {
    area: Arc<Area>,
    /// Relative to the area, unless it lies elsewhere.
    name: PathBuf,
    path: PathBuf,
    file: Option<File>,
    elsewhere: Option<Elsewhere>,
    gone: bool,
}

struct Elsewhere {
    destination: PathBuf,
    record: PathBuf,
    made_dir: bool,
}

impl Scratch {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self) -> Result<&File> {
        self.file
            .as_ref()
            .ok_or_else(|| Error::io("write to", &self.path, Errno::EBADF))
    }

    pub(crate) fn write(&self, content: &[u8]) -> Result<()> {
        sys::write_all(self.file()?, content).context("write to", &self.path)
    }

    fn close(&mut self) -> Result<()> {
        match self.file.take() {
            Some(file) => sys::close(file).context("close", &self.path),
            None => Ok(()),
        }
    }

    /// Publishes a scratch file that [`Area::scratch_beside`] made.
    pub(crate) fn publish_elsewhere(mut self, mode: Mode) -> Result<Published> {
        let stat = sys::fstat(self.file()?).context("stat", &self.path)?;
        self.close()?;
        let area = self.area.clone();
        let Some(elsewhere) = self.elsewhere.as_mut() else {
            return Err(Error::io("rename", &self.path, Errno::EINVAL));
        };
        let id = FileId::of(&stat);
        let mut record = elsewhere.record.clone().into_os_string();
        record.push(format!("-{:x}-{:x}", id.dev(), id.ino()));
        let record = PathBuf::from(record);
        sys::rename_at(area.dir(), &elsewhere.record, area.dir(), &record)
            .context("rename", &area.path.join(&elsewhere.record))?;
        elsewhere.record.clone_from(&record);
        // Somebody may have put something there since the source was opened.
        look_at_destination(&elsewhere.destination)?;
        sys::rename_at(AT_FDCWD, &self.path, AT_FDCWD, &elsewhere.destination)
            .context("rename", &elsewhere.destination)?;
        // That is where it is now, should something still fail.
        self.path.clone_from(&elsewhere.destination);
        let published = Published {
            path: elsewhere.destination.clone(),
            place: Place::Elsewhere {
                area: area.clone(),
                record,
                made_dir: elsewhere.made_dir,
            },
            file_id: Some(id),
        };
        let stat = sys::lstat(&published.path).context("stat", &published.path)?;
        // The file that another staging has put there meanwhile is neither to be taken for this one
        // nor to go with it.
        let published = if FileId::of(&stat).same_file(&id) {
            published.checked(stat, mode)?
        } else {
            published
        };
        self.gone = true;
        Ok(published)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.gone {
            return;
        }
        // First: FUSE gives a file that is open another name, and its directory could not be removed.
        drop(self.file.take());
        // Nobody is left to tell of a failure; the next start removes what stays.
        match &self.elsewhere {
            None => {
                let _ = sys::unlink_at(self.area.dir(), &self.name);
            }
            Some(elsewhere) => {
                let removed = sys::unlink_at(AT_FDCWD, &self.path);
                if matches!(removed, Ok(()) | Err(Errno::ENOENT | Errno::ENOTDIR)) {
                    let _ = sys::unlink_at(self.area.dir(), &elsewhere.record);
                }
                if let Some(dir) = self.path.parent().filter(|_| elsewhere.made_dir) {
                    let _ = sys::rmdir_at(AT_FDCWD, dir);
                }
            }
        }
    }
}

/// A file in place, not yet in the manifest.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) path: PathBuf,
    place: Place,
    file_id: Option<FileId>,
}

impl Published {
    /// Looks at the mode, which the umask may have narrowed, and notes the identity.
    fn checked(mut self, stat: FileStat, mode: Mode) -> Result<Self> {
        self.file_id = Some(FileId::of(&stat));
        let permissions = Mode::from_bits_truncate(stat.st_mode & 0o7777);
        if permissions != mode {
            sys::chmod(&self.path, mode).context("change the mode of", &self.path)?;
        }
        Ok(self)
    }

    /// The entry for the manifest.
    pub(crate) fn into_file(self, checksum: Checksum, name: Box<[u8]>, size: u64) -> StagedFile {
        StagedFile {
            checksum,
            name,
            size,
            path: self.path.into_boxed_path(),
            file_id: self.file_id,
            place: self.place,
        }
    }
}

impl StagedFile {
    /// A file that a file module has put in place. If it is to be seen there, a later look can
    /// find it missing.
    pub(crate) fn of_file_module(
        checksum: Checksum,
        name: Box<[u8]>,
        path: &Path,
        size: u64,
    ) -> Self {
        Self {
            checksum,
            name,
            path: path.into(),
            size,
            file_id: sys::lstat(path).ok().map(|stat| FileId::of(&stat)),
            place: Place::FileModule,
        }
    }

    /// Whether the file is still there, as it was written.
    pub(crate) fn is_intact(&self) -> bool {
        match self.file_id {
            Some(id) => sys::lstat(&self.path).is_ok_and(|stat| FileId::of(&stat) == id),
            None => true,
        }
    }

    /// The area that the file, or the record of it, is in.
    pub(crate) fn area(&self) -> Option<&Arc<Area>> {
        match &self.place {
            Place::Area(area) | Place::Elsewhere { area, .. } => Some(area),
            Place::FileModule => None,
        }
    }

    /// Whether [`StagedFile::is_intact`] answers at once, without a network or another program.
    pub(crate) fn is_local(&self) -> bool {
        match &self.place {
            Place::Area(area) => area.local,
            Place::Elsewhere { area, .. } => self
                .file_id
                .is_some_and(|id| area.is_local_device(id.dev())),
            Place::FileModule => false,
        }
    }

    /// Where in its path the checksum is, which the name and nothing else follows; `None` if the
    /// path was not made of them.
    #[must_use]
    pub fn checksum_in_path(&self) -> Option<Range<usize>> {
        matches!(self.place, Place::Area(_)).then(|| {
            let end = self.path.as_os_str().len() - self.name.len() - "/".len();
            end - self.checksum.len()..end
        })
    }

    /// The directory made for a destination that the caller chose.
    fn made_dir(&self) -> Option<&Path> {
        match &self.place {
            Place::Elsewhere { made_dir: true, .. } => self.path.parent(),
            _ => None,
        }
    }

    /// Removes what is left of a file that was found missing or changed, now that `new` has been
    /// put in place for it. Nobody is told of a failure: the next start removes what stays.
    pub(crate) fn give_way_to(&self, new: &StagedFile) {
        // The system may have given the new file the number of the old one.
        let same_file = match (&self.file_id, &new.file_id) {
            (Some(old), Some(new)) => old.same_file(new),
            _ => false,
        };
        if self.path != new.path && !same_file {
            let _ = self.remove();
        } else if let Place::Elsewhere { area, record, .. } = &self.place {
            let _ = sys::unlink_at(area.dir(), record);
        }
    }

    /// Removes the file and the directory made for it. One that has gone, or that somebody has
    /// put another file in the place of, counts as removed.
    pub(crate) fn remove(&self) -> Result<()> {
        match &self.place {
            Place::Area(area) => {
                let dir = Path::new(OsStr::from_bytes(&self.checksum));
                let relative = Area::relative(&self.checksum, &self.name);
                self.remove_file(area.dir(), &relative)?;
                remove_dir(area.dir(), dir, &self.path)
            }
            Place::Elsewhere { area, record, .. } => {
                self.remove_file(AT_FDCWD, &self.path)?;
                if let Some(dir) = self.made_dir() {
                    remove_dir(AT_FDCWD, dir, &self.path)?;
                }
                forgive_missing(sys::unlink_at(area.dir(), record))
                    .context("remove", &area.path.join(record))
            }
            Place::FileModule => Ok(()),
        }
    }

    fn remove_file(&self, dir: impl std::os::fd::AsFd + Copy, path: &Path) -> Result<()> {
        let Some(id) = self.file_id else {
            return Ok(());
        };
        match sys::lstat_at(dir, path) {
            // The number alone does not tell: the system gives that of a file that has gone to the
            // next one. One of ours is as it was written, or has at least kept its mode.
            Ok(stat)
                if FileId::of(&stat) == id
                    || (FileId::of(&stat).same_file(&id) && looks_staged(&stat)) =>
            {
                forgive_missing(sys::unlink_at(dir, path)).context("remove", &self.path)
            }
            Ok(_) => Ok(()),
            result => forgive_missing(result.map(drop)).context("remove", &self.path),
        }
    }
}

/// What is at a destination that the caller chose: nothing, or a regular file. Nothing else may be
/// replaced: who stages to a device would have lost it.
pub(crate) fn look_at_destination(path: &Path) -> Result<Option<FileId>> {
    match sys::lstat(path) {
        Ok(stat) => match disk::special_type(&stat) {
            None => Ok(Some(FileId::of(&stat))),
            Some(kind) => Err(Error::UnsupportedDestination(kind)),
        },
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(Error::io("stat", path, errno)),
    }
}

fn forgive_missing(result: nix::Result<()>) -> nix::Result<()> {
    match result {
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(()),
        result => result,
    }
}

/// Removes a directory of ours; one that somebody has put a file into stays.
fn remove_dir(dir: impl std::os::fd::AsFd, path: &Path, file: &Path) -> Result<()> {
    match sys::rmdir_at(dir, path) {
        // Some systems say EEXIST for ENOTEMPTY.
        Err(Errno::ENOTEMPTY | Errno::EEXIST) => Ok(()),
        result => forgive_missing(result).context("remove", file.parent().unwrap_or(file)),
    }
}

/// A file as we leave them: our user's, no one may write it, and only the owner may read it.
fn looks_staged(stat: &FileStat) -> bool {
    disk::special_type(stat).is_none()
        && stat.st_uid == nix::unistd::geteuid().as_raw()
        && stat.st_mode & 0o7277 == 0
}

fn with_fallback<T>(staging_dir: &StagingDir, run: impl Fn(&Path) -> Result<T>) -> Result<T> {
    let run = |path: &Path, said: &Path| {
        run(path).map_err(|error| match error {
            Error::Io { errno, .. } => unusable(said, errno),
            error => error,
        })
    };
    let path = std::path::absolute(&staging_dir.path)
        .map_err(|_| unusable(&staging_dir.path, Errno::ENOENT))?;
    // A slash at the end would have a final link followed without a look at whose it is.
    let path: PathBuf = path.components().collect();
    match run(&path, &staging_dir.path) {
        // Whatever is there that is no directory is no use, whose ever it is.
        Err(
            Error::InsecureStagingDir { .. }
            | Error::StagingDir {
                errno: Errno::ENOTDIR,
                ..
            },
        ) if staging_dir.is_default => {
            let mut own = path.into_os_string();
            own.push(format!("-{}", nix::unistd::geteuid()));
            run(Path::new(&own), Path::new(&own))
        }
        result => result,
    }
}

fn unusable(staging_dir: &Path, errno: Errno) -> Error {
    Error::StagingDir {
        path: staging_dir.into(),
        errno,
    }
}

/// Opens a staging directory if nobody else controls it.
fn open_own_dir(path: &Path) -> Result<OwnedFd> {
    let user = nix::unistd::geteuid().as_raw();
    let insecure = |reason| Error::InsecureStagingDir {
        path: path.into(),
        reason,
    };
    let dir = match sys::open_dir(path) {
        // A link. Ours or the administrator's is somebody's wish; anyone else's is a trap.
        Err(Errno::ELOOP | Errno::ENOTDIR | Errno::EMLINK) => {
            let link = sys::lstat(path).context("stat", path)?;
            if disk::special_type(&link) != Some(FileType::Symlink) {
                return Err(Error::io("open", path, Errno::ENOTDIR));
            }
            if link.st_uid != user && link.st_uid != 0 {
                return Err(insecure(Insecurity::ForeignLink));
            }
            sys::open_dir_following(path).context("open", path)?
        }
        // Whose it is says more than that it may not be read.
        Err(Errno::EACCES) => {
            let stat = sys::lstat(path).context("open", path)?;
            return Err(if stat.st_uid == user {
                Error::io("open", path, Errno::EACCES)
            } else {
                insecure(Insecurity::ForeignOwner)
            });
        }
        result => result.context("open", path)?,
    };
    if sys::fstat(&dir).context("stat", path)?.st_uid != user {
        return Err(insecure(Insecurity::ForeignOwner));
    }
    Ok(dir)
}

/// Removes the areas below a staging directory whose owners are dead. Failures are collected; the
/// rest is removed all the same. A staging directory that is not there, or not ours, has none.
pub(crate) fn purge(staging_dir: &StagingDir) -> Failures {
    panics::point("purge");
    let mut failures = Failures::new();
    let dir = with_fallback(staging_dir, |path| {
        Ok((open_own_dir(path)?, path.to_owned()))
    });
    let (dir, path) = match dir {
        Ok(opened) => opened,
        Err(error) => {
            if let Some(errno) = error.errno().filter(|errno| !is_strange(*errno)) {
                let path = &staging_dir.path;
                failures.push((path.clone(), Error::io("open", path, errno)));
            }
            return failures;
        }
    };
    let names = match sys::names(&dir) {
        Ok(names) => names,
        Err(errno) => {
            failures.push((path.clone(), Error::io("list", &path, errno)));
            return failures;
        }
    };
    for name in names {
        if is_area_name(name.as_bytes()) {
            purge_area(&dir, Path::new(&name), &path.join(&name), &mut failures);
        }
    }
    failures
}

/// Whether a failure to open says that there is no directory of ours.
fn is_strange(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::ENOENT
            | Errno::ENOTDIR
            | Errno::ELOOP
            | Errno::EMLINK
            | Errno::ENAMETOOLONG
            | Errno::EACCES
    )
}

fn is_area_name(name: &[u8]) -> bool {
    name.strip_prefix(AREA_PREFIX.as_bytes()).is_some_and(|id| {
        id.len() == 16
            && id
                .iter()
                .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
    })
}

fn purge_area(staging_dir: &OwnedFd, name: &Path, path: &Path, failures: &mut Failures) {
    let mut fail = |path: &Path, errno| {
        failures.push((path.to_owned(), Error::io("remove", path, errno)));
    };
    let (lock, names) = match lock_dead_area(staging_dir, name) {
        Ok(Some(dead)) => dead,
        Ok(None) => return,
        Err(errno) => return fail(path, errno),
    };
    for child in names {
        let bytes = child.as_bytes();
        let child = Path::new(&child);
        let result = if let Some(record) = bytes.strip_prefix(ELSEWHERE_PREFIX.as_bytes()) {
            purge_elsewhere(&lock, child, record, path)
        } else if bytes.starts_with(STAGING_PREFIX.as_bytes()) {
            purge_file(&lock, child)
        } else if checksum::is_digest(bytes) {
            purge_checksum_dir(&lock, child)
        } else {
            Ok(())
        };
        if let Err(errno) = forgive_missing(result) {
            fail(&path.join(child), errno);
        }
    }
    match sys::rmdir_at(staging_dir, name) {
        Err(Errno::ENOTEMPTY | Errno::EEXIST) => {}
        result => {
            if let Err(errno) = forgive_missing(result) {
                fail(path, errno);
            }
        }
    }
}

/// A dead area, locked, and what is in it. `None`: it is not ours to touch.
fn lock_dead_area(
    staging_dir: &OwnedFd,
    name: &Path,
) -> nix::Result<Option<(Flock<OwnedFd>, Vec<OsString>)>> {
    let dir = match sys::open_dir_at(staging_dir, name) {
        Err(errno) if is_strange(errno) => return Ok(None),
        result => result?,
    };
    if sys::fstat(&dir)?.st_uid != nix::unistd::geteuid().as_raw() {
        return Ok(None);
    }
    let lock = match sys::lock(dir, FlockArg::LockExclusiveNonblock) {
        // Somebody holds it.
        Err(Errno::EWOULDBLOCK) => return Ok(None),
        result => result?,
    };
    let names = sys::names(&lock)?;
    Ok(Some((lock, names)))
}

/// Removes the staged files in a directory of a dead area, and the directory if nothing else is in
/// it.
fn purge_checksum_dir(area: &OwnedFd, name: &Path) -> nix::Result<()> {
    let dir = match sys::open_dir_at(area, name) {
        // Not a directory: nothing that we made.
        Err(Errno::ENOTDIR | Errno::ELOOP | Errno::EMLINK) => return Ok(()),
        result => result?,
    };
    for child in sys::names(&dir)? {
        forgive_missing(purge_file(&dir, Path::new(&child)))?;
    }
    drop(dir);
    match sys::rmdir_at(area, name) {
        Err(Errno::ENOTEMPTY | Errno::EEXIST) => Ok(()),
        result => result,
    }
}

fn purge_file(dir: &OwnedFd, name: &Path) -> nix::Result<()> {
    if looks_staged(&sys::lstat_at(dir, name)?) {
        sys::unlink_at(dir, name)?;
    }
    Ok(())
}

/// Removes what a dead registry staged at a destination that its caller chose, unless it is not
/// there any more or another file has come in its place.
fn purge_elsewhere(
    area: &OwnedFd,
    name: &Path,
    record: &[u8],
    area_path: &Path,
) -> nix::Result<()> {
    let record = String::from_utf8_lossy(record);
    let mut fields = record.splitn(3, '-');
    let number = fields.next().unwrap_or_default();
    let made_dir = number.ends_with(MADE_DIR);
    let Ok(number) = number.trim_end_matches(MADE_DIR).parse() else {
        return Ok(());
    };
    let destination = match sys::readlink_at(area, name) {
        // Not a link: nothing that we made.
        Err(Errno::EINVAL) => return Ok(()),
        result => PathBuf::from(result?),
    };
    let scratch = beside(&destination, area_path, number);
    forgive_missing(sys::unlink_at(AT_FDCWD, &scratch))?;
    let hex = |field: Option<&str>| u64::from_str_radix(field?, 16).ok();
    if let (Some(dev), Some(ino)) = (hex(fields.next()), hex(fields.next())) {
        match sys::lstat(&destination) {
            Ok(stat) => {
                let id = FileId::of(&stat);
                if (id.dev(), id.ino()) == (dev, ino) && looks_staged(&stat) {
                    forgive_missing(sys::unlink_at(AT_FDCWD, &destination))?;
                }
            }
            result => forgive_missing(result.map(drop))?,
        }
    }
    if let Some(dir) = destination.parent().filter(|_| made_dir) {
        match sys::rmdir_at(AT_FDCWD, dir) {
            Err(Errno::ENOTEMPTY | Errno::EEXIST) => {}
            result => forgive_missing(result)?,
        }
    }
    sys::unlink_at(area, name)
}
