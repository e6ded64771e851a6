//! The processes of this VM that are owners of a registry's attachments.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use codex_files::panics;
use codex_files::registry::owner::Owner;
use codex_files::registry::{Registry, owners};
use parking_lot::Mutex;
use rustler::{Env, LocalPid, Monitor, Resource, ResourceArc};

/// The owners of a registry that are processes, each watched until it ends. The registry process has
/// no part in it: they count while that is killed and its successor starts.
#[derive(Default)]
pub(crate) struct Owners(Mutex<HashMap<LocalPid, ResourceArc<Watched>>>);

/// An owner that lives as long as a process.
struct Watched {
    owner: Arc<Owner>,
    owners: Weak<Owners>,
}

#[rustler::resource_impl]
impl Resource for Watched {
    fn down<'a>(&'a self, _env: Env<'a>, pid: LocalPid, _monitor: Monitor) {
        let watched = self.owners.upgrade();
        let watched = watched.and_then(|owners| owners.0.lock().remove(&pid));
        // It ends however this goes on.
        panics::point("owner-down");
        // Without the lock.
        drop(watched);
    }
}

impl Owners {
    /// The owner that a process is. If it has ended already, so does the owner when it is let go of.
    pub(crate) fn of(
        self: &Arc<Self>,
        env: Env<'_>,
        registry: &Arc<Registry>,
        pid: LocalPid,
    ) -> Arc<Owner> {
        // From before it is watched to when it can be found: its end must find it.
        let mut all = self.0.lock();
        if let Some(watched) = all.get(&pid) {
            return watched.owner.clone();
        }
        let owner = owners::owner(registry);
        let watched = ResourceArc::new(Watched {
            owner: owner.clone(),
            owners: Arc::downgrade(self),
        });
        if watched.monitor(Some(env), &pid).is_some() {
            all.insert(pid, watched);
        }
        owner
    }

    /// The owner that a process is, if it is one.
    pub(crate) fn find(&self, pid: LocalPid) -> Option<Arc<Owner>> {
        Some(self.0.lock().get(&pid)?.owner.clone())
    }
}

/// An owner of its own, which ends with the term that stands for it, or before.
pub(crate) struct Temporary(pub(crate) Mutex<Option<Arc<Owner>>>);

#[rustler::resource_impl]
impl Resource for Temporary {}
