//! A file on its way to a destination that its caller chose, and the record of it in the area.
//!
//! The record is a symbolic link to the destination, named `.elsewhere-<number>[+][-<stamp>]`: `+` if
//! the destination's directory was made for it, the stamp once the file has been written.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{FileStat, Mode};

use super::area::{Area, ELSEWHERE_PREFIX, PublishError, looks_staged};
use super::file_id::{FileId, Stamp, special_type};
use super::names::Names;
use super::scratch::OpenScratch;
use super::source::Source;
use super::staged_file::{Elsewhere, Place, StagedFile};
use super::staging_dir::{forgive_missing, make_dirs, remove_unused_dir};
use super::sys;
use crate::checksum::{Checksum, Content};
use crate::error::{Context, Error, Result};

const MADE_DIR: char = '+';

/// How often the directory of a destination is made again for a scratch file, if it goes meanwhile.
const ATTEMPTS: usize = 10;

/// A scratch file beside its destination. Dropped, it is removed, and its record with it.
pub(crate) struct ScratchBeside {
    area: Arc<Area>,
    destination: PathBuf,
    record: PathBuf,
    made_dir: bool,
    /// Beside the destination, or there.
    file: OpenScratch,
    published: bool,
}

/// What is at a destination that the caller chose: nothing, or a regular file. Nothing else may be
/// replaced: who stages to a device would have lost it.
pub(crate) fn look_at_destination(path: &Path) -> Result<Option<FileId>> {
    match sys::lstat(path) {
        Ok(stat) => match special_type(&stat) {
            None => Ok(Some(FileId::of(&stat))),
            Some(kind) => Err(Error::UnsupportedDestination(kind)),
        },
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(Error::io("stat", path, errno)),
    }
}

/// A new scratch file beside a destination that the caller chose. `replaces` is a file that
/// was found missing or changed.
pub(crate) fn scratch_beside(
    area: &Arc<Area>,
    destination: &Path,
    replaces: Option<&StagedFile>,
    mode: Mode,
) -> Result<ScratchBeside, PublishError> {
    let destination = std::path::absolute(destination)
        .map_err(|_| Error::io("use destination", destination, Errno::EINVAL))?;
    let mut attempts = 1..ATTEMPTS;
    loop {
        match try_scratch_beside(area, &destination, replaces, mode) {
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
    area: &Arc<Area>,
    destination: &Path,
    replaces: Option<&StagedFile>,
    mode: Mode,
) -> Result<ScratchBeside, PublishError> {
    let parent = destination
        .parent()
        .ok_or_else(|| Error::io("use destination", destination, Errno::EISDIR))?;
    let made_before = replaces.is_some_and(|file| file.made_dir() == Some(parent));
    let made_dir = make_dirs(parent)? || made_before;
    let number = area.next_number();
    let mut record = format!("{ELSEWHERE_PREFIX}{number}");
    if made_dir {
        record.push(MADE_DIR);
    }
    // Dropped on a failure from here on, it takes everything away again.
    let mut scratch = ScratchBeside {
        area: area.clone(),
        destination: destination.to_owned(),
        record: PathBuf::from(record),
        made_dir,
        file: OpenScratch {
            path: beside(destination, area.path(), number),
            file: None,
        },
        published: false,
    };
    // The record comes first: whenever we die, the next start finds all there is.
    let recorded = sys::symlink_at(destination, area.dir(), &scratch.record);
    area.attempted("create", &scratch.record, recorded)?;
    let created = sys::create_at(AT_FDCWD, scratch.path(), mode);
    scratch.file.file = Some(created.context("create", scratch.path())?);
    Ok(scratch)
}

/// The scratch file for a destination: its name tells the area and the record that it belongs to.
fn beside(destination: &Path, area: &Path, number: u64) -> PathBuf {
    let area = area.file_name().unwrap_or_default();
    let mut name = OsStr::new(".").to_owned();
    name.push(area);
    name.push(format!("-{number}"));
    destination.with_file_name(name)
}

impl ScratchBeside {
    fn path(&self) -> &Path {
        &self.file.path
    }

    /// Copies a source into it: see [`Source::copy_into`].
    pub(crate) fn fill(
        &self,
        source: &Source<'_>,
        grow: &dyn Fn(u64) -> Result<()>,
    ) -> Result<Content> {
        source.copy_into(self.file.file()?, self.path(), grow)
    }

    /// Puts it in place as the file of a checksum.
    pub(crate) fn publish(
        mut self,
        checksum: Checksum,
        name: Box<[u8]>,
        size: u64,
        mode: Mode,
    ) -> Result<StagedFile> {
        let written = self.file.finish(mode)?;
        let area = self.area.clone();
        let mut record = OsString::from(&self.record);
        record.push(format!("-{written}"));
        let record = PathBuf::from(record);
        sys::rename_at(area.dir(), &self.record, area.dir(), &record)
            .context("rename", &area.path().join(&self.record))?;
        self.record.clone_from(&record);
        // Somebody may have put something there since the source was opened.
        look_at_destination(&self.destination)?;
        sys::rename_at(AT_FDCWD, self.path(), AT_FDCWD, &self.destination)
            .context("rename", &self.destination)?;
        // That is where it is now, should something still fail.
        self.file.path.clone_from(&self.destination);
        let seen = Stamp::of(&sys::lstat(self.path()).context("stat", self.path())?);
        self.published = true;
        Ok(StagedFile {
            checksum,
            name,
            path: self.path().into(),
            size,
            // The file that another staging has put there meanwhile is neither to be taken for this
            // one nor to go with it.
            stamp: if seen.id() == written.id() {
                seen
            } else {
                written
            },
            place: Place::Elsewhere(Box::new(Elsewhere {
                area,
                record,
                made_dir: self.made_dir,
            })),
            names: Names::new(mode.contains(Mode::S_IXUSR)),
            damaged: AtomicBool::new(false),
        })
    }
}

impl Drop for ScratchBeside {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        // As a scratch file in an area.
        self.file.file = None;
        // Nobody is left to tell of a failure; the next start removes what stays.
        let removed = sys::unlink_at(AT_FDCWD, self.path());
        if matches!(removed, Ok(()) | Err(Errno::ENOENT | Errno::ENOTDIR)) {
            let _ = sys::unlink_at(self.area.dir(), &self.record);
        }
        if let Some(dir) = self.path().parent().filter(|_| self.made_dir) {
            let _ = sys::rmdir_at(AT_FDCWD, dir);
        }
    }
}

/// Removes what a dead registry staged at a destination that its caller chose, unless it is not
/// there any more or another file has come in its place. `record` is the name of the record, without
/// its prefix.
pub(super) fn purge_recorded(
    area: &std::os::fd::OwnedFd,
    name: &Path,
    record: &[u8],
    area_path: &Path,
) -> nix::Result<()> {
    let record = String::from_utf8_lossy(record);
    let (number, stamp) = match record.split_once('-') {
        Some((number, stamp)) => (number, Some(stamp)),
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
    if let Some(stamp) = stamp {
        match sys::lstat(&destination) {
            Ok(stat) if is_recorded(&stat, stamp) => {
                forgive_missing(sys::unlink_at(AT_FDCWD, &destination))?;
            }
            look => forgive_missing(look.map(drop))?,
        }
    }
    if let Some(dir) = destination.parent().filter(|_| made_dir) {
        forgive_missing(remove_unused_dir(AT_FDCWD, dir))?;
    }
    sys::unlink_at(area, name)
}

/// Whether a file at a destination is the one on record, as [`StagedFile::is_seen_in`].
fn is_recorded(stat: &FileStat, stamp: &str) -> bool {
    let seen = Stamp::of(stat);
    special_type(stat).is_none()
        && (seen.to_string() == stamp
            || (stamp.starts_with(&format!("{}-", seen.id())) && looks_staged(stat)))
}
