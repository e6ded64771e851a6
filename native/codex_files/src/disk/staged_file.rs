//! A staged file: where it is, under which names, and whether it still is.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::stat::Mode;

use super::area::Area;
use super::file_id::{FileId, Stamp};
use super::names::{Named, Names};
use super::source::INLINE_LIMIT;
use super::sys;
use crate::checksum::Checksum;
use crate::name::Want;

/// The mode of a staged file: what the owner may do with the source, except to write it, and always to
/// read it.
pub(crate) fn staged_mode(executable: bool) -> Mode {
    let execute = if executable {
        Mode::S_IXUSR
    } else {
        Mode::empty()
    };
    execute | Mode::S_IRUSR
}

/// A file that has been staged, under its first name.
#[derive(Debug)]
pub struct StagedFile {
    /// The manifest key.
    pub checksum: Checksum,
    /// Its name, one path component.
    pub name: Box<[u8]>,
    /// Where it is.
    pub path: Box<Path>,
    /// Bytes, as the caller gave them or as counted.
    pub size: u64,
    /// What a look at it shows as long as nobody has changed it.
    pub(super) stamp: Stamp,
    /// Who may remove it, and how.
    pub(super) place: Place,
    /// Its other names.
    pub(super) names: Names<StagedFile>,
    /// It was found to have another content, or none that could be read, though it looks as it did.
    pub(super) damaged: AtomicBool,
}

#[derive(Debug)]
pub(super) enum Place {
    /// `<checksum>/<name>` in an area.
    Area(Arc<Area>),
    /// A destination that the caller chose. Most files have none, and take no memory for it.
    Elsewhere(Box<Elsewhere>),
}

/// What is known of a file at a destination that the caller chose.
#[derive(Debug)]
pub(super) struct Elsewhere {
    /// Where it is on record, in case we die.
    pub(super) area: Arc<Area>,
    /// The name of the record.
    pub(super) record: PathBuf,
    /// Its directory was made for it.
    pub(super) made_dir: bool,
}

impl Named for StagedFile {
    fn name(&self) -> &[u8] {
        &self.name
    }
}

impl StagedFile {
    /// As if another file had been staged beside this one. It is nowhere.
    #[cfg(feature = "bench")]
    #[must_use]
    pub fn pretend_another(&self, checksum: Checksum, name: &str) -> Self {
        let area = self.area().path();
        Self {
            path: area.join(OsStr::from_bytes(&checksum)).join(name).into(),
            checksum,
            name: name.as_bytes().into(),
            size: self.size,
            stamp: self.stamp,
            place: match &self.place {
                Place::Area(area) => Place::Area(area.clone()),
                Place::Elsewhere(place) => Place::Area(place.area.clone()),
            },
            names: Names::new(false),
            damaged: AtomicBool::new(false),
        }
    }

    /// Whether the file is still there, as it was written, as far as a look at it shows, and reading it
    /// has shown.
    pub(crate) fn is_intact(&self) -> bool {
        !self.damaged.load(Ordering::Relaxed) && self.looks_intact()
    }

    pub(super) fn looks_intact(&self) -> bool {
        sys::lstat(&self.path).is_ok_and(|stat| Stamp::of(&stat) == self.stamp)
    }

    /// Bytes, as they were written; those of other names that are copies, too.
    pub(crate) fn stored(&self) -> u64 {
        let files = 1 + u64::from(self.names.copies());
        self.bytes().saturating_mul(files)
    }

    /// The bytes of what is still there, under whatever name.
    pub(crate) fn kept(&self) -> u64 {
        let others = self.others();
        let there = self.with(&others).filter(|file| file.is_intact());
        let there: HashSet<_> = there.map(|file| file.stamp.id()).collect();
        self.bytes().saturating_mul(there.len() as u64)
    }

    /// Bytes, as they were written, under one name.
    pub(crate) fn bytes(&self) -> u64 {
        self.stamp.size()
    }

    /// The file under a name; under its first one if no name is asked for.
    #[must_use]
    pub fn named(self: &Arc<Self>, name: Option<&[u8]>) -> Option<Arc<Self>> {
        match name.filter(|name| !self.is_called(name)) {
            None => Some(self.clone()),
            Some(name) => self.other(name),
        }
    }

    /// The file under another name than its first one.
    fn other(&self, name: &[u8]) -> Option<Arc<Self>> {
        self.names.find(name)
    }

    /// Whether its first name is this one, and the last component of its path, which may be another
    /// at a destination that a caller chose.
    fn is_called(&self, name: &[u8]) -> bool {
        let is_last = || self.path.file_name().map(OsStr::as_bytes) == Some(name);
        *self.name == *name && (matches!(self.place, Place::Area(_)) || is_last())
    }

    /// Whether a staging finds it as it wants to, and it is there, as it was written. Under whatever name it is
    /// staged, it is listed, fetched and verified under its first one: that has to be there too.
    pub(crate) fn has(&self, want: &Want<'_>) -> bool {
        self.has_too(want) && self.is_intact()
    }

    /// The same, if it is there under its first name.
    pub(crate) fn has_too(&self, want: &Want<'_>) -> bool {
        let name = want.name.as_deref().filter(|name| !self.is_called(name));
        let other_is_there = |name: &_| self.other(name).is_some_and(|other| other.is_intact());
        self.is_executable_as(want) && name.is_none_or(other_is_there)
    }

    pub(crate) fn is_executable_as(&self, want: &Want<'_>) -> bool {
        !want.executable || self.is_executable()
    }

    /// Whether a copy of it keeps nobody waiting.
    pub(crate) fn is_small(&self) -> bool {
        self.bytes() <= INLINE_LIMIT as u64
    }

    pub(crate) fn is_executable(&self) -> bool {
        self.names.is_executable()
    }

    /// Notes another name that it has got.
    pub(crate) fn add(&self, other: Arc<Self>) {
        let is_copy = |other: &Arc<Self>| self.is_copied_as(other);
        let replaces = |before: &Self| before.path == other.path;
        let replaced = self.names.add(other.clone(), replaces);
        let is_link = !is_copy(&other);
        // Links take no room: however many there are, they are not counted.
        if !is_link || replaced.as_ref().is_some_and(is_copy) {
            let others = self.others();
            let copies = others.iter().filter(|other| is_copy(other));
            let files: HashSet<_> = copies.map(|other| other.stamp.id()).collect();
            self.names.set_copies(files.len());
        }
        // It may have been read just now: either that has found the other among the names, or this does
        // find the note.
        if is_link && self.damaged.load(Ordering::Relaxed) {
            other.damaged.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the file is there, be it changed.
    pub(crate) fn is_there(&self) -> bool {
        sys::lstat(&self.path).is_ok_and(|stat| FileId::of(&stat) == self.stamp.id())
    }

    /// Whether it is another file that it has under another name.
    pub(crate) fn is_copied_as(&self, other: &Self) -> bool {
        other.stamp.id() != self.stamp.id()
    }

    /// The file under its other names.
    pub(crate) fn others(&self) -> Vec<Arc<Self>> {
        self.names.others()
    }

    /// The file under these, and under its first name.
    pub(super) fn with<'a>(&'a self, others: &'a [Arc<Self>]) -> impl Iterator<Item = &'a Self> {
        others.iter().map(|other| &**other).chain([self])
    }

    /// The area that the file, or the record of it, is in.
    pub(crate) fn area(&self) -> &Area {
        match &self.place {
            Place::Area(area) => area,
            Place::Elsewhere(place) => &place.area,
        }
    }

    /// Whether [`StagedFile::is_intact`] answers at once, without a network or another program.
    pub(crate) fn is_local(&self) -> bool {
        self.area().is_local_device(self.stamp.id())
    }

    /// Where in its path the checksum is, which the name and nothing else follows; `None` if the
    /// path was not made of them.
    #[must_use]
    pub fn checksum_in_path(&self) -> Option<Range<usize>> {
        matches!(self.place, Place::Area(_)).then(|| {
            let end = self.path.as_os_str().len() - self.name.len() - "/".len();
            end - self.checksum.len()..end
        })
    }

    /// The area that it is in, unless it is at a destination that the caller chose.
    pub(crate) fn own_area(&self) -> Option<&Arc<Area>> {
        match &self.place {
            Place::Area(area) => Some(area),
            Place::Elsewhere(_) => None,
        }
    }

    /// The directory made for a destination that the caller chose.
    pub(super) fn made_dir(&self) -> Option<&Path> {
        match &self.place {
            Place::Elsewhere(place) if place.made_dir => self.path.parent(),
            _ => None,
        }
    }
}
