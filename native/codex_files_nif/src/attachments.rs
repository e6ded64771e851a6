//! Attachments to terms, many at once.

use std::cell::RefCell;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;

use codex_files::disk::staged_file::StagedFile;
use codex_files::registry::Attachment;
use codex_files::retention::Ttl;
use rustler::{Binary, Encoder, Env, NewBinary, Term};
use time::OffsetDateTime;

use crate::atoms;
use crate::binary::binary;
use crate::shapes::Shapes;

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
    pub(crate) fn attachment_named(&self, attachment: &Attachment, file: &StagedFile) -> Term<'a> {
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
    pub(crate) fn date_time(&self, ms: i64) -> Option<Term<'a>> {
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
