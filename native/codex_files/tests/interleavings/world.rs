//! A world: a manifest, the disk that it is about, and what can be done with both.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use codex_files::checksum::Checksum;
use codex_files::error::{Error, Result};
use codex_files::manifest::waiting::{Origin, Outcome, Waiter};
use codex_files::manifest::{Admission, ExpiryCursor, Later, Manifest, Removal, Totals};
use codex_files::registry::owner::Owner;
use codex_files::registry::remove::{RemoveAll, remove_one, sweep_a_batch};
use codex_files::registry::removed::Removed;
use codex_files::retention::OwnerId;
use shuttle::sync::{Mutex, mpsc};
use shuttle::thread;

use super::scene::*;

/// A manifest, and the files that it is about.
#[derive(Clone)]
pub struct World {
    pub manifest: Arc<Manifest<Staged>>,
    /// What is staged under each checksum: a number of its own for every copy.
    disk: Arc<Mutex<HashMap<Checksum, u64>>>,
    pub copies: Arc<AtomicUsize>,
    waiting: Arc<AtomicUsize>,
    answered: Arc<AtomicUsize>,
    /// Hears of each owner that ends.
    pub hears_of_end: Arc<dyn Fn(OwnerId) + Send + Sync>,
}

/// How copying ends.
#[derive(Clone, Copy, PartialEq)]
pub enum Copying {
    Succeeds,
    Fails,
    /// Ends by the death of whoever does it.
    IsKilled,
}

/// What became of a staging.
pub enum Told {
    Staged(Staged, Origin),
    Failed,
    Killed,
}

impl World {
    pub fn new() -> Self {
        Self {
            manifest: Arc::new(Manifest::default()),
            disk: Arc::default(),
            copies: Arc::default(),
            waiting: Arc::default(),
            answered: Arc::default(),
            hears_of_end: Arc::new(|_| ()),
        }
    }

    /// A world in which `key` is staged, and expired by [`NOW`].
    pub fn with_expired(key: &str) -> Self {
        let world = Self::new();
        let Ok(Admission::Lead(staging)) = world.admit(key, &SHORT.into(), None).0 else {
            panic!("a new key is copied");
        };
        let file = world.copy(key);
        staging.commit(&file, BEFORE).unwrap();
        world
    }

    pub fn owner(&self) -> Arc<Owner> {
        let hears_of_end = self.hears_of_end.clone();
        Owner::new(move |id| hears_of_end(id))
    }

    pub fn admit(
        &self,
        key: &str,
        ask: &Ask,
        lost: Option<&Staged>,
    ) -> (Result<Admission<Staged>>, mpsc::Receiver<Outcome<Staged>>) {
        let (sender, receiver) = mpsc::channel();
        let (waiting, answered) = (self.waiting.clone(), self.answered.clone());
        let owner = ask.owner.clone();
        let admission = self.manifest.admit(&checksum(key), ask.keep(), lost, || {
            waiting.fetch_add(1, Ordering::SeqCst);
            Waiter::new(move |outcome| {
                answered.fetch_add(1, Ordering::SeqCst);
                sender.send(outcome).expect("somebody waits for it");
                drop(owner);
            })
        });
        (admission, receiver)
    }

    /// Puts a file in place.
    pub fn copy(&self, key: &str) -> Staged {
        let number = self.copies.fetch_add(1, Ordering::SeqCst) as u64;
        self.disk.lock().unwrap().insert(checksum(key), number);
        Staged {
            checksum: checksum(key),
            number,
        }
    }

    /// Removes what is staged under a file's checksum, whatever it is: a removal that comes too late takes the
    /// file of somebody else.
    pub fn remove(&self, file: &Staged) {
        self.disk.lock().unwrap().remove(&file.checksum);
    }

    pub fn is_there(&self, file: &Staged) -> bool {
        self.disk.lock().unwrap().get(&file.checksum) == Some(&file.number)
    }

    /// Stages a key as a registry does it. While that waits, the owner is the waiter's to hold; if it has
    /// ended when the staging begins anew, it is one that ends when that has been answered.
    pub fn stage(&self, key: &str, ask: impl Into<Ask>, copying: Copying) -> Told {
        let mut ask = ask.into();
        let mut lost: Option<Staged> = None;
        loop {
            let (admission, answer) = self.admit(key, &ask, lost.as_ref());
            match admission {
                Err(Error::Stopped) => return Told::Failed,
                Err(other) => panic!("{other}"),
                Ok(Admission::Waiting) => {
                    let owner = ask.owner.take().map(|owner| Arc::downgrade(&owner));
                    match answer.recv().expect("nobody hangs") {
                        Outcome::Staged { attachment, origin } => {
                            assert_eq!(origin, Origin::Known);
                            return Told::Staged(attachment.file, origin);
                        }
                        Outcome::Failed(_) => return Told::Failed,
                        Outcome::Retry => {}
                    }
                    ask.owner = owner.map(|owner| owner.upgrade().unwrap_or_else(|| self.owner()));
                }
                Ok(Admission::Known(file)) => {
                    if !self.is_there(&file) {
                        lost = Some(file);
                    } else if self.manifest.refresh(&file, ask.keep(), NOW).is_some() {
                        return Told::Staged(file, Origin::Known);
                    }
                }
                Ok(Admission::Lead(staging)) => match copying {
                    Copying::Succeeds => {
                        let file = self.copy(key);
                        return match staging.commit(&file, NOW) {
                            Ok(_) => Told::Staged(file, Origin::Copied),
                            Err(_) => {
                                self.remove(&file);
                                Told::Failed
                            }
                        };
                    }
                    Copying::Fails => {
                        thread::yield_now();
                        staging.fail(Error::Panic("of the copy".into()));
                        return Told::Failed;
                    }
                    Copying::IsKilled => {
                        thread::yield_now();
                        drop(staging);
                        return Told::Killed;
                    }
                },
            }
        }
    }

    /// Stages, and looks at once whether the promise holds. Nobody may remove what something keeps.
    pub fn stage_and_look(&self, key: &str, ask: impl Into<Ask>) {
        let ask = ask.into();
        if let Told::Staged(file, _) = self.stage(key, ask.clone(), Copying::Succeeds) {
            for _ in 0..2 {
                assert!(self.is_there(&file), "answered, and not there");
                let found = self.manifest.get(&file.checksum);
                assert!(found.is_some(), "answered, and not found");
                thread::yield_now();
            }
        }
        // Until then the owner lives.
        drop(ask);
    }

    /// Stages for somebody who may end meanwhile.
    pub fn stage_for(&self, ask: Ask, key: &str) {
        let told = self.stage(key, ask, Copying::Succeeds);
        assert!(matches!(told, Told::Staged(..)));
    }

    pub fn sweep(&self) -> Removed<Staged> {
        self.sweep_by(|file| {
            self.remove(file);
            Ok(())
        })
    }

    pub fn sweep_by(&self, remove: impl Fn(&Staged) -> Result<()>) -> Removed<Staged> {
        let mut cursor = Some(ExpiryCursor::start());
        let mut whole = Removed::default();
        while let Some(mut part) = sweep_a_batch(&self.manifest, NOW, &mut cursor, &remove) {
            whole.cleaned.append(&mut part.cleaned);
            whole.failed.append(&mut part.failed);
        }
        whole
    }

    pub fn commit_removal(&self, removal: Removal<Staged>) {
        let removed = remove_one(removal, |file| {
            self.remove(file);
            Ok(())
        });
        assert!(removed.is_ok());
    }

    /// Removes everything, and waits for what somebody is at work on.
    pub fn reset(&self) {
        let (sender, receiver) = mpsc::channel();
        let later = || -> Option<Later<Staged>> {
            let sender = sender.clone();
            Some(Box::new(move |removal| {
                sender.send(removal).expect("somebody waits for it");
            }))
        };
        let mut all = RemoveAll::default();
        while all.batch(&self.manifest, later, |removal| {
            self.commit_removal(removal)
        }) {}
        drop(sender);
        while let Ok(removal) = receiver.recv() {
            removal
                .into_iter()
                .for_each(|removal| self.commit_removal(removal));
        }
    }

    /// Removes a key, once whoever is at work on it has ended that.
    pub fn unstage(&self, key: &str) {
        let (sender, receiver) = mpsc::channel();
        let there = self.manifest.entry(&checksum(key));
        let claimed = self.manifest.claim(there.as_slice(), || {
            let sender = sender.clone();
            Some(Box::new(move |removal: Option<_>| {
                sender.send(removal).expect("somebody waits for it");
            }))
        });
        drop(sender);
        let later = receiver.iter().flatten();
        claimed
            .into_iter()
            .chain(later)
            .for_each(|removal| self.commit_removal(removal));
    }

    /// What would remove a key fails, if nobody else is at work on it.
    pub fn fail_to_unstage(&self, key: &str) {
        let there = self.manifest.entry(&checksum(key));
        let claimed = self.manifest.claim(there.as_slice(), || None);
        thread::yield_now();
        drop(claimed);
    }

    pub fn stop(&self) {
        self.manifest.stop();
        let mut all = RemoveAll::default();
        let remove = |removal| self.commit_removal(removal);
        while all.batch(&self.manifest, || None, remove) {}
    }

    pub fn listed(&self) -> Vec<Staged> {
        self.manifest
            .list()
            .iter()
            .map(|attachment| attachment.file.clone())
            .collect()
    }

    /// When everybody is done: what is listed is there, what is there is listed, the counters are
    /// right and everybody who waited was answered once.
    pub fn check_end(&self) {
        let listed = self.listed();
        let disk = self.disk.lock().unwrap();
        assert_eq!(listed.len(), disk.len(), "a file that nobody has on a list");
        for file in &listed {
            assert_eq!(
                disk.get(&file.checksum),
                Some(&file.number),
                "listed, and gone"
            );
        }
        let totals = self.manifest.metrics().totals;
        assert_eq!(
            totals,
            Totals {
                expirable_count: listed.len() as u64,
                expirable_bytes: listed.iter().map(|file| u128::from(file.number)).sum(),
                owned_count: totals.owned_count,
                ..Totals::default()
            }
        );
        assert_eq!(
            self.waiting.load(Ordering::SeqCst),
            self.answered.load(Ordering::SeqCst),
            "everybody who waits is answered once"
        );
        // No ticket is out any more: all that is listed can be claimed.
        drop(disk);
        let all: Vec<_> = self.manifest.list().iter().cloned().collect();
        let claimed = self.manifest.claim(&all, || None);
        assert_eq!(claimed.len(), all.len(), "a ticket was never given back");
    }
}
