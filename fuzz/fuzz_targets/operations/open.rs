//! A stream that has been opened, and how far it has come.

use std::sync::Arc;

use codex_files::disk::staging_dir::StagingDir;
use codex_files::registry::stage_stream::{Purpose, Stream};
use codex_files::retention::{Keep, OwnerId};

/// A stream under way.
pub struct Open {
    pub stream: Arc<Stream>,
    pub purpose: Purpose,
    pub name: Vec<u8>,
    pub keep: Keep,
    pub staging_dir: StagingDir,
    pub content: Vec<u8>,
    pub has_file: bool,
    /// Somebody has removed directories since: its file may be gone.
    pub is_shaken: bool,
}

impl Open {
    /// Bytes, as they are in the budget.
    pub fn reserved(&self) -> u128 {
        match self.purpose {
            Purpose::Stage => self.content.len() as u128,
            Purpose::Renew => 0,
        }
    }

    /// Who is to become an owner.
    pub fn owner(&self) -> Option<OwnerId> {
        self.keep.owner
    }

    /// Bytes that are certainly there.
    pub fn written(&self) -> u64 {
        let is_written = self.has_file && !self.is_shaken;
        if is_written {
            self.content.len() as u64
        } else {
            0
        }
    }
}
