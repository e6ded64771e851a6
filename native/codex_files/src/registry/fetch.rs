//! Looking an attachment up.

use super::{Attachment, Registry};

/// What a look at an attachment has come to.
#[derive(Debug)]
pub enum Fetched {
    /// It is staged, and its file is there.
    Staged(Attachment),
    /// It is not, or its file is not.
    NotStaged,
    /// The look would not be at a file of this machine, and may take long.
    Unseen,
}

/// Looks an attachment up that is on a file system of this machine: see [`super::stage_at::refresh`].
#[must_use]
pub fn glance(registry: &Registry, checksum: &[u8]) -> Fetched {
    match registry.manifest.get(checksum) {
        Some(attachment) if !attachment.file.is_local() => Fetched::Unseen,
        found => looked_at(found),
    }
}

/// Looks an attachment up.
#[must_use]
pub fn fetch(registry: &Registry, checksum: &[u8]) -> Fetched {
    looked_at(registry.manifest.get(checksum))
}

fn looked_at(found: Option<Attachment>) -> Fetched {
    found
        .filter(|attachment| attachment.file.is_intact())
        .map_or(Fetched::NotStaged, Fetched::Staged)
}
