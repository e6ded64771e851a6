//! Owners: the end of an ownership, and owners that are no processes.

use codex_files::registry::owners;
use parking_lot::Mutex;
use rustler::{Encoder, Env, ResourceArc, Term};

use crate::guard::guarded;
use crate::owners::Temporary;
use crate::registries::Handle;
use crate::{atoms, decode};

#[rustler::nif]
fn release<'a>(
    env: Env<'a>,
    handle: ResourceArc<Handle>,
    id: Term<'a>,
    owner: Term<'a>,
) -> Term<'a> {
    guarded(env, "nif-release", || {
        let id = decode::id(id)?;
        if let Some(owner) = handle.find_owner(decode::pid(owner)?) {
            owners::release(&handle.registry, &owner, id);
        }
        Ok(atoms::ok().encode(env))
    })
}

/// An owner that lives as long as the term.
#[rustler::nif]
fn temporary_owner<'a>(env: Env<'a>, handle: ResourceArc<Handle>) -> Term<'a> {
    guarded(env, "nif-temporary_owner", || {
        let owner = owners::owner(&handle.registry);
        Ok(ResourceArc::new(Temporary(Mutex::new(Some(owner)))).encode(env))
    })
}

#[rustler::nif]
fn end_owner<'a>(env: Env<'a>, temporary: ResourceArc<Temporary>) -> Term<'a> {
    guarded(env, "nif-end_owner", || {
        let owner = temporary.0.lock().take();
        // Without the lock.
        drop(owner);
        Ok(atoms::ok().encode(env))
    })
}
