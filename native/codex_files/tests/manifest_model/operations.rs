//! The operations, and how they are chosen.

use codex_files::retention::Ttl;
use proptest::prelude::*;

use super::MILLISECOND;

/// Few keys, so that operations meet.
pub const KEYS: u8 = 4;

/// Few owners, too.
pub const OWNERS: usize = 3;

/// What a caller wants to keep an attachment by. An owner is the one that has this place now.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    pub persist: bool,
    pub ttl: Option<Ttl>,
    pub owner: Option<usize>,
}

#[derive(Clone, Debug)]
pub enum Op {
    /// A caller stages a key. If it is known the answer is followed up at once, or later.
    Stage {
        key: u8,
        wish: Wish,
        follow_up: bool,
    },
    /// A caller has found a file missing that it was told of: the current one, or an older one.
    StageLost {
        key: u8,
        wish: Wish,
        stale: bool,
    },
    /// A caller that was told to ask again does so.
    AskAgain {
        pick: usize,
    },
    /// The copy that a staging was for is done.
    Commit {
        pick: usize,
        size: u64,
    },
    /// It failed.
    Fail {
        pick: usize,
    },
    /// Whoever was copying was killed.
    Drop {
        pick: usize,
    },
    /// A caller comes back to a file that it was told is known.
    Refresh {
        pick: usize,
    },
    /// Part of a sweep: the next tickets of one under way, or the first of a new one.
    Claim {
        pick: usize,
        limit: usize,
    },
    /// The file that a removal was for is gone.
    CommitRemoval {
        pick: usize,
    },
    /// It could not be removed.
    DropRemoval {
        pick: usize,
    },
    /// A whole cleanup; the removals of some keys fail.
    Sweep {
        failing: u8,
    },
    /// A whole reset; the removals of some keys fail.
    RemoveAll {
        failing: u8,
    },
    /// The tickets of a whole reset. Where somebody is at work it waits for that, or does not.
    ClaimAll {
        wait: bool,
    },
    /// The ticket to unstage what is there, or what was there.
    ClaimOne {
        key: u8,
        stale: bool,
    },
    /// An owner lets go of a key, which need not be its own.
    Release {
        owner: usize,
        key: u8,
    },
    /// An owner ends, once all stagings that are for it have been answered. Another one has its
    /// place.
    EndOwner {
        owner: usize,
    },
    /// The cleanup thread takes what one that has ended kept.
    TakeOwned {
        pick: usize,
    },
    /// And lets go of some of it.
    Disown {
        pick: usize,
        limit: usize,
    },
    /// Time passes, and somebody may set the wall clock.
    Time {
        nanoseconds: u64,
        wall_step_ms: i64,
    },
    Stop,
}

fn wish() -> impl Strategy<Value = Wish> {
    let ttl = prop_oneof![
        2 => Just(Ttl::Infinity),
        3 => Just(Ttl::Millis(0)),
        8 => (1_u64..6).prop_map(Ttl::Millis),
        1 => Just(Ttl::Millis(u64::MAX)),
        1 => Just(Ttl::Millis(u64::MAX / MILLISECOND)),
    ];
    let without_owner = (prop::bool::weighted(0.15), ttl.clone()).prop_map(|(persist, ttl)| Wish {
        persist,
        ttl: Some(ttl),
        owner: None,
    });
    let with_owner = (
        prop::bool::weighted(0.05),
        prop::option::weighted(0.3, ttl),
        0..OWNERS,
    )
        .prop_map(|(persist, ttl, owner)| Wish {
            persist,
            ttl,
            owner: Some(owner),
        });
    prop_oneof![1 => without_owner, 1 => with_owner]
}

pub fn op() -> impl Strategy<Value = Op> {
    let key = || 0..KEYS;
    let owner = || 0..OWNERS;
    let pick = || any::<usize>();
    let limit = || prop_oneof![1_usize..4, Just(usize::MAX)];
    let failing = || any::<u8>().prop_map(|failing| failing & (failing >> 4));
    let size = prop_oneof![
        Just(0),
        1_u64..10_000,
        Just(u64::MAX), // a claim of the caller's: sums of these must not overflow
    ];
    let staging = prop_oneof![
        24 => (key(), wish(), prop::bool::weighted(0.8)).prop_map(
            |(key, wish, follow_up)| Op::Stage { key, wish, follow_up }
        ),
        8 => (key(), wish(), prop::bool::weighted(0.2)).prop_map(
            |(key, wish, stale)| Op::StageLost { key, wish, stale }
        ),
        6 => pick().prop_map(|pick| Op::AskAgain { pick }),
        16 => (pick(), size).prop_map(|(pick, size)| Op::Commit { pick, size }),
        3 => pick().prop_map(|pick| Op::Fail { pick }),
        3 => pick().prop_map(|pick| Op::Drop { pick }),
        4 => pick().prop_map(|pick| Op::Refresh { pick }),
    ];
    let removing = prop_oneof![
        8 => (pick(), limit()).prop_map(|(pick, limit)| Op::Claim { pick, limit }),
        6 => pick().prop_map(|pick| Op::CommitRemoval { pick }),
        3 => pick().prop_map(|pick| Op::DropRemoval { pick }),
        4 => failing().prop_map(|failing| Op::Sweep { failing }),
        1 => failing().prop_map(|failing| Op::RemoveAll { failing }),
        3 => any::<bool>().prop_map(|wait| Op::ClaimAll { wait }),
        3 => (key(), prop::bool::weighted(0.25)).prop_map(
            |(key, stale)| Op::ClaimOne { key, stale }
        ),
    ];
    let owning = prop_oneof![
        8 => (owner(), key()).prop_map(|(owner, key)| Op::Release { owner, key }),
        3 => owner().prop_map(|owner| Op::EndOwner { owner }),
        4 => pick().prop_map(|pick| Op::TakeOwned { pick }),
        5 => (pick(), limit()).prop_map(|(pick, limit)| Op::Disown { pick, limit }),
    ];
    prop_oneof![
        60 => staging,
        28 => removing,
        17 => owning,
        10 => (0_u64..4, 0_u64..3, prop_oneof![4 => Just(0_i64), 1 => -5_000_i64..5_000]).prop_map(
            |(milliseconds, nanoseconds, wall_step_ms)| Op::Time {
                nanoseconds: milliseconds * MILLISECOND + nanoseconds,
                wall_step_ms,
            }
        ),
        1 => Just(Op::Stop),
    ]
}
