//! The threads that copy and read large files, so that no scheduler thread is held up by one.
//!
//! They are shared by all registries, and bounded: once the cores are busy, more copies at once only
//! make each of them, and everything else, slower.

use crossbeam_channel::Sender;
use once_cell::sync::OnceCell;

use crate::attachment::{Outcome, Waiter};
use crate::disk::INLINE_LIMIT;
use crate::error::Result;
use crate::panics::{self, contained};
use crate::sweeper::{self, Reply};
use crate::turns;

/// Files up to this size have copiers of their own: they need not wait for those that take a hundred
/// times as long.
const MEDIUM: u64 = 16 * 1024 * 1024;

/// Copies of one kind under way at once. Two at least: one may hang on a file system that does not
/// answer.
fn how_many() -> usize {
    turns::half_the_cores().max(2)
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
