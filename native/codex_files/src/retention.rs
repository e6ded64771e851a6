//! How long an attachment stays: the pure rules.

use crate::time::{Deadline, Now};

/// How long an attachment that is not persistent stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ttl {
    /// Until a reset.
    Infinity,
    /// So many milliseconds from its last staging.
    Millis(u64),
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
        match self.ttl {
            Ttl::Millis(ttl) if !self.persist => {
                let ttl_ns = ttl.saturating_mul(1_000_000);
                Deadline(now.monotonic_ns.saturating_add(ttl_ns))
            }
            _ => Deadline::NEVER,
        }
    }
}
