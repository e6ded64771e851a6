//! Which ETS table belongs to the registry of a process. Callers that know a registry by its pid find its
//! handle there, without asking the process.

use std::collections::HashMap;

use once_cell::sync::Lazy;
use parking_lot::RwLock;
use rustler::{Atom, LocalPid};

static TABLES: Lazy<RwLock<HashMap<LocalPid, Atom>>> = Lazy::new(RwLock::default);

pub(crate) fn enter(pid: LocalPid, table: Atom) {
    TABLES.write().insert(pid, table);
}

pub(crate) fn forget(pid: LocalPid) {
    TABLES.write().remove(&pid);
}

pub(crate) fn of(pid: LocalPid) -> Option<Atom> {
    TABLES.read().get(&pid).copied()
}
