//! An area: a registry's own directory below a staging directory.
//!
//! ```text
//! <staging directory>/                        0700 if we make it; ours, or refused
//!   codex_files-<16 hex digits>/              an area: one registry's own, under a shared flock
//!     <checksum>/<name>                       a staged file, 0400 or 0500
//!     <checksum>/.staging                     a small file on its way in, renamed to <name>
//!     .staging-<number>                       a large file on its way in
//!     .elsewhere-<number>[+][-<stamp>]        a symbolic link to a file staged at a destination
//!                                             that the caller chose; +: in a directory made for it
//! ```
//!
//! An area whose lock can be taken exclusively belongs to a registry that is dead, and is removed by the next
//! registry that starts on, or comes to use, the same staging directory.
//!
//! In an area whatever has a name that we gave is ours, whoever has changed it since; at a caller's
//! destination only the file that we put there. What the library did not write stays. A dead
//! registry's names are not known, so that the files in the directory of a checksum are told by other
//! signs: see [`purge_checksum_dir`].

use std::ffi::OsStr;
use std::hash::{BuildHasher, RandomState};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg};
use nix::sys::stat::FileStat;

use super::file_id::{FileId, special_type};
use super::staging_dir::{
    StagingDir, forgive_missing, make_dir, make_dirs, open_own_dir, remove_unused_dir,
    with_fallback,
};
use super::{file_system, sys};
use crate::checksum::is_hex;
use crate::error::{Context, Error, FileType, Result};

pub(super) const AREA_PREFIX: &str = "codex_files-";

pub(super) const STAGING_PREFIX: &str = ".staging";

pub(super) const ELSEWHERE_PREFIX: &str = ".elsewhere-";

const ASIDE_PREFIX: &str = ".aside-";

/// How often the directory of a checksum is made again, if something else is in its place meanwhile.
const ATTEMPTS: usize = 10;

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
        // The keys of a hash map are random, and so is what they make of nothing.
        let random = RandomState::new().hash_one(());
        let name = PathBuf::from(format!("{AREA_PREFIX}{random:016x}"));
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
            (Ok(ours), Ok(there)) if ours == there => ours.dev(),
            (_, Err(Errno::ENOENT)) | (Ok(_), Ok(_)) => return Ok(None),
            (Err(errno), _) | (_, Err(errno)) => return Err(Error::io("stat", &path, errno)),
        };
        Ok(Some(Self {
            path,
            dev,
            narrow,
            local: file_system::is_local(&*lock),
            lock,
            next_number: AtomicU64::new(0),
        }))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn dir(&self) -> &OwnedFd {
        &self.lock
    }

    /// Whether a file is on the device that the area is on, a file system of this machine.
    pub(super) fn is_local_device(&self, file: FileId) -> bool {
        self.local && self.dev == file.dev()
    }

    pub(super) fn next_number(&self) -> u64 {
        // Only has to differ from call to call.
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }

    /// What has become of an attempt to change something in the area: where its directory is missing the
    /// area has gone.
    pub(super) fn attempted<T>(
        &self,
        action: &'static str,
        name: &Path,
        result: nix::Result<T>,
    ) -> Result<T, PublishError> {
        result.map_err(|errno| match errno {
            Errno::ENOENT | Errno::ENOTDIR => PublishError::AreaLost,
            errno => Error::io(action, &self.path.join(name), errno).into(),
        })
    }

    /// Makes the directory of a checksum for `work`, and takes it away again if that fails.
    pub(super) fn in_checksum_dir<T>(
        &self,
        checksum: &[u8],
        work: impl FnOnce(&Path) -> Result<T, PublishError>,
    ) -> Result<T, PublishError> {
        let dir = Path::new(OsStr::from_bytes(checksum));
        self.attempted("make directory", dir, self.make_checksum_dir(dir))?;
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
                Ok(stat) if special_type(&stat) == Some(FileType::Directory) => return Ok(()),
                look => forgive_missing(look.and_then(|_| sys::unlink_at(self.dir(), dir)))?,
            }
        }
        Err(Errno::EEXIST)
    }

    /// Makes room where a file is to be published and a directory is. What somebody keeps in that stays
    /// with it, beside the file.
    pub(super) fn put_aside(&self, dir: &Path) -> nix::Result<()> {
        let mut result = sys::rmdir_at(self.dir(), dir);
        while let Err(Errno::ENOTEMPTY | Errno::EEXIST) = result {
            let aside = dir.with_file_name(format!("{ASIDE_PREFIX}{}", self.next_number()));
            result = sys::rename_at(self.dir(), dir, self.dir(), &aside);
        }
        result
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

/// Where the file of a checksum goes, relative to its area.
pub(super) fn relative(checksum: &[u8], name: &[u8]) -> PathBuf {
    Path::new(OsStr::from_bytes(checksum)).join(OsStr::from_bytes(name))
}

/// Whether a directory below a staging directory is called as areas are.
pub(super) fn is_area_name(name: &[u8]) -> bool {
    name.strip_prefix(AREA_PREFIX.as_bytes())
        .is_some_and(|id| id.len() == 16 && is_hex(id))
}

pub(super) fn is_scratch_name(name: &[u8]) -> bool {
    let number = name.strip_prefix(STAGING_PREFIX.as_bytes());
    number.is_some_and(|number| {
        number.is_empty()
            || number
                .strip_prefix(b"-")
                .is_some_and(|digits| digits.iter().all(u8::is_ascii_digit))
    })
}

/// A file as we leave them: our user's, no one may write it, and only the owner may read it.
pub(super) fn looks_staged(stat: &FileStat) -> bool {
    special_type(stat).is_none()
        && stat.st_uid == nix::unistd::geteuid().as_raw()
        && stat.st_mode & 0o7277 == 0
}

/// Removes whatever is there; a directory that somebody keeps something in stays.
pub(super) fn remove_entry(dir: &OwnedFd, name: &Path) -> nix::Result<()> {
    match sys::unlink_at(dir, name) {
        // Some systems say EPERM of a directory.
        Err(refusal @ (Errno::EISDIR | Errno::EPERM)) => match remove_unused_dir(dir, name) {
            Err(Errno::ENOTDIR) => Err(refusal),
            result => result,
        },
        result => result,
    }
}
