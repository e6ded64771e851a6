//! The turns in which cores hash.

use crossbeam_channel::{Receiver, Sender};
use once_cell::sync::Lazy;

/// Half of the cores, and at least one.
pub(crate) fn half_the_cores() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1))
}

/// The right to hash a piece of a large file. Given back when dropped.
#[must_use]
pub(crate) struct Turn(&'static Receiver<()>);

/// What takes a copy's time is the hash, a core's whole work. So no more than half of the cores hash
/// at once, and the schedulers have the others; the copies take turns, piece by piece. Measured on
/// two cores (bench/README.md): as many turns as copies copy a fifth more, and timers of the VM come
/// tens of milliseconds late.
static TURNS: Lazy<(Sender<()>, Receiver<()>)> =
    Lazy::new(|| crossbeam_channel::bounded(half_the_cores()));

/// Waits for a turn. Nothing that could wait for something else is to be done in it.
pub(crate) fn turn() -> Turn {
    let (taken, given_back) = &*TURNS;
    // Both ends live as long as the process.
    let _ = taken.send(());
    Turn(given_back)
}

impl Drop for Turn {
    fn drop(&mut self) {
        let _ = self.0.try_recv();
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn p15_no_more_than_half_the_cores_hash_at_once() {
        let (hashing, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for thread in 0..4 * half_the_cores().max(2) {
                let (hashing, most) = (&hashing, &most);
                scope.spawn(move || {
                    for piece in 0..100 {
                        // A panic gives the turn back as well.
                        let panicked = catch_unwind(|| {
                            let _turn = turn();
                            most.fetch_max(
                                hashing.fetch_add(1, Ordering::SeqCst) + 1,
                                Ordering::SeqCst,
                            );
                            std::thread::yield_now();
                            hashing.fetch_sub(1, Ordering::SeqCst);
                            assert!((thread + piece) % 50 > 0, "on purpose");
                        });
                        assert_eq!(panicked.is_err(), (thread + piece) % 50 == 0);
                    }
                });
            }
        });
        assert!(most.into_inner() <= half_the_cores());
    }
}
