//! Whether a staged file is still what it was when it was staged, which only reading it shows.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;

use super::file_id::Stamp;
use super::source::Source;
use super::staged_file::StagedFile;
use super::sys;
use crate::checksum::is_digest;
use crate::error::{Context, Error, Failures, Result};
use crate::time::Now;

/// Reads a staged file under all of its names, links of one another once, and says what is wrong with
/// which of them. One whose damage does not show otherwise is not taken for intact from then on.
///
/// # Errors
/// [`Error::Stopped`] once `called_off` is set, and what says nothing of the file.
pub(crate) fn damages(file: &StagedFile, called_off: &AtomicBool) -> Result<Failures> {
    // The files that have been read, and whether each is damaged.
    let mut read = Vec::new();
    let first = verify(file, called_off, &mut read)?;
    let mut damages: Failures = first.into_iter().collect();
    // Not before the first one is noted to be damaged: see `StagedFile::add`.
    for other in file.others() {
        let damage = verify(&other, called_off, &mut read)?;
        // Whoever asks for another name that has gone is given it anew.
        damages.extend(damage.filter(|(_, error)| error.errno() != Some(Errno::ENOENT)));
    }
    Ok(damages)
}

/// Reads a file under one name, unless it is one of those that have been `read`, and notes whether it is
/// damaged.
fn verify(
    file: &StagedFile,
    called_off: &AtomicBool,
    read: &mut Vec<(Stamp, bool)>,
) -> Result<Option<(PathBuf, Error)>> {
    let looks_intact = file.looks_intact();
    let is_it = |(stamp, _): &&(Stamp, bool)| looks_intact && *stamp == file.stamp;
    if let Some(&(_, damaged)) = read.iter().find(is_it) {
        file.damaged.store(damaged, Ordering::Relaxed);
        return Ok(None);
    }
    let damage = check(file, called_off).err();
    if let Some(error) = damage.clone().filter(says_nothing) {
        return Err(error);
    }
    if looks_intact {
        read.push((file.stamp, damage.is_some()));
        file.damaged.store(damage.is_some(), Ordering::Relaxed);
    }
    Ok(damage.map(|error| (file.path.to_path_buf(), error)))
}

/// Reads a file, if its key says what is to be in it.
fn check(file: &StagedFile, called_off: &AtomicBool) -> Result<()> {
    let path = &file.path;
    if !is_digest(&file.checksum) {
        let seen = Stamp::of(&sys::lstat(path).context("stat", path)?);
        return if seen == file.stamp {
            Ok(())
        } else {
            Err(Error::Changed)
        };
    }
    let opened = sys::open_for_reading_at(AT_FDCWD, path);
    let source = Source::of(Now::read(), opened, path)?.until(called_off);
    source.content()?.verify(&file.checksum)
}

/// Whether an error is not the file's.
fn says_nothing(error: &Error) -> bool {
    matches!(error, Error::Stopped)
        || matches!(
            error.errno(),
            Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM)
        )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::checksum;
    use crate::disk::area::Area;
    use crate::disk::staged_file::staged_mode;
    use crate::disk::staging_dir::StagingDir;
    use crate::disk::{link, scratch};

    /// A file may get another name while it is read.
    #[test]
    fn a_link_is_as_damaged_as_the_file_that_was_being_read_when_it_was_made() {
        let dir = tempfile::tempdir().expect("a directory");
        let area = Area::open(&StagingDir {
            path: dir.path().to_owned(),
            is_default: false,
        });
        let area = area.expect("an area");
        let another = checksum::key(&checksum::digest(b"another content"));
        let mode = staged_mode(false);
        let staged = scratch::publish_content(&area, &another, b"first", b"content", None, mode);
        let file = staged.unwrap_or_else(|_| panic!("it is staged"));
        let link = |name: &[u8]| {
            let linked = link::hard_link(&file, &area, name);
            Arc::new(linked.unwrap_or_else(|_| panic!("it is linked")))
        };
        let (before, during) = (link(b"before"), link(b"during"));
        file.add(before.clone());
        assert!(before.is_intact() && during.is_intact());
        let damages = damages(&file, &AtomicBool::new(false)).expect("it is read");
        assert_eq!(damages.len(), 1, "{damages:?}");
        file.add(during.clone());
        assert!(!file.is_intact() && !before.is_intact() && !during.is_intact());
    }
}
