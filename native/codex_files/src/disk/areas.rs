//! The areas of one registry, one for each staging directory that it uses.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;
use parking_lot::Mutex;

use super::area::{Area, PublishError};
use super::staging_dir::{StagingDir, unusable};
use crate::error::{Error, Result};

/// How often work is done again in a new area, if somebody takes the area away.
const ATTEMPTS: usize = 3;

pub(crate) struct Areas {
    /// By staging directory, as asked for; `None` once the registry has stopped, so that none is
    /// opened any more.
    open: Mutex<Option<HashMap<PathBuf, Arc<Area>>>>,
    /// The staging directories, as asked for, that have been used.
    used: Mutex<HashSet<PathBuf>>,
    /// Hears of each staging directory that is used for the first time.
    first_use: Box<dyn Fn(StagingDir) + Send + Sync>,
}

impl Areas {
    pub(crate) fn new(first_use: impl Fn(StagingDir) + Send + Sync + 'static) -> Self {
        Self {
            open: Mutex::new(Some(HashMap::new())),
            used: Mutex::default(),
            first_use: Box::new(first_use),
        }
    }

    /// Notes that a staging directory is used.
    pub(crate) fn note_use(&self, staging_dir: &StagingDir) {
        let is_first = self.used.lock().insert(staging_dir.path.clone());
        if is_first {
            (self.first_use)(staging_dir.clone());
        }
    }

    /// Runs `work` in the area of a staging directory; once more in a new one if somebody has taken
    /// the area away.
    pub(crate) fn with_area<T>(
        &self,
        staging_dir: &StagingDir,
        mut work: impl FnMut(&Arc<Area>) -> Result<T, PublishError>,
    ) -> Result<T> {
        for _ in 0..ATTEMPTS {
            let area = self.area(staging_dir)?;
            match work(&area) {
                Ok(done) => return Ok(done),
                Err(PublishError::Failed(error)) => {
                    self.leave(&area);
                    return Err(error);
                }
                Err(PublishError::AreaLost) => {
                    self.forget(&area);
                    // If it is only the directory in it that has gone.
                    area.remove_if_empty();
                }
            }
        }
        Err(unusable(&staging_dir.path, Errno::ENOENT))
    }

    /// Takes an area away that its last file has left, if nobody else will: after the stop.
    pub(crate) fn leave(&self, area: &Area) {
        if self.open.lock().is_none() {
            area.remove_if_empty();
        }
    }

    fn area(&self, staging_dir: &StagingDir) -> Result<Arc<Area>> {
        let path = &staging_dir.path;
        let open = self
            .open
            .lock()
            .as_ref()
            .map(|open| open.get(path).cloned());
        if let Some(area) = open.ok_or(Error::Stopped)? {
            return Ok(area);
        }
        // Opened without the lock: if another was quicker, or the stop, ours goes again.
        let opened = Area::open(staging_dir)?;
        let area = self.open.lock().as_mut().map(|open| {
            open.entry(path.clone())
                .or_insert_with(|| opened.clone())
                .clone()
        });
        self.note_use(staging_dir);
        if !area.as_ref().is_some_and(|area| Arc::ptr_eq(area, &opened)) {
            opened.remove_if_empty();
        }
        area.ok_or(Error::Stopped)
    }

    fn forget(&self, lost: &Arc<Area>) {
        if let Some(open) = self.open.lock().as_mut() {
            open.retain(|_, area| !Arc::ptr_eq(area, lost));
        }
    }

    /// Lets go of the areas that are empty.
    pub(crate) fn drop_empty(&self) {
        let open: Vec<_> = match self.open.lock().as_ref() {
            Some(open) => open.values().cloned().collect(),
            None => return,
        };
        for area in open {
            if area.remove_if_empty() {
                self.forget(&area);
            }
        }
    }

    /// Opens none any more, and removes those that are empty.
    pub(crate) fn stop(&self) {
        let open = self.open.lock().take();
        for area in open.iter().flat_map(HashMap::values) {
            area.remove_if_empty();
        }
    }
}
