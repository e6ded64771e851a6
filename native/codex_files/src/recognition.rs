//! Recognises unchanged files without reading them, as git and ccache do: by device, inode, size
//! and both times. Only times that were old enough when the file was hashed count (see
//! `Fingerprint::settled`), and only of file systems that keep them (see `sys::keeps_times`), so that a
//! change shows; but what is stored through a shared mapping changes the times only the first time
//! after the page was written out.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::num::NonZeroUsize;

use lru::LruCache;
use parking_lot::Mutex;

use crate::attachment::{Outcome, Waiter};
use crate::checksum::Checksum;
use crate::disk::Fingerprint;
use crate::error::Error;

/// How many files are remembered; the least recently staged is forgotten first.
const CAPACITY: NonZeroUsize = NonZeroUsize::new(65_536).expect("it is not zero");

/// What is known of a file from a look at it.
pub(crate) enum Recognised {
    /// It has this checksum.
    Unchanged(Checksum),
    /// It looks like one that was staged before, but that proves nothing: it may have been changed
    /// since and look the same.
    Familiar,
}

struct Memory {
    fingerprint: Fingerprint,
    shows_changes: bool,
    checksum: Checksum,
}

pub(crate) struct Recognition {
    /// By device and inode.
    files: Mutex<LruCache<(u64, u64), Memory>>,
    /// The files that are being copied, and who waits until each can be recognised.
    copying: Mutex<HashMap<Fingerprint, Vec<Waiter>>>,
}

/// The right to copy a file. Dropped, it is given back, and all who wait ask again.
#[must_use]
pub(crate) struct Copying<'a> {
    recognition: &'a Recognition,
    seen: Fingerprint,
    /// Not given back yet: the next one's is not ours to give back.
    out: bool,
}

impl Copying<'_> {
    fn give_back(&mut self) -> Vec<Waiter> {
        if !std::mem::take(&mut self.out) {
            return Vec::new();
        }
        let mut copying = self.recognition.copying.lock();
        copying.remove(&self.seen).unwrap_or_default()
    }

    /// The error goes to all who wait.
    pub(crate) fn fail(mut self, error: &Error) {
        for waiter in self.give_back() {
            waiter.answer(Outcome::Failed(error.clone()));
        }
    }
}

impl Drop for Copying<'_> {
    fn drop(&mut self) {
        drop(self.give_back());
    }
}

impl Recognition {
    pub(crate) fn new() -> Self {
        // Unbounded at first, so that an idle registry does not pay for the full table.
        let mut files = LruCache::unbounded();
        files.resize(CAPACITY);
        Self {
            files: Mutex::new(files),
            copying: Mutex::default(),
        }
    }

    /// To be asked before a file is copied that would show changes. `None`: somebody else is at it,
    /// and the waiter waits for that.
    pub(crate) fn copying(
        &self,
        seen: Fingerprint,
        waiter: &mut Option<Waiter>,
    ) -> Option<Copying<'_>> {
        match self.copying.lock().entry(seen) {
            Entry::Occupied(mut at_it) => {
                at_it.get_mut().extend(waiter.take());
                None
            }
            Entry::Vacant(nobody) => {
                nobody.insert(Vec::new());
                Some(Copying {
                    recognition: self,
                    seen,
                    out: true,
                })
            }
        }
    }

    /// Has those who wait ask again.
    pub(crate) fn call_off(&self) {
        let waiting: Vec<_> = {
            let mut copying = self.copying.lock();
            copying.values_mut().map(std::mem::take).collect()
        };
        // Without the lock.
        drop(waiting);
    }

    pub(crate) fn recognise(&self, seen: &Fingerprint) -> Option<Recognised> {
        let mut files = self.files.lock();
        let memory = files.get(&key(seen))?;
        if memory.fingerprint != *seen {
            return None;
        }
        Some(if memory.shows_changes {
            Recognised::Unchanged(memory.checksum.clone())
        } else {
            Recognised::Familiar
        })
    }

    /// `shows_changes`: whether the file cannot have been changed since it was opened to be hashed,
    /// and look the same.
    pub(crate) fn remember(
        &self,
        fingerprint: Fingerprint,
        shows_changes: bool,
        checksum: Checksum,
    ) {
        let memory = Memory {
            fingerprint,
            shows_changes,
            checksum,
        };
        self.files.lock().put(key(&fingerprint), memory);
    }
}

fn key(fingerprint: &Fingerprint) -> (u64, u64) {
    (fingerprint.id.dev(), fingerprint.id.ino())
}
