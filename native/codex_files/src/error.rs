//! What can go wrong, as data. The words for people are on the Elixir side, in one place.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;

/// The result of everything here that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed operation. Cheap to clone, since every caller that waits for one copy gets its error.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The file system said no.
    #[error("could not {action} {}: {errno}", path.display())]
    Io {
        /// What was attempted: `open`, `write to`, `rename`.
        action: &'static str,
        /// On which path.
        path: Arc<Path>,
        /// The system's reason.
        errno: Errno,
    },
    /// The bytes copied have another digest than the checksum claims.
    #[error("checksum mismatch: the content's is {actual}")]
    ChecksumMismatch {
        /// The lower-case hex SHA-256 of the bytes copied.
        actual: String,
    },
    /// The size or the times of a staged file are not those that it was given.
    #[error("the file has been changed")]
    Changed,
    /// The source is not a regular file.
    #[error("expected a regular file, got: {0:?}")]
    UnsupportedFileType(FileType),
    /// What is at the destination is no regular file: it would be gone for good.
    #[error("expected a destination that does not exist or is a regular file, got: {0:?}")]
    UnsupportedDestination(FileType),
    /// A staged name must be one path component.
    #[error("expected a name of one path component, got: {}", .0.escape_ascii())]
    InvalidName(Arc<[u8]>),
    /// The destination is the source itself: staging it would make the caller's file expire.
    #[error("expected a destination other than the source {}", .0.display())]
    DestinationIsSource(Arc<Path>),
    /// The staging directory cannot be made, opened or locked.
    #[error("could not use staging directory {}: {errno}", path.display())]
    StagingDir {
        /// The directory, as it was configured.
        path: Arc<Path>,
        /// The system's reason.
        errno: Errno,
    },
    /// Somebody else controls the staging directory.
    #[error("could not use staging directory {}: {reason:?}", path.display())]
    InsecureStagingDir {
        /// The directory refused.
        path: Arc<Path>,
        /// Why.
        reason: Insecurity,
    },
    /// There is no room in the budget of the registry.
    #[error("could not store {size} bytes: the registry may store {max_bytes} in all")]
    OverBudget {
        /// What was to be stored, in bytes.
        size: u64,
        /// The budget, in bytes.
        max_bytes: u64,
    },
    /// The registry was stopped while the operation was under way.
    #[error("the registry has stopped")]
    Stopped,
    /// A bug of this library, contained.
    #[error("native code panicked: {0}")]
    Panic(Arc<str>),
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path, errno: Errno) -> Self {
        Error::Io {
            action,
            path: path.into(),
            errno,
        }
    }

    /// A panic's payload as an error.
    #[must_use]
    pub fn from_panic(payload: &(dyn std::any::Any + Send)) -> Self {
        let message = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        Error::Panic(message.into())
    }

    /// The system's reason, when it is the file system that failed.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Error::Io { errno, .. } | Error::StagingDir { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// Whether there was no room for what was to be written, on the disk or in the budget.
    pub(crate) fn is_lack_of_room(&self) -> bool {
        matches!(self.errno(), Some(Errno::ENOSPC | Errno::EDQUOT))
            || matches!(self, Error::OverBudget { .. })
    }
}

/// Attaches what was attempted, and on which path, to a system call's error.
pub(crate) trait Context<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T> Context<T> for nix::Result<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|errno| Error::io(action, path, errno))
    }
}

/// The kinds of file that cannot be staged, nor replaced by a staged file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileType {
    /// A named pipe.
    Fifo,
    /// A Unix domain socket.
    Socket,
    /// A block or character device.
    Device,
    /// A directory.
    Directory,
    /// A symbolic link, wherever it leads to.
    Symlink,
    /// Something this system knows and we do not.
    Other,
}

/// Why a staging directory is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insecurity {
    /// It belongs to another user.
    ForeignOwner,
    /// It is a symbolic link that another user made.
    ForeignLink,
}

/// What a cleanup or a reset could not remove: the paths, each with its reason.
pub type Failures = Vec<(PathBuf, Error)>;
