//! Recognises unchanged files without reading them, as git and ccache do: by device, inode, size
//! and both times. Only times that were old enough when the file was hashed count (see
//! `Fingerprint::settled`), and only of file systems that keep them (see `sys::keeps_times`), so that a
//! change shows; but what is stored through a shared mapping changes the times only the first time
//! after the page was written out.
//!
//! A file is remembered as long as its copy is staged: to know the checksum of one that has to be copied
//! again is of no use.

use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use foldhash::{HashMap, HashMapExt};
use parking_lot::Mutex;

use crate::checksum;
use crate::disk::Fingerprint;
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
    /// The files that are being copied, and who waits until each can be recognised.
    copying: Mutex<HashMap<Fingerprint, Vec<Waiter<Arc<F>>>>>,
}

/// The right to copy a file. Dropped, it is given back, and all who wait ask again.
#[must_use]
pub(crate) struct Copying<'a, F> {
    recognition: &'a Recognition<F>,
    seen: Fingerprint,
    /// Not given back yet: the next one's is not ours to give back.
    out: bool,
}

impl<F> Copying<'_, F> {
    fn give_back(&mut self) -> Vec<Waiter<Arc<F>>> {
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

impl<F> Drop for Copying<'_, F> {
    fn drop(&mut self) {
        drop(self.give_back());
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
    pub(crate) fn one_was_removed(&self) {
        self.removed.fetch_add(1, Ordering::Relaxed);
    }

    /// Forgets the sources of removed files, if there may be many.
    pub(crate) fn forget_removed(&self) {
        let removed = self.removed.load(Ordering::Relaxed);
        if removed == 0 || removed < self.len() / 4 {
            return;
        }
        self.removed.fetch_sub(removed, Ordering::Relaxed);
        for part in &self.parts {
            keep(&mut part.lock(), usize::MAX);
        }
    }

    fn len(&self) -> usize {
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
    use nix::sys::stat::FileStat;
    use once_cell::sync::Lazy;

    use super::*;

    /// Of a file that has nothing in common with those of other numbers but its size.
    fn fingerprint(number: usize) -> Fingerprint {
        static LOOK: Lazy<FileStat> = Lazy::new(|| nix::sys::stat::stat("/").expect("it is there"));
        let mut stat = *LOOK;
        stat.st_ino = number as _;
        Fingerprint::of(&stat)
    }

    /// How many of the sources of these numbers are recognised as being the file's that `file` gives.
    fn recognised(
        recognition: &Recognition<usize>,
        sources: std::ops::Range<usize>,
        file: impl Fn(usize) -> usize,
    ) -> usize {
        let found = sources.filter(|&number| {
            let found = recognition.find(&fingerprint(number), Likeness::Proof);
            assert!(found.as_ref().is_none_or(|found| **found == file(number)));
            found.is_some()
        });
        found.count()
    }

    #[test]
    fn as_many_files_are_recognised_as_are_staged() {
        let recognition = Recognition::default();
        let mut staged = Vec::new();
        for number in 0..100_000 {
            let file = Arc::new(number);
            staged.push(file.clone());
            recognition.remember(&fingerprint(number), Likeness::Proof, &file, || number);
        }
        let found = recognised(&recognition, 0..100_000, |number| number);
        assert_eq!(found, 100_000);
        // Half as many are copies of others.
        for (number, file) in staged.iter().take(50_000).enumerate() {
            let seen = fingerprint(100_000 + number);
            recognition.remember(&seen, Likeness::Proof, file, || 100_000);
        }
        let found = recognised(&recognition, 0..150_000, |number| number % 100_000);
        assert_eq!(found, 150_000);
    }

    #[test]
    fn however_many_sources_one_content_has_only_some_are_remembered() {
        let recognition = Recognition::default();
        let file = Arc::new(0);
        for number in 0..200_000 {
            recognition.remember(&fingerprint(number), Likeness::Proof, &file, || 1);
        }
        let all = recognised(&recognition, 0..200_000, |_| 0);
        assert!((40_000..150_000).contains(&all), "{all}");
        assert_eq!(recognition.len(), all);
    }

    #[test]
    fn the_sources_of_removed_files_are_forgotten() {
        let recognition = Recognition::default();
        let kept = Arc::new(0);
        recognition.remember(&fingerprint(0), Likeness::Proof, &kept, || 1);
        for number in 1..10_000 {
            let file = Arc::new(number);
            recognition.remember(&fingerprint(number), Likeness::Proof, &file, || 1);
            drop(file);
            assert!(
                recognition
                    .find(&fingerprint(number), Likeness::Proof)
                    .is_none()
            );
            recognition.one_was_removed();
            recognition.forget_removed();
            // Some are, so that not every removal has to go through all of them.
            assert!(recognition.len() <= 20, "{}", recognition.len());
        }
        assert_eq!(recognised(&recognition, 0..10_000, |number| number), 1);
    }

    #[test]
    fn a_hint_is_no_proof() {
        let recognition = Recognition::default();
        let file = Arc::new(0);
        recognition.remember(&fingerprint(1), Likeness::Hint, &file, || 1);
        recognition.remember(&fingerprint(2), Likeness::Proof, &file, || 1);
        let found = |number, likeness| recognition.find(&fingerprint(number), likeness).is_some();
        assert!(found(1, Likeness::Hint) && !found(1, Likeness::Proof));
        assert!(found(2, Likeness::Proof) && !found(2, Likeness::Hint));
        assert!(!found(3, Likeness::Hint) && !found(3, Likeness::Proof));
    }
}
