//! What is known of a file system by its kind.

use std::os::fd::AsFd;

use self::kinds::{KEEPING_TIMES, OTHER_LOCAL, TELLING_HOLES};
use super::sys;

/// Whether a file cannot be changed without new times, of this machine's clock (but see the description
/// of the module `recognition`). `false` where that is not known.
pub(crate) fn keeps_times(file: impl AsFd) -> bool {
    sys::file_system(file).is_some_and(|kind| KEEPING_TIMES.contains(&kind))
}

/// Whether a file system says where a file has holes, and says so of what has just been written too. `false`
/// where that is not known: a file that has been told to be a hole where it is none would be staged as zeros.
pub(crate) fn tells_holes(file: impl AsFd) -> bool {
    sys::file_system(file).is_some_and(|kind| TELLING_HOLES.contains(&kind))
}

/// Whether a directory is on a file system of this machine, where a look-up does not wait for a
/// network or for another program. That says nothing of its times.
pub(crate) fn is_local(dir: impl AsFd) -> bool {
    sys::file_system(dir)
        .is_some_and(|kind| KEEPING_TIMES.contains(&kind) || OTHER_LOCAL.contains(&kind))
}

#[cfg(target_os = "linux")]
mod kinds {
    use nix::sys::statfs::{self, FsType};

    /// Kernel files are not among them, which keep their times and size while their content changes,
    /// nor what another program or machine answers for: FUSE, NFS, SMB, 9p. What overlayfs shows has
    /// the times of the layer that it is in, and overlayfs forbids to change that beside it.
    pub(super) const KEEPING_TIMES: [FsType; 8] = [
        // Of ext2 and ext3 too.
        statfs::EXT4_SUPER_MAGIC,
        XFS_SUPER_MAGIC,
        statfs::BTRFS_SUPER_MAGIC,
        statfs::F2FS_SUPER_MAGIC,
        BCACHEFS_SUPER_MAGIC,
        ZFS_SUPER_MAGIC,
        statfs::TMPFS_MAGIC,
        statfs::OVERLAYFS_SUPER_MAGIC,
    ];

    /// ZFS is not among them: some of its versions take for a hole what is not on the disk yet.
    pub(super) const TELLING_HOLES: [FsType; 5] = [
        statfs::EXT4_SUPER_MAGIC,
        XFS_SUPER_MAGIC,
        statfs::BTRFS_SUPER_MAGIC,
        statfs::TMPFS_MAGIC,
        statfs::OVERLAYFS_SUPER_MAGIC,
    ];

    /// Of some of these the times have steps of two seconds.
    pub(super) const OTHER_LOCAL: [FsType; 4] = [
        EXFAT_SUPER_MAGIC,
        statfs::MSDOS_SUPER_MAGIC,
        NTFS3_SUPER_MAGIC,
        RAMFS_MAGIC,
    ];

    const BCACHEFS_SUPER_MAGIC: FsType = magic(0xca45_1a4e);
    const EXFAT_SUPER_MAGIC: FsType = magic(0x2011_bab0);
    const NTFS3_SUPER_MAGIC: FsType = magic(0x7366_746e);
    const RAMFS_MAGIC: FsType = magic(0x8584_58f6);
    // nix does not have it for musl.
    const XFS_SUPER_MAGIC: FsType = magic(0x5846_5342);
    const ZFS_SUPER_MAGIC: FsType = magic(0x2fc1_2fc1);

    #[allow(
        clippy::cast_lossless,
        clippy::cast_possible_wrap,
        reason = "the type of a magic number differs between systems"
    )]
    const fn magic(number: u32) -> FsType {
        FsType(number as _)
    }
}

/// Other systems name their file systems in other ways.
#[cfg(not(target_os = "linux"))]
mod kinds {
    pub(super) const KEEPING_TIMES: [(); 0] = [];
    pub(super) const OTHER_LOCAL: [(); 0] = [];
    pub(super) const TELLING_HOLES: [(); 0] = [];
}
