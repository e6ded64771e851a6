//! The registries of this VM. A registry outlives its process: the successor of one that was
//! killed finds here what it left.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use codex_files::error::Error;
use codex_files::manifest::budget::Budget;
use codex_files::panics;
use codex_files::registry::keeper::{self, Options};
use codex_files::registry::keeping::Keeper;
use codex_files::registry::owner::Owner;
use codex_files::registry::{Observer, Registry, Report, Why};
use once_cell::sync::Lazy;
use parking_lot::Mutex;
use rustler::{Atom, Encoder, Env, LocalPid, Monitor, Resource, ResourceArc};

use crate::decode::Decoded;
use crate::owners::Owners;
use crate::{atoms, encode, mailbox, tables};

/// How long the attachments of a killed registry process wait for its successor: far longer than a
/// supervisor needs, and short enough that an abandoned registry does not stay for good.
const ORPHAN_GRACE: Duration = Duration::from_secs(60);

static REGISTRIES: Lazy<Mutex<HashMap<Vec<u8>, ResourceArc<Handle>>>> = Lazy::new(Mutex::default);

/// A registry, as the callers of one of its keepers hold it.
pub(crate) struct Handle {
    pub(crate) registry: Arc<Registry>,
    keeper: Keeper,
    kept: Arc<Kept>,
}

/// What all handles of a registry share. It tells the registry process what the cleanup thread does.
struct Kept {
    name: Vec<u8>,
    /// The process that answers for the registry now.
    by: Mutex<LocalPid>,
    owners: Arc<Owners>,
}

impl Handle {
    /// The owner that a process is.
    pub(crate) fn owner(&self, env: Env<'_>, pid: LocalPid) -> Arc<Owner> {
        self.kept.owners.of(env, &self.registry, pid)
    }

    /// The owner that a process is, if it is one.
    pub(crate) fn find_owner(&self, pid: LocalPid) -> Option<Arc<Owner>> {
        self.kept.owners.find(pid)
    }
}

#[rustler::resource_impl]
impl Resource for Handle {
    fn down<'a>(&'a self, _env: Env<'a>, pid: LocalPid, _monitor: Monitor) {
        panics::point("down");
        tables::forget(pid);
        keeper::abandon(&self.registry, self.keeper);
    }
}

impl Observer for Kept {
    fn removed(&self, why: Why, report: Report) {
        // If it has gone, so has the message.
        let keeper = *self.by.lock();
        let what = match why {
            Why::Expired => atoms::cleaned(),
            Why::Evicted => atoms::evicted(),
        };
        mailbox::tell(keeper, move |env| {
            (atoms::codex_files(), what, encode::report(env, &report)).encode(env)
        });
    }

    fn stopped(&self) {
        self.forget();
    }
}

/// Opens the registry of that name for the calling process, whose ETS table is `table`: the one that a
/// killed process of that name left, or a new one. A process can lose its name and live: its registry
/// stays its own.
pub(crate) fn open<'a>(
    env: Env<'a>,
    name: &[u8],
    table: Atom,
    cleanup_interval: Duration,
    budget: Budget,
    recognise_unchanged: bool,
) -> Decoded<'a, ResourceArc<Handle>> {
    let pid = env.pid();
    let mut registries = REGISTRIES.lock();
    let kept_by = registries.get(name).map(|left| *left.kept.by.lock());
    if let Some(keeper) = kept_by.filter(|keeper| keeper.is_alive(env)) {
        return Err((atoms::already_started(), keeper).encode(env));
    }
    let left = registries.get(name).and_then(|left| {
        let keeper = keeper::adopt(&left.registry)?;
        *left.kept.by.lock() = pid;
        Some((left.registry.clone(), keeper, left.kept.clone()))
    });
    let (registry, keeper, kept) = match left {
        Some(left) => left,
        None => {
            let kept = Arc::new(Kept {
                name: name.to_owned(),
                by: Mutex::new(pid),
                owners: Arc::default(),
            });
            let options = Options {
                cleanup_interval,
                orphan_grace: ORPHAN_GRACE,
                budget,
                recognise_unchanged,
                observer: kept.clone(),
            };
            let started = keeper::start(options).and_then(|registry| {
                let keeper = keeper::adopt(&registry).ok_or(Error::Stopped)?;
                Ok((registry, keeper))
            });
            let (registry, keeper) = started.map_err(|error| encode::reason(env, &error))?;
            (registry, keeper, kept)
        }
    };
    let handle = ResourceArc::new(Handle {
        registry,
        keeper,
        kept,
    });
    let before = registries.insert(name.to_owned(), handle.clone());
    drop(registries);
    drop(before);
    keeper::set_budget(&handle.registry, budget);
    keeper::set_cleanup_interval(&handle.registry, cleanup_interval);
    tables::enter(pid, table);
    if handle.monitor(Some(env), &pid).is_none() {
        // It is being killed right now.
        tables::forget(pid);
        keeper::abandon(&handle.registry, keeper);
    }
    Ok(handle)
}

/// Takes a registry out, so that the next process of its name begins anew.
pub(crate) fn forget(handle: &Handle) {
    handle.kept.forget();
}

impl Kept {
    fn forget(&self) {
        // If the process lets go of its handle before it ends, nobody hears of its end.
        tables::forget(*self.by.lock());
        let mut registries = REGISTRIES.lock();
        let is_it = |handle: &ResourceArc<Handle>| std::ptr::eq(&*handle.kept, self);
        if registries.get(&self.name).is_some_and(is_it) {
            registries.remove(&self.name);
        }
    }
}
