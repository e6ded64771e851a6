//! The clocks: expiry runs on the monotonic one, people read the other.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use once_cell::sync::Lazy;

/// One reading of both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Nanoseconds of the monotonic clock, from an arbitrary start.
    pub monotonic_ns: u64,
    /// Milliseconds since the Unix epoch, UTC.
    pub wall_ms: i64,
}

impl Now {
    /// Reads the clocks of the system.
    #[must_use]
    pub fn read() -> Self {
        // An arbitrary fixed point in the past: Instant has no absolute value.
        static START: Lazy<Instant> = Lazy::new(Instant::now);
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis());
        Self {
            monotonic_ns: u64::try_from(START.elapsed().as_nanos()).unwrap_or(u64::MAX),
            wall_ms: i64::try_from(wall).unwrap_or(i64::MAX),
        }
    }
}

/// The instant of the monotonic clock, in nanoseconds, from which an attachment has expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(pub u64);

impl Deadline {
    /// Later than every reading of the clock.
    pub const NEVER: Self = Self(u64::MAX);
}
