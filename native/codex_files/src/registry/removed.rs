//! What has become of attachments that were to be removed.

use crate::error::{Error, Result};
use crate::manifest::attachment::Attachment;

/// What a cleanup of files of the kind `F`, or another removal of some, did.
#[derive(Debug)]
pub struct Removed<F> {
    /// The attachments whose files are gone.
    pub cleaned: Vec<Attachment<F>>,
    /// Those whose files could not be removed; they stay, and are tried again.
    pub failed: Vec<(Attachment<F>, Error)>,
}

impl<F> Default for Removed<F> {
    fn default() -> Self {
        Self {
            cleaned: Vec::new(),
            failed: Vec::new(),
        }
    }
}

impl<F> Removed<F> {
    /// Notes what has become of one attachment.
    pub(super) fn note(&mut self, removed: Result<Attachment<F>, (Attachment<F>, Error)>) {
        match removed {
            Ok(attachment) => self.cleaned.push(attachment),
            Err(failed) => self.failed.push(failed),
        }
    }
}
