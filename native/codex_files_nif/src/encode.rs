//! Results to terms. Each error gets its reason here, and nowhere else.

use std::cell::RefCell;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use codex_files::disk::staged_file::StagedFile;
use codex_files::error::{Error, Failures, FileType, Insecurity};
use codex_files::manifest::Metrics;
use codex_files::manifest::waiting::Origin;
use codex_files::registry::admission::Answer;
use codex_files::registry::fetch::Fetched;
use codex_files::registry::verify::Verified;
use codex_files::registry::{Attachment, Outcome, Report};
use codex_files::retention::Ttl;
use rustler::{Atom, Binary, Encoder, Env, NewBinary, Term};
use time::OffsetDateTime;

use crate::atoms;
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

pub(crate) fn binary<'a>(env: Env<'a>, bytes: &[u8]) -> Term<'a> {
    let mut binary = NewBinary::new(env, bytes.len());
    binary.as_mut_slice().copy_from_slice(bytes);
    binary.into()
}

/// How many attachments of a listing share one binary for their strings: as many allocations fewer,
/// and what is not in a cache is fetched for several at once. Whoever keeps one of them keeps no more
/// than the strings of so many.
const TOGETHER: usize = 32;

/// The times of which a listing remembers the terms; the files of a moment lie together.
const TIMES: usize = 16;

/// Terms by the time that they say.
type Times<'a> = [Option<(i64, Term<'a>)>; TIMES];

/// The terms that the attachments of a listing share.
pub(crate) struct Encoding<'a> {
    env: Env<'a>,
    shapes: &'static Shapes,
    etc_utc: Term<'a>,
    utc: Term<'a>,
    seconds: RefCell<Times<'a>>,
    milliseconds: RefCell<Times<'a>>,
}

impl<'a> Encoding<'a> {
    pub(crate) fn new(env: Env<'a>) -> Self {
        Self {
            env,
            shapes: Shapes::of(env),
            etc_utc: binary(env, b"Etc/UTC"),
            utc: binary(env, b"UTC"),
            seconds: RefCell::default(),
            milliseconds: RefCell::default(),
        }
    }

    pub(crate) fn attachments<'b>(
        &self,
        attachments: impl IntoIterator<Item = &'b Attachment>,
    ) -> Term<'a> {
        let mut list = Term::list_new_empty(self.env);
        let mut attachments = attachments.into_iter();
        let mut together = Vec::with_capacity(TOGETHER);
        loop {
            together.clear();
            together.extend(attachments.by_ref().take(TOGETHER));
            if together.is_empty() {
                return list;
            }
            let strings = together.iter().copied().flat_map(strings);
            let mut joined = NewBinary::new(self.env, strings.clone().map(<[u8]>::len).sum());
            let mut room = joined.as_mut_slice();
            for string in strings {
                let (start, rest) = room.split_at_mut(string.len());
                start.copy_from_slice(string);
                room = rest;
            }
            let joined = Binary::from(joined);
            let part = |range: Range<usize>| {
                joined
                    .make_subbinary(range.start, range.len())
                    .expect("the binary is as long as all strings together")
                    .to_term(self.env)
            };
            let mut start = 0;
            for attachment in &together {
                let [path, checksum, name] = ranges(attachment, start);
                start = path.end.max(name.end);
                let strings = [part(path), part(checksum), part(name)];
                list = list.list_prepend(self.attachment_of(attachment, strings));
            }
        }
    }

    pub(crate) fn attachment(&self, attachment: &Attachment) -> Term<'a> {
        self.attachment_named(attachment, &attachment.file)
    }

    /// An attachment under one of the names of its file.
    fn attachment_named(&self, attachment: &Attachment, file: &StagedFile) -> Term<'a> {
        let strings = [file.path.as_os_str().as_bytes(), &file.checksum, &file.name];
        self.attachment_of(attachment, strings.map(|bytes| binary(self.env, bytes)))
    }

    fn attachment_of(
        &self,
        attachment: &Attachment,
        [path, checksum, name]: [Term<'a>; 3],
    ) -> Term<'a> {
        let env = self.env;
        let ttl = match attachment.retention.ttl {
            Ttl::Infinity => atoms::infinity().encode(env),
            Ttl::Millis(millis) => millis.encode(env),
        };
        let inserted_at = self
            .date_time(attachment.inserted_at_ms)
            .unwrap_or_else(|| atoms::nil().encode(env));
        self.shapes.attachment.map(
            env,
            &[
                atoms::attachment().encode(env),
                checksum,
                name,
                path,
                checksum,
                attachment.file.size.encode(env),
                attachment.retention.persist.encode(env),
                inserted_at,
                ttl,
            ],
        )
    }

    /// `None` past the year 9999, where Elixir's calendar ends.
    fn date_time(&self, ms: i64) -> Option<Term<'a>> {
        remembered(&self.milliseconds, ms, || {
            let (second, microsecond) = (ms.div_euclid(1000), ms.rem_euclid(1000) * 1000);
            let microsecond = (microsecond, 3).encode(self.env);
            let mut is_new = false;
            let of_second = remembered(&self.seconds, second, || {
                is_new = true;
                self.date_time_of(second, microsecond)
            })?;
            if is_new {
                return Some(of_second);
            }
            // An update leaves the keys to both.
            of_second.map_update(atoms::microsecond(), microsecond).ok()
        })
    }

    fn date_time_of(&self, second: i64, microsecond: Term<'a>) -> Option<Term<'a>> {
        let env = self.env;
        let at = OffsetDateTime::from_unix_timestamp(second).ok()?;
        let values = [
            atoms::date_time().encode(env),
            atoms::iso().encode(env),
            at.year().encode(env),
            u8::from(at.month()).encode(env),
            at.day().encode(env),
            at.hour().encode(env),
            at.minute().encode(env),
            at.second().encode(env),
            microsecond,
            self.etc_utc,
            self.utc,
            0.encode(env),
            0.encode(env),
        ];
        Some(self.shapes.date_time.map(env, &values))
    }
}

fn remembered<'a>(
    times: &RefCell<Times<'a>>,
    time: i64,
    make: impl FnOnce() -> Option<Term<'a>>,
) -> Option<Term<'a>> {
    let slot = usize::try_from(time.rem_euclid(TIMES as i64)).ok()?;
    match times.borrow()[slot] {
        Some((seen, term)) if seen == time => return Some(term),
        _ => {}
    }
    let term = make()?;
    times.borrow_mut()[slot] = Some((time, term));
    Some(term)
}

/// What a listing needs of an attachment's path, checksum and name to have all three.
fn strings(attachment: &Attachment) -> [&[u8]; 3] {
    let file = &attachment.file;
    match file.checksum_in_path() {
        Some(_) => [path(attachment), &[], &[]],
        None => [path(attachment), &file.checksum, &file.name],
    }
}

/// Where its path, its checksum and its name are, if its [`strings`] begin at `start`.
fn ranges(attachment: &Attachment, start: usize) -> [Range<usize>; 3] {
    let file = &attachment.file;
    let path = start..start + path(attachment).len();
    let (checksum, name) = match file.checksum_in_path() {
        Some(Range {
            start: from,
            end: to,
        }) => (start + from..start + to, start + to + "/".len()..path.end),
        None => {
            let name = path.end + file.checksum.len();
            (path.end..name, name..name + file.name.len())
        }
    };
    [path, checksum, name]
}

fn path(attachment: &Attachment) -> &[u8] {
    attachment.file.path.as_os_str().as_bytes()
}
