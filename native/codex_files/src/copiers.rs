//! The threads that copy large files, so that no scheduler thread is held up by one.
//!
//! They are shared by all registries, and bounded: beyond the number of cores, more copies at once
//! only make each of them, and everything else, slower.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crossbeam_channel::Sender;
use once_cell::sync::OnceCell;

use crate::error::Error;
use crate::manifest::{Outcome, Waiter};
use crate::panics;

/// Copies under way at once. Each one reads and hashes in one thread and writes in another.
const COPIERS: usize = 2;

type Job = Box<dyn FnOnce() + Send>;

static JOBS: OnceCell<Sender<Job>> = OnceCell::new();

/// Runs `work` as soon as a copier is free. Its outcome goes to `waiter`, unless `work` has handed
/// the waiter on: a copier never waits for another piece of work, which may be queued behind it.
pub(crate) fn run(
    work: impl FnOnce(&mut Option<Waiter>) -> Outcome + Send + 'static,
    waiter: Waiter,
) {
    let mut waiter = Some(waiter);
    let job: Job = Box::new(move || {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            panics::point("copier");
            work(&mut waiter)
        }))
        .unwrap_or_else(|panic| Outcome::Failed(Error::from_panic(&*panic)));
        if let Some(waiter) = waiter {
            // There are others whose copies are to be made by this thread.
            let _ = catch_unwind(AssertUnwindSafe(|| waiter.answer(outcome)));
        }
    });
    match JOBS.get_or_try_init(start) {
        Ok(jobs) => {
            // The receivers live as long as the process.
            let _ = jobs.send(job);
        }
        // No thread can be had: late is better than never.
        Err(_) => job(),
    }
}

fn start() -> std::io::Result<Sender<Job>> {
    let (jobs, queue) = crossbeam_channel::unbounded::<Job>();
    for _ in 0..COPIERS {
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
