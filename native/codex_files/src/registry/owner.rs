//! An owner, and when it ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::retention::OwnerId;

/// An owner that lives. It ends when nobody holds it any more: the process that it stands for, and each
/// staging under way that is to make it an owner. So none comes too late to count.
pub struct Owner {
    id: OwnerId,
    /// Called once, at the end. It must not wait for anything.
    end: Box<dyn Fn(OwnerId) + Send + Sync>,
}

impl Owner {
    /// `end` is called once, at the end, on any thread; it must not wait for anything.
    pub fn new(end: impl Fn(OwnerId) + Send + Sync + 'static) -> Arc<Self> {
        static OWNERS: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self {
            id: OwnerId(OWNERS.fetch_add(1, Ordering::Relaxed)),
            end: Box::new(end),
        })
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> OwnerId {
        self.id
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        (self.end)(self.id);
    }
}

impl std::fmt::Debug for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.id.fmt(f)
    }
}
