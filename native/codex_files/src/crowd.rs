//! The large copies of a registry that are under way. Together they may take the room that one of them
//! would have had: that one is made again when another has ended.

use std::time::Instant;

use parking_lot::{Condvar, Mutex, MutexGuard};

#[derive(Default)]
pub(crate) struct Crowd {
    state: Mutex<State>,
    one_ended: Condvar,
    /// Of those that are made again, one at a time is.
    again: Mutex<()>,
}

#[derive(Default)]
struct State {
    under_way: usize,
    /// Of all time, as `ended`.
    begun: u64,
    ended: u64,
}

/// One copy, under way until this is dropped.
#[must_use]
pub(crate) struct Copy<'a> {
    crowd: &'a Crowd,
    /// Whether there were others when it began.
    met_others: bool,
    number: u64,
}

/// How many had ended when one had no room.
#[derive(Clone, Copy)]
pub(crate) struct Ended(u64);

impl Crowd {
    pub(crate) fn enter(&self) -> Copy<'_> {
        let mut state = self.state.lock();
        let met_others = state.under_way > 0;
        state.under_way += 1;
        state.begun += 1;
        Copy {
            crowd: self,
            met_others,
            number: state.begun,
        }
    }

    /// To be held by one that is made again.
    pub(crate) fn again(&self, until: Instant) -> Option<MutexGuard<'_, ()>> {
        self.again.try_lock_until(until)
    }

    /// Waits until one has ended since, or none is left.
    pub(crate) fn wait(&self, since: Ended, until: Instant) {
        let mut state = self.state.lock();
        while state.under_way > 0 && state.ended == since.0 {
            if self.one_ended.wait_until(&mut state, until).timed_out() {
                return;
            }
        }
    }
}

impl Copy<'_> {
    /// Ends it; `None` if there was never another beside it.
    pub(crate) fn end_if_beside_others(self) -> Option<Ended> {
        let crowd = self.crowd;
        let met_others = self.met_others;
        let number = self.number;
        drop(self);
        let state = crowd.state.lock();
        (met_others || state.begun > number).then_some(Ended(state.ended))
    }
}

impl Drop for Copy<'_> {
    fn drop(&mut self) {
        let mut state = self.crowd.state.lock();
        state.under_way -= 1;
        state.ended += 1;
        drop(state);
        self.crowd.one_ended.notify_all();
    }
}
