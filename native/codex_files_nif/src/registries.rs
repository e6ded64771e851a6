//! The registries of this VM. A registry outlives its process: the successor of one that was
//! killed finds here what it left.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use codex_files::error::{Error, Result};
use codex_files::panics;
use codex_files::registry::{Observer, Options, Owner, Registry};
use codex_files::sweeper::{Command, Report};
use once_cell::sync::Lazy;
use parking_lot::Mutex;
use rustler::{Encoder, Env, LocalPid, Monitor, Resource, ResourceArc};

use crate::{atoms, encode, mailbox};

/// How long the attachments of a killed registry process wait for its successor: far longer than a
/// supervisor needs, and short enough that an abandoned registry does not stay for good.
const ORPHAN_GRACE: Duration = Duration::from_secs(60);

static REGISTRIES: Lazy<Mutex<HashMap<Vec<u8>, ResourceArc<Handle>>>> = Lazy::new(Mutex::default);

/// A registry, as the callers of one of its owners hold it.
pub(crate) struct Handle {
    pub(crate) registry: Arc<Registry>,
    name: Vec<u8>,
    owner: Owner,
    /// The process that owns the registry now, for all handles of it.
    owner_pid: Arc<Mutex<LocalPid>>,
}

#[rustler::resource_impl]
impl Resource for Handle {
    fn down<'a>(&'a self, _env: Env<'a>, _pid: LocalPid, _monitor: Monitor) {
        panics::point("down");
        self.registry.abandon(self.owner);
    }
}

/// Tells the registry process what its cleanup thread does.
struct ToOwner {
    name: Vec<u8>,
    owner_pid: Arc<Mutex<LocalPid>>,
}

impl Observer for ToOwner {
    fn cleaned(&self, report: Report) {
        if report.cleaned.is_empty() && report.failed.is_empty() {
            return;
        }
        // If it has gone, so has the message.
        let owner = *self.owner_pid.lock();
        mailbox::tell(owner, move |env| {
            (
                atoms::codex_files(),
                atoms::cleaned(),
                encode::report(env, &report),
            )
                .encode(env)
        });
    }

    fn ended(&self) {
        forget(&self.name, &self.owner_pid);
    }
}

/// Opens the registry of that name for the calling process: the one that a killed process of that
/// name left (then also `true`), or a new one.
pub(crate) fn open(
    env: Env<'_>,
    name: &[u8],
    cleanup_interval: Duration,
    recognise_unchanged: bool,
) -> Result<(ResourceArc<Handle>, bool)> {
    let pid = env.pid();
    let mut registries = REGISTRIES.lock();
    let left = registries.get(name).and_then(|left| {
        let owner = left.registry.adopt()?;
        *left.owner_pid.lock() = pid;
        Some((
            Arc::clone(&left.registry),
            owner,
            Arc::clone(&left.owner_pid),
        ))
    });
    let adopted = left.is_some();
    let (registry, owner, owner_pid) = match left {
        Some(left) => left,
        None => {
            let owner_pid = Arc::new(Mutex::new(pid));
            let observer = ToOwner {
                name: name.to_owned(),
                owner_pid: Arc::clone(&owner_pid),
            };
            let registry = Registry::start(Options {
                cleanup_interval,
                orphan_grace: ORPHAN_GRACE,
                recognise_unchanged,
                observer: Box::new(observer),
            })?;
            let owner = registry.adopt().ok_or(Error::Stopped)?;
            (registry, owner, owner_pid)
        }
    };
    let handle = ResourceArc::new(Handle {
        registry,
        name: name.to_owned(),
        owner,
        owner_pid,
    });
    let before = registries.insert(name.to_owned(), handle.clone());
    drop(registries);
    drop(before);
    handle.registry.command(Command::Interval(cleanup_interval));
    if handle.monitor(Some(env), &pid).is_none() {
        // It is being killed right now.
        handle.registry.abandon(owner);
    }
    Ok((handle, adopted))
}

/// Takes a registry out, so that the next process of its name begins anew.
pub(crate) fn close(handle: &ResourceArc<Handle>) {
    forget(&handle.name, &handle.owner_pid);
}

fn forget(name: &[u8], owner_pid: &Arc<Mutex<LocalPid>>) {
    let mut registries = REGISTRIES.lock();
    let is_it = |handle: &ResourceArc<Handle>| Arc::ptr_eq(&handle.owner_pid, owner_pid);
    if registries.get(name).is_some_and(is_it) {
        registries.remove(name);
    }
}
