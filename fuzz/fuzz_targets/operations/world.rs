//! Two registries on the same staging directories, and what there must be of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use codex_files::disk::staging_dir::StagingDir;
use codex_files::registry::keeper;

use crate::calls::{ask, bytes_in, files_below};
use crate::op::{Op, Step};
use crate::open::Open;
use crate::source::{self, Source};
use crate::tenant::Tenant;

pub struct World {
    _dir: tempfile::TempDir,
    pub root: PathBuf,
    /// Where the staging directories are.
    pub staging: PathBuf,
    /// The one that is asked for.
    pub staging_dir: StagingDir,
    pub tenants: [Tenant; 2],
    pub sources: [Source; 4],
    /// What is there that we did not write.
    pub foreign: BTreeMap<PathBuf, Vec<u8>>,
}

impl World {
    pub fn new() -> Self {
        let dir = tempfile::tempdir_in(source::base()).expect("a directory");
        let root = dir.path().to_owned();
        let staging = root.join("staging");
        let sources = std::array::from_fn(|number| Source {
            path: root.join(format!("source {number}")),
            ..Source::default()
        });
        for source in &sources {
            source.write();
        }
        Self {
            tenants: [(); 2].map(|()| Tenant::new(&staging)),
            staging_dir: staging_dir(&staging, false),
            staging,
            sources,
            foreign: BTreeMap::new(),
            _dir: dir,
            root,
        }
    }

    pub fn source(&self, number: u8) -> &Source {
        &self.sources[usize::from(number) % self.sources.len()]
    }

    pub fn step(&mut self, Step { of_the_second, op }: Step) {
        let t = usize::from(of_the_second);
        match op {
            Op::StageFile {
                source,
                name,
                keep,
                glanced,
            } => self.stage_file(t, source, &name, keep, glanced),
            Op::StageData { source, name, keep } => self.stage_data(t, source, &name, keep),
            Op::OpenStream {
                slot,
                name,
                keep,
                only_renews,
            } => self.open_stream(t, slot, &name, keep, only_renews),
            Op::WriteStream {
                slot,
                source,
                pieces,
            } => self.write_stream(t, slot, source, pieces),
            Op::CommitStream { slot } => self.commit_stream(t, slot),
            Op::AbortStream { slot, by_caller } => self.abort_stream(t, slot, by_caller),
            Op::StageAt {
                source,
                key,
                life,
                claims,
            } => self.stage_at(t, source, &key, life, claims),
            Op::Write {
                source,
                content,
                executable,
            } => self.write(source, content, executable),
            Op::StagingDir { other } => self.staging_dir = staging_dir(&self.staging, other),
            Op::Cleanup => self.tenants[t].cleanup(),
            Op::Verify => self.tenants[t].verify(),
            Op::Reset => self.tenants[t].reset(&self.staging_dir),
            Op::Unstage { pick } => self.tenants[t].unstage(pick),
            Op::Fetch { pick } => self.tenants[t].fetch(pick),
            Op::Release { owner, pick } => self.tenants[t].release(owner, pick),
            Op::EndOwner { owner } => self.tenants[t].end_owner(owner),
            Op::Budget { max, evicts } => self.tenants[t].set_budget(max, evicts),
            Op::Lose { pick, name, how } => self.lose(t, pick, name, how),
            Op::Foreign { pick, name } => self.put_foreign(t, pick, name),
            Op::Successor => self.tenants[t].have_a_successor(),
            Op::Neighbour { source } => self.neighbour(source),
        }
    }

    /// Bytes below the staging directories, but for this registry's. What somebody has put in the place of a
    /// file is not that.
    pub fn bytes_of_others(&self, t: usize) -> u64 {
        let staging = &self.staging;
        let all = bytes_in(&files_below(staging));
        let tenant = &self.tenants[t];
        let names = tenant.model.known.values().flat_map(|known| &known.names);
        let own = names.filter(|named| !named.harmed && named.path.starts_with(staging));
        let own: Vec<_> = own.map(|named| &named.path).collect();
        let written = tenant.streams.iter().flatten().map(Open::written);
        all - bytes_in(&own) - written.sum::<u64>()
    }

    pub fn check(&mut self) {
        for tenant in &mut self.tenants {
            tenant.check();
        }
        self.check_foreign();
        let known: BTreeSet<&Path> = self.tenants.iter().flat_map(Tenant::paths).collect();
        let streams = self.tenants.iter().flat_map(|t| t.streams.iter().flatten());
        let mut scratch_files = streams.filter(|open| open.has_file).count();
        for path in files_below(&self.staging) {
            // In an area of a staging directory, and of no checksum.
            let is_scratch = path.ancestors().nth(3) == Some(&self.staging);
            if is_scratch && scratch_files > 0 {
                scratch_files -= 1;
                continue;
            }
            let is_known = known.contains(&*path) || self.foreign.contains_key(&path);
            assert!(is_known, "{} is left", path.display());
        }
    }

    pub fn check_foreign(&self) {
        for (path, content) in &self.foreign {
            let is_there = fs::read(path).is_ok_and(|there| there == *content);
            assert!(is_there, "{} is not as it was", path.display());
        }
    }

    pub fn end(mut self) {
        for tenant in &self.tenants {
            assert!(ask(|reply| keeper::stop(&tenant.registry, reply)).is_empty());
        }
        self.check_foreign();
        for path in std::mem::take(&mut self.foreign).keys() {
            fs::remove_file(path).expect("it is there");
        }
        // Directories in which there was a foreign file are left.
        let left = left_below(&self.staging);
        assert!(left.is_empty(), "{left:?}");
    }
}

fn staging_dir(staging: &Path, other: bool) -> StagingDir {
    StagingDir {
        path: staging.join(if other { "other" } else { "first" }),
        is_default: false,
    }
}

/// All that is no directory.
fn left_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(left_below(&entry.path())),
            _ => found.push(entry.path()),
        }
    }
    found
}
