//! The other names of a staged file, and what is the same under all of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::Mutex;

/// Only whoever has the ticket of the checksum changes it. Most files have one name: it takes little memory
/// then. `F` is the file under one name.
#[derive(Debug)]
pub(super) struct Names<F> {
    /// The last one last.
    others: Mutex<Option<Arc<Vec<Arc<F>>>>>,
    /// How many files the others are that are not the same one.
    copies: AtomicU32,
    /// The owner may execute it.
    executable: AtomicBool,
}

impl<F> Names<F> {
    pub(super) fn new(executable: bool) -> Self {
        Self {
            others: Mutex::default(),
            copies: AtomicU32::new(0),
            executable: AtomicBool::new(executable),
        }
    }

    pub(super) fn others(&self) -> Vec<Arc<F>> {
        let others = self.others.lock().clone();
        others.map_or_else(Vec::new, Arc::unwrap_or_clone)
    }

    /// The last of the others that is sought.
    pub(super) fn find(&self, is_sought: impl Fn(&F) -> bool) -> Option<Arc<F>> {
        let others = self.others.lock();
        let mut others = others.iter().flat_map(|others| others.iter().rev());
        others.find(|other| is_sought(other)).cloned()
    }

    /// Adds one for those that it replaces.
    pub(super) fn add(
        &self,
        other: Arc<F>,
        replaces: impl Fn(&F) -> bool,
        count_copies: impl Fn(&[Arc<F>]) -> usize,
    ) {
        let mut others = self.others.lock();
        let others = Arc::make_mut(others.get_or_insert_default());
        others.retain(|before| !replaces(before));
        others.push(other);
        let copies = u32::try_from(count_copies(others)).unwrap_or(u32::MAX);
        self.copies.store(copies, Ordering::Relaxed);
    }

    pub(super) fn copies(&self) -> u32 {
        self.copies.load(Ordering::Relaxed)
    }

    pub(super) fn is_executable(&self) -> bool {
        self.executable.load(Ordering::Relaxed)
    }

    pub(super) fn set_executable(&self) {
        self.executable.store(true, Ordering::Relaxed);
    }
}
