//! The threads that copy and read large files, so that no scheduler thread is held up by one, and those
//! that read what is staged.
//!
//! They are shared by all registries, and bounded: once the cores are busy, more copies at once only
//! make each of them, and everything else, slower.

use crossbeam_channel::Sender;
use once_cell::sync::OnceCell;

use super::sweeper::{Progress, Work};
use crate::panics::contained;
use crate::turns::half_the_cores;

/// Files up to this size, in bytes, have copiers of their own: they need not wait for those that take
/// a hundred times as long.
const MEDIUM: u64 = 16 * 1024 * 1024;

type Once = Box<dyn FnOnce() + Send>;

/// What the threads of a kind have yet to do.
type Queue = OnceCell<Sender<Once>>;

/// Runs `work` on a file of `size` bytes as soon as a copier is free. It must not wait for other work
/// on a copier, which may be queued behind it. A panic in it is its own to tell of.
pub(crate) fn run(size: u64, work: impl FnOnce() + Send + 'static) {
    static COPIERS: [Queue; 2] = [Queue::new(), Queue::new()];
    match COPIERS[usize::from(size > MEDIUM)].get_or_try_init(|| start("codex_copier")) {
        // The receivers live as long as the process.
        Ok(queue) => drop(queue.send(Box::new(work))),
        // No thread can be had: late is better than never.
        Err(_) => work(),
    }
}

/// Reads what is staged, batch by batch, in turns with other work of this kind. No copy waits for it: it
/// has threads of its own, also to hang on.
pub(crate) fn read(mut work: Work) {
    static READERS: Queue = Queue::new();
    match READERS.get_or_try_init(|| start("codex_reader")) {
        Ok(queue) => drop(queue.send(Box::new(|| {
            if let Progress::More = work() {
                read(work);
            }
        }))),
        Err(_) => while let Progress::More = work() {},
    }
}

/// Starts the threads of one kind. Two at least: one may hang on a file system that does not answer.
fn start(name: &str) -> std::io::Result<Sender<Once>> {
    let (queue, works) = crossbeam_channel::unbounded::<Once>();
    for _ in 0..half_the_cores().max(2) {
        let works = works.clone();
        let run = move || {
            for work in works {
                let _ = contained(work);
            }
        };
        let thread = std::thread::Builder::new().name(name.into());
        thread.spawn(run)?;
    }
    Ok(queue)
}
