//! An attachment, and the pure rules that decide how long it stays.

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::disk::FileId;
use crate::staging_area::Place;

/// A manifest key: the checksum, any bytes the caller chose.
pub type Checksum = Arc<[u8]>;

/// How long an attachment that is not persistent stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ttl {
    /// Until a reset.
    Infinity,
    /// So many milliseconds from its last staging.
    Millis(u64),
}

/// One reading of both clocks: expiry runs on the monotonic one, people read the other.
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
        static START: once_cell::sync::Lazy<std::time::Instant> =
            once_cell::sync::Lazy::new(std::time::Instant::now);
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
pub struct Deadline(pub(crate) u64);

impl Deadline {
    /// Later than every reading of the clock.
    pub const NEVER: Self = Self(u64::MAX);
}

/// What decides how long an attachment stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Exempt from expiry, whatever the TTL.
    pub persist: bool,
    /// The time to live.
    pub ttl: Ttl,
}

impl Retention {
    /// What holds after a known checksum, kept as `self`, is staged again with `new`.
    #[must_use]
    pub fn merge(self, new: Self) -> Self {
        let endless = new.persist || self.ttl == Ttl::Infinity || new.ttl == Ttl::Infinity;
        Self {
            persist: self.persist || new.persist,
            ttl: if endless { Ttl::Infinity } else { new.ttl },
        }
    }

    /// From when on an attachment inserted `now` has expired.
    #[must_use]
    pub fn deadline(self, now: Now) -> Deadline {
        match self {
            Self {
                persist: false,
                ttl: Ttl::Millis(ttl),
            } => Deadline(
                now.monotonic_ns
                    .saturating_add(ttl.saturating_mul(1_000_000)),
            ),
            _ => Deadline::NEVER,
        }
    }
}

/// A file that has been staged: what never changes about it.
#[derive(Debug)]
pub struct StagedFile {
    /// The manifest key.
    pub checksum: Checksum,
    /// Its name, one path component.
    pub name: Box<[u8]>,
    /// Where it is.
    pub path: Box<Path>,
    /// Bytes, as the caller gave them or as counted.
    pub size: u64,
    /// What the file system knows it by; `None` if a file module keeps it somewhere out of sight.
    pub file_id: Option<FileId>,
    /// Who may remove it, and how.
    pub place: Place,
}

/// One attachment as it stood at one moment.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// The file.
    pub file: Arc<StagedFile>,
    /// How long it stays.
    pub retention: Retention,
    /// When it was last staged: milliseconds since the Unix epoch, UTC.
    pub inserted_at_ms: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retention(persist: bool, ttl: Ttl) -> Retention {
        Retention { persist, ttl }
    }

    #[test]
    fn a_merge_never_shortens_what_somebody_was_promised_for_ever() {
        let short = retention(false, Ttl::Millis(5));
        let long = retention(false, Ttl::Millis(9));
        let endless = retention(false, Ttl::Infinity);
        let kept = retention(true, Ttl::Millis(7));
        assert_eq!(long.merge(short), short);
        assert_eq!(endless.merge(short), endless);
        assert_eq!(short.merge(endless), endless);
        assert_eq!(short.merge(kept), retention(true, Ttl::Infinity));
        assert_eq!(kept.merge(short), retention(true, Ttl::Millis(5)));
    }

    #[test]
    fn deadlines_saturate_and_persistent_attachments_have_none() {
        let now = Now {
            monotonic_ns: 10,
            wall_ms: 0,
        };
        let at = |persist, ttl| retention(persist, ttl).deadline(now);
        assert_eq!(at(false, Ttl::Millis(0)), Deadline(10));
        assert_eq!(at(false, Ttl::Millis(1)), Deadline(1_000_010));
        assert_eq!(at(false, Ttl::Millis(u64::MAX)), Deadline::NEVER);
        assert_eq!(at(false, Ttl::Infinity), Deadline::NEVER);
        assert_eq!(at(true, Ttl::Millis(0)), Deadline::NEVER);
    }
}
