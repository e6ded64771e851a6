//! Bytes of the budget that somebody is about to write: spent by a commit, or given back when dropped.

use std::sync::Arc;

use super::attachment::File;
use super::shared::Shared;
use super::state::State;

/// Some bytes of the budget. It outlives the file that is written with them, or somebody else might take
/// them before that has gone.
#[must_use]
pub struct Reservation<F: File> {
    state: Arc<Shared<F>>,
    bytes: u64,
}

impl<F: File> Reservation<F> {
    /// Of bytes that have been counted in the state.
    pub(super) fn new(state: Arc<Shared<F>>, bytes: u64) -> Self {
        Self { state, bytes }
    }

    /// Bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes another one's bytes over.
    pub fn add(&mut self, mut other: Self) {
        self.bytes = self.bytes.saturating_add(std::mem::take(&mut other.bytes));
    }

    /// Under the lock: from here on the bytes are counted as an entry's.
    pub(super) fn spend(&mut self, state: &mut State<F>) {
        state.usage.reserved -= u128::from(std::mem::take(&mut self.bytes));
    }
}

impl<F: File> Drop for Reservation<F> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            let shared = self.state.clone();
            self.spend(&mut shared.lock_in_drop());
        }
    }
}
