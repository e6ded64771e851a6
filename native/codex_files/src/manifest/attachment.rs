//! An attachment as the manifest keeps it, whatever its file is.

use crate::checksum::Checksum;
use crate::retention::Retention;

/// What the manifest needs to know of the files that it keeps. Tests give it a number.
pub trait File: Clone + Send + Sync + 'static {
    /// The checksum that the file is staged under.
    fn key(&self) -> &Checksum;
    /// Bytes, as the caller gave them or as counted.
    fn size(&self) -> u64;
    /// Bytes, as they are on the disk.
    fn stored(&self) -> u64 {
        self.size()
    }
    /// Whether both are one and the same staged file, and not a later one of the same checksum.
    fn same(&self, other: &Self) -> bool;
}

/// Which entry of the manifest it is: a lost file that is staged again is another file, of the same entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryId(pub(super) u64);

/// One attachment as it stood at one moment.
#[derive(Clone, Debug)]
pub struct Attachment<F> {
    /// Its entry.
    pub entry: EntryId,
    /// The file.
    pub file: F,
    /// How long it stays.
    pub retention: Retention,
    /// When it was last staged: milliseconds since the Unix epoch, UTC.
    pub inserted_at_ms: i64,
}
