//! A staged file: where it is, whether it still is, and how it goes.

use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{FileStat, Mode};

use super::area::{Area, looks_staged, relative, remove_entry};
use super::file_id::{Stamp, special_type};
use super::staging_dir::{forgive_missing, remove_unused_dir};
use super::sys;
use crate::checksum::Checksum;
use crate::error::{Context, Result};

/// The mode of a directory of a checksum in which others' files are left when ours has gone. The sticky
/// bit, which changes nothing in a directory of one user's, says so to the next start.
pub(super) const LET_GO: Mode = Mode::S_IRWXU.union(Mode::S_ISVTX);

/// A file that has been staged: what never changes about it.
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
}

/// Who may remove a staged file, and how.
#[derive(Debug)]
pub(super) enum Place {
    /// `<checksum>/<name>` in an area.
    Area(Arc<Area>),
    /// A destination that the caller chose.
    Elsewhere {
        /// Where it is on record, in case we die.
        area: Arc<Area>,
        /// The name of the record.
        record: PathBuf,
        /// Its directory was made for it.
        made_dir: bool,
    },
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
                Place::Area(area) | Place::Elsewhere { area, .. } => Place::Area(area.clone()),
            },
        }
    }

    /// Whether the file is still there, as it was written.
    pub(crate) fn is_intact(&self) -> bool {
        sys::lstat(&self.path).is_ok_and(|stat| Stamp::of(&stat) == self.stamp)
    }

    /// Bytes, as they were written.
    pub(crate) fn stored(&self) -> u64 {
        self.stamp.size()
    }

    /// Removes what is left in its area of a file that was found missing or changed. Nobody is told of a
    /// failure: whatever is put in its place replaces it.
    pub(crate) fn clear_away(&self) {
        if let Place::Area(area) = &self.place {
            let _ = self.remove_file_from(area);
        }
    }

    /// The area that the file, or the record of it, is in.
    pub(crate) fn area(&self) -> &Area {
        match &self.place {
            Place::Area(area) | Place::Elsewhere { area, .. } => area,
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

    /// The directory made for a destination that the caller chose.
    pub(super) fn made_dir(&self) -> Option<&Path> {
        match &self.place {
            Place::Elsewhere { made_dir: true, .. } => self.path.parent(),
            _ => None,
        }
    }

    /// Removes what is left of a file that was found missing or changed, now that `new` has been
    /// put in place for it. Nobody is told of a failure: the next start removes what stays.
    pub(crate) fn give_way_to(&self, new: &StagedFile) {
        // The system may have given the new file the number of the old one.
        let is_same = self.path == new.path || self.stamp.id() == new.stamp.id();
        match &self.place {
            Place::Elsewhere { area, record, .. } if is_same => {
                let _ = sys::unlink_at(area.dir(), record);
            }
            _ if self.path == new.path => {}
            // In the same directory: that stays, and stays ours.
            Place::Area(area) if self.path.parent() == new.path.parent() => {
                let _ = self.remove_file_from(area);
            }
            _ => {
                let _ = self.remove();
            }
        }
    }

    /// Removes the file and the directory made for it. One that has gone counts as removed, and so does
    /// one at a destination that somebody has put another file in the place of.
    pub(crate) fn remove(&self) -> Result<()> {
        match &self.place {
            Place::Area(area) => self.remove_from(area).context("remove", &self.path),
            Place::Elsewhere { area, record, .. } => {
                match sys::lstat(&self.path) {
                    Ok(stat) if self.is_seen_in(&stat) => {
                        forgive_missing(sys::unlink_at(AT_FDCWD, &self.path))
                    }
                    look => forgive_missing(look.map(drop)),
                }
                .context("remove", &self.path)?;
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

    /// Removes what is in its place in an area, and the directory of its checksum.
    fn remove_from(&self, area: &Area) -> nix::Result<()> {
        self.remove_file_from(area)?;
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
