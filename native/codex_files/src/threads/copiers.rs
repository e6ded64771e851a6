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

/// Copies of one kind under way at once. Two at least: one may hang on a file system that does not
/// answer.
fn how_many() -> usize {
    half_the_cores().max(2)
}

type Work = Box<dyn FnOnce() + Send>;

/// The way to the copiers of each kind.
struct Copiers {
    medium: Sender<Work>,
    large: Sender<Work>,
}

static COPIERS: OnceCell<Copiers> = OnceCell::new();

/// Runs `work` on a file of `size` bytes as soon as a copier is free. It must not wait for other work
/// on a copier, which may be queued behind it. A panic in it is its own to tell of.
pub(crate) fn run(size: u64, work: impl FnOnce() + Send + 'static) {
    match COPIERS.get_or_try_init(start) {
        Ok(Copiers { medium, large }) => {
            let copiers = if size <= MEDIUM { medium } else { large };
            // The receivers live as long as the process.
            let _ = copiers.send(Box::new(work));
        }
        // No thread can be had: late is better than never.
        Err(_) => work(),
    }
}

fn start() -> std::io::Result<Copiers> {
    Ok(Copiers {
        medium: start_some()?,
        large: start_some()?,
    })
}

fn start_some() -> std::io::Result<Sender<Work>> {
    let (queue, works) = crossbeam_channel::unbounded::<Work>();
    for _ in 0..how_many() {
        let works = works.clone();
        std::thread::Builder::new()
            .name("codex_copier".into())
            .spawn(move || {
                for work in works {
                    let _ = contained(work);
                }
            })?;
    }
    Ok(queue)
}
