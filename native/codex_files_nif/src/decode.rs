//! Terms to requests. A term that is not what it should be comes back as the reason of an error.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use codex_files::disk::staging_dir::StagingDir;
use codex_files::manifest::budget::{Budget, WhenFull};
use codex_files::name::{check_name, default_name};
use codex_files::registry::Request;
use codex_files::registry::owner::Owner;
use codex_files::registry::stage_at::StageAt;
use codex_files::retention::{Keep, Ttl};
use rustler::{Atom, Binary, Decoder, Encoder, LocalPid, ResourceArc, Term};

use crate::atoms;
use crate::encode;
use crate::owners::Temporary;

/// A value, or the reason why there is none.
pub(crate) type Decoded<'a, T> = Result<T, Term<'a>>;

fn invalid<'a>(key: Atom, value: Term<'a>) -> Term<'a> {
    (atoms::invalid_option(), key, value).encode(value.get_env())
}

/// What the caller wants to keep for how long, under which checksum.
pub(crate) struct StageOpts<'a> {
    pub(crate) checksum: Binary<'a>,
    pub(crate) name: Binary<'a>,
    pub(crate) keep: Keep,
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
            keep: Keep {
                persist,
                ttl: Some(ttl),
                owner: None,
            },
            size,
            source,
            destination,
        })
    }

    pub(crate) fn into_request(self, staging_dir: StagingDir) -> StageAt {
        StageAt {
            checksum: self.checksum.as_slice().into(),
            name: self.name.as_slice().into(),
            keep: self.keep,
            size: self.size,
            source: self.source.to_owned(),
            destination: self.destination.to_owned(),
            staging_dir,
        }
    }
}

/// What a staging under the digest of a content asks for: `{persist, ttl_ms, owner}`. Without a TTL it is
/// `nil`; the owner is a process, what `temporary_owner` gives, or `nil`.
pub(crate) fn keep<'a>(
    term: Term<'a>,
    owner_of: impl FnOnce(LocalPid) -> Arc<Owner>,
) -> Decoded<'a, (Keep, Option<Arc<Owner>>)> {
    let env = term.get_env();
    let (persist, ttl_term, owner): (Term<'a>, Term<'a>, Term<'a>) = value(atoms::opts(), term)?;
    let persist = value(atoms::persist(), persist)?;
    let ttl = if is_nil(ttl_term) {
        None
    } else {
        let reason = || (atoms::invalid_ttl(), ttl_term).encode(env);
        Some(ttl(ttl_term).ok_or_else(reason)?)
    };
    let owner = if is_nil(owner) {
        None
    } else if let Ok(temporary) = owner.decode::<ResourceArc<Temporary>>() {
        temporary.0.lock().clone()
    } else {
        Some(owner_of(pid(owner)?))
    };
    // What never expires needs no owner.
    let (ttl, owner) = if persist {
        (Some(Ttl::Infinity), None)
    } else {
        (ttl, owner)
    };
    let keep = Keep {
        persist,
        ttl,
        owner: owner.as_ref().map(|owner| owner.id()),
    };
    Ok((keep, owner))
}

/// A name is `{:ok, name}`, or anything else for the default one.
pub(crate) fn name_or<'a>(term: Term<'a>, default: &'a Path) -> Decoded<'a, &'a [u8]> {
    match term.decode::<(Atom, Term<'a>)>() {
        Ok((_, given)) => name(given),
        Err(_) => Ok(default_name(default)),
    }
}

pub(crate) fn name(term: Term<'_>) -> Decoded<'_, &[u8]> {
    let name: Binary<'_> = value(atoms::name(), term)?;
    checked_name(term, &name)?;
    Ok(name.as_slice())
}

pub(crate) fn request<'a>(
    name: &[u8],
    (keep, owner): (Keep, Option<Arc<Owner>>),
    dir: Term<'a>,
) -> Decoded<'a, Request> {
    Ok(Request {
        name: name.into(),
        keep,
        owner,
        staging_dir: staging_dir(dir)?,
    })
}

/// The checksum of an attachment.
pub(crate) fn id(term: Term<'_>) -> Decoded<'_, &[u8]> {
    Ok(value::<Binary<'_>>(atoms::id(), term)?.as_slice())
}

/// A process of this VM.
pub(crate) fn pid(term: Term<'_>) -> Decoded<'_, LocalPid> {
    value(atoms::owner(), term)
}

pub(crate) fn binaries(term: Term<'_>) -> Decoded<'_, Vec<Binary<'_>>> {
    // The list is looked at first: an improper one is not decoded, but panics.
    let proper = term.list_length();
    proper
        .and_then(|_| term.decode())
        .map_err(|_| invalid(atoms::source(), term))
}

fn is_nil(term: Term<'_>) -> bool {
    term.decode::<Atom>().is_ok_and(|atom| atom == atoms::nil())
}

/// `{max_bytes | nil, :refuse | :evict}`.
pub(crate) fn budget(term: Term<'_>) -> Decoded<'_, Budget> {
    let (max_bytes, when_full): (Term<'_>, Term<'_>) = value(atoms::opts(), term)?;
    let when: Atom = value(atoms::when_full(), when_full)?;
    let when_full = if when == atoms::refuse() {
        WhenFull::Refuse
    } else if when == atoms::evict() {
        WhenFull::Evict
    } else {
        return Err(invalid(atoms::when_full(), when_full));
    };
    Ok(Budget {
        max_bytes: value(atoms::max_bytes(), max_bytes)?,
        when_full,
    })
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

pub(crate) fn path(key: Atom, term: Term<'_>) -> Decoded<'_, &Path> {
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
