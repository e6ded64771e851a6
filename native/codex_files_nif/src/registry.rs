//! A registry: how one is opened, and stopped.

use std::time::Duration;

use codex_files::registry::{keeper, remove};
use rustler::{Atom, Binary, Encoder, Env, LocalPid, Reference, ResourceArc, Term};

use crate::guard::guarded;
use crate::mailbox::ReplyTo;
use crate::registries::{self, Handle};
use crate::{atoms, decode, encode, tables};

#[rustler::nif(schedule = "DirtyIo")]
fn open<'a>(
    env: Env<'a>,
    name: Binary<'a>,
    table: Atom,
    cleanup_interval_ms: u64,
    budget: Term<'a>,
    recognise_unchanged: bool,
) -> Term<'a> {
    guarded(env, "nif-open", || {
        let interval = Duration::from_millis(cleanup_interval_ms);
        let budget = decode::budget(budget)?;
        let name = name.as_slice();
        let handle = registries::open(env, name, table, interval, budget, recognise_unchanged)?;
        Ok((atoms::ok(), handle).encode(env))
    })
}

#[rustler::nif]
fn table<'a>(env: Env<'a>, pid: LocalPid) -> Term<'a> {
    guarded(env, "nif-table", || {
        Ok(match tables::of(pid) {
            Some(table) => (atoms::ok(), table).encode(env),
            None => atoms::error().encode(env),
        })
    })
}

#[rustler::nif(schedule = "DirtyCpu")]
fn stop<'a>(env: Env<'a>, handle: ResourceArc<Handle>, reference: Reference<'a>) -> Term<'a> {
    guarded(env, "nif-stop", || {
        registries::forget(&handle);
        let reply = ReplyTo::new(env, reference).reply(encode::removed);
        keeper::stop(&handle.registry, reply);
        Ok(atoms::wait().encode(env))
    })
}

#[rustler::nif(schedule = "DirtyCpu")]
fn purge<'a>(env: Env<'a>, handle: ResourceArc<Handle>, staging_dir: Term<'a>) -> Term<'a> {
    guarded(env, "nif-purge", || {
        remove::purge(&handle.registry, &decode::staging_dir(staging_dir)?);
        Ok(atoms::ok().encode(env))
    })
}
