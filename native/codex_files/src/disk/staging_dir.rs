//! The staging directory: which one is used, whose it is, and how directories are made in it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::Mode;

use super::file_id::special_type;
use super::sys;
use crate::error::{Context, Error, FileType, Insecurity, Result};

/// Which staging directory to use.
#[derive(Clone, Debug)]
pub struct StagingDir {
    /// Its path; a relative one is taken from the current directory.
    pub path: PathBuf,
    /// Nobody configured it: if it belongs to somebody else, or is no directory, the name with our
    /// user id appended will do as well.
    pub is_default: bool,
}

pub(super) fn with_fallback<T>(
    staging_dir: &StagingDir,
    run: impl Fn(&Path) -> Result<T>,
) -> Result<T> {
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

pub(super) fn unusable(staging_dir: &Path, errno: Errno) -> Error {
    Error::StagingDir {
        path: staging_dir.into(),
        errno,
    }
}

/// Opens a staging directory if nobody else controls it.
pub(super) fn open_own_dir(path: &Path) -> Result<OwnedFd> {
    let user = nix::unistd::geteuid().as_raw();
    let insecure = |reason| Error::InsecureStagingDir {
        path: path.into(),
        reason,
    };
    let dir = match sys::open_dir_at(AT_FDCWD, path) {
        // A link. Ours or the administrator's is somebody's wish; anyone else's is a trap.
        Err(Errno::ELOOP | Errno::ENOTDIR | Errno::EMLINK) => {
            let link = sys::lstat(path).context("stat", path)?;
            if special_type(&link) != Some(FileType::Symlink) {
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

/// Makes a directory for us alone; whether it was made with another mode, by the umask for instance.
pub(super) fn make_dir(dir: impl AsFd + Copy, path: &Path) -> nix::Result<bool> {
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
pub(super) fn make_dirs(path: &Path) -> Result<bool> {
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

/// Removes a directory; one that somebody keeps something in stays.
pub(super) fn remove_unused_dir(dir: impl AsFd, path: &Path) -> nix::Result<()> {
    match sys::rmdir_at(dir, path) {
        // Some systems say EEXIST for ENOTEMPTY.
        Err(Errno::ENOTEMPTY | Errno::EEXIST) => Ok(()),
        result => result,
    }
}

pub(super) fn forgive_missing(result: nix::Result<()>) -> nix::Result<()> {
    match result {
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(()),
        result => result,
    }
}
