//! The process that answers for a registry: how a registry starts, is handed on, and stops.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use parking_lot::RwLock;

use super::keeping::{Keeper, Keeping};
use super::remove::{self, RemoveAll};
use super::reply::{Reply, replying};
use super::streams::Streams;
use super::{Observer, Registry, Why};
use crate::disk::areas::Areas;
use crate::disk::staged_file::StagedFile;
use crate::error::{Failures, Result};
use crate::manifest::Manifest;
use crate::manifest::budget::Budget;
use crate::recognition::Recognition;
use crate::space::Space;
use crate::threads::sweeper::{self, Due, Given, Progress, Work};

/// How long the stop waits for those who stage. They give up at once, unless the file system does not
/// answer.
const LAST_WAIT: Duration = Duration::from_secs(2);

/// How a registry is set up.
pub struct Options {
    /// The time between two cleanups.
    pub cleanup_interval: Duration,
    /// For how long the attachments of a registry whose keeper was killed wait for its successor.
    pub orphan_grace: Duration,
    /// How many bytes it may store.
    pub budget: Budget,
    /// Recognise unchanged files by their times, without reading them.
    pub recognise_unchanged: bool,
    /// Who is told what the cleanup thread does of itself.
    pub observer: Arc<dyn Observer>,
}

/// An empty registry, with its cleanup thread. It waits for its keeper as for a successor.
///
/// # Errors
/// [`crate::error::Error::Io`] if the system has no thread left.
pub fn start(options: Options) -> Result<Arc<Registry>> {
    let (sweeper, inbox) = sweeper::channel();
    let purging = sweeper.clone();
    let registry = Arc::new(Registry {
        manifest: Manifest::default(),
        areas: Areas::new(move |staging_dir| purging.give(remove::purging(staging_dir))),
        recognition: options.recognise_unchanged.then(Recognition::default),
        keeping: Keeping::new(options.cleanup_interval),
        stopping: AtomicBool::new(false),
        at_work: RwLock::new(()),
        streams: Streams::default(),
        space: Space::default(),
        sweeper,
        observer: options.observer,
    });
    set_budget(&registry, options.budget);
    // The thread holds no strong reference while it waits: a registry that nobody needs any more goes,
    // and takes the way to the thread along.
    let weak = Arc::downgrade(&registry);
    sweeper::start(inbox, move || match weak.upgrade() {
        Some(registry) => due(&registry, options.orphan_grace),
        None => Due::Nothing,
    })?;
    Ok(registry)
}

/// What the cleanup thread has to do of itself.
fn due(registry: &Arc<Registry>, orphan_grace: Duration) -> Due {
    let now = Instant::now();
    if registry.keeping.stop_if_abandoned(orphan_grace, now) {
        let observer = registry.observer.clone();
        let reply = Reply::new(move |_| observer.stopped());
        return Due::Now(stopping(registry, reply));
    }
    if registry.keeping.cleanup_is_due(now) {
        return Due::Now(Given::Work(cleanup(registry)));
    }
    Due::At(registry.keeping.next_event(orphan_grace))
}

/// Removes what has expired, and tells of each batch: whoever is told of very many at once needs the
/// memory for it.
fn cleanup(registry: &Arc<Registry>) -> Work {
    let next = NextCleanup(registry.clone());
    let mut next_part = remove::sweeping(registry);
    Box::new(move || {
        let Some(part) = next_part() else {
            return Progress::Done;
        };
        next.0.tell_removed(Why::Expired, part);
        Progress::More
    })
}

/// Held by a cleanup on time: however that ends, another one follows.
struct NextCleanup(Arc<Registry>);

impl Drop for NextCleanup {
    fn drop(&mut self) {
        self.0.keeping.schedule_next_cleanup();
    }
}

/// Changes how many bytes may be stored from now on. What is there stays.
pub fn set_budget(registry: &Registry, budget: Budget) {
    registry.manifest.set_budget(budget);
}

/// Changes the time between two cleanups.
pub fn set_cleanup_interval(registry: &Registry, interval: Duration) {
    registry.keeping.set_cleanup_interval(interval);
    registry.sweeper.wake();
}

/// Gives a registry to a new keeper, whether the one before is known to have gone or not; `None` if it
/// has stopped.
#[must_use]
pub fn adopt(registry: &Registry) -> Option<Keeper> {
    registry.keeping.adopt()
}

/// Notes that `keeper` has gone, which may be heard of only after its successor has come. Unless one
/// comes in time, the registry stops.
pub fn abandon(registry: &Registry, keeper: Keeper) {
    if registry.keeping.abandon(keeper) {
        registry.sweeper.wake();
    }
}

/// Stops a registry in order: nothing can be staged any more, and what was is removed, by the cleanup
/// thread, before it replies.
pub fn stop(registry: &Arc<Registry>, reply: Reply<Failures>) {
    registry.keeping.stop();
    registry.give_up_staging();
    registry.sweeper.hand_over(stopping(registry, reply));
}

/// The stop of a registry: nothing can be staged any more, and what was is removed.
fn stopping(registry: &Arc<Registry>, reply: Reply<Failures>) -> Given {
    let registry = registry.clone();
    let mut all = RemoveAll::default();
    let mut failures = Failures::new();
    Given::Last(replying(reply, move || {
        let goes_on = stop_a_batch(&registry, &mut all, &mut failures);
        (!goes_on).then(|| Ok(std::mem::take(&mut failures)))
    }))
}

/// Removes some attachments; whether there were any. Once there are none the areas are let go of.
fn stop_a_batch(
    registry: &Registry,
    all: &mut RemoveAll<Arc<StagedFile>>,
    failures: &mut Failures,
) -> bool {
    registry.give_up_staging();
    let remove = |removal| failures.extend(remove::remove_now(registry, removal));
    let were_there = all.batch(&registry.manifest, || None, remove);
    if !were_there {
        // Whoever is still at work in an area after that takes it away when it is done.
        let _nobody_at_work = registry.at_work.try_write_for(LAST_WAIT);
        registry.streams.end();
        registry.areas.stop();
    }
    were_there
}
