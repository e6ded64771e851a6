//! The bare system calls of one staging. Shared by the programs that make them.

#![allow(dead_code, reason = "not every program needs all of it")]

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{AtFlags, OFlag, open, openat, renameat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{close, linkat, write};

/// The names of one staged file.
pub struct Names {
    pub dir: CString,
    pub scratch: CString,
    pub file: CString,
}

/// Of a file with this number, in a directory of this name.
pub fn names(dir: String, number: usize) -> Names {
    let name = |text: String| CString::new(text).expect("there is no NUL in it");
    Names {
        scratch: name(format!("{dir}/.staging")),
        file: name(format!("{dir}/{number:08}.bin")),
        dir: name(dir),
    }
}

pub fn open_dir(path: &str) -> nix::Result<OwnedFd> {
    open(
        path,
        OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
}

pub fn publish(dir: impl AsFd + Copy, names: &Names, content: &[u8]) -> nix::Result<()> {
    mkdirat(dir, names.dir.as_c_str(), Mode::S_IRWXU)?;
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let file = openat(dir, names.scratch.as_c_str(), flags, Mode::S_IRUSR)?;
    write(&file, content)?;
    close(file)?;
    renameat(dir, names.scratch.as_c_str(), dir, names.file.as_c_str())
}

/// Gives the file another name beside its own.
pub fn link(dir: impl AsFd + Copy, names: &Names, name: &str) -> nix::Result<()> {
    let path = [names.dir.as_bytes(), b"/", name.as_bytes()].concat();
    linkat(
        dir,
        names.file.as_c_str(),
        dir,
        path.as_slice(),
        AtFlags::empty(),
    )
}
