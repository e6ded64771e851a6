//! Panics: contained, and made on demand for the tests of what becomes of them.
//!
//! With the feature `panic-injection` the environment variable `CODEX_FILES_PANICS` names a
//! directory. A file in it makes the next thread that comes to the point of that name panic, once, or
//! wait if the file says for how many milliseconds.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{Error, Result};

/// A point of the code that a test can make panic; nothing at all in a normal build.
#[cfg(not(feature = "panic-injection"))]
#[inline(always)]
pub fn point(_name: &str) {}

/// A point of the code that a test can make panic or wait.
///
/// # Panics
/// If the test wants it to.
#[cfg(feature = "panic-injection")]
pub fn point(name: &str) {
    let Some(dir) = std::env::var_os("CODEX_FILES_PANICS") else {
        return;
    };
    let file = std::path::Path::new(&dir).join(name);
    let delay = std::fs::read_to_string(&file).map(|text| text.parse());
    // Whoever removes the file is the one to panic or wait.
    if std::fs::remove_file(file).is_ok() {
        match delay {
            Ok(Ok(milliseconds)) => {
                std::thread::sleep(std::time::Duration::from_millis(milliseconds));
            }
            _ => panic!("injected at {name}"),
        }
    }
}

/// Runs `work`; a panic in it becomes an error.
///
/// # Errors
/// [`Error::Panic`].
pub fn contained<T>(work: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| Error::from_panic(&*panic))
}
