//! The answer to somebody who has given the cleanup thread something to do.

use crate::error::{Error, Result};
use crate::panics::contained;
use crate::threads::sweeper::{Progress, Work};

/// Sent once. Dropped unsent, because the thread has ended, it says so: nobody waits for ever.
pub struct Reply<T>(Option<Box<dyn FnOnce(Result<T>) + Send>>);

impl<T> Reply<T> {
    /// `send` is called once, on any thread.
    pub fn new(send: impl FnOnce(Result<T>) + Send + 'static) -> Self {
        Self(Some(Box::new(send)))
    }

    /// Sends it. A panic on the way harms nobody else.
    pub(super) fn send(&mut self, result: Result<T>) {
        if let Some(send) = self.0.take() {
            let _ = contained(|| send(result));
        }
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        self.send(Err(Error::Stopped));
    }
}

/// The work of which `batch` does one batch after the other, until it has a result, which is the reply;
/// so is a panic. What `batch` holds has been let go of when the reply is sent.
pub(super) fn replying<T: 'static>(
    mut reply: Reply<T>,
    batch: impl FnMut() -> Option<Result<T>> + Send + 'static,
) -> Work {
    let mut batch = Some(batch);
    Box::new(move || {
        let Some(run) = batch.as_mut() else {
            return Progress::Done;
        };
        let Some(result) = contained(run).unwrap_or_else(|panic| Some(Err(panic))) else {
            return Progress::More;
        };
        batch = None;
        reply.send(result);
        Progress::Done
    })
}
