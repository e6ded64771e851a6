//! A world with owners, and with a thread that removes what they leave, as a registry has one.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use codex_files::error::Error;
use codex_files::manifest::{Later, Removal};
use codex_files::registry::owner::Owner;
use codex_files::registry::remove::remove_one;
use codex_files::retention::OwnerId;
use shuttle::sync::{Mutex, mpsc};
use shuttle::thread::{self, JoinHandle};

use super::scene::*;
use super::world::*;

/// What the thread is given to do.
enum Work {
    /// An owner has ended.
    Disown(OwnerId),
    /// What an owner let go of is to be removed.
    Remove(Removal<Staged>),
    /// To come to its end.
    End,
}

type Thread = JoinHandle<mpsc::Receiver<Work>>;

#[derive(Clone)]
pub struct Registry {
    world: World,
    works: Arc<Mutex<mpsc::Sender<Work>>>,
    thread: Arc<Mutex<Option<Thread>>>,
    /// What the thread has not done when it came to its end.
    left: Arc<Mutex<Option<mpsc::Receiver<Work>>>>,
    /// Nothing can be removed by the thread.
    stuck: Arc<AtomicBool>,
    /// How many files the thread has removed.
    pub cleaned: Arc<AtomicUsize>,
}

impl Deref for Registry {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl Registry {
    pub fn of(mut world: World) -> Self {
        let (works, inbox) = mpsc::channel();
        let works = Arc::new(Mutex::new(works));
        let give = works.clone();
        world.hears_of_end = Arc::new(move |id| {
            // At the end of a scene nobody is there to do it.
            let _ = give.lock().unwrap().send(Work::Disown(id));
        });
        let registry = Self {
            world,
            works,
            thread: Arc::default(),
            left: Arc::default(),
            stuck: Arc::default(),
            cleaned: Arc::default(),
        };
        let working = registry.clone();
        let thread = thread::spawn(move || {
            loop {
                match inbox.recv().expect("the way to it is there") {
                    Work::End => return inbox,
                    work => working.work(work),
                }
            }
        });
        *registry.thread.lock().unwrap() = Some(thread);
        registry
    }

    /// One in which `keys` are kept by an owner, and by nothing else.
    pub fn with_owned(keys: &[&str]) -> (Self, Arc<Owner>) {
        let registry = Self::of(World::new());
        let owner = registry.owner();
        for key in keys {
            registry.stage_and_look(key, &owner);
        }
        (registry, owner)
    }

    /// The process that it stands for has ended.
    pub fn end(&self, owner: Arc<Owner>) {
        drop(owner);
    }

    pub fn release(&self, owner: &Owner, key: &str) {
        let later = || self.later();
        let removal = self
            .manifest
            .release(owner.id(), &checksum(key), NOW, later);
        if let Some(removal) = removal {
            self.give(Work::Remove(removal));
        }
    }

    pub fn be_stuck(&self, stuck: bool) {
        self.stuck.store(stuck, Ordering::SeqCst);
    }

    fn give(&self, work: Work) {
        let _ = self.works.lock().unwrap().send(work);
    }

    fn later(&self) -> Later<Staged> {
        let registry = self.clone();
        Box::new(move |removal| {
            if let Some(removal) = removal {
                registry.give(Work::Remove(removal));
            }
        })
    }

    fn work(&self, work: Work) {
        match work {
            Work::Disown(owner) => {
                let mut owned = self.manifest.take_owned(owner);
                // One by one, so that much can happen in between.
                while let Some(removals) = self.manifest.disown(&mut owned, 1, NOW, || self.later())
                {
                    removals.into_iter().for_each(|removal| self.clean(removal));
                }
            }
            Work::Remove(removal) => self.clean(removal),
            Work::End => {}
        }
    }

    fn clean(&self, removal: Removal<Staged>) {
        let cleaned = remove_one(removal, |file| {
            if self.stuck.load(Ordering::SeqCst) {
                return Err(Error::Panic("of the removal".into()));
            }
            self.remove(file);
            Ok(())
        });
        self.cleaned
            .fetch_add(usize::from(cleaned.is_ok()), Ordering::SeqCst);
    }

    /// When everybody is done, and the thread too: these are there, of which so many are owned.
    #[track_caller]
    pub fn check(&self, keys: &[&str], owned: u64) {
        assert_eq!(self.settle(), keys);
        assert_eq!(self.manifest.metrics().totals.owned_count, owned);
    }

    /// Has the thread come to its end, and does what it has left. What is listed then.
    #[track_caller]
    pub fn settle(&self) -> Vec<String> {
        let thread = self.thread.lock().unwrap().take();
        if let Some(thread) = thread {
            self.give(Work::End);
            *self.left.lock().unwrap() = Some(thread.join().unwrap());
        }
        while let Ok(work) = self.next_left() {
            self.work(work);
        }
        self.check_end();
        let key = |file: Staged| String::from_utf8(file.checksum.to_vec()).unwrap();
        let mut keys: Vec<_> = self.listed().into_iter().map(key).collect();
        keys.sort();
        keys
    }

    fn next_left(&self) -> Result<Work, mpsc::TryRecvError> {
        let left = self.left.lock().unwrap();
        left.as_ref().expect("the thread has ended").try_recv()
    }
}
