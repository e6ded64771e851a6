//! Panics on demand, for the tests of what becomes of them; nothing at all in a normal build.
//!
//! With the feature `panic-injection` the environment variable `CODEX_FILES_PANICS` names a
//! directory. A file in it makes the next thread that comes to the point of that name panic, once.

/// A point of the code that a test can make panic.
#[cfg(not(feature = "panic-injection"))]
#[inline(always)]
pub fn point(_name: &str) {}

/// A point of the code that a test can make panic.
///
/// # Panics
/// If the test wants it to.
#[cfg(feature = "panic-injection")]
pub fn point(name: &str) {
    let Some(dir) = std::env::var_os("CODEX_FILES_PANICS") else {
        return;
    };
    // Whoever removes the file is the one to panic.
    if std::fs::remove_file(std::path::Path::new(&dir).join(name)).is_ok() {
        panic!("injected at {name}");
    }
}
