//! What removes attachments, looks them up, or changes what keeps them.

use std::collections::BTreeSet;
use std::mem;

use codex_files::disk::staging_dir::StagingDir;
use codex_files::manifest::budget::{Budget, WhenFull};
use codex_files::registry::fetch::{self, Fetched};
use codex_files::registry::{Report, keeper, owners, remove, verify};

use crate::calls::ask;
use crate::model::Key;
use crate::op::Max;
use crate::tenant::{Tenant, key};

impl Tenant {
    pub fn cleanup(&mut self) {
        let report = ask(|reply| remove::cleanup(&self.registry, reply));
        let mut expired = self.model.expire();
        expired.sort();
        assert_eq!(cleaned(&report), expired);
    }

    pub fn reset(&mut self, staging_dir: &StagingDir) {
        let dir = staging_dir.path.clone();
        let failures = ask(|reply| remove::reset(&self.registry, dir, reply));
        assert!(failures.is_empty(), "{failures:?}");
        self.model.known.clear();
    }

    /// What reading shows is not taken for intact any more.
    pub fn verify(&mut self) {
        let verified = ask(|reply| verify::verify(&self.registry, reply));
        let mut damaged = BTreeSet::new();
        let mut intact = 0;
        for (key, known) in &mut self.model.known {
            let shows = known.is_spoilt() && key.len() == 64;
            let mut is_intact = true;
            let mut is_read = false;
            for (number, named) in known.names.iter_mut().enumerate() {
                let is_reported = if shows && named.leads_to(&known.there) {
                    // Links of one another are read once.
                    !mem::replace(&mut is_read, true)
                } else {
                    // Whoever asks for another name that has gone gets it anew.
                    named.harmed && (number == 0 || named.path.exists())
                };
                named.harmed |= shows;
                is_intact &= !is_reported;
                if is_reported {
                    damaged.insert(named.path.clone());
                }
            }
            intact += u64::from(is_intact);
        }
        let reported = verified.damaged.iter().map(|(path, _)| path.clone());
        assert_eq!(reported.collect::<BTreeSet<_>>(), damaged, "{verified:?}");
        assert_eq!(verified.intact, intact);
    }

    pub fn unstage(&mut self, pick: u8) {
        let picked = self.model.pick(pick).map(|(key, _)| key.clone());
        let checksum = picked.clone().unwrap_or_else(|| b"not staged".to_vec());
        let report = ask(|reply| remove::unstage(&self.registry, &checksum, reply));
        let removed: Vec<Key> = picked.into_iter().collect();
        assert_eq!(cleaned(&report), removed);
        self.model.known.retain(|key, _| !removed.contains(key));
    }

    pub fn fetch(&mut self, pick: u8) {
        let not_staged = fetch::fetch(&self.registry, b"not staged");
        assert!(matches!(not_staged, Fetched::NotStaged), "{not_staged:?}");
        let Some((picked, known)) = self.model.pick(pick) else {
            return;
        };
        let fetched = fetch::fetch(&self.registry, picked);
        match (&fetched, known.names[0].harmed) {
            (Fetched::Staged(attachment), false) => {
                assert_eq!(key(attachment), *picked);
                assert_eq!(Some(attachment.retention), known.retention);
            }
            (Fetched::NotStaged, true) => {}
            _ => panic!("expected what is there, got: {fetched:?} of {known:?}"),
        }
    }

    pub fn release(&mut self, owner: u8, pick: u8) {
        let owner = self.owner(owner);
        let Some((picked, _)) = self.model.pick(pick) else {
            return;
        };
        let picked = picked.clone();
        owners::release(&self.registry, &owner, &picked);
        self.model.disown(owner.id(), &picked);
    }

    pub fn set_budget(&mut self, max: Max, evicts: bool) {
        let budget = Budget {
            max_bytes: match max {
                Max::Any => None,
                Max::Small(bytes) => Some(u64::from(bytes)),
                Max::Large(files) => Some(u64::from(files % 4) * 300_000 + u64::from(files)),
            },
            when_full: if evicts {
                WhenFull::Evict
            } else {
                WhenFull::Refuse
            },
        };
        keeper::set_budget(&self.registry, budget);
        self.model.set_budget(budget);
    }

    pub fn have_a_successor(&mut self) {
        let keeper = keeper::adopt(&self.registry).expect("it has not ended");
        let successor = keeper::adopt(&self.registry);
        // The word that a keeper has gone may come late.
        keeper::abandon(&self.registry, keeper);
        assert!(successor.is_some_and(|successor| successor != keeper));
    }
}

fn cleaned(report: &Report) -> Vec<Key> {
    assert!(report.failed.is_empty(), "{report:?}");
    let mut cleaned: Vec<Key> = report.cleaned.iter().map(key).collect();
    cleaned.sort();
    cleaned
}
