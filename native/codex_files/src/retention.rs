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

/// An owner, whose attachments stay as long as it lives. No two of a registry have the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OwnerId(pub u64);

/// What a staging wants its attachment to be kept by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Exempt from expiry.
    pub persist: bool,
    /// The time to live. `None` leaves that of an attachment that is there as it is, and that of a new
    /// one to its owner.
    pub ttl: Option<Ttl>,
    /// Who is to become an owner of it.
    pub owner: Option<OwnerId>,
}

impl Keep {
    /// What a new attachment is kept by, its owner aside.
    #[must_use]
    pub fn retention(self) -> Retention {
        Retention {
            persist: self.persist,
            ttl: self.ttl.unwrap_or(Ttl::Millis(0)),
        }
    }
}

impl From<Retention> for Keep {
    fn from(Retention { persist, ttl }: Retention) -> Self {
        Self {
            persist,
            ttl: Some(ttl),
            owner: None,
        }
    }
}

/// What decides how long an attachment without an owner stays.
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
    pub fn merge(self, new: Keep) -> Self {
        let endless = new.persist || self.ttl == Ttl::Infinity || new.ttl == Some(Ttl::Infinity);
        Self {
            persist: self.persist || new.persist,
            ttl: if endless {
                Ttl::Infinity
            } else {
                new.ttl.unwrap_or(self.ttl)
            },
        }
    }

    /// From when on an attachment inserted `now` has expired, unless it has an owner.
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
