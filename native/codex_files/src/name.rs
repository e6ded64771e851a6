//! Names of staged files: one path component each.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::{Error, Result};

/// As what a staging wants to find its content.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Want<'a> {
    /// The name; `None` for the first one, whichever that is.
    pub name: Option<Cow<'a, [u8]>>,
    /// Its owner may execute it.
    pub executable: bool,
}

impl<'a> Want<'a> {
    /// A name, and whether the owner may execute what has it.
    #[must_use]
    pub fn named(name: &'a [u8], executable: bool) -> Self {
        Self {
            name: Some(name.into()),
            executable,
        }
    }

    /// The same, for whoever waits.
    #[must_use]
    pub fn into_owned(self) -> Want<'static> {
        Want {
            name: self.name.map(|name| name.into_owned().into()),
            executable: self.executable,
        }
    }
}

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
