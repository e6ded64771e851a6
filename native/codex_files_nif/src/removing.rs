//! Removing what has expired, and everything.

use codex_files::registry::remove;
use rustler::{Encoder, Env, Reference, ResourceArc, Term};

use crate::guard::guarded;
use crate::mailbox::ReplyTo;
use crate::registries::Handle;
use crate::{atoms, decode, encode};

#[rustler::nif(schedule = "DirtyCpu")]
fn force_cleanup<'a>(
    env: Env<'a>,
    handle: ResourceArc<Handle>,
    reference: Reference<'a>,
) -> Term<'a> {
    guarded(env, "nif-force_cleanup", || {
        let reply = ReplyTo::new(env, reference)
            .reply(|env, report| (atoms::ok(), encode::report(env, report)).encode(env));
        remove::cleanup(&handle.registry, reply);
        Ok(atoms::wait().encode(env))
    })
}

#[rustler::nif(schedule = "DirtyCpu")]
fn reset<'a>(
    env: Env<'a>,
    handle: ResourceArc<Handle>,
    dir: Term<'a>,
    reference: Reference<'a>,
) -> Term<'a> {
    guarded(env, "nif-reset", || {
        let dir = decode::dir(dir)?;
        let reply = ReplyTo::new(env, reference).reply(encode::removed);
        remove::reset(&handle.registry, dir, reply);
        Ok(atoms::wait().encode(env))
    })
}

#[rustler::nif(schedule = "DirtyCpu")]
fn unstage<'a>(
    env: Env<'a>,
    handle: ResourceArc<Handle>,
    id: Term<'a>,
    reference: Reference<'a>,
) -> Term<'a> {
    guarded(env, "nif-unstage", || {
        let id = decode::id(id)?;
        let reply = ReplyTo::new(env, reference)
            .reply(|env, report| (atoms::ok(), encode::report(env, report)).encode(env));
        remove::unstage(&handle.registry, id, reply);
        Ok(atoms::wait().encode(env))
    })
}
