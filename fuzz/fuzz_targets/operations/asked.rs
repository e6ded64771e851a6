//! What a staging asks for, and what must come of it.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use codex_files::disk::staged_file::StagedFile;
use codex_files::disk::staging_dir::StagingDir;
use codex_files::error::Error;
use codex_files::manifest::waiting::Origin;
use codex_files::registry::Attachment;
use codex_files::retention;
use sha2::{Digest, Sha256};

use crate::model::{Key, Known, Named};
use crate::tenant::{Tenant, key};

/// What a staging has asked for.
pub struct Asked {
    pub key: Key,
    pub content: Vec<u8>,
    /// What the caller says.
    pub size: u64,
    pub name: Vec<u8>,
    pub executable: bool,
    pub keep: retention::Keep,
    /// Below which a copy is to be.
    pub staging_dir: PathBuf,
    /// Where, if that is not the registry's own directory.
    pub destination: Option<PathBuf>,
    /// How it meets the budget.
    pub budget: Meets,
}

/// How a staging meets the budget.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Meets {
    /// With what is known to be new.
    Known,
    /// With what may turn out to be known.
    Unknown,
    /// It has the bytes already.
    Reserved,
    /// Or has lost them to somebody.
    PerhapsReserved,
}

impl Known {
    /// Whether it has to be copied anew for a staging.
    fn is_lost(&self, asked: &Asked) -> bool {
        !self.is_found(asked) && !self.can_be_mended() && !self.goes_on(asked)
    }

    /// Whether it is there as it is asked for.
    fn is_found(&self, asked: &Asked) -> bool {
        let is_own = asked.destination.is_none();
        let is_named = || !is_own || self.named(&asked.name).is_some_and(|named| !named.harmed);
        let is_executable = self.executable || !asked.executable || !is_own;
        is_executable && !self.names[0].harmed && is_named()
    }

    /// Notes, before a staging, whether its first name can be linked where it was.
    pub fn look_at_first(&mut self) {
        let first = &self.names[0];
        let has_dir = first.path.parent().is_some_and(Path::exists);
        let is_free = has_dir && fs::symlink_metadata(&first.path).is_err();
        self.first_is_free = first.is_own || is_free;
    }

    /// Whether its first name is there, or can be linked to one that is.
    fn can_be_mended(&self) -> bool {
        let first = &self.names[0];
        let is_there = |named: &Named| !named.harmed && named.file == first.file;
        !first.harmed || (self.first_is_free && self.names.iter().any(is_there))
    }

    /// Whether another name becomes its first one.
    fn goes_on(&self, asked: &Asked) -> bool {
        let is_there = |named: &Named| named.is_own && !named.harmed;
        asked.destination.is_none() && !self.names[0].is_own && self.names.iter().any(is_there)
    }

    fn named(&self, name: &[u8]) -> Option<&Named> {
        self.names.iter().find(|named| named.is_called(name))
    }

    /// Gives it the names that there are once it is staged as asked, the first one first; `new` if that is
    /// not among them. All that a caller has been told of a file that was lost are there again.
    fn name_as(&mut self, asked: &Asked, mut new: Named, is_copied: bool, first: &[u8]) {
        let is_own = asked.destination.is_none();
        if !is_copied {
            if self.is_found(asked) {
                return;
            }
            if self.can_be_mended() {
                self.names[0].harmed = false;
                new.file = self.names[0].file;
                if is_own && self.named(&asked.name).is_none_or(|named| named.harmed) {
                    self.names.retain(|named| !named.is_called(&asked.name));
                    self.names.push(new);
                }
                return;
            }
        }
        let was_own = self.names.first().is_some_and(|named| named.is_own);
        self.names.retain(|named| named.is_own);
        self.counted.clear();
        let mut before = std::mem::take(&mut self.names);
        let at = |name: &[u8], before: &[Named]| before.iter().position(|named| named.name == name);
        let mut head = if !is_copied {
            // One that is there.
            let there = at(first, &before).expect("it has this name");
            before.remove(there)
        } else if is_own && was_own {
            before.remove(0)
        } else if let Some(there) = at(&asked.name, &before).filter(|_| is_own) {
            before.remove(there)
        } else {
            new.clone()
        };
        if is_copied {
            head.harmed = false;
            head.file = new.file;
        }
        assert!(!head.harmed);
        for named in before.iter_mut().filter(|named| named.harmed) {
            named.harmed = false;
            named.file = head.file;
        }
        new.file = head.file;
        self.names.push(head);
        self.names.append(&mut before);
        if is_own && self.named(&asked.name).is_none() {
            self.names.push(new);
        }
    }

    /// Notes where its names are.
    fn place(&mut self, file: &Arc<StagedFile>) {
        for (number, named) in self.names.iter_mut().enumerate() {
            let there = match number {
                0 => Some(file.clone()),
                _ => file.named(Some(&named.name)),
            };
            named.path = there.expect("no name is forgotten").path.to_path_buf();
            if named.is_own {
                let last = named.path.file_name().map(OsStr::as_bytes);
                assert_eq!(last, Some(&*named.name));
            }
            if number > 0 {
                self.counted.insert(named.path.clone(), named.file);
            }
        }
        let first = self.names[0].file;
        let files: BTreeSet<_> = self.counted.values().chain([&first]).collect();
        self.stored = self.content.len() as u64 * files.len() as u64;
    }
}

impl Asked {
    /// What is asked for under the digest of a content.
    pub fn of(
        content: Vec<u8>,
        name: Vec<u8>,
        keep: retention::Keep,
        executable: bool,
        staging_dir: &StagingDir,
        budget: Meets,
    ) -> Self {
        Self {
            key: hex_digest(&content),
            size: content.len() as u64,
            content,
            name,
            executable,
            keep,
            staging_dir: staging_dir.path.clone(),
            destination: None,
            budget,
        }
    }

    /// Whether the key is said to be the digest of something else.
    fn is_false(&self) -> bool {
        self.key.len() == 64 && self.key != hex_digest(&self.content)
    }
}

impl Tenant {
    /// Notes what has come of a staging; whether it was a success.
    pub fn staged(&mut self, asked: &Asked, result: Result<(Attachment, Origin), Error>) -> bool {
        let before = self.model.known.get(&asked.key).cloned();
        let lost = before.as_ref().filter(|known| known.is_lost(asked));
        let is_copied = before.is_none() || lost.is_some();
        let told: Vec<Key> = self.told();
        let size = asked.content.len() as u64;
        let more = lost.map_or(size, |lost| {
            (size + lost.kept()).saturating_sub(lost.stored)
        });
        // Those that go are the ones that would go first, and no more than have to.
        let victims = self.model.victims(more, lost.map(|_| &asked.key));
        let expired = self.model.expired(size);
        let none = Some(Vec::new());
        let victims = match asked.budget {
            Meets::Reserved => none,
            Meets::PerhapsReserved if told.is_empty() && result.is_ok() => none,
            Meets::PerhapsReserved => self.model.victims(size, Some(&asked.key)),
            // What has expired may go for a copy that may be in vain.
            Meets::Unknown if !told.is_empty() && expired.as_ref() == Some(&told) => expired,
            Meets::Known | Meets::Unknown if is_copied => victims,
            Meets::Known | Meets::Unknown => none,
        };
        match (&result, victims) {
            (Err(Error::OverBudget { size: wanted, .. }), None) => {
                assert_eq!((*wanted, told), (size, Vec::new()));
                return false;
            }
            (Err(Error::OverBudget { .. }), Some(victims)) => panic!("{victims:?} may go"),
            (_, None) => panic!("there was no room: {result:?}"),
            (_, Some(victims)) => self.model.make_room(&victims),
        }
        if is_copied && asked.is_false() {
            let mismatch = matches!(result, Err(Error::ChecksumMismatch { .. }));
            assert!(mismatch, "{result:?}");
            return false;
        }
        let (attachment, origin) = result.expect("nothing is in its way");
        // It may have had to go to make room for itself.
        let is_copied = is_copied || !self.model.known.contains_key(&asked.key);
        assert_eq!(origin == Origin::Copied, is_copied);
        self.entered(asked, is_copied, &attachment);
        true
    }

    pub fn has_to_copy(&mut self, asked: &Asked) -> bool {
        self.model.known.get_mut(&asked.key).is_none_or(|known| {
            known.look_at_first();
            known.is_lost(asked)
        })
    }

    /// The keys of what has gone since the last check.
    pub fn told(&self) -> Vec<Key> {
        let told = self.log.told();
        told.removed.iter().map(|(_, key)| key.clone()).collect()
    }

    fn entered(&mut self, asked: &Asked, is_copied: bool, attachment: &Attachment) {
        assert_eq!(key(attachment), asked.key);
        let known = self.model.enter(&asked.key, asked.keep);
        assert_eq!(Some(attachment.retention), known.retention);
        if is_copied {
            let path = &attachment.file.path;
            let dir = asked.destination.as_ref().unwrap_or(&asked.staging_dir);
            assert!(path.starts_with(dir), "{path:?} is not in {dir:?}");
            known.content.clone_from(&asked.content);
            known.there.clone_from(&asked.content);
            known.size = asked.size;
        }
        let new = Named::new(&asked.name, asked.destination.is_none());
        known.name_as(asked, new, is_copied, &attachment.file.name);
        known.executable |= asked.executable && (is_copied || asked.destination.is_none());
        known.place(&attachment.file);
    }
}

pub fn hex_digest(content: &[u8]) -> Vec<u8> {
    let digest = Sha256::digest(content);
    let hex = digest.iter().map(|byte| format!("{byte:02x}"));
    hex.collect::<String>().into_bytes()
}
