//! The threads that copy and read large files, so that no scheduler thread is held up by one.
//!
//! They are shared by all registries, and bounded: once the cores are busy, more copies at once only
//! make each of them, and everything else, slower.

use crossbeam_channel::Sender;
use once_cell::sync::OnceCell;

use crate::panics::contained;
use crate::turns::half_the_cores;

/// Files up to this size, in bytes, have copiers of their own: they need not wait for those that take
/// a hundred times as long.
const MEDIUM: u64 = 16 * 1024 * 1024;

type Work = Box<dyn FnOnce() + Send>;

/// Runs `work` on a file of `size` bytes as soon as a copier is free. It must not wait for other work
/// on a copier, which may be queued behind it. A panic in it is its own to tell of.
pub(crate) fn run(size: u64, work: impl FnOnce() + Send + 'static) {
    static COPIERS: [OnceCell<Sender<Work>>; 2] = [OnceCell::new(), OnceCell::new()];
    match COPIERS[usize::from(size > MEDIUM)].get_or_try_init(start) {
        // The receivers live as long as the process.
        Ok(queue) => drop(queue.send(Box::new(work))),
        // No thread can be had: late is better than never.
        Err(_) => work(),
    }
}

/// Starts the copiers of one kind. Two at least: one may hang on a file system that does not answer.
fn start() -> std::io::Result<Sender<Work>> {
    let (queue, works) = crossbeam_channel::unbounded::<Work>();
    for _ in 0..half_the_cores().max(2) {
        let works = works.clone();
        let copy = move || {
            for work in works {
                let _ = contained(work);
            }
        };
        let thread = std::thread::Builder::new().name("codex_copier".into());
        thread.spawn(copy)?;
    }
    Ok(queue)
}
