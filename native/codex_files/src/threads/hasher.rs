//! A thread that hashes bytes while whoever has given them is busy with something else.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use sha2::{Digest, Sha256};

use crate::bytes::{Bytes, PIECE};
use crate::checksum::Content;
use crate::error::{Error, Result};
use crate::panics::{self, contained};
use crate::turns;

/// For how long the thread waits for more: a stream that pauses longer gets another one.
const IDLE: Duration = Duration::from_secs(1);

/// Called once, on the thread or on that of whoever drops it; it must not wait for anything.
pub(crate) type Tell = Box<dyn FnOnce() + Send>;

/// A hash that grows, and its thread, which is there while there is something to do. Dropped, it gives up.
pub(crate) struct Hasher(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    more: Condvar,
    given_up: AtomicBool,
}

#[derive(Default)]
struct State {
    /// Of what has been hashed; elsewhere while the thread is at it, and so behind.
    hash: Sha256,
    size: u64,
    given: VecDeque<(Box<dyn Bytes>, u64)>,
    /// How many of the bytes given have not been hashed.
    behind: u64,
    failed: Option<Error>,
    has_thread: bool,
    /// Who is to be told once so few bytes have not been hashed.
    waits: Option<(u64, Tell)>,
}

impl Hasher {
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    /// Hands over bytes, of which there are `size`.
    pub(crate) fn give(&self, bytes: Box<dyn Bytes>, size: u64) {
        // The thread would be at them, and nobody would know.
        if size == 0 {
            return;
        }
        let mut state = self.0.state.lock();
        state.given.push_back((bytes, size));
        state.behind += size;
        if mem::replace(&mut state.has_thread, true) {
            self.0.more.notify_one();
            return;
        }
        drop(state);
        let shared = self.0.clone();
        let thread = std::thread::Builder::new().name("codex_hasher".into());
        if thread.spawn(move || shared.run(IDLE)).is_err() {
            // No thread can be had: late is better than never.
            self.0.run(Duration::ZERO);
        }
    }

    /// Has what `tell` makes called once at most `few` bytes are left to hash; `false` if that is so
    /// already, and nobody is to be told.
    pub(crate) fn tell_once_behind(&self, few: u64, tell: impl FnOnce() -> Tell) -> bool {
        let mut state = self.0.state.lock();
        if state.behind <= few {
            return false;
        }
        let before = state.waits.replace((few, tell()));
        drop(state);
        drop(before);
        true
    }

    /// What the bytes given come to, all of which have been hashed.
    pub(crate) fn content(&self) -> Result<Content> {
        let state = self.0.state.lock();
        match &state.failed {
            Some(error) => Err(error.clone()),
            None => Ok(Content {
                digest: state.hash.clone().finalize().into(),
                size: state.size,
            }),
        }
    }
}

impl Drop for Hasher {
    fn drop(&mut self) {
        self.0.given_up.store(true, Ordering::Relaxed);
        let mut state = self.0.state.lock();
        let left = (mem::take(&mut state.given), state.waits.take());
        drop(state);
        drop(left);
        self.0.more.notify_one();
    }
}

impl Shared {
    /// Hashes until there has been nothing to hash for some time.
    fn run(&self, idle: Duration) {
        let mut state = self.state.lock();
        loop {
            if let Some((bytes, size)) = state.given.pop_front() {
                self.hash(&mut state, bytes, size);
            } else if self.given_up.load(Ordering::Relaxed)
                || (self.more.wait_for(&mut state, idle).timed_out() && state.given.is_empty())
            {
                state.has_thread = false;
                return;
            }
        }
    }

    fn hash(&self, state: &mut MutexGuard<'_, State>, bytes: Box<dyn Bytes>, size: u64) {
        let mut hash = mem::take(&mut state.hash);
        let hashed = MutexGuard::unlocked(state, || {
            let hashed = contained(|| {
                panics::point("hash");
                bytes.each(&mut |bytes| {
                    bytes.chunks(PIECE).try_for_each(|piece| {
                        if self.given_up.load(Ordering::Relaxed) {
                            return Err(Error::Stopped);
                        }
                        let _turn = turns::turn();
                        hash.update(piece);
                        Ok(())
                    })
                })
            });
            drop(bytes);
            hashed.and_then(|hashed| hashed)
        });
        state.hash = hash;
        state.size += size;
        state.behind -= size;
        if let Err(error) = hashed {
            state.failed.get_or_insert(error);
        }
        let behind = state.behind;
        if let Some((_, tell)) = state.waits.take_if(|(few, _)| behind <= *few) {
            MutexGuard::unlocked(state, || {
                let _ = contained(tell);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::checksum::digest;

    fn eventually(check: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !check() {
            assert!(Instant::now() < deadline, "it never happens");
            std::thread::yield_now();
        }
    }

    /// Thousands of streams whose callers wait for the next piece are not as many threads.
    #[test]
    fn the_thread_ends_when_there_is_nothing_to_do_and_another_one_goes_on() {
        let hasher = Hasher::new();
        for _ in 0..2 {
            hasher.give(Box::new(b"piece".to_vec()), 5);
            eventually(|| hasher.0.state.lock().behind == 0);
            assert!(hasher.0.state.lock().has_thread);
            eventually(|| !hasher.0.state.lock().has_thread);
        }
        let whole = Content {
            digest: digest(b"piecepiece"),
            size: 10,
        };
        assert_eq!(hasher.content().expect("it was hashed"), whole);
    }

    #[test]
    fn the_thread_ends_with_its_stream() {
        let hasher = Hasher::new();
        hasher.0.state.lock().has_thread = true;
        let shared = hasher.0.clone();
        let thread = std::thread::spawn(move || shared.run(Duration::from_secs(86_400)));
        hasher.give(Box::new(b"piece".to_vec()), 5);
        drop(hasher);
        eventually(|| thread.is_finished());
    }
}
