//! Streams: a content that its caller gives piece by piece.

use codex_files::registry::stage_stream::{self, End, Purpose, Stream};
use rustler::{Encoder, Env, Reference, Resource, ResourceArc, Term};

use crate::guard::{self, guarded};
use crate::kept::Kept;
use crate::mailbox::ReplyTo;
use crate::registries::Handle;
use crate::{atoms, decode, encode};

/// A stream, as its caller holds it.
struct Held(Stream);

#[rustler::resource_impl]
impl Resource for Held {}

/// Not on a dirty scheduler: nothing is written yet.
#[rustler::nif]
fn open_stream<'a>(
    env: Env<'a>,
    handle: ResourceArc<Handle>,
    staging_dir: Term<'a>,
    name: Term<'a>,
    keep: Term<'a>,
    only_renew: bool,
) -> Term<'a> {
    guarded(env, "nif-open_stream", || {
        let to = decode::request(
            decode::name(name)?,
            decode::keep(keep, |pid| handle.owner(env, pid))?,
            staging_dir,
        )?;
        let purpose = if only_renew {
            Purpose::Renew
        } else {
            Purpose::Stage
        };
        let stream = stage_stream::open(&handle.registry, to, purpose);
        Ok(ResourceArc::new(Held(stream)).encode(env))
    })
}

#[rustler::nif(schedule = "DirtyIo")]
fn write_stream<'a>(
    env: Env<'a>,
    stream: ResourceArc<Held>,
    binaries: Term<'a>,
    reference: Reference<'a>,
) -> Term<'a> {
    guarded(env, "nif-write_stream", || {
        let binaries = decode::binaries(binaries)?;
        let kept = Box::new(Kept::new(&binaries));
        let pieces: Vec<_> = binaries.iter().map(|binary| binary.as_slice()).collect();
        let reply = || ReplyTo::new(env, reference).reply(|env, ()| atoms::ok().encode(env));
        let written = stream.0.write(&pieces, kept, reply);
        Ok(guard::result(env, written, |wait| {
            if wait { atoms::wait() } else { atoms::ok() }.encode(env)
        }))
    })
}

#[rustler::nif(schedule = "DirtyIo")]
fn commit_stream<'a>(
    env: Env<'a>,
    stream: ResourceArc<Held>,
    reference: Reference<'a>,
) -> Term<'a> {
    guarded(env, "nif-commit_stream", || {
        let name = stream.0.name();
        let waiter = |owner| ReplyTo::new(env, reference).waiter(Some(name.into()), owner);
        let reply = || ReplyTo::new(env, reference).reply(|env, ()| atoms::retry().encode(env));
        let end = stream.0.commit(&waiter, reply);
        Ok(guard::result(env, end, |end| match end {
            End::Answer(answer) => encode::answer(env, answer, Some(name)),
            End::NotHashed => atoms::wait().encode(env),
            End::New => atoms::new().encode(env),
        }))
    })
}

#[rustler::nif(schedule = "DirtyIo")]
fn abort_stream<'a>(env: Env<'a>, stream: ResourceArc<Held>) -> Term<'a> {
    guarded(env, "nif-abort_stream", || {
        stream.0.abort();
        Ok(atoms::ok().encode(env))
    })
}
