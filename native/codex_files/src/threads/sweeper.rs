//! The cleanup thread: it does the work that it is handed, and what is due by the clock, in batches.
//! Several pieces of work take turns, batch by batch, so that a long one holds up no other.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::panics::contained;

/// A piece of work: called for one batch after the other, until it says that it is done.
pub(crate) type Work = Box<dyn FnMut() -> Progress + Send>;

/// What a batch of a piece of work has come to.
pub(crate) enum Progress {
    /// There is more to do.
    More,
    /// That was all of it.
    Done,
}

/// What the thread has to do of itself.
pub(crate) enum Due {
    /// This.
    Now(Given),
    /// Nothing before that time; `None`: never, as it is.
    At(Option<Instant>),
    /// Nothing any more: the thread ends.
    Nothing,
}

/// A piece of work on its way to the thread.
pub(crate) enum Given {
    Work(Work),
    /// To be done once all other work is; then the thread ends.
    Last(Work),
}

/// The way to a cleanup thread, which ends when the last one of these is dropped. What it has not done
/// by then is dropped.
#[derive(Clone)]
pub(crate) struct Sweeper(Sender<Given>);

impl Sweeper {
    /// Hands the thread a piece of work.
    pub(crate) fn give(&self, work: impl FnMut() -> Progress + Send + 'static) {
        self.hand_over(Given::Work(Box::new(work)));
    }

    /// As [`Sweeper::give`], of any piece of work.
    pub(crate) fn hand_over(&self, given: Given) {
        // If the thread has ended the work is dropped here.
        let _ = self.0.send(given);
    }

    /// Has the thread ask again what is due.
    pub(crate) fn wake(&self) {
        self.give(|| Progress::Done);
    }
}

/// The way to a thread that has yet to be started.
pub(crate) fn channel() -> (Sweeper, Receiver<Given>) {
    let (works, inbox) = crossbeam_channel::unbounded();
    (Sweeper(works), inbox)
}

/// Starts the thread. `due` is asked before each batch.
///
/// # Errors
/// [`Error::Io`] if the system has no thread left.
pub(crate) fn start(
    inbox: Receiver<Given>,
    due: impl FnMut() -> Due + Send + 'static,
) -> Result<()> {
    let name = "codex_sweeper";
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || run(&inbox, due))
        .map(drop)
        .map_err(|error| {
            let errno = error.raw_os_error().map_or(Errno::EAGAIN, Errno::from_raw);
            Error::io("start the thread", Path::new(name), errno)
        })
}

fn run(inbox: &Receiver<Given>, mut due: impl FnMut() -> Due) {
    let mut works = Works::default();
    while works.last.is_none() {
        let mut at = None;
        match contained(&mut due) {
            Ok(Due::Now(given)) => works.take_in(given),
            Ok(Due::At(next)) => at = next,
            Ok(Due::Nothing) => return,
            Err(_) => {}
        }
        if works.under_way.is_empty() && works.last.is_none() {
            let received = match at {
                Some(at) => inbox.recv_deadline(at),
                None => inbox.recv().map_err(RecvTimeoutError::from),
            };
            match received {
                Ok(given) => works.take_in(given),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        inbox.try_iter().for_each(|given| works.take_in(given));
        works.do_a_batch();
    }
    while works.do_a_batch() {}
    if let Some(mut last) = works.last {
        while matches!(contained(&mut last), Ok(Progress::More)) {}
    }
}

/// What the thread has taken in.
#[derive(Default)]
struct Works {
    /// These take turns.
    under_way: VecDeque<Work>,
    last: Option<Work>,
}

impl Works {
    fn take_in(&mut self, given: Given) {
        match given {
            Given::Work(work) => self.under_way.push_back(work),
            Given::Last(work) => self.last = Some(work),
        }
    }

    /// Does a batch of the work whose turn it is; whether there was one.
    fn do_a_batch(&mut self) -> bool {
        let Some(mut work) = self.under_way.pop_front() else {
            return false;
        };
        // A panic is the work's own to tell of.
        if let Ok(Progress::More) = contained(&mut work) {
            self.under_way.push_back(work);
        }
        true
    }
}
