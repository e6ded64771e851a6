//! Names: who stages what is known under another name gives it that under its ticket, and to those who
//! wait as well. Nobody is answered without the name (P21), and nobody removes what is being given one.

use std::collections::BTreeSet;
use std::sync::Arc;

use codex_files::manifest::Admission;
use codex_files::manifest::waiting::{Outcome, Waiter};
use codex_files::name::Want;
use shuttle::sync::{Mutex, mpsc};
use shuttle::thread;

use super::scene::*;
use super::world::*;

/// The names of the only file of a world, as they are on the disk.
#[derive(Clone, Default)]
struct Names(Arc<Mutex<BTreeSet<String>>>);

impl Names {
    fn has(&self, name: &str) -> bool {
        self.0.lock().unwrap().contains(name)
    }

    fn give(&self, name: &str) {
        self.0.lock().unwrap().insert(name.to_owned());
    }

    /// Removes the file, under all of its names.
    fn remove(&self, world: &World, file: &Staged) {
        let names = std::mem::take(&mut *self.0.lock().unwrap());
        thread::yield_now();
        world.remove(file);
        assert!(
            self.0.lock().unwrap().is_empty(),
            "named meanwhile: {names:?}"
        );
    }

    /// Stages under a name, as a registry does it.
    fn stage(&self, world: &World, name: &'static str) {
        let want = Arc::new(Want::named(name.as_bytes(), false).into_owned());
        let mut lost: Option<Staged> = None;
        loop {
            let (sender, receiver) = mpsc::channel();
            let waiter = || {
                let answer = move |outcome| sender.send(outcome).expect("somebody waits for it");
                Waiter::new(answer).wanting(want.clone())
            };
            let key = checksum("a");
            match world
                .manifest
                .admit(&key, LONG.into(), lost.as_ref(), waiter)
            {
                Ok(Admission::Waiting) => match receiver.recv().expect("nobody hangs") {
                    Outcome::Staged { .. } if self.has(name) => return,
                    Outcome::Failed(error) => panic!("{error}"),
                    _ => {}
                },
                Ok(Admission::Known(file)) => {
                    if !world.is_there(&file) || !self.has(name) {
                        lost = Some(file);
                    } else if world.manifest.refresh(&file, LONG.into(), NOW).is_some() {
                        return;
                    }
                }
                Ok(Admission::Lead(staging)) => {
                    let known = staging.replaces().filter(|file| world.is_there(file));
                    let file = known.cloned().unwrap_or_else(|| world.copy("a"));
                    self.give(name);
                    thread::yield_now();
                    for want in staging.wanted() {
                        let name = want.name.as_deref().expect("everybody wants one");
                        self.give(std::str::from_utf8(name).unwrap());
                    }
                    staging.commit(&file, NOW).unwrap();
                    return;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn stage_and_look(&self, world: &World, name: &'static str) {
        self.stage(world, name);
        for _ in 0..2 {
            assert!(self.has(name), "answered without its name");
            thread::yield_now();
        }
    }
}

#[test]
fn p21_nobody_is_answered_without_the_name_and_nobody_removes_what_is_given_one() {
    explore(|| {
        let world = World::with_expired("a");
        let names = Names::default();
        let [one, two, three, sweep] = [(); 4].map(|()| names.clone());
        at_once!(world:
            one.stage_and_look(&world, "first"),
            two.stage_and_look(&world, "second"),
            three.stage_and_look(&world, "third"),
            world.sweep_by(|file| {
                sweep.remove(&world, file);
                Ok(())
            }),
        );
        assert_eq!(names.0.lock().unwrap().len(), 3);
        world.check_end();
    });
}

#[test]
fn p21_a_reset_removes_all_names_that_were_given_before_it() {
    explore(|| {
        let world = World::with_expired("a");
        let names = Names::default();
        let [one, two, reset] = [(); 3].map(|()| names.clone());
        at_once!(world:
            one.stage(&world, "first"),
            two.stage(&world, "second"),
            {
                let there: Vec<_> = world.manifest.list().iter().cloned().collect();
                for removal in world.manifest.claim(&there, || None) {
                    reset.remove(&world, &removal.attachment().file);
                    removal.commit();
                }
            },
        );
        world.check_end();
    });
}
