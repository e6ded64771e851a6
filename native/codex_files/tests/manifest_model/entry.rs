//! An entry of the model, and what a staging does to it.

use std::collections::BTreeSet;
use std::sync::Arc;

use codex_files::manifest::attachment::{Attachment, EntryId};
use codex_files::registry::owner::Owner;
use codex_files::retention::{Keep, OwnerId, Retention, Ttl};
use codex_files::time::Now;

use super::{MILLISECOND, Staged, key_of};

/// What a caller has asked for. It holds its owner until it is answered.
#[derive(Clone, Debug)]
pub struct Ask {
    pub persist: bool,
    pub ttl: Option<Ttl>,
    pub owner: Option<Arc<Owner>>,
}

impl Ask {
    pub fn keep(&self) -> Keep {
        Keep {
            persist: self.persist,
            ttl: self.ttl,
            owner: self.owner(),
        }
    }

    pub fn owner(&self) -> Option<OwnerId> {
        self.owner.as_ref().map(|owner| owner.id())
    }
}

/// An attachment, with the file's identity instead of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    pub file: usize,
    pub retention: Retention,
    pub inserted_at_ms: i64,
}

impl Snapshot {
    pub fn of(attachment: &Attachment<Staged>) -> Self {
        Self {
            file: attachment.file.number,
            retention: attachment.retention,
            inserted_at_ms: attachment.inserted_at_ms,
        }
    }
}

#[derive(Clone)]
pub struct Entry {
    /// What the manifest has called it when it was new.
    pub id: EntryId,
    pub file: Staged,
    pub retention: Retention,
    /// By the last staging that had a TTL to give.
    pub inserted: Now,
    pub owners: BTreeSet<OwnerId>,
}

impl Entry {
    pub fn key(&self) -> u8 {
        key_of(&self.file.checksum)
    }

    /// SPEC: `persist` is false, the TTL is an integer, so much time has passed, and no owner lives.
    pub fn expired(&self, now: Now) -> bool {
        self.expires_at()
            .is_some_and(|at| at <= u128::from(now.monotonic_ns))
    }

    pub fn expires_at(&self) -> Option<u128> {
        match self.retention {
            Retention {
                persist: false,
                ttl: Ttl::Millis(ttl),
            } if self.owners.is_empty() => Some(
                u128::from(self.inserted.monotonic_ns) + u128::from(ttl) * u128::from(MILLISECOND),
            ),
            _ => None,
        }
    }

    /// SPEC: `inserted_at` becomes now; persist becomes old or new; the TTL becomes infinite if the new
    /// persist is true or either TTL is infinite, else the new one. A staging without a TTL leaves the
    /// TTL and `inserted_at` as they are.
    pub fn stage_again(&mut self, ask: &Ask, now: Now) {
        let old = self.retention;
        self.retention.persist = old.persist || ask.persist;
        self.retention.ttl = match (old.ttl, ask.ttl) {
            _ if ask.persist => Ttl::Infinity,
            (Ttl::Infinity, _) | (_, Some(Ttl::Infinity)) => Ttl::Infinity,
            (_, Some(ttl)) => ttl,
            (ttl, None) => ttl,
        };
        if ask.persist || ask.ttl.is_some() {
            self.inserted = now;
        }
        self.owners.extend(ask.owner());
    }

    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            file: self.file.number,
            retention: self.retention,
            inserted_at_ms: self.inserted.wall_ms,
        }
    }
}
