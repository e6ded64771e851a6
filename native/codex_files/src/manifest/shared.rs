//! The manifest: the state behind its lock, which its handle and all tickets share.

use std::ops::DerefMut;
use std::sync::Arc;

use super::attachment::File;
use super::state::State;
use crate::panics;
use crate::sync::Mutex;

/// The state behind its lock, as the manifest and all tickets share it.
pub(super) struct Shared<F: File>(Mutex<State<F>>);

impl<F: File> Default for Shared<F> {
    fn default() -> Self {
        Self(Mutex::new(State::default()))
    }
}

impl<F: File> Shared<F> {
    /// `point` is where a test can make the holder of the lock panic.
    pub(super) fn lock(&self, point: &str) -> impl DerefMut<Target = State<F>> {
        let state = self.0.lock();
        panics::point(point);
        state
    }

    /// As [`Shared::lock`], where a panic would be one too many.
    pub(super) fn lock_in_drop(&self) -> impl DerefMut<Target = State<F>> {
        self.0.lock()
    }

    /// As [`Shared::lock`], unless somebody has the lock.
    pub(super) fn try_lock(&self, point: &str) -> Option<impl DerefMut<Target = State<F>>> {
        let state = self.0.try_lock()?;
        panics::point(point);
        Some(state)
    }
}

/// The manifest. See the description of [`super`].
pub struct Manifest<F: File> {
    pub(super) state: Arc<Shared<F>>,
}

impl<F: File> Default for Manifest<F> {
    fn default() -> Self {
        Self {
            state: Arc::default(),
        }
    }
}
