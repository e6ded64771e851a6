//! The directory on disk: its layout, who owns it, and who may delete what.
//!
//! ```text
//! <staging directory>/                        0700 if we make it; ours, or refused
//!   codex_files-<16 hex digits>/              an area: one registry's own, under a shared flock
//!     <checksum>/<name>                       a staged file, 0400 or 0500
//!     <checksum>/.staging                     a small file on its way in, renamed to <name>
//!     .staging-<number>                       a large file on its way in
//!     .elsewhere-<number>[+][-<signs>]        a symbolic link to a file staged at a destination
//!                                             that the caller chose; +: in a directory made for it
//! ```
//!
//! An area whose lock can be taken exclusively has no living owner, and is removed by the next
//! registry that starts on, or comes to use, the same staging directory.
//!
//! In an area whatever has a name that we gave is ours, whoever has changed it since; at a caller's
//! destination only the file that we put there. What the library did not write stays. A dead
//! registry's names are not known, so that the files in the directory of a checksum are told by other
//! signs: see [`purge_checksum_dir`].

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg};
use nix::sys::stat::{FileStat, Mode};

use crate::attachment::StagedFile;
use crate::checksum::{self, Checksum};
use crate::disk::{self, FileId, Source};
use crate::error::{Context, Error, Failures, FileType, Insecurity, Result};
use crate::panics;
use crate::sys;

const AREA_PREFIX: &str = "codex_files-";
const STAGING_PREFIX: &str = ".staging";
const ELSEWHERE_PREFIX: &str = ".elsewhere-";
const ASIDE_PREFIX: &str = ".aside-";
const MADE_DIR: char = '+';

/// The mode of a directory of a checksum in which others' files are left when ours has gone. The sticky
/// bit, which changes nothing in a directory of one user's, says so to the next start.
const LET_GO: Mode = Mode::S_IRWXU.union(Mode::S_ISVTX);

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
    /// Directories do not get the mode that they are made with: they are changed, each.
    narrow: bool,
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
        let narrow = match make_dir(dir, &name) {
            Err(Errno::EEXIST) => return Ok(None),
            result => result.context("make directory", &path)?,
        };
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
            narrow,
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
        match self.make_checksum_dir(dir) {
            Ok(()) => {}
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

    fn make_checksum_dir(&self, dir: &Path) -> nix::Result<()> {
        for _ in 0..ATTEMPTS {
            let made = if self.narrow {
                make_dir(self.dir(), dir).map(drop)
            } else {
                sys::mkdir_at(self.dir(), dir)
            };
            match made {
                Err(Errno::EEXIST) => {}
                made => return made,
            }
            // A link in its place would lead what is written astray.
            match sys::lstat_at(self.dir(), dir) {
                Ok(stat) if disk::special_type(&stat) == Some(FileType::Directory) => return Ok(()),
                look => forgive_missing(look.and_then(|_| sys::unlink_at(self.dir(), dir)))?,
            }
        }
        Err(Errno::EEXIST)
    }

    /// Makes room where a file is to be published and a directory is. What somebody keeps in that stays
    /// with it, beside the file.
    fn put_aside(&self, dir: &Path) -> nix::Result<()> {
        let mut result = sys::rmdir_at(self.dir(), dir);
        while let Err(Errno::ENOTEMPTY | Errno::EEXIST) = result {
            let aside = dir.with_file_name(format!("{ASIDE_PREFIX}{}", self.next_number()));
            result = sys::rename_at(self.dir(), dir, self.dir(), &aside);
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
        let written = scratch.finish(mode)?;
        let rename = || sys::rename_at(self.dir(), &scratch.name, self.dir(), &relative);
        let renamed = match rename() {
            Err(Errno::EISDIR) => self.put_aside(&relative).and_then(|()| rename()),
            renamed => renamed,
        };
        match renamed {
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
            Ok(stat) if FileId::of(&stat).same_file(&written) => Ok(published.with(&stat)),
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
            Err(Errno::ENOENT | Errno::ENOTDIR) => Err(PublishError::AreaLost),
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

    /// Removes what is in the place of a staged file.
    fn remove_file(&self, file: &StagedFile) -> nix::Result<()> {
        let dir = Path::new(OsStr::from_bytes(&file.checksum));
        let relative = Self::relative(&file.checksum, &file.name);
        match sys::lstat_at(self.dir(), &relative) {
            Ok(stat) if file.is_seen_in(&stat) => {
                forgive_missing(sys::unlink_at(self.dir(), &relative))
            }
            Err(Errno::ENOENT) => Ok(()),
            // Somebody has changed it. It may not be where it seems to be: no link is followed.
            _ => match sys::open_dir_at(self.dir(), dir) {
                Err(Errno::ENOTDIR | Errno::ELOOP | Errno::EMLINK) => Ok(()),
                opened => {
                    let name = Path::new(OsStr::from_bytes(&file.name));
                    forgive_missing(opened.and_then(|dir| remove_entry(&dir, name)))
                }
            },
        }
    }

    /// Removes what is in the place of a staged file, and the directory of its checksum.
    fn remove(&self, file: &StagedFile) -> nix::Result<()> {
        self.remove_file(file)?;
        let dir = Path::new(OsStr::from_bytes(&file.checksum));
        match sys::rmdir_at(self.dir(), dir) {
            // Some systems say EEXIST for ENOTEMPTY.
            Err(Errno::ENOTEMPTY | Errno::EEXIST) => {
                let _ = sys::chmod_at(self.dir(), dir, LET_GO);
                Ok(())
            }
            Err(Errno::ENOTDIR) => forgive_missing(sys::unlink_at(self.dir(), dir)),
            result => forgive_missing(result),
        }
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

/// Makes a directory for us alone; whether it was made with another mode, by the umask for instance.
fn make_dir(dir: impl AsFd + Copy, path: &Path) -> nix::Result<bool> {
    sys::mkdir_at(dir, path)?;
    let narrow = !sys::lstat_at(dir, path).is_ok_and(|stat| stat.st_mode & 0o777 == 0o700);
    let changed = if narrow {
        sys::chmod_at(dir, path, Mode::S_IRWXU)
    } else {
        Ok(())
    };
    match changed {
        // Whoever opens it finds that it has gone already.
        Ok(()) | Err(Errno::ENOENT) => Ok(narrow),
        Err(errno) => {
            let _ = sys::rmdir_at(dir, path);
            Err(errno)
        }
    }
}

/// Makes a directory and its parents; whether the last one had to be made.
fn make_dirs(path: &Path) -> Result<bool> {
    let make = || match make_dir(AT_FDCWD, path) {
        Ok(_narrow) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        Err(errno) => Err(errno),
    };
    match (make(), path.parent()) {
        (Err(Errno::ENOENT), Some(parent)) => {
            let made_parent = make_dirs(parent)?;
            let made = make();
            if made.is_err() && made_parent {
                let _ = sys::rmdir_at(AT_FDCWD, parent);
            }
            made
        }
        (made, _) => made,
    }
    .context("make directory", path)
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

    /// Closes the file, with the mode that it is to have, which the umask may have narrowed.
    fn finish(&mut self, mode: Mode) -> Result<FileId> {
        let file = self.file()?;
        let stat = sys::fstat(file).context("stat", &self.path)?;
        if Mode::from_bits_truncate(stat.st_mode & 0o7777) != mode {
            sys::fchmod(file, mode).context("change the mode of", &self.path)?;
        }
        if let Some(file) = self.file.take() {
            sys::close(file).context("close", &self.path)?;
        }
        Ok(FileId::of(&stat))
    }

    /// Publishes a scratch file that [`Area::scratch_beside`] made.
    pub(crate) fn publish_elsewhere(mut self, mode: Mode) -> Result<Published> {
        let id = self.finish(mode)?;
        let area = self.area.clone();
        let Some(elsewhere) = self.elsewhere.as_mut() else {
            return Err(Error::io("rename", &self.path, Errno::EINVAL));
        };
        let mut record = elsewhere.record.clone().into_os_string();
        record.push(format!("-{}", id.signs()));
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
            published.with(&stat)
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
    fn with(self, stat: &FileStat) -> Self {
        Self {
            file_id: Some(FileId::of(stat)),
            ..self
        }
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
        match &self.place {
            Place::Elsewhere { area, record, .. } if self.path == new.path || same_file => {
                let _ = sys::unlink_at(area.dir(), record);
            }
            _ if self.path == new.path => {}
            // In the same directory: that stays, and stays ours.
            Place::Area(area) if self.path.parent() == new.path.parent() => {
                let _ = area.remove_file(self);
            }
            _ => {
                let _ = self.remove();
            }
        }
    }

    /// Removes the file and the directory made for it. One that has gone counts as removed, and so does
    /// one at a destination that somebody has put another file in the place of.
    pub(crate) fn remove(&self) -> Result<()> {
        match &self.place {
            Place::Area(area) => area.remove(self).context("remove", &self.path),
            Place::Elsewhere { area, record, .. } => {
                match sys::lstat(&self.path) {
                    Ok(stat) if self.is_seen_in(&stat) => {
                        forgive_missing(sys::unlink_at(AT_FDCWD, &self.path))
                    }
                    look => forgive_missing(look.map(drop)),
                }
                .context("remove", &self.path)?;
                if let Some(dir) = self.made_dir() {
                    remove_dir(AT_FDCWD, dir, &self.path)?;
                }
                forgive_missing(sys::unlink_at(area.dir(), record))
                    .context("remove", &area.path.join(record))
            }
            Place::FileModule => Ok(()),
        }
    }

    /// Whether a look at its place shows the file that we put there. The number alone does not tell:
    /// the system gives that of a file that has gone to the next one. One of ours is as it was written,
    /// or has at least kept its mode.
    fn is_seen_in(&self, stat: &FileStat) -> bool {
        let seen = FileId::of(stat);
        self.file_id.is_some_and(|id| {
            disk::special_type(stat).is_none()
                && (seen == id || (seen.same_file(&id) && looks_staged(stat)))
        })
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

/// Removes whatever is there; a directory that somebody keeps something in stays.
fn remove_entry(dir: &OwnedFd, name: &Path) -> nix::Result<()> {
    match sys::unlink_at(dir, name) {
        // Some systems say EPERM of a directory.
        Err(refusal @ (Errno::EISDIR | Errno::EPERM)) => match sys::rmdir_at(dir, name) {
            Err(Errno::ENOTEMPTY | Errno::EEXIST) => Ok(()),
            Err(Errno::ENOTDIR) => Err(refusal),
            result => result,
        },
        result => result,
    }
}

fn forgive_missing(result: nix::Result<()>) -> nix::Result<()> {
    match result {
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(()),
        result => result,
    }
}

/// Removes a directory of ours; one that somebody has put a file into stays.
fn remove_dir(dir: impl AsFd, path: &Path, file: &Path) -> Result<()> {
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
        } else if is_scratch_name(bytes) {
            purge_scratch(&lock, child)
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

/// Removes the staged file in a directory of a dead area, and the directory if nothing else is in it.
///
/// What the file was called is not on record. It is the one that looks as we leave them, or has the
/// content that the directory is named after. Where there is none, somebody has changed it or put
/// something else in its place: that is the only thing there. If there are more, all are left alone, and
/// so they are in a directory that is not as we make them or keep them.
fn purge_checksum_dir(area: &OwnedFd, name: &Path) -> nix::Result<()> {
    let dir = match sys::open_dir_at(area, name) {
        Err(Errno::ENOTDIR | Errno::ELOOP | Errno::EMLINK) => return purge_link(area, name),
        result => result?,
    };
    let (mut ours, mut others) = (Vec::new(), Vec::new());
    for child in sys::names(&dir)? {
        let path = Path::new(&child);
        if is_scratch_name(child.as_bytes()) {
            forgive_missing(purge_scratch(&dir, path))?;
            continue;
        }
        match sys::lstat_at(&dir, path) {
            Ok(stat) if looks_staged(&stat) || has_digest(&dir, path, &stat, name) => {
                ours.push(child);
            }
            Ok(_) => others.push(child),
            look => forgive_missing(look.map(drop))?,
        }
    }
    if ours.is_empty() && others.len() == 1 && is_still_ours(&dir) {
        ours.append(&mut others);
    }
    if !others.is_empty() {
        // Before ours goes, or the next start would take what is left for it.
        let _ = sys::fchmod(&dir, LET_GO);
    }
    for child in ours {
        forgive_missing(remove_entry(&dir, Path::new(&child)))?;
    }
    drop(dir);
    match sys::rmdir_at(area, name) {
        Err(Errno::ENOTEMPTY | Errno::EEXIST) => Ok(()),
        result => result,
    }
}

/// Whether the content of a regular file is that of which `digest` is the name.
fn has_digest(dir: &OwnedFd, path: &Path, stat: &FileStat, digest: &Path) -> bool {
    let digest_of = || Source::of(sys::open_for_reading_at(dir, path), path)?.digest();
    disk::special_type(stat).is_none()
        && digest_of().is_ok_and(|(found, _)| {
            checksum::hex(&found).as_bytes() == digest.as_os_str().as_bytes()
        })
}

/// Whether a directory of a checksum is as we made it, and was not let go of. Where modes cannot be
/// changed it may have been.
fn is_still_ours(dir: &OwnedFd) -> bool {
    sys::fstat(dir).is_ok_and(|stat| {
        stat.st_uid == nix::unistd::geteuid().as_raw() && stat.st_mode & 0o1777 == 0o700
    }) && sys::strict_fchmod(dir, Mode::S_IRWXU).is_ok()
}

/// Removes a link, but nothing else, that has taken the place of a directory.
fn purge_link(area: &OwnedFd, name: &Path) -> nix::Result<()> {
    if disk::special_type(&sys::lstat_at(area, name)?) == Some(FileType::Symlink) {
        sys::unlink_at(area, name)?;
    }
    Ok(())
}

fn is_scratch_name(name: &[u8]) -> bool {
    let number = name.strip_prefix(STAGING_PREFIX.as_bytes());
    number.is_some_and(|number| {
        number.is_empty()
            || number
                .strip_prefix(b"-")
                .is_some_and(|digits| digits.iter().all(u8::is_ascii_digit))
    })
}

/// Removes a file on its way in, or what was staged under the name of one.
fn purge_scratch(dir: &OwnedFd, name: &Path) -> nix::Result<()> {
    match disk::special_type(&sys::lstat_at(dir, name)?) {
        None => sys::unlink_at(dir, name),
        Some(_) => Ok(()),
    }
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
    let (number, signs) = match record.split_once('-') {
        Some((number, signs)) => (number, Some(signs)),
        None => (&*record, None),
    };
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
    if let Some(signs) = signs {
        match sys::lstat(&destination) {
            Ok(stat) if is_recorded(&stat, signs) => {
                forgive_missing(sys::unlink_at(AT_FDCWD, &destination))?;
            }
            look => forgive_missing(look.map(drop))?,
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

/// Whether a file at a destination is the one on record, as [`StagedFile::is_seen_in`].
fn is_recorded(stat: &FileStat, signs: &str) -> bool {
    let id = FileId::of(stat);
    let number = format!("{:x}-{:x}-", id.dev(), id.ino());
    disk::special_type(stat).is_none()
        && (id.signs() == signs || (signs.starts_with(&number) && looks_staged(stat)))
}
