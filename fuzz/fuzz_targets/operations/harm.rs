//! What others do: they write to sources, and to what is staged.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use codex_files::registry::stage_file::{self, Miss};
use codex_files::registry::{keeper, remove};

use crate::calls::{Log, ask, start, until_answered};
use crate::model::Named;
use crate::op::{Content, Keep, Life, Loss};
use crate::source::{self, Source, set_mode};
use crate::world::World;

const FOREIGN: &[u8] = b"of somebody else";

impl World {
    pub fn write(&mut self, source: u8, content: Content, executable: bool) {
        let number = usize::from(source) % self.sources.len();
        let content = match content {
            Content::Small(bytes) => bytes,
            Content::Large(byte) => vec![byte; 300_000 + usize::from(byte)],
            Content::Old(old) => {
                self.sources[number] = source::old(old);
                return;
            }
        };
        self.sources[number] = Source {
            path: self.root.join(format!("source {number}")),
            content,
            executable,
        };
        self.sources[number].write();
    }

    pub fn put_foreign(&mut self, t: usize, pick: u8, name: u8) {
        let picked = self.tenants[t].model.pick(pick);
        if let Some(dir) = picked.and_then(|(_, known)| known.path().parent()) {
            let path = dir.join(format!(".foreign {name}"));
            if fs::write(&path, FOREIGN).is_ok() {
                self.foreign.insert(path, FOREIGN.to_vec());
            }
        }
    }

    pub fn lose(&mut self, t: usize, pick: u8, name: u8, how: Loss) {
        let Some((_, known)) = self.tenants[t].model.pick(pick) else {
            return;
        };
        let named = &known.names[usize::from(name) % known.names.len()];
        let path = named.path.clone();
        // Never longer, so that the bytes that are there do not become more, and never as long.
        let content = known.content.len().checked_sub(1);
        let content = content.map(|length| FOREIGN.iter().cycle().take(length).copied());
        let content: Option<Vec<u8>> = content.map(Iterator::collect);
        let elsewhere = !path.starts_with(&self.staging);
        match (how, content) {
            (Loss::File, _) | (Loss::Overwritten | Loss::Replaced, None) => {
                let _ = fs::remove_file(&path);
            }
            (Loss::Overwritten, Some(content)) => {
                set_mode(&path, 0o600);
                if path.exists() && fs::write(&path, &content).is_ok() {
                    self.foreign
                        .entry(path.clone())
                        .and_modify(|there| *there = content);
                }
            }
            (Loss::Replaced, Some(content)) => {
                let _ = fs::remove_file(&path);
                // In our own directory it is ours all the same, since it is in the place of ours.
                if fs::write(&path, &content).is_ok() && elsewhere {
                    self.foreign.insert(path.clone(), content);
                }
            }
            (Loss::ChecksumDir | Loss::Area, _) if elsewhere => {}
            (Loss::Spoilt, _) => {}
            (Loss::ChecksumDir, _) => remove_dir(path.parent()),
            (Loss::Area, _) => remove_dir(path.parent().and_then(Path::parent)),
        }
        if matches!(how, Loss::Spoilt) {
            self.spoil(t, &path);
        }
        for tenant in &mut self.tenants {
            for open in tenant.streams.iter_mut().flatten() {
                open.is_shaken |= matches!(how, Loss::Area);
            }
            for known in tenant.model.known.values_mut() {
                known.look();
            }
        }
        // What was in a directory that has gone.
        let gone = std::mem::take(&mut self.foreign);
        let there = gone.into_iter().filter(|(path, _)| path.exists());
        self.foreign = there.collect::<BTreeMap<_, _>>();
    }

    /// Changes a byte of a file, and nothing that a look shows.
    fn spoil(&mut self, t: usize, path: &Path) {
        let is_there = |named: &Named| named.path == path && !named.harmed;
        let known = self.tenants[t].model.known.values_mut();
        let known = known.filter(|known| known.names.iter().any(is_there));
        // It would take two to spoil what is there of it.
        let known = known.filter(|known| known.kept() == known.content.len() as u64);
        for known in known.filter(|known| !known.there.is_empty()) {
            known.there[0] = !known.there[0];
            let before = fs::metadata(path).expect("it is there");
            set_mode(path, 0o600);
            let file = OpenOptions::new().write(true).open(path);
            let file = file.expect("it can be written");
            file.write_all_at(&known.there[..1], 0)
                .expect("there is room");
            let modified = before.modified().expect("it has one");
            file.set_modified(modified).expect("it is ours");
            set_mode(path, before.mode());
        }
    }

    pub fn neighbour(&mut self, source: u8) {
        let log = Log::new(&self.staging);
        let neighbour = start(log);
        remove::purge(&neighbour, &self.staging_dir);
        let keep = Keep {
            life: Life::Persistent,
            owner: None,
        };
        let request = self.file_request(source, b"neighbour", &keep.into_keep(None), None);
        let (staged, _) = until_answered(|waiter| {
            stage_file::stage_file(&neighbour, &request, Miss::Unseen, waiter)
        })
        .expect("nothing is in its way");
        let content = fs::read(&staged.file.path).expect("it is there");
        assert!(content == self.source(source).content);
        assert!(ask(|reply| keeper::stop(&neighbour, reply)).is_empty());
        assert!(!staged.file.path.exists());
    }
}

fn remove_dir(dir: Option<&Path>) {
    if let Some(dir) = dir {
        let _ = fs::remove_dir_all(dir);
    }
}
