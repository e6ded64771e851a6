//! The threads that copy and read large files, so that no scheduler thread is held up by one.
//!
//! They are shared by all registries, and bounded: once the cores are busy, more copies at once only
//! make each of them, and everything else, slower.

use crossbeam_channel::{Receiver, Sender};
use once_cell::sync::{Lazy, OnceCell};

use crate::disk::INLINE_LIMIT;
use crate::error::Result;
use crate::manifest::{Outcome, Waiter};
use crate::panics;
use crate::sweeper::{self, Reply, contained};

/// Files up to this size have copiers of their own: they need not wait for those that take a hundred
/// times as long.
const MEDIUM: u64 = 16 * 1024 * 1024;

/// Copies of one kind under way at once. Two at least: one may hang on a file system that does not
/// answer.
fn how_many() -> usize {
    half_the_cores().max(2)
}

fn half_the_cores() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1))
}

/// The right to hash a piece of a large file. Given back when dropped.
#[must_use]
pub(crate) struct Turn(&'static Receiver<()>);

/// What takes a copy's time is the hash, a core's whole work. So no more than half of the cores hash
/// at once, and the schedulers have the others; the copies take turns, piece by piece. Measured on
/// two cores (README, "Speed"): as many turns as copies copy a fifth more, and timers of the VM come
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

type Job = Box<dyn FnOnce() + Send>;

/// The way to the copiers of each kind.
struct Copiers {
    medium: Sender<Job>,
    large: Sender<Job>,
}

static COPIERS: OnceCell<Copiers> = OnceCell::new();

/// Runs `work` on a file of `size` bytes as soon as a copier is free. Its outcome goes to `waiter`,
/// unless `work` has handed the waiter on: a copier never waits for another piece of work, which may
/// be queued behind it.
pub(crate) fn run(
    size: u64,
    work: impl FnOnce(&mut Option<Waiter>) -> Outcome + Send + 'static,
    waiter: Waiter,
) {
    let mut waiter = Some(waiter);
    let job: Job = Box::new(move || {
        let outcome = contained(|| {
            panics::point("copier");
            work(&mut waiter)
        })
        .unwrap_or_else(Outcome::Failed);
        if let Some(waiter) = waiter {
            // There are others whose copies are to be made by this thread.
            let _ = contained(|| waiter.answer(outcome));
        }
    });
    queue(size, job);
}

/// Answers `reply` with what `work` on a file of `size` bytes gives: here and now if that is a small
/// one.
pub(crate) fn answer<T: 'static>(
    size: u64,
    work: impl FnOnce() -> Result<T> + Send + 'static,
    reply: Reply<T>,
) {
    let answer = move || sweeper::answer(reply, work);
    if size <= INLINE_LIMIT as u64 {
        answer();
    } else {
        queue(size, Box::new(answer));
    }
}

fn queue(size: u64, job: Job) {
    match COPIERS.get_or_try_init(start) {
        Ok(Copiers { medium, large }) => {
            let jobs = if size <= MEDIUM { medium } else { large };
            // The receivers live as long as the process.
            let _ = jobs.send(job);
        }
        // No thread can be had: late is better than never.
        Err(_) => job(),
    }
}

fn start() -> std::io::Result<Copiers> {
    Ok(Copiers {
        medium: start_some()?,
        large: start_some()?,
    })
}

fn start_some() -> std::io::Result<Sender<Job>> {
    let (jobs, queue) = crossbeam_channel::unbounded::<Job>();
    for _ in 0..how_many() {
        let queue = queue.clone();
        std::thread::Builder::new()
            .name("codex_copier".into())
            .spawn(move || {
                for job in queue {
                    job();
                }
            })?;
    }
    Ok(jobs)
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
            for thread in 0..4 * how_many() {
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
