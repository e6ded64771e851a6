//! What a look shows of a file: which one it is, and the signs that its content has not changed.

use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::{FileStat, SFlag};

use crate::error::{Error, FileType, Result};

/// Which file it is, whatever happens to its content. The system gives the number of a file that has
/// gone to the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    dev: u64,
    ino: u64,
}

impl FileId {
    #[allow(clippy::unnecessary_cast, reason = "the types differ between systems")]
    pub(crate) fn of(stat: &FileStat) -> Self {
        Self {
            dev: stat.st_dev as u64,
            ino: stat.st_ino as u64,
        }
    }

    pub(crate) fn dev(self) -> u64 {
        self.dev
    }
}

impl std::fmt::Display for FileId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}-{:x}", self.dev, self.ino)
    }
}

/// A file as it was when somebody looked: where two looks give the same, it is the same file, and nobody
/// has changed it so that it shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stamp {
    id: FileId,
    size: u64,
    mtime_ns: i64,
}

impl Stamp {
    #[allow(
        clippy::unnecessary_cast,
        clippy::cast_sign_loss,
        reason = "the types of these fields differ between systems"
    )]
    pub(crate) fn of(stat: &FileStat) -> Self {
        Self {
            id: FileId::of(stat),
            size: stat.st_size as u64,
            mtime_ns: nanoseconds(stat.st_mtime as i64, stat.st_mtime_nsec as i64),
        }
    }

    pub(crate) fn id(&self) -> FileId {
        self.id
    }

    /// Bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }
}

impl std::fmt::Display for Stamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{:x}-{:x}", self.id, self.size, self.mtime_ns)
    }
}

/// A source's state: if two looks at a path give the same one, nobody wrote to the file in between
/// (but see [`Fingerprint::settled`], and the description of the module `recognition`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint {
    stamp: Stamp,
    ctime_ns: i64,
}

impl Fingerprint {
    /// What a look has seen.
    #[must_use]
    #[allow(clippy::unnecessary_cast, reason = "the types differ between systems")]
    pub fn of(stat: &FileStat) -> Self {
        Self {
            stamp: Stamp::of(stat),
            ctime_ns: nanoseconds(stat.st_ctime as i64, stat.st_ctime_nsec as i64),
        }
    }

    /// The same, from another system call.
    #[cfg(target_os = "linux")]
    pub(crate) fn of_statx(stat: &rustix::fs::Statx) -> Self {
        let id = FileId {
            dev: rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
            ino: stat.stx_ino,
        };
        let stamp = Stamp {
            id,
            size: stat.stx_size,
            mtime_ns: nanoseconds(stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec.into()),
        };
        Self {
            stamp,
            ctime_ns: nanoseconds(stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec.into()),
        }
    }

    /// All that it consists of.
    pub(crate) fn numbers(&self) -> [u64; 5] {
        let Stamp { id, size, mtime_ns } = self.stamp;
        let [mtime, ctime] = [mtime_ns, self.ctime_ns].map(i64::cast_unsigned);
        [id.dev, id.ino, size, mtime, ctime]
    }

    /// Whether the file was last changed long enough before `wall_ms` that another change would
    /// have left another time. File systems stamp in ticks, of up to 2 s on the coarsest.
    pub(crate) fn settled(&self, wall_ms: i64) -> bool {
        let limit = wall_ms.saturating_sub(2_000).saturating_mul(1_000_000);
        self.stamp.mtime_ns <= limit && self.ctime_ns <= limit
    }
}

fn nanoseconds(seconds: i64, nanoseconds: i64) -> i64 {
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(nanoseconds)
}

/// What a file is, unless it is a regular one.
pub(crate) fn special_type(stat: &FileStat) -> Option<FileType> {
    match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFREG => None,
        SFlag::S_IFDIR => Some(FileType::Directory),
        SFlag::S_IFLNK => Some(FileType::Symlink),
        SFlag::S_IFIFO => Some(FileType::Fifo),
        SFlag::S_IFSOCK => Some(FileType::Socket),
        SFlag::S_IFCHR | SFlag::S_IFBLK => Some(FileType::Device),
        _ => Some(FileType::Other),
    }
}

/// Says whether a file of this kind can be staged.
pub(crate) fn check_type(path: &Path, stat: &FileStat) -> Result<()> {
    match special_type(stat) {
        None => Ok(()),
        Some(FileType::Directory) => Err(Error::io("stage", path, Errno::EISDIR)),
        Some(kind) => Err(Error::UnsupportedFileType(kind)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a file whose content and inode last changed at these milliseconds.
    fn fingerprint(mtime_ms: i64, ctime_ms: i64) -> Fingerprint {
        let stamp = Stamp {
            id: FileId { dev: 1, ino: 2 },
            size: 3,
            mtime_ns: mtime_ms * 1_000_000,
        };
        Fingerprint {
            stamp,
            ctime_ns: ctime_ms * 1_000_000,
        }
    }

    #[test]
    fn times_prove_something_only_when_both_are_two_seconds_old() {
        assert!(fingerprint(8_000, 8_000).settled(10_000));
        assert!(!fingerprint(8_001, 8_000).settled(10_000));
        assert!(!fingerprint(8_000, 8_001).settled(10_000));
        // Times of the future prove nothing, and no time makes the sum overflow.
        assert!(!fingerprint(20_000, 8_000).settled(10_000));
        assert!(!fingerprint(8_000, 8_000).settled(i64::MIN));
        assert!(fingerprint(8_000, 8_000).settled(i64::MAX));
        assert_eq!(nanoseconds(i64::MAX, 999_999_999), i64::MAX);
        assert_eq!(nanoseconds(i64::MIN, 0), i64::MIN);
    }
}
