//! The streams of a registry that are under way, and what there is of each.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::owner::Owner;
use crate::disk::scratch::Scratch;
use crate::disk::staged_file::StagedFile;
use crate::manifest::Reservation;
use crate::threads::hasher::Hasher;

/// What there is of a stream. Dropped, its file is removed.
pub(super) struct Written {
    pub(super) hasher: Hasher,
    /// The file, and its bytes in the budget, which go after it. `None` before anything is written.
    pub(super) file: Option<(Scratch, Reservation<Arc<StagedFile>>)>,
    /// Held until the stream ends.
    pub(super) owner: Option<Arc<Owner>>,
}

/// A stream under way; nothing once it has ended, however it did.
pub(super) type UnderWay = Arc<Mutex<Option<Written>>>;

/// All that are under way. Each belongs to its caller.
#[derive(Default)]
pub(super) struct Streams(Mutex<Vec<Weak<Mutex<Option<Written>>>>>);

impl Streams {
    pub(super) fn add(&self, stream: &UnderWay) {
        let mut all = self.0.lock();
        all.retain(|stream| stream.strong_count() > 0);
        all.push(Arc::downgrade(stream));
    }

    /// Ends them, but for those that somebody is at work on.
    pub(super) fn end(&self) {
        let all = std::mem::take(&mut *self.0.lock());
        for stream in all.iter().filter_map(Weak::upgrade) {
            let written = stream.try_lock().and_then(|mut stream| stream.take());
            drop(written);
        }
    }
}
