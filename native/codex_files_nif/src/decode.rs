//! Terms to requests. A term that is not what it should be comes back as the reason of an error.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use codex_files::disk::staging_dir::StagingDir;
use codex_files::name::{check_name, default_name};
use codex_files::registry::stage_at::StageAt;
use codex_files::registry::stage_file::StageFile;
use codex_files::retention::{Retention, Ttl};
use rustler::{Atom, Binary, Decoder, Encoder, Term};

use crate::atoms;
use crate::encode;

/// A value, or the reason why there is none.
pub(crate) type Decoded<'a, T> = Result<T, Term<'a>>;

fn invalid<'a>(key: Atom, value: Term<'a>) -> Term<'a> {
    (atoms::invalid_option(), key, value).encode(value.get_env())
}

/// What the caller wants to keep for how long, under which checksum.
pub(crate) struct StageOpts<'a> {
    pub(crate) checksum: Binary<'a>,
    pub(crate) name: Binary<'a>,
    pub(crate) retention: Retention,
    pub(crate) size: u64,
    pub(crate) source: &'a Path,
    pub(crate) destination: &'a Path,
}

impl<'a> StageOpts<'a> {
    pub(crate) fn decode(opts: Term<'a>) -> Decoded<'a, Self> {
        if !opts.is_map() {
            return Err(invalid(atoms::opts(), opts));
        }
        let get = |key: Atom| {
            opts.map_get(key)
                .map_err(|_| (atoms::missing_option(), key).encode(opts.get_env()))
        };
        let checksum = value(atoms::checksum(), get(atoms::checksum())?)?;
        let name_term = get(atoms::name())?;
        let name = value(atoms::name(), name_term)?;
        let persist = value(atoms::persist(), get(atoms::persist())?)?;
        let ttl_term = get(atoms::ttl_ms())?;
        let ttl = ttl(ttl_term).ok_or_else(|| invalid(atoms::ttl_ms(), ttl_term))?;
        let size = value(atoms::size(), get(atoms::size())?)?;
        let source = path(atoms::source_path(), get(atoms::source_path())?)?;
        let destination = path(atoms::destination_path(), get(atoms::destination_path())?)?;
        checked_name(name_term, &name)?;
        Ok(Self {
            checksum,
            name,
            retention: Retention { persist, ttl },
            size,
            source,
            destination,
        })
    }

    pub(crate) fn into_request(self, staging_dir: StagingDir) -> StageAt {
        StageAt {
            checksum: self.checksum.as_slice().into(),
            name: self.name.as_slice().into(),
            retention: self.retention,
            size: self.size,
            source: self.source.to_owned(),
            destination: self.destination.to_owned(),
            staging_dir,
        }
    }
}

/// A file that is staged under the digest of its content.
pub(crate) struct FileOpts<'a> {
    pub(crate) source: &'a Path,
    pub(crate) name: &'a [u8],
    pub(crate) retention: Retention,
}

impl<'a> FileOpts<'a> {
    /// `name` is `{:ok, name}`, or anything else for the default one.
    pub(crate) fn decode(
        path_term: Term<'a>,
        name_term: Term<'a>,
        persist: Term<'a>,
        ttl_term: Term<'a>,
    ) -> Decoded<'a, Self> {
        let source = path(atoms::path(), path_term)?;
        let name = match name_term.decode::<(Atom, Term<'a>)>() {
            Ok((_, given)) => {
                let name: Binary<'a> = value(atoms::name(), given)?;
                checked_name(given, &name)?;
                name.as_slice()
            }
            Err(_) => default_name(source),
        };
        let persist = value(atoms::persist(), persist)?;
        let reason = || (atoms::invalid_ttl(), ttl_term).encode(ttl_term.get_env());
        let ttl = ttl(ttl_term).ok_or_else(reason)?;
        let ttl = if persist { Ttl::Infinity } else { ttl };
        Ok(Self {
            source,
            name,
            retention: Retention { persist, ttl },
        })
    }

    pub(crate) fn into_request(self, staging_dir: StagingDir) -> StageFile {
        StageFile {
            source: self.source.to_owned(),
            name: self.name.into(),
            retention: self.retention,
            staging_dir,
        }
    }
}

/// `{path, default?}`.
pub(crate) fn staging_dir(term: Term<'_>) -> Decoded<'_, StagingDir> {
    let (dir, is_default): (Term<'_>, bool) = value(atoms::staging_dir(), term)?;
    Ok(StagingDir {
        path: path(atoms::staging_dir(), dir)?.to_owned(),
        is_default,
    })
}

pub(crate) fn dir(term: Term<'_>) -> Decoded<'_, PathBuf> {
    path(atoms::dir(), term).map(Path::to_owned)
}

fn value<'a, T: Decoder<'a>>(key: Atom, term: Term<'a>) -> Decoded<'a, T> {
    term.decode().map_err(|_| invalid(key, term))
}

fn path(key: Atom, term: Term<'_>) -> Decoded<'_, &Path> {
    let bytes = value::<Binary<'_>>(key, term)?.as_slice();
    if bytes.contains(&0) {
        return Err(invalid(key, term));
    }
    Ok(Path::new(OsStr::from_bytes(bytes)))
}

fn ttl(term: Term<'_>) -> Option<Ttl> {
    if let Ok(millis) = term.decode() {
        return Some(Ttl::Millis(millis));
    }
    let atom: Atom = term.decode().ok()?;
    (atom == atoms::infinity()).then_some(Ttl::Infinity)
}

fn checked_name<'a>(term: Term<'a>, name: &Binary<'_>) -> Decoded<'a, ()> {
    check_name(name.as_slice()).map_err(|error| encode::reason(term.get_env(), &error))
}
