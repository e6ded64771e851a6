//! What a staging asks for, and what must come of it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use codex_files::error::Error;
use codex_files::manifest::waiting::Origin;
use codex_files::registry::Attachment;
use codex_files::retention;
use sha2::{Digest, Sha256};

use crate::model::{Key, Known, Named};
use crate::world::{Tenant, key};

/// What a staging has asked for.
pub struct Asked {
    pub key: Key,
    pub content: Vec<u8>,
    /// What the caller says.
    pub size: u64,
    pub name: Vec<u8>,
    pub executable: bool,
    pub keep: retention::Keep,
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
        !self.is_found(asked) && !self.can_be_mended()
    }

    /// Whether it is there as it is asked for.
    fn is_found(&self, asked: &Asked) -> bool {
        let named = match asked.destination {
            Some(_) => Some(&self.names[0]),
            None => self.named(&asked.name),
        };
        let is_executable = self.executable || !asked.executable || asked.destination.is_some();
        is_executable && named.is_some_and(|named| !named.harmed)
    }

    /// Whether its first name is there, or can be linked to one that is.
    fn can_be_mended(&self) -> bool {
        let first = &self.names[0];
        let has_dir = || first.path.parent().is_some_and(Path::exists);
        let is_free = || first.is_own || (has_dir() && fs::symlink_metadata(&first.path).is_err());
        !first.harmed || (self.names.iter().any(|named| !named.harmed) && is_free())
    }

    fn named(&self, name: &[u8]) -> Option<&Named> {
        self.names.iter().find(|named| named.is_called(name))
    }
}

impl Asked {
    /// What is asked for under the digest of a content.
    pub fn of(
        content: Vec<u8>,
        name: Vec<u8>,
        keep: retention::Keep,
        executable: bool,
        budget: Meets,
    ) -> Self {
        Self {
            key: hex_digest(&content),
            size: content.len() as u64,
            content,
            name,
            executable,
            keep,
            destination: None,
            budget,
        }
    }

    /// Whether the key is said to be the digest of something else.
    fn is_false(&self) -> bool {
        self.key.len() == 64 && self.key != hex_digest(&self.content)
    }

    /// The names that there are once it is staged, the first one first. Their paths are still to come.
    fn names(&self, before: Option<Known>, is_copied: bool) -> Vec<Named> {
        let new = Named::new(&self.name, self.destination.is_none());
        let Some(mut known) = before else {
            return vec![new];
        };
        if !is_copied {
            if !known.is_found(self) {
                known.names[0].harmed = false;
                known
                    .names
                    .retain(|named| !(named.harmed && named.is_called(&self.name)));
            }
            if self.destination.is_none() && known.named(&self.name).is_none() {
                known.names.push(new);
            }
            return known.names;
        }
        // All names that a caller has been told are there again.
        known.names.retain(|named| named.is_own);
        for named in &mut known.names {
            named.harmed = false;
        }
        if self.destination.is_some() {
            known.names.insert(0, new);
        } else if known.named(&self.name).is_none() {
            known.names.push(new);
        }
        known.names
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
        let more = size.saturating_sub(lost.map_or(0, |lost| lost.content.len() as u64));
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
        let before = before.filter(|_| self.model.known.contains_key(&asked.key));
        let is_copied = before.is_none() || is_copied;
        assert_eq!(origin == Origin::Copied, is_copied);
        self.entered(asked, before, is_copied, &attachment);
        true
    }

    pub fn has_to_copy(&self, asked: &Asked) -> bool {
        self.model
            .known
            .get(&asked.key)
            .is_none_or(|known| known.is_lost(asked))
    }

    /// The keys of what has gone since the last check.
    pub fn told(&self) -> Vec<Key> {
        let told = self.log.told();
        told.removed.iter().map(|(_, key)| key.clone()).collect()
    }

    fn entered(
        &mut self,
        asked: &Asked,
        before: Option<Known>,
        is_copied: bool,
        attachment: &Attachment,
    ) {
        assert_eq!(key(attachment), asked.key);
        let file = &attachment.file;
        let mut names = asked.names(before, is_copied);
        for (number, named) in names.iter_mut().enumerate() {
            let there = match number {
                0 => Some(file.clone()),
                _ => file.named(Some(&named.name)),
            };
            named.path = there.expect("no name is forgotten").path.to_path_buf();
            if named.is_own {
                let last = named.path.file_name().map(OsStr::as_bytes);
                assert_eq!(last, Some(&*named.name));
            }
        }
        let known = self.model.enter(&asked.key, asked.keep);
        assert_eq!(Some(attachment.retention), known.retention);
        if is_copied {
            known.content.clone_from(&asked.content);
            known.there.clone_from(&asked.content);
            known.size = asked.size;
        }
        known.executable |= asked.executable && (is_copied || asked.destination.is_none());
        known.names = names;
    }
}

pub fn hex_digest(content: &[u8]) -> Vec<u8> {
    let digest = Sha256::digest(content);
    let hex = digest.iter().map(|byte| format!("{byte:02x}"));
    hex.collect::<String>().into_bytes()
}
