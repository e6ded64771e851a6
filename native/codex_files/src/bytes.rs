//! Bytes in memory that somebody else keeps.

use crate::error::Result;

/// The size of a piece: small enough to stay in a core's cache between one look at it and the next.
pub(crate) const PIECE: usize = 256 * 1024;

/// Bytes that never change while they are kept, for whoever looks at them later, on any thread.
pub trait Bytes: Send {
    /// Shows them to `see`, in order, until it fails.
    ///
    /// # Errors
    /// What `see` fails with.
    fn each(&self, see: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>;
}

impl Bytes for Vec<u8> {
    fn each(&self, see: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        see(self)
    }
}
