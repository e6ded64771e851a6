//! Those who wait for somebody else's work, and what they are told.

use std::sync::Arc;

use super::attachment::Attachment;
use crate::error::Error;
use crate::name::Want;

/// How a staging ended.
#[derive(Clone, Debug)]
pub enum Outcome<F> {
    /// The file is there.
    Staged {
        /// The attachment as it stands now.
        attachment: Attachment<F>,
        /// Whether this call put the file there.
        origin: Origin,
    },
    /// The file could not be staged, and nothing has changed.
    Failed(Error),
    /// Others have given up the work that was waited for, or done it: ask again from the start.
    Retry,
}

impl<F> Outcome<F> {
    /// For a caller whose content was known.
    #[must_use]
    pub fn known(attachment: Attachment<F>) -> Self {
        let origin = Origin::Known;
        Self::Staged { attachment, origin }
    }
}

/// Where the file of a successful staging came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This call copied it.
    Copied,
    /// An earlier call had.
    Known,
}

/// A caller that waits for the outcome of somebody else's work. Answered exactly once: one that is
/// dropped unanswered tells its caller to ask again, so no path of the code can leave it hanging.
pub struct Waiter<F> {
    answer: Option<Box<dyn FnOnce(Outcome<F>) + Send>>,
    /// What it wants of the file, beside its being there.
    pub(super) want: Option<Arc<Want<'static>>>,
}

impl<F> Waiter<F> {
    /// `answer` is called outside of every lock, on any thread; it must not block.
    pub fn new(answer: impl FnOnce(Outcome<F>) + Send + 'static) -> Self {
        Self {
            answer: Some(Box::new(answer)),
            want: None,
        }
    }

    /// Tells whoever does the work what this caller wants of the file.
    #[must_use]
    pub fn wanting(mut self, want: Arc<Want<'static>>) -> Self {
        self.want = Some(want);
        self
    }

    /// Answers.
    pub fn answer(mut self, outcome: Outcome<F>) {
        if let Some(answer) = self.answer.take() {
            answer(outcome);
        }
    }
}

impl<F> Drop for Waiter<F> {
    fn drop(&mut self) {
        if let Some(answer) = self.answer.take() {
            answer(Outcome::Retry);
        }
    }
}
