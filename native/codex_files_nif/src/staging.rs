//! Staging: a quick look on the caller's scheduler, and whatever takes longer.

use codex_files::bytes::Bytes;
use codex_files::registry::stage_file::{Miss, StageFile};
use codex_files::registry::{Attachment, Outcome, stage_at, stage_data, stage_file};
use rustler::{Atom, Binary, Encoder, Env, Reference, ResourceArc, Term};

use crate::decode::StageOpts;
use crate::guard::guarded;
use crate::kept::Kept;
use crate::mailbox::ReplyTo;
use crate::registries::Handle;
use crate::{atoms, decode, encode};

/// Not on a dirty scheduler: a look at the manifest, and at one file of this machine. Anything that
/// could take longer is a `:miss`.
#[rustler::nif]
fn refresh_at<'a>(env: Env<'a>, handle: ResourceArc<Handle>, opts: Term<'a>) -> Term<'a> {
    guarded(env, "nif-refresh_at", || {
        let opts = StageOpts::decode(opts)?;
        let known = stage_at::refresh(&handle.registry, &opts.checksum, opts.keep);
        Ok(renewed_or_miss(env, known, None))
    })
}

/// As `refresh_at`, for a file that is staged under the digest of its content. `stage_file` wants to
/// know what kind of a miss it was.
#[rustler::nif]
fn refresh_file<'a>(
    env: Env<'a>,
    handle: ResourceArc<Handle>,
    path: Term<'a>,
    name: Term<'a>,
    keep: Term<'a>,
) -> Term<'a> {
    guarded(env, "nif-refresh_file", || {
        let source = decode::path(atoms::path(), path)?;
        let name = decode::name_or(name, source)?;
        let (keep, _owner) = decode::keep(keep, |pid| handle.owner(env, pid))?;
        let known = stage_file::refresh(&handle.registry, source, name, keep);
        Ok(match known {
            Ok(known) => renewed(env, known, Some(name)),
            Err(Miss::New) => atoms::new().encode(env),
            Err(Miss::Unseen) => atoms::unseen().encode(env),
        })
    })
}

#[rustler::nif(schedule = "DirtyIo")]
fn stage_at<'a>(
    env: Env<'a>,
    handle: ResourceArc<Handle>,
    staging_dir: Term<'a>,
    opts: Term<'a>,
    reference: Reference<'a>,
) -> Term<'a> {
    guarded(env, "nif-stage_at", || {
        let opts = StageOpts::decode(opts)?;
        let request = opts.into_request(decode::staging_dir(staging_dir)?);
        let waiter = || ReplyTo::new(env, reference).waiter(None, None);
        let answer = stage_at::stage_at(&handle.registry, &request, &waiter);
        Ok(encode::answer(env, answer, None))
    })
}

#[rustler::nif(schedule = "DirtyIo")]
#[allow(
    clippy::too_many_arguments,
    reason = "a tuple or map would only be taken apart again"
)]
fn stage_file<'a>(
    env: Env<'a>,
    handle: ResourceArc<Handle>,
    staging_dir: Term<'a>,
    path: Term<'a>,
    name: Term<'a>,
    keep: Term<'a>,
    miss: Atom,
    reference: Reference<'a>,
) -> Term<'a> {
    guarded(env, "nif-stage_file", || {
        let source = decode::path(atoms::path(), path)?;
        let name = decode::name_or(name, source)?;
        let to = decode::request(
            name,
            decode::keep(keep, |pid| handle.owner(env, pid))?,
            staging_dir,
        )?;
        let request = StageFile {
            source: source.to_owned(),
            to,
        };
        let waiter = || ReplyTo::new(env, reference).waiter_for(&request.to);
        let miss = if miss == atoms::new() {
            Miss::New
        } else {
            Miss::Unseen
        };
        let answer = stage_file::stage_file(&handle.registry, &request, miss, &waiter);
        Ok(encode::answer(env, answer, Some(&request.to.name)))
    })
}

/// As `refresh_at`, for few bytes.
#[rustler::nif]
fn refresh_data<'a>(
    env: Env<'a>,
    handle: ResourceArc<Handle>,
    data: Binary<'a>,
    name: Term<'a>,
    keep: Term<'a>,
) -> Term<'a> {
    guarded(env, "nif-refresh_data", || {
        let name = decode::name(name)?;
        let (keep, _owner) = decode::keep(keep, |pid| handle.owner(env, pid))?;
        let known = stage_data::refresh(&handle.registry, &data, name, keep);
        Ok(renewed_or_miss(env, known, Some(name)))
    })
}

#[rustler::nif(schedule = "DirtyIo")]
fn stage_data<'a>(
    env: Env<'a>,
    handle: ResourceArc<Handle>,
    staging_dir: Term<'a>,
    data: Binary<'a>,
    name: Term<'a>,
    keep: Term<'a>,
    reference: Reference<'a>,
) -> Term<'a> {
    guarded(env, "nif-stage_data", || {
        let to = decode::request(
            decode::name(name)?,
            decode::keep(keep, |pid| handle.owner(env, pid))?,
            staging_dir,
        )?;
        let waiter = || ReplyTo::new(env, reference).waiter_for(&to);
        let kept = || -> Box<dyn Bytes> { Box::new(Kept::new(&[data])) };
        let answer = stage_data::stage_data(&handle.registry, &data, kept, &to, &waiter);
        Ok(encode::answer(env, answer, Some(&to.name)))
    })
}

fn renewed_or_miss<'a>(env: Env<'a>, known: Option<Attachment>, name: Option<&[u8]>) -> Term<'a> {
    known.map_or_else(
        || atoms::miss().encode(env),
        |known| renewed(env, known, name),
    )
}

fn renewed<'a>(env: Env<'a>, attachment: Attachment, name: Option<&[u8]>) -> Term<'a> {
    encode::outcome(env, &Outcome::known(attachment), name)
}
