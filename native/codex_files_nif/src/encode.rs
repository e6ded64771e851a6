//! Results to terms. Each error gets its reason here, and nowhere else.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use codex_files::error::{Error, Failures, FileType, Insecurity};
use codex_files::manifest::Metrics;
use codex_files::manifest::waiting::Origin;
use codex_files::registry::admission::Answer;
use codex_files::registry::fetch::Fetched;
use codex_files::registry::verify::Verified;
use codex_files::registry::{Outcome, Report};
use rustler::{Atom, Encoder, Env, Term};

use crate::atoms;
use crate::attachments::Encoding;
use crate::binary::binary;
use crate::shapes::Shapes;

pub(crate) fn error<'a>(env: Env<'a>, reason: impl Encoder) -> Term<'a> {
    (atoms::error(), reason).encode(env)
}

/// The outcome, or `:wait` if it will come as a message.
pub(crate) fn answer<'a>(env: Env<'a>, answer: Answer, name: Option<&[u8]>) -> Term<'a> {
    match answer {
        Answer::Now(answered) => outcome(env, &answered, name),
        Answer::ByWaiter => atoms::wait().encode(env),
    }
}

/// `{:ok, attachment, cached?}`, `{:error, reason}` or `:retry`. The attachment is as it is found under
/// the name that was asked for, or under its first one.
pub(crate) fn outcome<'a>(env: Env<'a>, outcome: &Outcome, name: Option<&[u8]>) -> Term<'a> {
    match outcome {
        Outcome::Staged { attachment, origin } => {
            let Some(file) = attachment.file.named(name) else {
                return atoms::retry().encode(env);
            };
            let cached = *origin == Origin::Known;
            let attachment = Encoding::new(env).attachment_named(attachment, &file);
            (atoms::ok(), attachment, cached).encode(env)
        }
        Outcome::Failed(failed) => error(env, reason(env, failed)),
        Outcome::Retry => atoms::retry().encode(env),
    }
}

/// The reason of an error: a POSIX atom for what the file system says, a tagged tuple else.
pub(crate) fn reason<'a>(env: Env<'a>, error: &Error) -> Term<'a> {
    let string = |path: &Path| binary(env, path.as_os_str().as_bytes());
    match error {
        Error::Io { errno, .. } => posix(env, errno).encode(env),
        Error::StagingDir { path, errno } => {
            (atoms::staging_dir(), string(path), posix(env, errno)).encode(env)
        }
        Error::ChecksumMismatch { actual } => (atoms::checksum_mismatch(), actual).encode(env),
        Error::Changed => atoms::changed().encode(env),
        Error::UnsupportedFileType(kind) => {
            (atoms::unsupported_file_type(), file_type(*kind)).encode(env)
        }
        Error::UnsupportedDestination(kind) => {
            (atoms::unsupported_destination(), file_type(*kind)).encode(env)
        }
        Error::InvalidName(name) => (atoms::invalid_name(), binary(env, name)).encode(env),
        Error::DestinationIsSource(path) => {
            (atoms::destination_is_source(), string(path)).encode(env)
        }
        Error::InsecureStagingDir { path, reason } => {
            let reason = match reason {
                Insecurity::ForeignOwner => atoms::foreign_owner(),
                Insecurity::ForeignLink => atoms::foreign_link(),
            };
            (atoms::insecure_staging_dir(), string(path), reason).encode(env)
        }
        Error::OverBudget { size, max_bytes } => {
            (atoms::over_budget(), size, max_bytes).encode(env)
        }
        Error::Stopped => atoms::stopped().encode(env),
        Error::Panic(message) => (atoms::native_panic(), &**message).encode(env),
    }
}

/// `Errno`'s debug form is its POSIX name.
fn posix(env: Env<'_>, errno: &impl std::fmt::Debug) -> Atom {
    let name = format!("{errno:?}").to_ascii_lowercase();
    Atom::from_str(env, &name).unwrap_or_else(|_| atoms::other())
}

fn file_type(kind: FileType) -> Atom {
    match kind {
        FileType::Fifo => atoms::fifo(),
        FileType::Socket => atoms::socket(),
        FileType::Device => atoms::device(),
        FileType::Directory => atoms::directory(),
        FileType::Symlink => atoms::symlink(),
        FileType::Other => atoms::other(),
    }
}

/// `:ok`, or `{:error, {:cleanup_failed, [{path, reason}]}}`.
pub(crate) fn removed<'a>(env: Env<'a>, failures: &Failures) -> Term<'a> {
    if failures.is_empty() {
        return atoms::ok().encode(env);
    }
    error(
        env,
        (atoms::cleanup_failed(), self::failures(env, failures)),
    )
}

/// `{:ok, count}`, or `{:error, {:damaged, [{path, reason}]}}`.
pub(crate) fn verified<'a>(env: Env<'a>, verified: &Verified) -> Term<'a> {
    if verified.damaged.is_empty() {
        return (atoms::ok(), verified.intact).encode(env);
    }
    let damaged = failures(env, &verified.damaged);
    error(env, (atoms::damaged(), damaged))
}

fn failures<'a>(env: Env<'a>, failures: &Failures) -> Vec<Term<'a>> {
    let encode = |(path, failed): &(PathBuf, Error)| {
        let path = binary(env, path.as_os_str().as_bytes());
        (path, reason(env, failed)).encode(env)
    };
    failures.iter().map(encode).collect()
}

/// `{:ok, attachment}`, `{:error, :not_staged}` or `:miss`.
pub(crate) fn fetched<'a>(env: Env<'a>, fetched: &Fetched) -> Term<'a> {
    match fetched {
        Fetched::Staged(attachment) => {
            (atoms::ok(), Encoding::new(env).attachment(attachment)).encode(env)
        }
        Fetched::NotStaged => error(env, atoms::not_staged()),
        Fetched::Unseen => atoms::miss().encode(env),
    }
}

/// `{cleaned attachments, [{attachment, reason}]}`.
pub(crate) fn report<'a>(env: Env<'a>, report: &Report) -> Term<'a> {
    let encoding = Encoding::new(env);
    let cleaned = encoding.attachments(&report.cleaned);
    let failed: Vec<_> = report
        .failed
        .iter()
        .map(|(attachment, error)| (encoding.attachment(attachment), reason(env, error)))
        .collect();
    (cleaned, failed).encode(env)
}

pub(crate) fn metrics<'a>(env: Env<'a>, metrics: &Metrics) -> Term<'a> {
    let totals = metrics.totals;
    // Sums of sizes that callers claimed may pass 64 bits; no disk does.
    let bytes = |bytes: u128| u64::try_from(bytes).unwrap_or(u64::MAX).encode(env);
    let next = metrics
        .next_expiry_at_ms
        .and_then(|ms| Encoding::new(env).date_time(ms));
    Shapes::of(env).metrics.map(
        env,
        &[
            (totals.persistent_count + totals.expirable_count).encode(env),
            bytes(totals.persistent_bytes + totals.expirable_bytes),
            totals.persistent_count.encode(env),
            bytes(totals.persistent_bytes),
            totals.expirable_count.encode(env),
            bytes(totals.expirable_bytes),
            next.unwrap_or_else(|| atoms::nil().encode(env)),
            totals.owned_count.encode(env),
            metrics.max_bytes.encode(env),
        ],
    )
}
