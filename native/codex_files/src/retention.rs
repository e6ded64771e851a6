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
