//! Who answers for a registry, and when its next cleanup is.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// One keeper of a registry, of all that it has in the course of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keeper(u64);

/// Whether a process answers for a registry. A killed one leaves it to its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    By(Keeper),
    NotSince(Instant),
    Stopped,
}

struct Schedule {
    interval: Duration,
    /// `None` while a cleanup on time is under way, and if it is later than time is counted.
    next_cleanup: Option<Instant>,
}

/// What a registry knows of its keeper, and of its cleanups.
pub(super) struct Keeping {
    kept: Mutex<Kept>,
    schedule: Mutex<Schedule>,
}

impl Keeping {
    /// Without a keeper yet: it waits for one as for a successor.
    pub(super) fn new(cleanup_interval: Duration) -> Self {
        let now = Instant::now();
        Self {
            kept: Mutex::new(Kept::NotSince(now)),
            schedule: Mutex::new(Schedule {
                interval: cleanup_interval,
                next_cleanup: now.checked_add(cleanup_interval),
            }),
        }
    }

    /// A new keeper; `None` after the stop.
    pub(super) fn adopt(&self) -> Option<Keeper> {
        static KEEPERS: AtomicU64 = AtomicU64::new(0);
        let mut kept = self.kept.lock();
        if *kept == Kept::Stopped {
            return None;
        }
        let keeper = Keeper(KEEPERS.fetch_add(1, Ordering::Relaxed));
        *kept = Kept::By(keeper);
        Some(keeper)
    }

    /// `keeper` has gone; whether it was the keeper still.
    pub(super) fn abandon(&self, keeper: Keeper) -> bool {
        let mut kept = self.kept.lock();
        let was_kept = *kept == Kept::By(keeper);
        if was_kept {
            *kept = Kept::NotSince(Instant::now());
        }
        was_kept
    }

    /// From now on nobody can adopt it.
    pub(super) fn stop(&self) {
        *self.kept.lock() = Kept::Stopped;
    }

    /// Whether it has been without a keeper for as long as `grace`; if so, it is stopped.
    pub(super) fn stop_if_abandoned(&self, grace: Duration, now: Instant) -> bool {
        let mut kept = self.kept.lock();
        let stops = match *kept {
            Kept::NotSince(since) => since.checked_add(grace).is_some_and(|at| at <= now),
            Kept::By(_) | Kept::Stopped => false,
        };
        if stops {
            *kept = Kept::Stopped;
        }
        stops
    }

    /// Changes the time between two cleanups, from now on.
    pub(super) fn set_cleanup_interval(&self, interval: Duration) {
        self.schedule.lock().interval = interval;
        self.schedule_next_cleanup();
    }

    pub(super) fn schedule_next_cleanup(&self) {
        let mut schedule = self.schedule.lock();
        schedule.next_cleanup = Instant::now().checked_add(schedule.interval);
    }

    /// Whether it is time for a cleanup; if so, whoever asks does it, and has the next one scheduled.
    pub(super) fn cleanup_is_due(&self, now: Instant) -> bool {
        let mut schedule = self.schedule.lock();
        let is_due = schedule.next_cleanup.is_some_and(|at| at <= now);
        if is_due {
            schedule.next_cleanup = None;
        }
        is_due
    }

    /// The next time at which something may be due.
    pub(super) fn next_event(&self, grace: Duration) -> Option<Instant> {
        let stops_at = match *self.kept.lock() {
            Kept::NotSince(since) => since.checked_add(grace),
            Kept::By(_) | Kept::Stopped => None,
        };
        let next_cleanup = self.schedule.lock().next_cleanup;
        [next_cleanup, stops_at].into_iter().flatten().min()
    }
}
