//! Two registries on one directory, and what there must be of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use codex_files::disk::staging_dir::StagingDir;
use codex_files::registry::owner::Owner;
use codex_files::registry::{Attachment, Registry, keeper, owners};
use codex_files::retention::OwnerId;

use crate::calls::{Log, ask, bytes_in, files_below, settle, start};
use crate::model::{Key, Model};
use crate::op::{Op, Step};
use crate::streams::Open;

pub struct World {
    _dir: tempfile::TempDir,
    pub root: PathBuf,
    pub staging_dir: StagingDir,
    pub tenants: [Tenant; 2],
    pub sources: [Source; 4],
    /// What is there that we did not write.
    pub foreign: BTreeMap<PathBuf, Vec<u8>>,
}

pub struct Tenant {
    pub registry: Arc<Registry>,
    pub log: Arc<Log>,
    pub model: Model,
    owners: [Option<Arc<Owner>>; 3],
    pub streams: [Option<Open>; 2],
}

#[derive(Clone, Default)]
pub struct Source {
    pub path: PathBuf,
    pub content: Vec<u8>,
    pub executable: bool,
}

impl Tenant {
    fn new(staging: &Path) -> Self {
        let log = Log::new(staging);
        Self {
            registry: start(log.clone()),
            log,
            model: Model::default(),
            owners: Default::default(),
            streams: Default::default(),
        }
    }

    /// The owner of a number, made when it is first needed.
    pub fn owner(&mut self, number: u8) -> Arc<Owner> {
        let owner = &mut self.owners[usize::from(number) % 3];
        owner
            .get_or_insert_with(|| owners::owner(&self.registry))
            .clone()
    }

    pub fn end_owner(&mut self, number: u8) {
        let ended = self.owners[usize::from(number) % 3].take();
        if let Some(id) = ended.map(|owner| owner.id()) {
            self.disown_if_ended(id);
        }
    }

    /// A stream that is to make it an owner keeps it until it has.
    pub fn disown_if_ended(&mut self, id: OwnerId) {
        let owners = self.owners.iter().flatten().map(|owner| owner.id());
        let streams = self.streams.iter().flatten();
        let mut living = owners.chain(streams.filter_map(Open::owner));
        if !living.any(|living| living == id) {
            self.model.disown_all(id);
        }
    }

    pub fn stream(&mut self, slot: u8) -> &mut Option<Open> {
        &mut self.streams[usize::from(slot) % 2]
    }

    fn paths(&self) -> impl Iterator<Item = &Path> {
        let names = self.model.known.values().flat_map(|known| &known.names);
        names.map(|named| &*named.path)
    }

    /// Compares the keys that are listed, and what has been told of, with what must be.
    fn settle(&mut self) {
        self.model.expected.sort_by_key(|(_, key)| key.clone());
        let known = self.model.known.values();
        let owned = known.filter(|known| !known.owners.is_empty()).count() as u64;
        settle(|| {
            let listed = self.registry.manifest().list();
            let listed: BTreeSet<Key> = listed.iter().map(key).collect();
            let mut told = self.log.told();
            told.removed.sort_by_key(|(_, key)| key.clone());
            let totals = self.registry.manifest().metrics().totals;
            let is_well = totals.owned_count == owned
                && listed.iter().eq(self.model.known.keys())
                && told.removed == self.model.expected
                && told.failed.is_empty();
            (!is_well).then(|| {
                let known: Vec<_> = self.model.known.keys().map(|key| text(key)).collect();
                let listed: Vec<_> = listed.iter().map(|key| text(key)).collect();
                format!(
                    "known: {known:?}, listed: {listed:?}, to be told: {:?}, told: {:?}, failed: {:?}",
                    self.model.expected, told.removed, told.failed
                )
            })
        });
        self.model.expected.clear();
        self.log.told().removed.clear();
    }

    fn check(&mut self) {
        self.settle();
        self.model.check_budget();
        let listed = self.registry.manifest().list();
        for attachment in listed.iter() {
            let known = self.model.known.get_mut(&key(attachment));
            let known = known.expect("it is known");
            assert_eq!(Some(attachment.retention), known.retention);
            assert_eq!(&*attachment.file.path, known.path());
            assert_eq!(&*attachment.file.name, known.names[0].name);
            assert_eq!(attachment.file.size, known.size);
            let mode = if known.executable { 0o500 } else { 0o400 };
            for named in known.names.iter_mut().filter(|named| !named.harmed) {
                named.check(&known.there, mode);
            }
        }
        let metrics = self.registry.manifest().metrics();
        assert_eq!(metrics.max_bytes, self.model.budget.max_bytes);
        let totals = metrics.totals;
        let known = || self.model.known.values();
        let persistent = || known().filter(|known| known.is_persistent());
        let count = totals.persistent_count + totals.expirable_count;
        assert_eq!(count, known().count() as u64);
        assert_eq!(totals.persistent_count, persistent().count() as u64);
        let bytes = totals.persistent_bytes + totals.expirable_bytes;
        assert_eq!(bytes, known().map(|known| u128::from(known.size)).sum());
        let bytes = persistent().map(|known| u128::from(known.size)).sum();
        assert_eq!(totals.persistent_bytes, bytes);
    }
}

impl World {
    pub fn new() -> Self {
        let base = std::env::var_os("FUZZ_DIR").unwrap_or_else(|| std::env::temp_dir().into());
        let dir = tempfile::tempdir_in(base).expect("a directory");
        let root = dir.path().to_owned();
        let staging = root.join("staging");
        let sources = std::array::from_fn(|number| Source {
            path: root.join(format!("source {number}")),
            ..Source::default()
        });
        for source in &sources {
            fs::write(&source.path, b"").expect("a source");
        }
        Self {
            tenants: [(); 2].map(|()| Tenant::new(&staging)),
            staging_dir: StagingDir {
                path: staging,
                is_default: false,
            },
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

    /// Bytes below the staging directory, but for this registry's. What somebody has put in the place of a
    /// file is not that.
    pub fn bytes_of_others(&self, t: usize) -> u64 {
        let staging = &self.staging_dir.path;
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
        for path in files_below(&self.staging_dir.path) {
            let is_scratch = path.parent().and_then(Path::parent) == Some(&self.staging_dir.path);
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
        let left = left_below(&self.staging_dir.path);
        assert!(left.is_empty(), "{left:?}");
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

pub fn key(attachment: &Attachment) -> Key {
    attachment.file.checksum.to_vec()
}

fn text(key: &[u8]) -> String {
    String::from_utf8_lossy(&key[..key.len().min(8)]).into_owned()
}
