//! Removing what dead registries have left below a staging directory.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::vec::IntoIter;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{FileStat, Mode};

use super::area::{ELSEWHERE_PREFIX, is_area_name, is_scratch_name, looks_staged, remove_entry};
use super::elsewhere;
use super::file_id::{FileId, special_type};
use super::removing::LET_GO;
use super::source::Source;
use super::staging_dir::{
    StagingDir, forgive_missing, open_own_dir, remove_unused_dir, with_fallback,
};
use super::sys;
use crate::checksum::{self, is_digest};
use crate::error::{Error, Failures, FileType};
use crate::panics;
use crate::time::Now;

/// A walk over the areas below a staging directory whose registries are dead. Failures are collected;
/// the rest is removed all the same. A staging directory that is not there, or not ours, has none.
pub(crate) enum Purge {
    /// The staging directory has not been looked at yet.
    Of(StagingDir),
    At(Areas),
    Done,
}

/// The areas that are still to be looked at.
pub(crate) struct Areas {
    dir: OwnedFd,
    path: PathBuf,
    names: IntoIter<OsString>,
    dead: Option<DeadArea>,
}

/// A dead area, locked, and what in it has not been removed yet.
struct DeadArea {
    lock: Flock<OwnedFd>,
    name: OsString,
    names: IntoIter<OsString>,
}

impl Purge {
    /// Removes up to so many of the directories and files, and gives what could not be removed; `None`
    /// once there is nothing more to look at.
    pub(crate) fn batch(&mut self, limit: usize) -> Option<Failures> {
        let mut failures = Failures::new();
        match self {
            Self::Of(staging_dir) => {
                panics::point("purge");
                let areas = open(staging_dir, &mut failures);
                *self = areas.map_or(Self::Done, Self::At);
            }
            Self::At(areas) => {
                if !(0..limit).all(|_| areas.step(&mut failures)) {
                    *self = Self::Done;
                }
            }
            Self::Done => return None,
        }
        Some(failures)
    }
}

fn open(staging_dir: &StagingDir, failures: &mut Failures) -> Option<Areas> {
    let opened = with_fallback(staging_dir, |path| {
        Ok((open_own_dir(path)?, path.to_owned()))
    });
    let (dir, path) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            if let Some(errno) = error.errno().filter(|errno| !is_strange(*errno)) {
                let path = &staging_dir.path;
                failures.push((path.clone(), Error::io("open", path, errno)));
            }
            return None;
        }
    };
    let names = failed_to("list", path.clone(), sys::names(&dir), failures)?.into_iter();
    let dead = None;
    Some(Areas {
        dir,
        path,
        names,
        dead,
    })
}

/// What came of an attempt; a failure is noted.
fn failed_to<T>(
    action: &'static str,
    path: PathBuf,
    result: nix::Result<T>,
    failures: &mut Failures,
) -> Option<T> {
    result
        .map_err(|errno| failures.push((path.clone(), Error::io(action, &path, errno))))
        .ok()
}

impl Areas {
    /// Removes one thing in a dead area, or the area, or looks for the next one; whether there is more.
    fn step(&mut self, failures: &mut Failures) -> bool {
        if let Some(dead) = self.dead.as_mut() {
            let path = self.path.join(&dead.name);
            let (path, removed) = match dead.names.next() {
                Some(child) => (path.join(&child), purge_child(&dead.lock, &child, &path)),
                None => {
                    let removed = remove_unused_dir(&self.dir, Path::new(&dead.name));
                    self.dead = None;
                    (path, removed)
                }
            };
            failed_to("remove", path, forgive_missing(removed), failures);
            return true;
        }
        let Some(name) = self.names.next() else {
            return false;
        };
        if is_area_name(name.as_bytes()) {
            let locked = lock_dead_area(&self.dir, &name).map(|dead| self.dead = dead);
            failed_to("remove", self.path.join(&name), locked, failures);
        }
        true
    }
}

fn purge_child(area: &OwnedFd, name: &OsString, area_path: &Path) -> nix::Result<()> {
    let (bytes, name) = (name.as_bytes(), Path::new(name));
    if let Some(record) = bytes.strip_prefix(ELSEWHERE_PREFIX.as_bytes()) {
        elsewhere::purge_recorded(area, name, record, area_path)
    } else if is_scratch_name(bytes) {
        purge_scratch(area, name)
    } else if is_digest(bytes) {
        purge_checksum_dir(area, name)
    } else {
        Ok(())
    }
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

/// Locks an area if its registry is dead; `None` if it is not ours to touch.
fn lock_dead_area(staging_dir: &OwnedFd, name: &OsString) -> nix::Result<Option<DeadArea>> {
    let dir = match sys::open_dir_at(staging_dir, Path::new(name)) {
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
    let names = sys::names(&lock)?.into_iter();
    Ok(Some(DeadArea {
        lock,
        name: name.clone(),
        names,
    }))
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
            Ok(stat) => others.push((child, FileId::of(&stat))),
            look => forgive_missing(look.map(drop))?,
        }
    }
    // All names of one file are one thing.
    let is_one = others.chunk_by(|(_, a), (_, b)| a == b).count() == 1;
    if ours.is_empty() && is_one && is_still_ours(&dir) {
        ours.extend(others.drain(..).map(|(child, _)| child));
    }
    if !others.is_empty() {
        // Before ours goes, or the next start would take what is left for it.
        let _ = sys::fchmod(&dir, LET_GO);
    }
    for child in ours {
        forgive_missing(remove_entry(&dir, Path::new(&child)))?;
    }
    drop(dir);
    remove_unused_dir(area, name)
}

/// Whether the content of a regular file is that of which `digest` is the name.
fn has_digest(dir: &OwnedFd, path: &Path, stat: &FileStat, digest: &Path) -> bool {
    let read = || Source::of(Now::read(), sys::open_for_reading_at(dir, path), path)?.content();
    special_type(stat).is_none()
        && read().is_ok_and(|found| {
            checksum::hex(&found.digest).as_bytes() == digest.as_os_str().as_bytes()
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
    if special_type(&sys::lstat_at(area, name)?) == Some(FileType::Symlink) {
        sys::unlink_at(area, name)?;
    }
    Ok(())
}

/// Removes a file on its way in, or what was staged under the name of one.
fn purge_scratch(dir: &OwnedFd, name: &Path) -> nix::Result<()> {
    if special_type(&sys::lstat_at(dir, name)?).is_none() {
        sys::unlink_at(dir, name)?;
    }
    Ok(())
}
