//! The NIF library of codex_files: decodes terms, makes one call into the core, encodes the result.
//!
//! Calls that touch the disk run on dirty I/O schedulers, those that only read the manifest on dirty
//! CPU schedulers, so that neither holds up the other. Whatever takes longer than a small file is
//! done by threads of the core, and answered by a message: `:wait` says that it will come.

mod atoms;
mod decode;
mod encode;
mod mailbox;
mod registries;
mod tickets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use codex_files::attachment::{Attachment, Outcome, Removal, Staging};
use codex_files::checksum;
use codex_files::error::{Error, Failures, Result};
use codex_files::manifest::Admission;
use codex_files::manifest::waiting::Origin;
use codex_files::panics;
use codex_files::registry::{FileModuleAdmission, Miss, Registry, StageRequest};
use codex_files::staging_area::StagingDir;
use codex_files::sweeper::{self, Command, Reply};
use rustler::{Atom, Binary, Encoder, Env, Reference, ResourceArc, Term};

use decode::{Decoded, FileOpts, StageOpts};
use encode::Encoding;
use mailbox::ReplyTo;
use registries::Handle;
use tickets::{RemovalTicket, StagingTicket};

rustler::init!("Elixir.Codex.Files.Native", load = load);

fn load(_env: Env<'_>, _info: Term<'_>) -> bool {
    mailbox::start().is_ok()
}

/// Runs a NIF's body, or what makes a message. A reason it gives up with, or a panic, becomes
/// `{:error, reason}`. `point` is where a test can make it panic.
fn guarded<'a>(
    env: Env<'a>,
    point: &str,
    body: impl FnOnce() -> Decoded<'a, Term<'a>>,
) -> Term<'a> {
    let body = || {
        panics::point(point);
        body()
    };
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(term)) => term,
        Ok(Err(reason)) => encode::error(env, reason),
        Err(panic) => encode::error(env, encode::reason(env, &Error::from_panic(&*panic))),
    }
}

fn answer<'a>(env: Env<'a>, outcome: Option<Outcome>) -> Term<'a> {
    match outcome {
        Some(outcome) => encode::outcome(env, &outcome),
        None => atoms::wait().encode(env),
    }
}

/// `{handle, adopted?}`.
#[rustler::nif(schedule = "DirtyIo")]
fn open<'a>(
    env: Env<'a>,
    name: Binary<'a>,
    cleanup_interval_ms: u64,
    recognise_unchanged: bool,
) -> Term<'a> {
    guarded(env, "nif-open", || {
        let interval = Duration::from_millis(cleanup_interval_ms);
        let opened = registries::open(env, name.as_slice(), interval, recognise_unchanged)
            .map_err(|failed| encode::reason(env, &failed))?;
        Ok(opened.encode(env))
    })
}

#[rustler::nif(schedule = "DirtyCpu")]
fn close<'a>(env: Env<'a>, handle: ResourceArc<Handle>, reference: Reference<'a>) -> Term<'a> {
    guarded(env, "nif-close", || {
        registries::close(&handle);
        let to = ReplyTo::new(env, reference);
        handle
            .registry
            .end(Reply::new(move |result| reply_removed(to, result)));
        Ok(atoms::wait().encode(env))
    })
}

/// From now on nothing is staged any more; what was stays till it is removed.
#[rustler::nif(schedule = "DirtyCpu")]
fn stop_staging<'a>(env: Env<'a>, handle: ResourceArc<Handle>) -> Term<'a> {
    guarded(env, "nif-stop_staging", || {
        handle.registry.manifest().stop();
        Ok(atoms::ok().encode(env))
    })
}

#[rustler::nif(schedule = "DirtyCpu")]
fn purge<'a>(env: Env<'a>, handle: ResourceArc<Handle>, staging_dir: Term<'a>) -> Term<'a> {
    guarded(env, "nif-purge", || {
        let staging_dir = decode::staging_dir(staging_dir)?;
        handle.registry.purge(staging_dir);
        Ok(atoms::ok().encode(env))
    })
}

/// Not on a dirty scheduler: a look at the manifest, and at one file of this machine. Anything that
/// could take longer is a `:miss`.
#[rustler::nif]
fn refresh<'a>(env: Env<'a>, handle: ResourceArc<Handle>, opts: Term<'a>) -> Term<'a> {
    guarded(env, "nif-refresh", || {
        let opts = StageOpts::decode(opts)?;
        let refreshed = handle.registry.refresh(&opts.checksum, opts.retention);
        Ok(refreshed.map_or_else(
            || atoms::miss().encode(env),
            |known| encode_known(env, known),
        ))
    })
}

/// As `refresh`, for a file that is staged under the digest of its content. `stage_file` wants to
/// know what kind of a miss it was.
#[rustler::nif]
fn refresh_file<'a>(
    env: Env<'a>,
    handle: ResourceArc<Handle>,
    path: Term<'a>,
    name: Term<'a>,
    persist: Term<'a>,
    ttl_ms: Term<'a>,
) -> Term<'a> {
    guarded(env, "nif-refresh_file", || {
        let opts = FileOpts::decode(path, name, persist, ttl_ms)?;
        let refreshed = handle.registry.refresh_file(opts.source, opts.retention);
        Ok(match refreshed {
            Ok(known) => encode_known(env, known),
            Err(Miss::New) => atoms::new().encode(env),
            Err(Miss::Unclear) => atoms::unclear().encode(env),
        })
    })
}

fn encode_known(env: Env<'_>, attachment: Attachment) -> Term<'_> {
    let origin = Origin::Known;
    encode::outcome(env, &Outcome::Staged { attachment, origin })
}

#[rustler::nif(schedule = "DirtyIo")]
fn stage<'a>(
    env: Env<'a>,
    handle: ResourceArc<Handle>,
    staging_dir: Term<'a>,
    opts: Term<'a>,
    reference: Reference<'a>,
) -> Term<'a> {
    guarded(env, "nif-stage", || {
        let opts = StageOpts::decode(opts)?;
        let request = opts.into_request(decode::staging_dir(staging_dir)?);
        let waiter = || ReplyTo::waiter(env, reference);
        Ok(answer(env, handle.registry.stage(&request, &waiter)))
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
    persist: Term<'a>,
    ttl_ms: Term<'a>,
    miss: Atom,
    reference: Reference<'a>,
) -> Term<'a> {
    guarded(env, "nif-stage_file", || {
        let opts = FileOpts::decode(path, name, persist, ttl_ms)?;
        let request = opts.into_request(decode::staging_dir(staging_dir)?);
        let waiter = || ReplyTo::waiter(env, reference);
        let miss = if miss == atoms::new() {
            Miss::New
        } else {
            Miss::Unclear
        };
        let outcome = handle.registry.stage_file(&request, miss, &waiter);
        Ok(answer(env, outcome))
    })
}

#[rustler::nif(schedule = "DirtyCpu")]
fn list<'a>(env: Env<'a>, handle: ResourceArc<Handle>) -> Term<'a> {
    guarded(env, "nif-list", || {
        let listing = handle.registry.list();
        Ok(Encoding::new(env).attachments(listing.iter()))
    })
}

/// Not on a dirty scheduler, which would take most of its time. A `:miss` if it had to wait.
#[rustler::nif]
fn try_metrics<'a>(env: Env<'a>, handle: ResourceArc<Handle>) -> Term<'a> {
    guarded(env, "nif-try_metrics", || {
        Ok(match handle.registry.try_metrics() {
            Some(metrics) => encode::metrics(env, &metrics),
            None => atoms::miss().encode(env),
        })
    })
}

#[rustler::nif(schedule = "DirtyCpu")]
fn metrics<'a>(env: Env<'a>, handle: ResourceArc<Handle>) -> Term<'a> {
    guarded(env, "nif-metrics", || {
        Ok(encode::metrics(env, &handle.registry.metrics()))
    })
}

#[rustler::nif(schedule = "DirtyCpu")]
fn force_cleanup<'a>(
    env: Env<'a>,
    handle: ResourceArc<Handle>,
    reference: Reference<'a>,
) -> Term<'a> {
    guarded(env, "nif-force_cleanup", || {
        let to = ReplyTo::new(env, reference);
        let reply = move |result| {
            to.reply(move |env| match result {
                Ok(report) => (atoms::ok(), encode::report(env, &report)).encode(env),
                Err(failed) => encode::error(env, encode::reason(env, &failed)),
            });
        };
        handle.registry.command(Command::Cleanup(Reply::new(reply)));
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
        let to = ReplyTo::new(env, reference);
        let reply = move |result| reply_removed(to, result);
        handle
            .registry
            .command(Command::Reset(dir, Reply::new(reply)));
        Ok(atoms::wait().encode(env))
    })
}

fn reply_removed(to: ReplyTo, result: Result<Failures>) {
    to.reply(move |env| match result {
        Ok(failures) => encode::removed(env, &failures),
        Err(failed) => encode::error(env, encode::reason(env, &failed)),
    });
}

// For registries with a file module: the disk work is done by Elixir processes.

/// Touches no disk: whether the file of a known checksum is still there, `admit_known` finds out.
#[rustler::nif(schedule = "DirtyCpu")]
fn admit<'a>(
    env: Env<'a>,
    handle: ResourceArc<Handle>,
    opts: Term<'a>,
    reference: Reference<'a>,
) -> Term<'a> {
    guarded(env, "nif-admit", || {
        let opts = StageOpts::decode(opts)?;
        let request = opts.into_request(StagingDir::unused());
        let waiter = || ReplyTo::waiter(env, reference);
        let manifest = handle.registry.manifest();
        let admission = manifest
            .admit(&request.checksum, request.retention, None, waiter)
            .map_err(|failed| encode::reason(env, &failed))?;
        Ok(match admission {
            Admission::Lead(staging) => ticket_to_copy(env, staging, request),
            Admission::Waiting => atoms::wait().encode(env),
            Admission::Known(_) => atoms::known().encode(env),
        })
    })
}

fn ticket_to_copy(env: Env<'_>, staging: Staging, request: StageRequest) -> Term<'_> {
    let ticket = ResourceArc::new(StagingTicket::new(staging, request));
    (atoms::copy(), ticket).encode(env)
}

#[rustler::nif(schedule = "DirtyIo")]
fn admit_known<'a>(
    env: Env<'a>,
    handle: ResourceArc<Handle>,
    opts: Term<'a>,
    reference: Reference<'a>,
) -> Term<'a> {
    guarded(env, "nif-admit_known", || {
        let opts = StageOpts::decode(opts)?;
        let request = opts.into_request(StagingDir::unused());
        let waiter = || ReplyTo::waiter(env, reference);
        Ok(match handle.registry.admit_file_module(&request, &waiter) {
            FileModuleAdmission::Lead(staging) => ticket_to_copy(env, staging, request),
            FileModuleAdmission::Done(outcome) => answer(env, outcome),
        })
    })
}

/// The ticket stays good, to tidy up under it.
#[rustler::nif(schedule = "DirtyIo")]
fn verify_staging<'a>(
    env: Env<'a>,
    ticket: ResourceArc<StagingTicket>,
    reference: Reference<'a>,
) -> Term<'a> {
    guarded(env, "nif-verify_staging", || {
        let request = ticket
            .request()
            .ok_or_else(|| encode::reason(env, &Error::Stopped))?;
        let to = ReplyTo::new(env, reference);
        let reply = move |result: Result<()>| {
            to.reply(move |env| match result {
                Ok(()) => atoms::ok().encode(env),
                Err(failed) => encode::error(env, encode::reason(env, &failed)),
            });
        };
        Registry::verify_file_module(request, Reply::new(reply));
        Ok(atoms::wait().encode(env))
    })
}

#[rustler::nif(schedule = "DirtyIo")]
fn commit_staging<'a>(env: Env<'a>, ticket: ResourceArc<StagingTicket>) -> Term<'a> {
    guarded(env, "nif-commit_staging", || {
        let outcome = match ticket.take() {
            Some((staging, request)) => Registry::commit_file_module(staging, &request),
            None => Outcome::Failed(Error::Stopped),
        };
        Ok(encode::outcome(env, &outcome))
    })
}

/// `reason` is a term in the external format.
#[rustler::nif(schedule = "DirtyCpu")]
fn fail_staging<'a>(
    env: Env<'a>,
    ticket: ResourceArc<StagingTicket>,
    reason: Binary<'a>,
) -> Term<'a> {
    guarded(env, "nif-fail_staging", || {
        if let Some((staging, _)) = ticket.take() {
            staging.fail(Error::FileModule(reason.as_slice().into()));
        }
        Ok(atoms::ok().encode(env))
    })
}

/// What `admit` wants to know of a file: `{:ok, {checksum, name, size}}`.
#[rustler::nif(schedule = "DirtyIo")]
fn describe<'a>(
    env: Env<'a>,
    path: Term<'a>,
    name: Term<'a>,
    persist: Term<'a>,
    ttl_ms: Term<'a>,
    reference: Reference<'a>,
) -> Term<'a> {
    guarded(env, "nif-describe", || {
        let opts = FileOpts::decode(path, name, persist, ttl_ms)?;
        let name = opts.name.to_owned();
        let to = ReplyTo::new(env, reference);
        let reply = move |result: Result<([u8; 32], u64)>| {
            to.reply(move |env| match result {
                Ok((digest, size)) => {
                    let name = encode::binary(env, &name);
                    (atoms::ok(), (checksum::hex(&digest), name, size)).encode(env)
                }
                Err(failed) => encode::error(env, encode::reason(env, &failed)),
            });
        };
        Registry::describe_file_module(opts.source.to_owned(), Reply::new(reply));
        Ok(atoms::wait().encode(env))
    })
}

/// `[{ticket, attachment}]` of the expired attachments.
#[rustler::nif(schedule = "DirtyCpu")]
fn claim_expired<'a>(env: Env<'a>, handle: ResourceArc<Handle>) -> Term<'a> {
    guarded(env, "nif-claim_expired", || {
        let removals = sweeper::claim_all_expired(handle.registry.manifest());
        Ok(removal_tickets(env, removals))
    })
}

/// `[{ticket, attachment}]` of all attachments.
#[rustler::nif(schedule = "DirtyCpu")]
fn claim_all<'a>(env: Env<'a>, handle: ResourceArc<Handle>) -> Term<'a> {
    guarded(env, "nif-claim_all", || {
        let removals = sweeper::claim_all(handle.registry.manifest());
        Ok(removal_tickets(env, removals))
    })
}

fn removal_tickets<'a>(env: Env<'a>, removals: Vec<Removal>) -> Term<'a> {
    let encoding = Encoding::new(env);
    removals
        .into_iter()
        .map(|removal| {
            let attachment = encoding.attachment(removal.attachment());
            (ResourceArc::new(RemovalTicket::new(removal)), attachment)
        })
        .collect::<Vec<_>>()
        .encode(env)
}

/// `removed` says whether the file is gone.
#[rustler::nif(schedule = "DirtyCpu")]
fn end_removal<'a>(env: Env<'a>, ticket: ResourceArc<RemovalTicket>, removed: bool) -> Term<'a> {
    guarded(env, "nif-end_removal", || {
        if let Some(removal) = ticket.take() {
            if removed {
                removal.commit();
            } else {
                drop(removal);
            }
        }
        Ok(atoms::ok().encode(env))
    })
}
