//! How a staged file goes, under all of its names.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{FileStat, Mode};

use super::area::{Area, looks_staged, relative, remove_entry};
use super::file_id::{Stamp, special_type};
use super::staged_file::{Elsewhere, Place, StagedFile};
use super::staging_dir::{forgive_missing, remove_unused_dir};
use super::sys;
use crate::error::{Context, Result};

/// The mode of a directory of a checksum in which others' files are left when ours has gone. The sticky
/// bit, which changes nothing in a directory of one user's, says so to the next start.
pub(super) const LET_GO: Mode = Mode::S_IRWXU.union(Mode::S_ISVTX);

/// Removes what is left in its area of a file that was found missing or changed, under any of its
/// names. Nobody is told of a failure: whatever is put in its place replaces it.
pub(crate) fn clear_away(lost: &StagedFile) {
    let others = lost.others();
    for file in lost.with(&others).filter(|file| !file.is_intact()) {
        if let Place::Area(area) = &file.place {
            let _ = remove_file_from(area, file);
        }
    }
}

/// Removes what is left of a file that was found missing or changed, now that `new` has been put in place
/// for it. Nobody is told of a failure: the next start removes what stays.
pub(crate) fn give_way(lost: &StagedFile, new: &StagedFile) {
    let (olds, news) = (lost.others(), new.others());
    let replaced: HashSet<_> = new.with(&news).map(|new| &new.path).collect();
    for old in lost.with(&olds) {
        let is_replaced = replaced.contains(&old.path);
        let mut news = new.with(&news);
        match &old.place {
            // The system may have given the new file the number of the old one.
            Place::Elsewhere(place) if is_replaced || new.stamp.id() == old.stamp.id() => {
                let _ = sys::unlink_at(place.area.dir(), &place.record);
            }
            _ if is_replaced => {}
            // In the same directory: that stays, and stays ours.
            Place::Area(_) if news.any(|new| new.path.parent() == old.path.parent()) => {
                let _ = remove_file(old);
            }
            _ => {
                let _ = remove_file(old).and_then(|()| remove_dir(old));
            }
        }
    }
}

/// Removes a file under all of its names, and the directories made for it. What has gone counts as
/// removed, and so does a file at a destination that somebody has put another one in the place of.
pub(crate) fn remove(file: &StagedFile) -> Result<()> {
    let others = file.others();
    // The first name last: should another stay, it is still listed under a file that is there.
    file.with(&others).try_for_each(remove_file)?;
    let others_elsewhere = others
        .iter()
        .filter(|other| other.path.parent() != file.path.parent());
    others_elsewhere
        .map(|other| &**other)
        .chain([file])
        .try_for_each(remove_dir)
}

/// Removes it under this name.
fn remove_file(file: &StagedFile) -> Result<()> {
    match &file.place {
        Place::Area(area) => remove_file_from(area, file),
        Place::Elsewhere(_) => match sys::lstat(&file.path) {
            Ok(stat) if is_seen_in(&stat, file) => {
                forgive_missing(sys::unlink_at(AT_FDCWD, &file.path))
            }
            look => forgive_missing(look.map(drop)),
        },
    }
    .context("remove", &file.path)
}

/// Removes the directory made for it, and the record.
fn remove_dir(file: &StagedFile) -> Result<()> {
    match &file.place {
        Place::Area(area) => remove_dir_from(area, file).context("remove", &file.path),
        Place::Elsewhere(place) => {
            let Elsewhere { area, record, .. } = &**place;
            if let Some(dir) = file.made_dir() {
                forgive_missing(remove_unused_dir(AT_FDCWD, dir)).context("remove", dir)?;
            }
            forgive_missing(sys::unlink_at(area.dir(), record))
                .context("remove", &area.path().join(record))
        }
    }
}

/// Whether a look at its place shows the file that we put there. The number alone does not tell: the
/// system gives that of a file that has gone to the next one. One of ours is as it was written, or has at
/// least kept its mode.
fn is_seen_in(stat: &FileStat, file: &StagedFile) -> bool {
    let seen = Stamp::of(stat);
    special_type(stat).is_none()
        && (seen == file.stamp || (seen.id() == file.stamp.id() && looks_staged(stat)))
}

/// Removes what is in its place in an area.
fn remove_file_from(area: &Area, file: &StagedFile) -> nix::Result<()> {
    let relative = relative(&file.checksum, &file.name);
    match sys::lstat_at(area.dir(), &relative) {
        Ok(stat) if is_seen_in(&stat, file) => {
            forgive_missing(sys::unlink_at(area.dir(), &relative))
        }
        Err(Errno::ENOENT) => Ok(()),
        // Somebody has changed it. It may not be where it seems to be: no link is followed.
        _ => match sys::open_dir_at(area.dir(), dir_in_area(file)) {
            Err(Errno::ENOTDIR | Errno::ELOOP | Errno::EMLINK) => Ok(()),
            opened => {
                let name = Path::new(OsStr::from_bytes(&file.name));
                forgive_missing(opened.and_then(|dir| remove_entry(&dir, name)))
            }
        },
    }
}

/// Removes the directory of its checksum in an area, unless something is in it.
fn remove_dir_from(area: &Area, file: &StagedFile) -> nix::Result<()> {
    let dir = dir_in_area(file);
    match sys::rmdir_at(area.dir(), dir) {
        // Some systems say EEXIST for ENOTEMPTY.
        Err(Errno::ENOTEMPTY | Errno::EEXIST) => {
            let _ = sys::chmod_at(area.dir(), dir, LET_GO);
            Ok(())
        }
        Err(Errno::ENOTDIR) => forgive_missing(sys::unlink_at(area.dir(), dir)),
        result => forgive_missing(result),
    }
}

fn dir_in_area(file: &StagedFile) -> &Path {
    Path::new(OsStr::from_bytes(&file.checksum))
}
