//! Results to terms. Each error gets its reason here, and nowhere else.

use std::os::unix::ffi::OsStrExt;

use codex_files::attachment::{Attachment, Ttl};
use codex_files::error::{Error, Failures, FileType, Insecurity};
use codex_files::manifest::{Metrics, Origin, Outcome};
use codex_files::sweeper::Report;
use rustler::{Atom, Encoder, Env, NewBinary, Term};
use time::OffsetDateTime;

use crate::atoms;

pub(crate) fn error<'a>(env: Env<'a>, reason: impl Encoder) -> Term<'a> {
    (atoms::error(), reason).encode(env)
}

/// `{:ok, attachment, cached?}`, `{:error, reason}` or `:retry`.
pub(crate) fn outcome<'a>(env: Env<'a>, outcome: &Outcome) -> Term<'a> {
    match outcome {
        Outcome::Staged { attachment, origin } => {
            let cached = *origin == Origin::Known;
            (
                atoms::ok(),
                Encoding::new(env).attachment(attachment),
                cached,
            )
                .encode(env)
        }
        Outcome::Failed(failed) => error(env, reason(env, failed)),
        Outcome::Retry => atoms::retry().encode(env),
    }
}

/// The reason of an error: a POSIX atom for what the file system says, a tagged tuple else.
pub(crate) fn reason<'a>(env: Env<'a>, error: &Error) -> Term<'a> {
    let string = |bytes: &[u8]| binary(env, bytes);
    match error {
        // `Errno`'s debug form is its POSIX name.
        Error::Io { errno, .. } => {
            let name = format!("{errno:?}").to_ascii_lowercase();
            Atom::from_str(env, &name)
                .map_or_else(|_| atoms::other().encode(env), |atom| atom.encode(env))
        }
        Error::ChecksumMismatch { actual } => (atoms::checksum_mismatch(), actual).encode(env),
        Error::UnsupportedFileType(kind) => {
            let kind = match kind {
                FileType::Fifo => atoms::fifo(),
                FileType::Socket => atoms::socket(),
                FileType::Device => atoms::device(),
                FileType::Other => atoms::other(),
            };
            (atoms::unsupported_file_type(), kind).encode(env)
        }
        Error::InvalidName(name) => (atoms::invalid_name(), string(name)).encode(env),
        Error::DestinationIsSource(path) => {
            let path = string(path.as_os_str().as_bytes());
            (atoms::destination_is_source(), path).encode(env)
        }
        Error::InsecureStagingDir { path, reason } => {
            let reason = match reason {
                Insecurity::ForeignOwner => atoms::foreign_owner(),
                Insecurity::ForeignLink => atoms::foreign_link(),
            };
            let path = string(path.as_os_str().as_bytes());
            (atoms::insecure_staging_dir(), path, reason).encode(env)
        }
        Error::Stopped => atoms::stopped().encode(env),
        Error::Panic(message) => (atoms::native_panic(), &**message).encode(env),
        Error::FileModule(external) => env
            .binary_to_term(external)
            .map_or_else(|| atoms::file_module().encode(env), |(term, _)| term),
    }
}

/// `:ok`, or `{:error, {:cleanup_failed, [{path, reason}]}}`.
pub(crate) fn removed<'a>(env: Env<'a>, failures: &Failures) -> Term<'a> {
    if failures.is_empty() {
        return atoms::ok().encode(env);
    }
    let failures: Vec<Term<'a>> = failures
        .iter()
        .map(|(path, failed)| {
            let path = binary(env, path.as_os_str().as_bytes());
            (path, reason(env, failed)).encode(env)
        })
        .collect();
    error(env, (atoms::cleanup_failed(), failures))
}

/// `{cleaned attachments, [{attachment, reason}]}`.
pub(crate) fn report<'a>(env: Env<'a>, report: &Report) -> Term<'a> {
    let encoding = Encoding::new(env);
    let cleaned: Vec<_> = report
        .cleaned
        .iter()
        .map(|attachment| encoding.attachment(attachment))
        .collect();
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
    let count = |count: u64| count.encode(env);
    let next = metrics
        .next_expiry_at_ms
        .and_then(|ms| Encoding::new(env).date_time(ms));
    let pairs = [
        (
            atoms::total_count(),
            count(totals.persistent_count + totals.expirable_count),
        ),
        (
            atoms::total_bytes(),
            bytes(totals.persistent_bytes + totals.expirable_bytes),
        ),
        (atoms::persistent_count(), count(totals.persistent_count)),
        (atoms::persistent_bytes(), bytes(totals.persistent_bytes)),
        (atoms::expirable_count(), count(totals.expirable_count)),
        (atoms::expirable_bytes(), bytes(totals.expirable_bytes)),
        (
            atoms::next_expiry_at(),
            next.unwrap_or_else(|| atoms::nil().encode(env)),
        ),
    ];
    let (keys, values): (Vec<_>, Vec<_>) = pairs
        .into_iter()
        .map(|(key, value)| (key.encode(env), value))
        .unzip();
    map(env, &keys, &values)
}

fn map<'a>(env: Env<'a>, keys: &[Term<'a>], values: &[Term<'a>]) -> Term<'a> {
    Term::map_from_term_arrays(env, keys, values).expect("the keys are distinct atoms")
}

pub(crate) fn binary<'a>(env: Env<'a>, bytes: &[u8]) -> Term<'a> {
    let mut binary = NewBinary::new(env, bytes.len());
    binary.as_mut_slice().copy_from_slice(bytes);
    binary.into()
}

/// The terms that all attachments of a listing share.
pub(crate) struct Encoding<'a> {
    env: Env<'a>,
    attachment_keys: [Term<'a>; 9],
    date_time_keys: [Term<'a>; 13],
    etc_utc: Term<'a>,
    utc: Term<'a>,
}

impl<'a> Encoding<'a> {
    pub(crate) fn new(env: Env<'a>) -> Self {
        Self {
            env,
            attachment_keys: [
                atoms::struct_key(),
                atoms::id(),
                atoms::name(),
                atoms::path(),
                atoms::checksum(),
                atoms::size(),
                atoms::persist(),
                atoms::inserted_at(),
                atoms::ttl_ms(),
            ]
            .map(|atom| atom.encode(env)),
            date_time_keys: [
                atoms::struct_key(),
                atoms::calendar(),
                atoms::year(),
                atoms::month(),
                atoms::day(),
                atoms::hour(),
                atoms::minute(),
                atoms::second(),
                atoms::microsecond(),
                atoms::time_zone(),
                atoms::zone_abbr(),
                atoms::utc_offset(),
                atoms::std_offset(),
            ]
            .map(|atom| atom.encode(env)),
            etc_utc: binary(env, b"Etc/UTC"),
            utc: binary(env, b"UTC"),
        }
    }

    pub(crate) fn attachment(&self, attachment: &Attachment) -> Term<'a> {
        let env = self.env;
        let file = &attachment.file;
        let checksum = binary(env, &file.checksum);
        let ttl = match attachment.retention.ttl {
            Ttl::Infinity => atoms::infinity().encode(env),
            Ttl::Millis(millis) => millis.encode(env),
        };
        let inserted_at = self
            .date_time(attachment.inserted_at_ms)
            .unwrap_or_else(|| atoms::nil().encode(env));
        let values = [
            atoms::attachment().encode(env),
            checksum,
            binary(env, &file.name),
            binary(env, file.path.as_os_str().as_bytes()),
            checksum,
            file.size.encode(env),
            attachment.retention.persist.encode(env),
            inserted_at,
            ttl,
        ];
        map(env, &self.attachment_keys, &values)
    }

    /// `None` past the year 9999, where Elixir's calendar ends.
    fn date_time(&self, ms: i64) -> Option<Term<'a>> {
        let env = self.env;
        let at = OffsetDateTime::from_unix_timestamp(ms.div_euclid(1000)).ok()?;
        let microsecond = ms.rem_euclid(1000) * 1000;
        let values = [
            atoms::date_time().encode(env),
            atoms::iso().encode(env),
            at.year().encode(env),
            u8::from(at.month()).encode(env),
            at.day().encode(env),
            at.hour().encode(env),
            at.minute().encode(env),
            at.second().encode(env),
            (microsecond, 3).encode(env),
            self.etc_utc,
            self.utc,
            0.encode(env),
            0.encode(env),
        ];
        Some(map(env, &self.date_time_keys, &values))
    }
}
