//! Giving a staged file another name: by a hard link, or by a copy where the file system has none.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;

use super::area::{Area, PublishError, relative};
use super::file_id::{Stamp, special_type};
use super::names::Names;
use super::scratch;
use super::source::Source;
use super::staged_file::{Place, StagedFile, staged_mode};
use super::staging_dir::forgive_missing;
use super::sys;
use crate::error::{Context, Error, FileType, Result};
use crate::panics;

/// What was attempted when there was no link.
const LINK: &str = "link";

/// Whether an error says that the file system has no links, or no more of this file.
pub(crate) fn is_unsupported(error: &Error) -> bool {
    matches!(
        error,
        Error::Io {
            action: LINK,
            errno: Errno::EPERM
                | Errno::EACCES
                | Errno::EXDEV
                | Errno::EMLINK
                | Errno::EOPNOTSUPP
                | Errno::ENOSYS
                | Errno::EINVAL,
            ..
        }
    )
}

/// Links a file that is intact to another name in an area. What is there under that name gives way.
pub(crate) fn hard_link(
    file: &StagedFile,
    area: &Arc<Area>,
    name: &[u8],
) -> Result<StagedFile, PublishError> {
    let relative = relative(&file.checksum, name);
    let path = area.path().join(&relative);
    let link = || link_and_look(file, area, &relative, &path);
    match link() {
        // The first name in this area has no directory to go to yet.
        Err(PublishError::AreaLost) => area.in_checksum_dir(&file.checksum, |_| link())?,
        linked => linked?,
    }
    Ok(StagedFile {
        checksum: file.checksum.clone(),
        name: name.into(),
        path: path.into(),
        size: file.size,
        stamp: file.stamp,
        place: Place::Area(area.clone()),
        names: Names::new(file.is_executable()),
        damaged: AtomicBool::new(false),
    })
}

fn link_and_look(
    file: &StagedFile,
    area: &Area,
    relative: &Path,
    path: &Path,
) -> Result<(), PublishError> {
    panics::point("link");
    area.attempted(LINK, relative, link_over(file, area, relative))?;
    // Through the whole path, as its readers go: it must lead to the same file. A file system that
    // makes numbers up gives another one to each name, and what has that could not be told from a
    // stranger.
    match sys::lstat(path) {
        Ok(stat) if Stamp::of(&stat) == file.stamp => Ok(()),
        look => {
            let _ = sys::unlink_at(area.dir(), relative);
            area.attempted("stat", relative, look)?;
            Err(Error::io(LINK, path, Errno::EXDEV).into())
        }
    }
}

/// Links a file to a place in an area, where nobody may be promised anything else.
fn link_over(file: &StagedFile, area: &Area, relative: &Path) -> nix::Result<()> {
    let link = || sys::link_at(&file.path, area.dir(), relative);
    match link() {
        Err(Errno::EEXIST) => {
            match sys::lstat_at(area.dir(), relative) {
                // To some file systems the names of both are one and the same.
                Ok(stat) if Stamp::of(&stat) == file.stamp => return Ok(()),
                Ok(stat) if special_type(&stat) == Some(FileType::Directory) => {
                    area.put_aside(relative)?;
                }
                look => forgive_missing(look.and_then(|_| sys::unlink_at(area.dir(), relative)))?,
            }
            link()
        }
        result => result,
    }
}

/// Copies a file to another name in an area, where it cannot be linked, until `called_off` is set.
pub(crate) fn copy(
    file: &StagedFile,
    area: &Arc<Area>,
    name: &[u8],
    called_off: &AtomicBool,
) -> Result<StagedFile, PublishError> {
    let mode = staged_mode(file.is_executable());
    let source = Source::open(&file.path)?.until(called_off);
    let scratch = scratch::numbered(area, mode)?;
    scratch.fill(&source, &|_| Ok(()))?.verify(&file.checksum)?;
    scratch.publish(&file.checksum, name, file.size, mode)
}

/// Puts the first name of a file back in its place, if it has gone and another of its names is a link
/// to the same file; whether it is there.
pub(crate) fn first_name(file: &StagedFile) -> bool {
    if file.is_intact() {
        return true;
    }
    let others = file.others();
    if file.is_there() {
        // It was changed, and so it was under the names that are links, whatever a cache says of those.
        for other in others.iter().filter(|other| !file.is_copied_as(other)) {
            other.damaged.store(true, Ordering::Relaxed);
        }
        return false;
    }
    others.iter().any(|other| link_first(file, other))
}

fn link_first(file: &StagedFile, other: &StagedFile) -> bool {
    if other.stamp != file.stamp || !other.is_intact() {
        return false;
    }
    let linked = match &file.place {
        Place::Area(area) => link_over(other, area, &relative(&file.checksum, &file.name)),
        // What has come to a destination of the caller's is not ours to replace.
        Place::Elsewhere(_) => sys::link_at(&other.path, AT_FDCWD, &file.path),
    };
    linked.is_ok() && file.is_intact()
}

/// Lets the owner execute a file, under all of its names.
pub(crate) fn make_executable(file: &StagedFile) -> Result<()> {
    let others = file.others();
    let mut changed = Vec::new();
    for file in [file]
        .into_iter()
        .chain(others.iter().map(|other| &**other))
    {
        // Links are one file.
        if !changed.contains(&file.stamp)
            && change_mode(file).context("change the mode of", &file.path)?
        {
            changed.push(file.stamp);
        }
    }
    file.names.set_executable();
    Ok(())
}

/// Lets the owner execute a file, unless it has gone, or another is in its place; whether it is there.
fn change_mode(file: &StagedFile) -> nix::Result<bool> {
    let opened = match sys::open_for_reading_at(AT_FDCWD, &file.path) {
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EMLINK) => return Ok(false),
        opened => opened?,
    };
    let is_there = Stamp::of(&sys::fstat(&opened)?) == file.stamp;
    if is_there {
        sys::fchmod(&opened, staged_mode(true))?;
    }
    Ok(is_there)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum;
    use crate::disk::staging_dir::StagingDir;

    /// Where capitals make no difference, or the form of an accent.
    #[test]
    fn p21_a_name_that_is_the_same_to_the_file_system_is_left_as_it_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let area = Area::open(&StagingDir {
            path: dir.path().to_owned(),
            is_default: false,
        });
        let area = area.expect("an area");
        let key = checksum::key(&checksum::digest(b"content"));
        let mode = staged_mode(false);
        let staged = scratch::publish_content(&area, &key, b"name", b"content", None, mode);
        let file = staged.unwrap_or_else(|_| panic!("it is staged"));
        let linked = hard_link(&file, &area, b"name");
        assert!(linked.is_ok_and(|linked| linked.is_intact()));
        assert!(file.is_intact());
    }
}
