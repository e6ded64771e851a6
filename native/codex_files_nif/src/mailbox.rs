//! Messages to processes, from any thread.

use std::sync::Arc;

use codex_files::panics;
use codex_files::registry::owner::Owner;
use codex_files::registry::reply::Reply;
use codex_files::registry::{Request, Waiter};
use crossbeam_channel::Sender;
use once_cell::sync::OnceCell;
use rustler::env::SavedTerm;
use rustler::{Encoder, Env, LocalPid, OwnedEnv, Reference, Term, thread};

use crate::encode;
use crate::guard::{self, guarded};

type Letter = Box<dyn FnOnce() + Send>;

/// Letters that were written on a scheduler thread, where they cannot be sent from.
static COURIER: OnceCell<Sender<Letter>> = OnceCell::new();

/// Starts the thread that sends for the scheduler threads.
pub(crate) fn start() -> std::io::Result<()> {
    let start = || {
        let (letters, inbox) = crossbeam_channel::unbounded::<Letter>();
        std::thread::Builder::new()
            .name("codex_courier".into())
            .spawn(move || {
                for letter in inbox {
                    letter();
                }
            })?;
        Ok(letters)
    };
    COURIER.get_or_try_init(start).map(|_| ())
}

/// Sends what `message` makes. A process that is gone gets nothing.
fn send(
    to: LocalPid,
    mut env: OwnedEnv,
    message: impl for<'a> FnOnce(Env<'a>) -> Term<'a> + Send + 'static,
) {
    let letter = move || {
        // A message that cannot be made must not end the thread, which has others to send.
        let _ = panics::contained(|| env.send_and_clear(&to, message));
    };
    if thread::is_scheduler_thread() {
        let courier = COURIER
            .get()
            .expect("it is started when the library is loaded");
        // The thread lives as long as the process.
        let _ = courier.send(Box::new(letter));
    } else {
        letter();
    }
}

/// Sends what `message` makes.
pub(crate) fn tell(
    to: LocalPid,
    message: impl for<'a> FnOnce(Env<'a>) -> Term<'a> + Send + 'static,
) {
    send(to, OwnedEnv::new(), |env| {
        panics::point("tell");
        message(env)
    });
}

/// A caller and the reference by which it knows its answer.
pub(crate) struct ReplyTo {
    pid: LocalPid,
    env: OwnedEnv,
    reference: SavedTerm,
}

impl ReplyTo {
    pub(crate) fn new(env: Env<'_>, reference: Reference<'_>) -> Self {
        let own = OwnedEnv::new();
        let reference = own.save(reference);
        Self {
            pid: env.pid(),
            env: own,
            reference,
        }
    }

    /// The reply that sends `{reference, what encode makes}`, or the error.
    pub(crate) fn reply<T: Send + 'static>(
        self,
        encode: impl for<'a> FnOnce(Env<'a>, &T) -> Term<'a> + Send + 'static,
    ) -> Reply<T> {
        Reply::new(move |done| {
            self.send(move |env| guard::result(env, done, |done| encode(env, &done)));
        })
    }

    /// The waiter of a staging under the digest of the content.
    pub(crate) fn waiter_for(self, to: &Request) -> Waiter {
        self.waiter(Some(to.name.clone()), to.owner.clone())
    }

    /// The waiter that sends `{reference, outcome}`, of an attachment under that name, and holds the owner
    /// until then.
    pub(crate) fn waiter(self, name: Option<Box<[u8]>>, owner: Option<Arc<Owner>>) -> Waiter {
        Waiter::new(move |outcome| {
            self.send(move |env| encode::outcome(env, &outcome, name.as_deref()));
            drop(owner);
        })
    }

    fn send(self, result: impl for<'a> FnOnce(Env<'a>) -> Term<'a> + Send + 'static) {
        let reference = self.reference;
        send(self.pid, self.env, move |env| {
            // The caller waits: if there is no result, the error is.
            let result = guarded(env, "reply", || Ok(result(env)));
            (reference.load(env), result).encode(env)
        });
    }
}
