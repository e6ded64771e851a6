//! A run: the manifest beside its model, and those who use it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use codex_files::error::Error;
use codex_files::manifest::attachment::{Attachment, File};
use codex_files::manifest::waiting::Waiter;
use codex_files::manifest::{Admission, ExpiryCursor, Manifest, Owned, Removal, Staging};
use codex_files::registry::owner::Owner;
use codex_files::retention::OwnerId;
use codex_files::time::Now;

use super::entry::{Ask, Snapshot};
use super::model::{Answer, Model, Waiting};
use super::operations::{OWNERS, Op, Wish};
use super::{Staged, checksum, key_of};

/// What somebody who waited to remove something has been given.
pub type Given = (usize, Option<Removal<Staged>>);

/// A sweep under way: its time, and how far it has come, as the manifest and the model count it.
pub struct Sweep {
    pub now: Now,
    pub cursor: Option<ExpiryCursor>,
    pub passed: Option<u128>,
}

pub struct Run {
    pub manifest: Manifest<Staged>,
    pub model: Model,
    pub now: Now,
    /// Every instant is used once, so that no two attachments expire at the same one, and the
    /// order in which they are claimed is defined.
    pub distinct_times: bool,
    pub told: Arc<Mutex<Vec<(usize, Answer)>>>,
    pub given: Arc<Mutex<Vec<Given>>>,
    pub callers: usize,
    files: usize,
    pub waits: BTreeMap<usize, (u8, Ask)>,
    pub stagings: Vec<(Staging<Staged>, Ask)>,
    pub removals: Vec<Removal<Staged>>,
    pub sweeps: Vec<Sweep>,
    /// Callers that were told of a known file.
    pub knowing: Vec<(Staged, Ask)>,
    pub asking_again: Vec<(u8, Ask)>,
    /// What has been staged, with the files that were lost since.
    pub seen: Vec<Attachment<Staged>>,
    pub owners: [Option<Arc<Owner>>; OWNERS],
    /// Owners that have ended, and of which the cleanup thread has not heard.
    pub ended: Arc<Mutex<Vec<OwnerId>>>,
    /// What is to be disowned.
    pub owned: Vec<(OwnerId, Owned)>,
}

impl Run {
    pub fn new(distinct_times: bool) -> Self {
        Self {
            manifest: Manifest::default(),
            model: Model::default(),
            now: Now {
                monotonic_ns: 1_000,
                wall_ms: 1_700_000_000_000,
            },
            distinct_times,
            told: Arc::default(),
            given: Arc::default(),
            callers: 0,
            files: 0,
            waits: BTreeMap::new(),
            stagings: Vec::new(),
            removals: Vec::new(),
            sweeps: Vec::new(),
            knowing: Vec::new(),
            asking_again: Vec::new(),
            seen: Vec::new(),
            owners: Default::default(),
            ended: Arc::default(),
            owned: Vec::new(),
        }
    }

    pub fn step(&mut self, op: Op) {
        match op {
            Op::Stage {
                key,
                wish,
                follow_up,
            } => {
                let ask = self.ask(wish);
                self.stage(key, ask, None, follow_up);
            }
            Op::StageLost { key, wish, stale } => {
                let lost = if stale {
                    self.stale_file(key)
                } else {
                    self.model.entry(key).map(|entry| entry.file.clone())
                };
                let ask = self.ask(wish);
                self.stage(key, ask, lost, true);
            }
            Op::AskAgain { pick } => {
                if let Some((key, ask)) = take(&mut self.asking_again, pick) {
                    self.stage(key, ask, None, true);
                }
            }
            Op::Commit { pick, size } => self.commit(pick, size),
            Op::Fail { pick } => {
                if let Some((staging, _)) = take(&mut self.stagings, pick) {
                    let error = Error::InvalidName(b"of a copy that failed".as_slice().into());
                    let key = key_of(staging.checksum());
                    self.model
                        .given_back(key, &Answer::Failed(error.to_string()));
                    staging.fail(error);
                }
            }
            Op::Drop { pick } => {
                if let Some((staging, _)) = take(&mut self.stagings, pick) {
                    self.model
                        .given_back(key_of(staging.checksum()), &Answer::Retry);
                    drop(staging);
                }
            }
            Op::Refresh { pick } => {
                if let Some((file, ask)) = take(&mut self.knowing, pick) {
                    self.refresh(&file, &ask);
                }
            }
            Op::Claim { pick, limit } => self.claim(pick, limit),
            Op::CommitRemoval { pick } => self.commit_removal(pick),
            Op::DropRemoval { pick } => {
                if let Some(removal) = take(&mut self.removals, pick) {
                    let key = key_of(&removal.attachment().file.checksum);
                    self.model.given_back(key, &Answer::Retry);
                    drop(removal);
                }
            }
            Op::Sweep { failing } => self.sweep(failing),
            Op::RemoveAll { failing } => self.remove_all(failing),
            Op::ClaimAll { wait } => self.claim_all(wait),
            Op::ClaimOne { key, stale } => self.claim_one(key, stale),
            Op::Release { owner, key } => self.release(owner, key),
            Op::EndOwner { owner } => self.owners[owner] = None,
            Op::TakeOwned { pick } => self.take_owned(pick),
            Op::Disown { pick, limit } => self.disown(pick, limit),
            Op::Time {
                nanoseconds,
                wall_step_ms,
            } => {
                self.now.monotonic_ns += nanoseconds;
                self.now.wall_ms += wall_step_ms;
            }
            Op::Stop => {
                self.manifest.stop();
                self.model.stop(&Answer::Failed(Error::Stopped.to_string()));
            }
        }
        if self.distinct_times {
            self.now.monotonic_ns += 1;
        }
        self.check();
    }

    fn ask(&mut self, wish: Wish) -> Ask {
        Ask {
            persist: wish.persist,
            ttl: wish.ttl,
            owner: wish.owner.map(|place| self.owner(place)),
        }
    }

    /// A file of a key that is not its file any more.
    fn stale_file(&mut self, key: u8) -> Option<Staged> {
        let now = self.model.entry(key).map(|entry| entry.file.number);
        let files = self.seen.iter().map(|attachment| &attachment.file);
        let mut stale = files.filter(|file| key_of(&file.checksum) == key);
        stale.find(|file| Some(file.number) != now).cloned()
    }

    fn stage(&mut self, key: u8, ask: Ask, lost: Option<Staged>, follow_up: bool) {
        let who = self.callers;
        self.callers += 1;
        let told = self.told.clone();
        let waiter =
            move || Waiter::new(move |outcome| told.lock().unwrap().push((who, outcome.into())));
        let admission = self
            .manifest
            .admit(&checksum(key), ask.keep(), lost.as_ref(), waiter);
        match admission {
            Err(error) => {
                assert!(self.model.stopped && matches!(error, Error::Stopped));
            }
            Ok(Admission::Waiting) => {
                assert!(!self.model.stopped);
                self.model.wait(key, Waiting::Staging(who, ask.clone()));
                self.waits.insert(who, (key, ask));
            }
            Ok(Admission::Known(file)) => {
                assert!(!self.model.stopped && !self.model.has_ticket(key));
                let entry = self.model.entry(key).expect("it is known");
                assert!(entry.file.same(&file));
                assert!(
                    !lost.is_some_and(|lost| lost.same(&file)),
                    "a lost file is not known"
                );
                if follow_up {
                    self.refresh(&file, &ask);
                } else {
                    self.knowing.push((file, ask));
                }
            }
            Ok(Admission::Lead(staging)) => {
                assert!(!self.model.stopped);
                if let Some(entry) = self.model.entry(key) {
                    assert!(
                        lost.is_some_and(|lost| lost.same(&entry.file)),
                        "only a key that is new, or whose file is lost, is copied"
                    );
                }
                self.model.take_ticket(key, false);
                self.stagings.push((staging, ask));
            }
        }
    }

    fn refresh(&mut self, file: &Staged, ask: &Ask) {
        let key = key_of(&file.checksum);
        let expected = if self.model.stopped || self.model.has_ticket(key) {
            None
        } else {
            self.model.refresh(file, ask, self.now)
        };
        let refreshed = self.manifest.refresh(file, ask.keep(), self.now);
        assert_eq!(refreshed.as_ref().map(Snapshot::of), expected);
    }

    fn commit(&mut self, pick: usize, size: u64) {
        let Some((staging, ask)) = take(&mut self.stagings, pick) else {
            return;
        };
        self.files += 1;
        let file = Staged {
            number: self.files,
            checksum: staging.checksum().clone(),
            size,
        };
        match staging.commit(&file, self.now) {
            Ok(attachment) => {
                let is_known = |seen: &Attachment<Staged>| seen.entry == attachment.entry;
                let is_new = self.model.entry(key_of(&file.checksum)).is_none();
                assert_eq!(
                    is_new,
                    !self.seen.iter().any(is_known),
                    "no two entries are the same"
                );
                let expected = self.model.commit(&file, attachment.entry, &ask, self.now);
                assert_eq!(Snapshot::of(&attachment), expected);
                self.seen.push(attachment);
            }
            Err(error) => assert!(self.model.stopped && matches!(error, Error::Stopped)),
        }
    }
}

pub fn take<T>(list: &mut Vec<T>, pick: usize) -> Option<T> {
    (!list.is_empty()).then(|| list.remove(pick % list.len()))
}
