//! A staged file, and the attachment that the manifest makes of it.

use std::path::Path;
use std::sync::Arc;

use crate::checksum::Checksum;
use crate::disk::FileId;
use crate::manifest;
use crate::staging_area::Place;

/// A file that has been staged: what never changes about it.
#[derive(Debug)]
pub struct StagedFile {
    /// The manifest key.
    pub checksum: Checksum,
    /// Its name, one path component.
    pub name: Box<[u8]>,
    /// Where it is.
    pub path: Box<Path>,
    /// Bytes, as the caller gave them or as counted.
    pub size: u64,
    /// What the file system knows it by; `None` if a file module keeps it somewhere out of sight.
    pub file_id: Option<FileId>,
    /// Who may remove it, and how.
    pub place: Place,
}

impl manifest::attachment::File for Arc<StagedFile> {
    fn key(&self) -> &Checksum {
        &self.checksum
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(self, other)
    }
}

/// One attachment as it stood at one moment.
pub type Attachment = manifest::attachment::Attachment<Arc<StagedFile>>;
/// How a staging ended.
pub type Outcome = manifest::waiting::Outcome<Arc<StagedFile>>;
/// A caller that waits for the outcome of somebody else's work.
pub type Waiter = manifest::waiting::Waiter<Arc<StagedFile>>;
/// The ticket to put a checksum's file in place.
pub type Staging = manifest::Staging<Arc<StagedFile>>;
/// The ticket to remove one attachment.
pub type Removal = manifest::Removal<Arc<StagedFile>>;
/// The manifest of staged files.
pub type Manifest = manifest::Manifest<Arc<StagedFile>>;
/// A snapshot of the attachments.
pub type Listing = manifest::Listing<Arc<StagedFile>>;
