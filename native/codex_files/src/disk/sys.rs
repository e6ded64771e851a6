//! The system calls, each in one place: interrupted calls go on, and tests can make any one fail.
//!
//! Files and directories are never opened through a final symbolic link unless the name says so.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode};
use nix::unistd::UnlinkatFlags;
use nix::{Result, fcntl, sys, unistd};

use super::fault;

/// Runs one system call under its name, again if a signal interrupted it.
fn call<T>(name: &'static str, mut run: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        match fault::check(name).and_then(|()| run()) {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

pub(crate) fn stat(path: &Path) -> Result<FileStat> {
    call("stat", || sys::stat::stat(path))
}

/// What is known of a file without waiting for a disk, a network or another program. `EAGAIN` if
/// caches cannot lead to it; where they do, and the file is not of this machine, what they say of it
/// may be old.
#[cfg(target_os = "linux")]
pub(crate) fn stat_cached(path: &Path) -> Result<rustix::fs::Statx> {
    use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags, openat2, statx};
    let raw = |errno: rustix::io::Errno| Errno::from_raw(errno.raw_os_error());
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let file = call("openat2", || {
        openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED).map_err(raw)
    })?;
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    call("statx", || {
        statx(&file, "", flags, StatxFlags::BASIC_STATS).map_err(raw)
    })
}

pub(crate) fn lstat(path: &Path) -> Result<FileStat> {
    call("lstat", || sys::stat::lstat(path))
}

pub(crate) fn lstat_at(dir: impl AsFd, path: &Path) -> Result<FileStat> {
    call("fstatat", || {
        sys::stat::fstatat(dir.as_fd(), path, AtFlags::AT_SYMLINK_NOFOLLOW)
    })
}

pub(crate) fn fstat(fd: impl AsFd) -> Result<FileStat> {
    call("fstat", || sys::stat::fstat(fd.as_fd()))
}

/// Opens for reading, without waiting for the other end of a pipe and without acquiring a terminal.
pub(crate) fn open_for_reading(path: &Path) -> Result<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    open(fcntl::AT_FDCWD, path, flags).map(File::from)
}

/// The same, below a directory, but not through a final symbolic link.
pub(crate) fn open_for_reading_at(dir: impl AsFd, path: &Path) -> Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    open(dir, path, flags).map(File::from)
}

/// Opens a directory, following a final symbolic link.
pub(crate) fn open_dir_following(path: &Path) -> Result<OwnedFd> {
    open(fcntl::AT_FDCWD, path, OFlag::O_DIRECTORY)
}

pub(crate) fn open_dir_at(dir: impl AsFd, path: &Path) -> Result<OwnedFd> {
    open(dir, path, OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW)
}

fn open(dir: impl AsFd, path: &Path, flags: OFlag) -> Result<OwnedFd> {
    let flags = flags | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    call("open", || {
        fcntl::openat(dir.as_fd(), path, flags, Mode::empty())
    })
}

/// Creates a file that must not exist, for writing and reading back.
pub(crate) fn create_at(dir: impl AsFd, path: &Path, mode: Mode) -> Result<File> {
    let flags =
        OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    call("create", || fcntl::openat(dir.as_fd(), path, flags, mode)).map(File::from)
}

pub(crate) fn mkdir_at(dir: impl AsFd, path: &Path) -> Result<()> {
    call("mkdir", || {
        sys::stat::mkdirat(dir.as_fd(), path, Mode::S_IRWXU)
    })
}

pub(crate) fn rename_at(from: impl AsFd, old: &Path, to: impl AsFd, new: &Path) -> Result<()> {
    call("rename", || {
        fcntl::renameat(from.as_fd(), old, to.as_fd(), new)
    })
}

/// Gives a file another name. Of a symbolic link, it is the link that gets it.
pub(crate) fn link_at(from: &Path, dir: impl AsFd, path: &Path) -> Result<()> {
    call("link", || {
        unistd::linkat(fcntl::AT_FDCWD, from, dir.as_fd(), path, AtFlags::empty())
    })
}

pub(crate) fn unlink_at(dir: impl AsFd, path: &Path) -> Result<()> {
    call("unlink", || {
        unistd::unlinkat(dir.as_fd(), path, UnlinkatFlags::NoRemoveDir)
    })
}

pub(crate) fn rmdir_at(dir: impl AsFd, path: &Path) -> Result<()> {
    call("rmdir", || {
        unistd::unlinkat(dir.as_fd(), path, UnlinkatFlags::RemoveDir)
    })
}

pub(crate) fn symlink_at(target: &Path, dir: impl AsFd, path: &Path) -> Result<()> {
    call("symlink", || unistd::symlinkat(target, dir.as_fd(), path))
}

pub(crate) fn readlink_at(dir: impl AsFd, path: &Path) -> Result<OsString> {
    call("readlink", || fcntl::readlinkat(dir.as_fd(), path))
}

/// Changes the mode where the file system lets anybody do so: some refuse, and some take no notice.
pub(crate) fn chmod_at(dir: impl AsFd, path: &Path, mode: Mode) -> Result<()> {
    unless_refused(call("chmod", || {
        sys::stat::fchmodat(dir.as_fd(), path, mode, FchmodatFlags::FollowSymlink)
    }))
}

/// The same, of an open file.
pub(crate) fn fchmod(file: impl AsFd, mode: Mode) -> Result<()> {
    unless_refused(strict_fchmod(file, mode))
}

/// The same, but a refusal is an error.
pub(crate) fn strict_fchmod(file: impl AsFd, mode: Mode) -> Result<()> {
    call("fchmod", || sys::stat::fchmod(file.as_fd(), mode))
}

fn unless_refused(result: Result<()>) -> Result<()> {
    match result {
        Err(Errno::EPERM | Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(()),
        result => result,
    }
}

/// Copies up to so many bytes without leaving the kernel, from where both files are; the number
/// copied. 0 also where that is not possible.
#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
pub(crate) fn copy_range(source: &File, target: &File, wanted: usize) -> Result<usize> {
    let wanted = fault::write_limit(wanted);
    let copied = call("copy_file_range", || {
        fcntl::copy_file_range(source, None, target, None, wanted)
    });
    match copied {
        Err(
            Errno::EOPNOTSUPP
            | Errno::EXDEV
            | Errno::EINVAL
            | Errno::ENOSYS
            | Errno::EPERM
            | Errno::EACCES
            | Errno::ETXTBSY
            | Errno::EAGAIN,
        ) => Ok(0),
        result => result,
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
pub(crate) fn copy_range(_source: &File, _target: &File, _wanted: usize) -> Result<usize> {
    Ok(0)
}

/// Reads from a position; the number of bytes read.
pub(crate) fn read_at(file: &File, buffer: &mut [u8], from: u64) -> Result<usize> {
    let from = i64::try_from(from).map_err(|_| Errno::EOVERFLOW)?;
    call("pread", || sys::uio::pread(file, buffer, from))
}

/// Makes an empty file share the content of another, until one of them is written to; whether it does.
/// There are more reasons for a file system not to do so just now than can be listed, and whatever
/// else is wrong shows when the content is copied instead.
///
/// A file is cut only if a clone that failed has left something in it: ext4 writes out at once, at its
/// close, what is written to a file after that.
#[cfg(target_os = "linux")]
pub(crate) fn clone_content(target: &File, source: &File) -> Result<bool> {
    let cloned = call("clone", || {
        rustix::fs::ioctl_ficlone(target, source)
            .map_err(|errno| Errno::from_raw(errno.raw_os_error()))
    });
    if cloned.is_err() && fstat(target)?.st_size > 0 {
        truncate(target, 0)?;
    }
    Ok(cloned.is_ok())
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn clone_content(_target: &File, _source: &File) -> Result<bool> {
    Ok(false)
}

pub(crate) fn duplicate(file: &File) -> Result<File> {
    call("dup", || {
        file.try_clone()
            .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    })
}

pub(crate) fn truncate(file: &File, size: u64) -> Result<()> {
    let size = i64::try_from(size).map_err(|_| Errno::EFBIG)?;
    call("ftruncate", || unistd::ftruncate(file, size))
}

pub(crate) fn rewind(file: &File) -> Result<()> {
    seek(file, 0)
}

/// Has a file stand at a position.
pub(crate) fn seek(file: &File, position: u64) -> Result<()> {
    lseek("lseek", file, position, unistd::Whence::SeekSet).map(drop)
}

/// Where the next data is, from a position on; `None` if there is none. Moves the file's own.
#[cfg(target_os = "linux")]
pub(crate) fn next_data(file: &File, from: u64) -> Result<Option<u64>> {
    match lseek("seek_data", file, from, unistd::Whence::SeekData) {
        Err(Errno::ENXIO) => Ok(None),
        data => data.map(Some),
    }
}

/// Where the next hole is, from a position on. Every file ends with one. Moves the file's own.
#[cfg(target_os = "linux")]
pub(crate) fn next_hole(file: &File, from: u64) -> Result<u64> {
    lseek("seek_hole", file, from, unistd::Whence::SeekHole)
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn next_data(_file: &File, _from: u64) -> Result<Option<u64>> {
    Err(Errno::EINVAL)
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn next_hole(_file: &File, _from: u64) -> Result<u64> {
    Err(Errno::EINVAL)
}

fn lseek(name: &'static str, file: &File, position: u64, whence: unistd::Whence) -> Result<u64> {
    let position = i64::try_from(position).map_err(|_| Errno::EOVERFLOW)?;
    let there = call(name, || unistd::lseek(file, position, whence))?;
    u64::try_from(there).map_err(|_| Errno::EOVERFLOW)
}

/// Reads until `buffer` is full or the file ends; the number of bytes read.
pub(crate) fn read_full(file: &File, buffer: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match call("read", || unistd::read(file, &mut buffer[filled..]))? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

pub(crate) fn write_all(file: &File, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        let limit = fault::write_limit(bytes.len());
        match call("write", || unistd::write(file, &bytes[..limit]))? {
            0 => return Err(Errno::EIO),
            count => bytes = &bytes[count..],
        }
    }
    Ok(())
}

/// Closes, and says what the system says: some file systems report a failed write only now.
pub(crate) fn close(file: File) -> Result<()> {
    // Not `call`: after EINTR the descriptor is gone, and may already be somebody else's.
    let checked = fault::check("close");
    let closed = unistd::close(file);
    match checked.and(closed) {
        Err(Errno::EINTR) => Ok(()),
        result => result,
    }
}

/// Takes a lock on an open directory without waiting: `EWOULDBLOCK` if another holds it.
pub(crate) fn lock(dir: OwnedFd, kind: FlockArg) -> Result<Flock<OwnedFd>> {
    // The call itself consumes the descriptor; since it does not wait no signal interrupts it.
    call("flock", || Ok(()))?;
    Flock::lock(dir, kind).map_err(|(_, errno)| errno)
}

/// The names in a directory, without `.` and `..`.
pub(crate) fn names(dir: &OwnedFd) -> Result<Vec<OsString>> {
    use std::os::unix::ffi::OsStringExt;
    let again = open_dir_at(dir, Path::new("."))?;
    let mut entries = call("readdir", || Ok(())).and_then(|()| Dir::from_fd(again))?;
    let mut names = Vec::new();
    for entry in entries.iter() {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    Ok(names)
}

/// The kind of the file system that a file is on; `None` where that is not known.
#[cfg(target_os = "linux")]
pub(crate) fn file_system(file: impl AsFd) -> Option<sys::statfs::FsType> {
    let there = call("fstatfs", || sys::statfs::fstatfs(file.as_fd()));
    there.ok().map(|there| there.filesystem_type())
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn file_system(_file: impl AsFd) -> Option<()> {
    None
}
