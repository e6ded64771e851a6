//! The registries of this VM. A registry outlives its process: the successor of one that was
//! killed finds here what it left.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use codex_files::panics;
use codex_files::registry::{Observer, Options, Registry};
use codex_files::sweeper::{Command, Report};
use once_cell::sync::Lazy;
use parking_lot::Mutex;
use rustler::{Encoder, Env, LocalPid, Monitor, Resource, ResourceArc};

use crate::{atoms, encode, mailbox};

/// How long the attachments of a killed registry process wait for its successor: far longer than a
/// supervisor needs, and short enough that an abandoned registry does not stay for good.
const ORPHAN_GRACE: Duration = Duration::from_secs(60);

static REGISTRIES: Lazy<Mutex<HashMap<Vec<u8>, ResourceArc<Handle>>>> = Lazy::new(Mutex::default);

/// A registry as its callers hold it.
pub(crate) struct Handle {
    pub(crate) registry: Arc<Registry>,
    name: Vec<u8>,
    owner: Arc<Mutex<Option<LocalPid>>>,
}

#[rustler::resource_impl]
impl Resource for Handle {
    fn down<'a>(&'a self, _env: Env<'a>, pid: LocalPid, _monitor: Monitor) {
        panics::point("down");
        let mut owner = self.owner.lock();
        // The successor may have come already.
        if *owner == Some(pid) {
            *owner = None;
            drop(owner);
            self.registry.abandon();
        }
    }
}

/// Tells the registry process what its cleanup thread does.
struct ToOwner {
    name: Vec<u8>,
    owner: Arc<Mutex<Option<LocalPid>>>,
}

impl Observer for ToOwner {
    fn cleaned(&self, report: Report) {
        if report.cleaned.is_empty() && report.failed.is_empty() {
            return;
        }
        let owner = *self.owner.lock();
        if let Some(owner) = owner {
            mailbox::tell(owner, move |env| {
                (
                    atoms::codex_files(),
                    atoms::cleaned(),
                    encode::report(env, &report),
                )
                    .encode(env)
            });
        }
    }

    fn ended(&self) {
        forget(&self.name, &self.owner);
    }
}

/// Opens the registry of that name for the calling process: the one that a killed process of that
/// name left (then also `true`), or a new one.
pub(crate) fn open(
    env: Env<'_>,
    name: &[u8],
    cleanup_interval: Duration,
    recognise_unchanged: bool,
) -> (ResourceArc<Handle>, bool) {
    let mut registries = REGISTRIES.lock();
    let left = registries
        .get(name)
        .filter(|handle| handle.registry.adopt())
        .cloned();
    let adopted = left.is_some();
    let handle = left.unwrap_or_else(|| {
        let owner = Arc::default();
        let observer = ToOwner {
            name: name.to_owned(),
            owner: Arc::clone(&owner),
        };
        let handle = ResourceArc::new(Handle {
            registry: Registry::start(Options {
                cleanup_interval,
                orphan_grace: ORPHAN_GRACE,
                recognise_unchanged,
                observer: Box::new(observer),
            }),
            name: name.to_owned(),
            owner,
        });
        registries.insert(name.to_owned(), handle.clone());
        handle
    });
    drop(registries);
    handle.registry.command(Command::Interval(cleanup_interval));
    let pid = env.pid();
    *handle.owner.lock() = Some(pid);
    if handle.monitor(Some(env), &pid).is_none() {
        // It is being killed right now.
        handle.registry.abandon();
    }
    (handle, adopted)
}

/// Takes a registry out, so that the next process of its name begins anew.
pub(crate) fn close(handle: &ResourceArc<Handle>) {
    *handle.owner.lock() = None;
    forget(&handle.name, &handle.owner);
}

fn forget(name: &[u8], owner: &Arc<Mutex<Option<LocalPid>>>) {
    let mut registries = REGISTRIES.lock();
    if registries
        .get(name)
        .is_some_and(|handle| Arc::ptr_eq(&handle.owner, owner))
    {
        registries.remove(name);
    }
}
