//! Those who wait for somebody else's work, and what they are told.

use std::collections::HashMap;
use std::hash::Hash;

use foldhash::fast::RandomState;

use super::attachment::Attachment;
use crate::error::Error;

/// How a staging ended.
#[derive(Clone, Debug)]
pub enum Outcome<F> {
    /// The file is there.
    Staged {
        /// As it stands now.
        attachment: Attachment<F>,
        /// Whether this call put the file there.
        origin: Origin,
    },
    /// It is not, and nothing has changed.
    Failed(Error),
    /// Others have given up the work that was waited for, or done it: ask again from the start.
    Retry,
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
pub struct Waiter<F>(Option<Box<dyn FnOnce(Outcome<F>) + Send>>);

impl<F> Waiter<F> {
    /// `answer` is called outside of every lock, on any thread; it must not block.
    pub fn new(answer: impl FnOnce(Outcome<F>) + Send + 'static) -> Self {
        Self(Some(Box::new(answer)))
    }

    /// Answers.
    pub fn answer(mut self, outcome: Outcome<F>) {
        if let Some(answer) = self.0.take() {
            answer(outcome);
        }
    }
}

impl<F> Drop for Waiter<F> {
    fn drop(&mut self) {
        if let Some(answer) = self.0.take() {
            answer(Outcome::Retry);
        }
    }
}

/// The work that is under way, by its key, and who waits for its end, in order of arrival.
pub struct UnderWay<K, W>(HashMap<K, Vec<W>, RandomState>);

impl<K, W> Default for UnderWay<K, W> {
    fn default() -> Self {
        Self(HashMap::default())
    }
}

impl<K: Eq + Hash, W> UnderWay<K, W> {
    /// Whether anybody is at work on `key`.
    pub fn contains<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> bool
    where
        K: std::borrow::Borrow<Q>,
    {
        self.0.contains_key(key)
    }

    /// Notes that somebody begins to work on `key`, for whom `waiting` wait already.
    pub fn begin(&mut self, key: K, waiting: Vec<W>) {
        self.0.insert(key, waiting);
    }

    /// The queue of those who wait for the work on `key`, if anybody is at it.
    pub fn queue<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Option<&mut Vec<W>>
    where
        K: std::borrow::Borrow<Q>,
    {
        self.0.get_mut(key)
    }

    /// Notes that the work on `key` has ended. Whoever waited for it is to be told without a lock.
    pub fn end<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Vec<W>
    where
        K: std::borrow::Borrow<Q>,
    {
        self.0.remove(key).unwrap_or_default()
    }

    /// Those who wait for the work on `key`, which goes on.
    pub fn take_waiting_for(&mut self, key: &K) -> Vec<W> {
        self.0.get_mut(key).map(std::mem::take).unwrap_or_default()
    }

    /// Everybody who waits, for whatever work. All of it goes on.
    pub fn take_waiting(&mut self) -> Vec<W> {
        self.0.values_mut().flat_map(std::mem::take).collect()
    }

    /// Notes that all work has ended, and gives everybody who waited.
    pub fn end_all(&mut self) -> Vec<W> {
        std::mem::take(&mut self.0)
            .into_values()
            .flatten()
            .collect()
    }
}
