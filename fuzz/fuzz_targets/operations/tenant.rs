//! A registry, who uses it, and what must be known of it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use codex_files::registry::owner::Owner;
use codex_files::registry::{Attachment, Registry, owners};
use codex_files::retention::OwnerId;

use crate::calls::{Log, settle, start};
use crate::model::{Key, Model};
use crate::open::Open;

pub struct Tenant {
    pub registry: Arc<Registry>,
    pub log: Arc<Log>,
    pub model: Model,
    owners: [Option<Arc<Owner>>; 3],
    pub streams: [Option<Open>; 2],
}

impl Tenant {
    pub fn new(staging: &Path) -> Self {
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

    pub fn paths(&self) -> impl Iterator<Item = &Path> {
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

    pub fn check(&mut self) {
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

pub fn key(attachment: &Attachment) -> Key {
    attachment.file.checksum.to_vec()
}

fn text(key: &[u8]) -> String {
    String::from_utf8_lossy(&key[..key.len().min(8)]).into_owned()
}
