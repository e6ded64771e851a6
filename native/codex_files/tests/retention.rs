//! How long attachments stay: the pure rules.

#![cfg(not(feature = "shuttle"))]

use codex_files::retention::{Retention, Ttl};
use codex_files::time::{Deadline, Now};

fn retention(persist: bool, ttl: Ttl) -> Retention {
    Retention { persist, ttl }
}

#[test]
fn a_merge_never_shortens_what_somebody_was_promised_for_ever() {
    let short = retention(false, Ttl::Millis(5));
    let long = retention(false, Ttl::Millis(9));
    let endless = retention(false, Ttl::Infinity);
    let kept = retention(true, Ttl::Millis(7));
    assert_eq!(long.merge(short.into()), short);
    assert_eq!(endless.merge(short.into()), endless);
    assert_eq!(short.merge(endless.into()), endless);
    assert_eq!(short.merge(kept.into()), retention(true, Ttl::Infinity));
    assert_eq!(kept.merge(short.into()), retention(true, Ttl::Millis(5)));
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
