//! A staged file: where it is, whether it still is, and how it goes.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{FileStat, Mode};

use super::area::{Area, looks_staged, relative, remove_entry};
use super::file_id::{FileId, Stamp, special_type};
use super::names::Names;
use super::source::INLINE_LIMIT;
use super::staging_dir::{forgive_missing, remove_unused_dir};
use super::sys;
use crate::checksum::Checksum;
use crate::error::{Context, Result};
use crate::name::Want;

/// The mode of a directory of a checksum in which others' files are left when ours has gone. The sticky
/// bit, which changes nothing in a directory of one user's, says so to the next start.
pub(super) const LET_GO: Mode = Mode::S_IRWXU.union(Mode::S_ISVTX);

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
        let files = others.iter().map(|other| &**other).chain([self]);
        let there = files.filter(|file| file.is_intact());
        let there: HashSet<_> = there.map(|file| file.stamp.id()).collect();
        self.bytes().saturating_mul(there.len() as u64)
    }

    /// Bytes, as they were written, under one name.
    pub(crate) fn bytes(&self) -> u64 {
        self.stamp.size()
    }

    /// Removes what is left in its area of a file that was found missing or changed, under any of its
    /// names. Nobody is told of a failure: whatever is put in its place replaces it.
    pub(crate) fn clear_away(&self) {
        let others = self.others();
        for file in others.iter().map(|other| &**other).chain([self]) {
            if let Place::Area(area) = &file.place
                && !file.is_intact()
            {
                let _ = file.remove_file_from(area);
            }
        }
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
        self.names.find(|other| *other.name == *name)
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
        let path = other.path.clone();
        let replaces = |before: &Self| before.path == path;
        let is_link = !self.is_copied_as(&other);
        self.names.add(other.clone(), replaces, |others| {
            let copies = others.iter().filter(|other| self.is_copied_as(other));
            let files: HashSet<_> = copies.map(|other| other.stamp.id()).collect();
            files.len()
        });
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

    /// Removes what is left of a file that was found missing or changed, now that `new` has been
    /// put in place for it. Nobody is told of a failure: the next start removes what stays.
    pub(crate) fn give_way_to(&self, new: &Self) {
        let (olds, news) = (self.others(), new.others());
        let news = || news.iter().map(|new| &**new).chain([new]);
        for old in olds.iter().map(|old| &**old).chain([self]) {
            let is_replaced = news().any(|new| new.path == old.path);
            match &old.place {
                // The system may have given the new file the number of the old one.
                Place::Elsewhere(place) if is_replaced || new.stamp.id() == old.stamp.id() => {
                    let _ = sys::unlink_at(place.area.dir(), &place.record);
                }
                _ if is_replaced => {}
                // In the same directory: that stays, and stays ours.
                Place::Area(_) if news().any(|new| new.path.parent() == old.path.parent()) => {
                    let _ = old.remove_file();
                }
                _ => {
                    let _ = old.remove_file().and_then(|()| old.remove_dir());
                }
            }
        }
    }

    /// Removes the file under all of its names, and the directories made for it. What has gone counts as
    /// removed, and so does a file at a destination that somebody has put another one in the place of.
    pub(crate) fn remove(&self) -> Result<()> {
        let others = self.others();
        // The first name last: should another stay, it is still listed under a file that is there.
        let others = others.iter().map(|other| &**other);
        others
            .clone()
            .chain([self])
            .try_for_each(Self::remove_file)?;
        let elsewhere = others.filter(|other| other.path.parent() != self.path.parent());
        elsewhere.chain([self]).try_for_each(Self::remove_dir)
    }

    /// Removes it under this name.
    fn remove_file(&self) -> Result<()> {
        match &self.place {
            Place::Area(area) => self.remove_file_from(area),
            Place::Elsewhere(_) => match sys::lstat(&self.path) {
                Ok(stat) if self.is_seen_in(&stat) => {
                    forgive_missing(sys::unlink_at(AT_FDCWD, &self.path))
                }
                look => forgive_missing(look.map(drop)),
            },
        }
        .context("remove", &self.path)
    }

    /// Removes the directory made for it, and the record.
    fn remove_dir(&self) -> Result<()> {
        match &self.place {
            Place::Area(area) => self.remove_dir_from(area).context("remove", &self.path),
            Place::Elsewhere(place) => {
                let Elsewhere { area, record, .. } = &**place;
                if let Some(dir) = self.made_dir() {
                    forgive_missing(remove_unused_dir(AT_FDCWD, dir)).context("remove", dir)?;
                }
                forgive_missing(sys::unlink_at(area.dir(), record))
                    .context("remove", &area.path().join(record))
            }
        }
    }

    /// Whether a look at its place shows the file that we put there. The number alone does not tell:
    /// the system gives that of a file that has gone to the next one. One of ours is as it was written,
    /// or has at least kept its mode.
    fn is_seen_in(&self, stat: &FileStat) -> bool {
        let seen = Stamp::of(stat);
        special_type(stat).is_none()
            && (seen == self.stamp || (seen.id() == self.stamp.id() && looks_staged(stat)))
    }

    /// Removes what is in its place in an area.
    fn remove_file_from(&self, area: &Area) -> nix::Result<()> {
        let relative = relative(&self.checksum, &self.name);
        match sys::lstat_at(area.dir(), &relative) {
            Ok(stat) if self.is_seen_in(&stat) => {
                forgive_missing(sys::unlink_at(area.dir(), &relative))
            }
            Err(Errno::ENOENT) => Ok(()),
            // Somebody has changed it. It may not be where it seems to be: no link is followed.
            _ => match sys::open_dir_at(area.dir(), self.dir_in_area()) {
                Err(Errno::ENOTDIR | Errno::ELOOP | Errno::EMLINK) => Ok(()),
                opened => {
                    let name = Path::new(OsStr::from_bytes(&self.name));
                    forgive_missing(opened.and_then(|dir| remove_entry(&dir, name)))
                }
            },
        }
    }

    /// Removes the directory of its checksum in an area, unless something is in it.
    fn remove_dir_from(&self, area: &Area) -> nix::Result<()> {
        let dir = self.dir_in_area();
        match sys::rmdir_at(area.dir(), dir) {
            // Some systems say EEXIST for ENOTEMPTY.
            Err(Errno::ENOTEMPTY | Errno::EEXIST) => {
                let _ = sys::chmod_at(area.dir(), dir, LET_GO);
                Ok(())
            }
            Err(Errno::ENOTDIR) => forgive_missing(sys::unlink_at(area.dir(), dir)),
            result => forgive_missing(result),
        }
    }

    fn dir_in_area(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.checksum))
    }
}
