//! Names of staged files: one path component each.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::{Error, Result};

/// Checks that a name is one path component.
///
/// # Errors
/// [`Error::InvalidName`].
pub fn check_name(name: &[u8]) -> Result<()> {
    let valid = !matches!(name, b"" | b"." | b"..")
        && name.len() <= 255
        && !name.iter().any(|&byte| byte == b'/' || byte == 0);
    valid
        .then_some(())
        .ok_or_else(|| Error::InvalidName(name.into()))
}

/// The last component of a path: the name a file is staged under unless the caller says otherwise.
#[must_use]
pub fn default_name(path: &Path) -> &[u8] {
    path.file_name().map_or(&[], OsStr::as_bytes)
}
