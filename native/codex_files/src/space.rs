//! The room on the disk: the large copies of a registry that are under way. Together they may take the
//! room that one of them would have had: that one is made again when another has ended.

use std::time::Instant;

use parking_lot::{Condvar, Mutex, MutexGuard};

#[derive(Default)]
pub(crate) struct Space {
    state: Mutex<State>,
    one_ended: Condvar,
    /// Held by the one copy that is made again now.
    made_again: Mutex<()>,
}

/// How many copies have begun and ended since the start.
#[derive(Default)]
struct State {
    begun: u64,
    ended: u64,
}

impl State {
    fn any_under_way(&self) -> bool {
        self.begun > self.ended
    }
}

/// One copy, which is under way until this is dropped.
#[must_use]
pub(crate) struct CopyUnderWay<'a> {
    all: &'a Space,
    /// Whether there were others when it began.
    met_others: bool,
    number: u64,
}

impl Space {
    pub(crate) fn begin(&self) -> CopyUnderWay<'_> {
        let mut state = self.state.lock();
        let met_others = state.any_under_way();
        state.begun += 1;
        CopyUnderWay {
            all: self,
            met_others,
            number: state.begun,
        }
    }

    /// Waits for the turn to make a copy again.
    pub(crate) fn turn_to_make_again(&self, until: Instant) -> Option<MutexGuard<'_, ()>> {
        self.made_again.try_lock_until(until)
    }

    /// Waits until more copies have ended than `since`, or none is under way.
    pub(crate) fn wait_for_an_end(&self, since: u64, until: Instant) {
        let mut state = self.state.lock();
        while state.any_under_way() && state.ended == since {
            if self.one_ended.wait_until(&mut state, until).timed_out() {
                return;
            }
        }
    }
}

impl CopyUnderWay<'_> {
    /// Ends the copy; how many have ended then, or `None` if there was never another beside it.
    pub(crate) fn end_if_beside_others(self) -> Option<u64> {
        let &Self {
            all,
            met_others,
            number,
        } = &self;
        drop(self);
        let state = all.state.lock();
        (met_others || state.begun > number).then_some(state.ended)
    }
}

impl Drop for CopyUnderWay<'_> {
    fn drop(&mut self) {
        let mut state = self.all.state.lock();
        state.ended += 1;
        drop(state);
        self.all.one_ended.notify_all();
    }
}
