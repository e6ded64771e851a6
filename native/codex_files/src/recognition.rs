//! Recognises unchanged files without reading them, as git and ccache do: by device, inode, size
//! and both times. Only times that were old enough when the file was hashed count (see
//! `Fingerprint::settled`), and only of file systems that keep them (see `file_system::keeps_times`), so that a
//! change shows; but what is stored through a shared mapping changes the times only the first time
//! after the page was written out.
//!
//! A file is remembered as long as its copy is staged: to know the checksum of one that has to be copied
//! again is of no use.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use foldhash::{HashMap, HashMapExt};
use parking_lot::Mutex;

use crate::checksum;
use crate::disk::file_id::Fingerprint;
use crate::error::Error;
use crate::manifest::waiting::{Outcome, Waiter};

/// What is remembered is in so many parts, each with a lock of its own: a part is small enough to be
/// gone through while somebody waits for it.
const PARTS: usize = 256;

/// What each part may hold however few files are staged: many sources can have one content.
const FEW: usize = 65_536 / PARTS;

/// What it says of a file that it looks like one that was staged before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Likeness {
    /// It has the same content.
    Proof,
    /// Nothing, since it may have been changed and look the same.
    Hint,
}

/// Half of the digest of a fingerprint and of what it says. No two fingerprints have the same one, as no
/// two contents have the same checksum, and it takes less than half of the memory.
type Sign = [u8; 16];

type Part<F> = HashMap<Sign, Weak<F>>;

/// The sources of staged files, which are of the kind `F`.
pub struct Recognition<F> {
    parts: Box<[Mutex<Part<F>>]>,
    /// How many files have been removed since what is remembered of such ones was last forgotten.
    removed: AtomicUsize,
    /// The files that are being copied, and who waits until each can be recognised, in order of arrival:
    /// to be told without the lock.
    copying: Mutex<HashMap<Fingerprint, Vec<Waiter<Arc<F>>>>>,
}

/// The right to copy a file. Dropped, it is given back, and all who wait ask again.
#[must_use]
pub(crate) struct Copying<'a, F> {
    recognition: &'a Recognition<F>,
    seen: Fingerprint,
}

impl<F> Copying<'_, F> {
    /// The error goes to all who wait.
    pub(crate) fn fail(self, error: &Error) {
        let waiting = self
            .recognition
            .copying
            .lock()
            .insert(self.seen, Vec::new());
        // Without the lock.
        for waiter in waiting.into_iter().flatten() {
            waiter.answer(Outcome::Failed(error.clone()));
        }
    }
}

impl<F> Drop for Copying<'_, F> {
    fn drop(&mut self) {
        let waiting = self.recognition.copying.lock().remove(&self.seen);
        // Without the lock.
        drop(waiting);
    }
}

impl<F> Default for Recognition<F> {
    fn default() -> Self {
        Self {
            parts: (0..PARTS).map(|_| Mutex::default()).collect(),
            removed: AtomicUsize::new(0),
            copying: Mutex::default(),
        }
    }
}

impl<F> Recognition<F> {
    /// To be asked before a file is copied that would show changes. `None`: somebody else is at it,
    /// and the waiter waits for that.
    pub(crate) fn copying(
        &self,
        seen: Fingerprint,
        waiter: &mut Option<Waiter<Arc<F>>>,
    ) -> Option<Copying<'_, F>> {
        let mut copying = self.copying.lock();
        if let Some(waiting) = copying.get_mut(&seen) {
            waiting.extend(waiter.take());
            return None;
        }
        copying.insert(seen, Vec::new());
        drop(copying);
        Some(Copying {
            recognition: self,
            seen,
        })
    }

    /// Has those who wait ask again.
    pub(crate) fn stop(&self) {
        let mut copying = self.copying.lock();
        let waiting: Vec<_> = copying.values_mut().map(std::mem::take).collect();
        drop(copying);
        drop(waiting);
    }

    /// The staged file of a source that looks like this, unless it has been removed.
    #[must_use]
    pub fn find(&self, seen: &Fingerprint, likeness: Likeness) -> Option<Arc<F>> {
        let sign = sign(seen, likeness);
        self.part(sign).lock().get(&sign)?.upgrade()
    }

    /// Remembers what the source of a staged file looked like when it was opened. `staged` is how many
    /// files are staged; it is seldom asked.
    pub fn remember(
        &self,
        seen: &Fingerprint,
        likeness: Likeness,
        file: &Arc<F>,
        staged: impl FnOnce() -> usize,
    ) {
        let sign = sign(seen, likeness);
        let mut part = self.part(sign).lock();
        if part.len() == part.capacity() {
            // It would grow. There may be more sources than staged files, but no more than twice as
            // many are remembered.
            keep(&mut part, FEW.max(staged() / PARTS * 2));
        }
        part.insert(sign, Arc::downgrade(file));
    }

    /// To be told of each staged file that is removed.
    pub fn one_was_removed(&self) {
        self.removed.fetch_add(1, Ordering::Relaxed);
    }

    /// Forgets the sources of removed files, if there may be many.
    pub fn forget_removed(&self) {
        let removed = self.removed.load(Ordering::Relaxed);
        if removed == 0 || removed < self.remembered() / 4 {
            return;
        }
        self.removed.fetch_sub(removed, Ordering::Relaxed);
        for part in &self.parts {
            keep(&mut part.lock(), usize::MAX);
        }
    }

    /// How many sources are remembered.
    #[must_use]
    pub fn remembered(&self) -> usize {
        self.parts.iter().map(|part| part.lock().len()).sum()
    }

    fn part(&self, sign: Sign) -> &Mutex<Part<F>> {
        &self.parts[usize::from(sign[0]) % PARTS]
    }
}

/// Keeps the sources of files that are staged; of more than `most` some, whichever come first. There is
/// room for a few more then.
fn keep<F>(part: &mut Part<F>, most: usize) {
    let mut kept: Vec<_> = std::mem::take(part)
        .into_iter()
        .filter(|(_, file)| file.strong_count() > 0)
        .collect();
    if kept.len() > most {
        kept.truncate(most - most / 4);
    }
    if !kept.is_empty() {
        *part = HashMap::with_capacity(kept.len() + kept.len() / 4 + 1);
        part.extend(kept);
    }
}

fn sign(seen: &Fingerprint, likeness: Likeness) -> Sign {
    let [dev, ino, size, mtime, ctime] = seen.numbers();
    let numbers = [dev, ino, size, mtime, ctime, likeness as u64];
    let digest = checksum::digest(numbers.map(u64::to_ne_bytes).as_flattened());
    std::array::from_fn(|index| digest[index])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_wait_for_a_copy_hear_of_its_failure_without_a_lock() {
        let stat = nix::sys::stat::stat("/").expect("it is there");
        let seen = Fingerprint::of(&stat);
        let recognition = Arc::new(Recognition::<()>::default());
        let (answers, answered) = crossbeam_channel::bounded(1);
        let other = recognition.clone();
        let mut waiter = Some(Waiter::new(move |_| {
            let _ = answers.send(other.copying.try_lock().is_some());
        }));
        let copying = recognition.copying(seen, &mut None);
        assert!(recognition.copying(seen, &mut waiter).is_none());
        copying.expect("nobody was at it").fail(&Error::Stopped);
        assert_eq!(answered.try_recv(), Ok(true));
    }
}
