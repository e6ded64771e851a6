//! Reading what is staged.

use codex_files::registry::{fetch, verify};
use rustler::{Encoder, Env, Reference, ResourceArc, Term};

use crate::attachments::Encoding;
use crate::encode;
use crate::guard::guarded;
use crate::mailbox::ReplyTo;
use crate::registries::Handle;
use crate::{atoms, decode};

#[rustler::nif(schedule = "DirtyCpu")]
fn list<'a>(env: Env<'a>, handle: ResourceArc<Handle>) -> Term<'a> {
    guarded(env, "nif-list", || {
        let listing = handle.registry.manifest().list();
        Ok(Encoding::new(env).attachments(listing.iter()))
    })
}

#[rustler::nif(schedule = "DirtyCpu")]
fn metrics<'a>(env: Env<'a>, handle: ResourceArc<Handle>) -> Term<'a> {
    guarded(env, "nif-metrics", || {
        Ok(encode::metrics(env, &handle.registry.manifest().metrics()))
    })
}

/// Not on a dirty scheduler, which would take most of its time. A `:miss` if it had to wait.
#[rustler::nif]
fn try_metrics<'a>(env: Env<'a>, handle: ResourceArc<Handle>) -> Term<'a> {
    guarded(env, "nif-try_metrics", || {
        let metrics = handle.registry.manifest().try_metrics();
        Ok(metrics.map_or_else(
            || atoms::miss().encode(env),
            |metrics| encode::metrics(env, &metrics),
        ))
    })
}

/// Not on a dirty scheduler: a look at the manifest, and at one file of this machine. A `:miss` if it
/// is of another.
#[rustler::nif]
fn try_fetch<'a>(env: Env<'a>, handle: ResourceArc<Handle>, id: Term<'a>) -> Term<'a> {
    guarded(env, "nif-try_fetch", || {
        let fetched = fetch::glance(&handle.registry, decode::id(id)?);
        Ok(encode::fetched(env, &fetched))
    })
}

#[rustler::nif(schedule = "DirtyIo")]
fn fetch<'a>(env: Env<'a>, handle: ResourceArc<Handle>, id: Term<'a>) -> Term<'a> {
    guarded(env, "nif-fetch", || {
        let fetched = fetch::fetch(&handle.registry, decode::id(id)?);
        Ok(encode::fetched(env, &fetched))
    })
}

#[rustler::nif(schedule = "DirtyCpu")]
fn verify<'a>(env: Env<'a>, handle: ResourceArc<Handle>, reference: Reference<'a>) -> Term<'a> {
    guarded(env, "nif-verify", || {
        let reply = ReplyTo::new(env, reference).reply(encode::verified);
        verify::verify(&handle.registry, reply);
        Ok(atoms::wait().encode(env))
    })
}
