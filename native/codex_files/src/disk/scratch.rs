//! A file on its way into an area.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use nix::errno::Errno;
use nix::sys::stat::Mode;

use super::area::{Area, PublishError, STAGING_PREFIX, looks_staged, relative};
use super::file_id::Stamp;
use super::names::Names;
use super::source::Source;
use super::staged_file::{Place, StagedFile};
use super::staging_dir::forgive_missing;
use super::sys;
use crate::checksum::{Checksum, Content};
use crate::error::{Context, Error, Result};
use crate::panics;
use crate::time::Now;

/// A scratch file in an area. Dropped, it is removed.
pub(crate) struct Scratch {
    area: Arc<Area>,
    /// Relative to the area.
    name: PathBuf,
    file: OpenScratch,
    published: bool,
}

/// Writes a small content into an area, and publishes it. `replaces` is a file that was found missing
/// or changed.
pub(crate) fn publish_content(
    area: &Arc<Area>,
    checksum: &Checksum,
    name: &[u8],
    content: &[u8],
    replaces: Option<&StagedFile>,
    mode: Mode,
) -> Result<StagedFile, PublishError> {
    let size = content.len() as u64;
    if replaces.is_some() {
        // Where it was there may be other names of it, which could be any.
        let scratch = numbered(area, mode)?;
        scratch.write(content)?;
        return scratch.publish(checksum, name, size, mode);
    }
    // Two different names, whatever the file is called: one component more than a name has,
    // less the room that a name may take.
    let scratch_name = if name == STAGING_PREFIX.as_bytes() {
        ".staging-"
    } else {
        STAGING_PREFIX
    };
    area.in_checksum_dir(checksum, |dir| {
        // A ticket for the checksum is out: nobody else of this registry writes here.
        let scratch = Scratch::create(area, dir.join(scratch_name), mode)?;
        scratch.write(content)?;
        scratch.rename(checksum, name, size, mode)
    })
}

/// A new scratch file for a large content.
pub(crate) fn numbered(area: &Arc<Area>, mode: Mode) -> Result<Scratch, PublishError> {
    Scratch::create(area, numbered_name(area), mode)
}

fn numbered_name(area: &Area) -> PathBuf {
    PathBuf::from(format!("{STAGING_PREFIX}-{}", area.next_number()))
}

impl Scratch {
    fn create(area: &Arc<Area>, mut name: PathBuf, mode: Mode) -> Result<Self, PublishError> {
        let created = loop {
            match sys::create_at(area.dir(), &name, mode) {
                Err(Errno::EEXIST) => match clear(area, &name) {
                    Ok(true) => {}
                    Ok(false) => name = numbered_name(area),
                    Err(errno) => break Err(errno),
                },
                result => break result,
            }
        };
        let file = OpenScratch {
            file: Some(area.attempted("create", &name, created)?),
            path: area.path().join(&name),
        };
        Ok(Self {
            area: area.clone(),
            name,
            file,
            published: false,
        })
    }

    pub(crate) fn area(&self) -> &Arc<Area> {
        &self.area
    }

    pub(crate) fn path(&self) -> &Path {
        &self.file.path
    }

    /// What has been written, as a source: it is there also after the file has gone from its `path`.
    pub(crate) fn as_source<'a>(&self, path: &'a Path) -> Result<Source<'a>> {
        Source::of(Now::read(), sys::duplicate(self.file.file()?), path)
    }

    /// Appends bytes to it.
    pub(crate) fn write(&self, bytes: &[u8]) -> Result<()> {
        sys::write_all(self.file.file()?, bytes).context("write to", &self.file.path)
    }

    /// Copies a source into it: see [`Source::copy_into`].
    pub(crate) fn fill(
        &self,
        source: &Source<'_>,
        grow: &dyn Fn(u64) -> Result<()>,
    ) -> Result<Content> {
        source.copy_into(self.file.file()?, &self.file.path, grow)
    }

    /// Puts it in place as the file of a checksum.
    pub(crate) fn publish(
        self,
        checksum: &Checksum,
        name: &[u8],
        size: u64,
        mode: Mode,
    ) -> Result<StagedFile, PublishError> {
        let area = self.area.clone();
        area.in_checksum_dir(checksum, |_| self.rename(checksum, name, size, mode))
    }

    fn rename(
        mut self,
        checksum: &Checksum,
        name: &[u8],
        size: u64,
        mode: Mode,
    ) -> Result<StagedFile, PublishError> {
        let area = &self.area;
        let relative = relative(checksum, name);
        let path = area.path().join(&relative);
        let written = self.file.finish(mode)?;
        let rename = || sys::rename_at(area.dir(), &self.name, area.dir(), &relative);
        let renamed = match rename() {
            Err(Errno::EISDIR) => area.put_aside(&relative).and_then(|()| rename()),
            renamed => renamed,
        };
        area.attempted("rename", &relative, renamed)?;
        self.published = true;
        panics::point("published");
        // Through the whole path, as its readers go: it must lead to what was written.
        let stamp = match sys::lstat(&path).map(|stat| Stamp::of(&stat)) {
            Ok(stamp) if stamp.id() == written.id() => Ok(stamp),
            Ok(_) | Err(Errno::ELOOP) => Err(PublishError::AreaLost),
            missing => area.attempted("stat", &relative, missing),
        };
        if stamp.is_err() {
            let _ = sys::unlink_at(area.dir(), &relative);
        }
        Ok(StagedFile {
            checksum: checksum.clone(),
            name: name.into(),
            path: path.into(),
            size,
            stamp: stamp?,
            place: Place::Area(area.clone()),
            names: Names::new(mode.contains(Mode::S_IXUSR)),
            damaged: AtomicBool::new(false),
        })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.published {
            // FUSE gives a file that is removed while it is open another name, in the same directory.
            self.file.file = None;
            // Nobody is left to tell of a failure; the next start removes what stays.
            let _ = sys::unlink_at(self.area.dir(), &self.name);
        }
    }
}

/// Removes what is where a scratch file is to be, left behind by a removal of its own that
/// failed; `false` if it is somebody else's, and stays.
fn clear(area: &Area, name: &Path) -> nix::Result<bool> {
    match sys::lstat_at(area.dir(), name) {
        Ok(stat) if !looks_staged(&stat) => return Ok(false),
        result => forgive_missing(result.map(drop))?,
    }
    forgive_missing(sys::unlink_at(area.dir(), name))?;
    Ok(true)
}

/// A file that is being written, wherever it is.
pub(super) struct OpenScratch {
    pub(super) path: PathBuf,
    /// `None` before it is created, and once it has been closed.
    pub(super) file: Option<File>,
}

impl OpenScratch {
    pub(super) fn file(&self) -> Result<&File> {
        self.file
            .as_ref()
            .ok_or_else(|| Error::io("write to", &self.path, Errno::EBADF))
    }

    /// Closes the file, with the mode that it is to have, which the umask may have narrowed.
    pub(super) fn finish(&mut self, mode: Mode) -> Result<Stamp> {
        let file = self.file()?;
        let stat = sys::fstat(file).context("stat", &self.path)?;
        if Mode::from_bits_truncate(stat.st_mode & 0o7777) != mode {
            sys::fchmod(file, mode).context("change the mode of", &self.path)?;
        }
        if let Some(file) = self.file.take() {
            sys::close(file).context("close", &self.path)?;
        }
        Ok(Stamp::of(&stat))
    }
}
