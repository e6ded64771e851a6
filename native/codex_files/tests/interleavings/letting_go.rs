//! Owners whose hold ends before they do (P19): by a release, by a reset, or since somebody unstages.

use codex_files::manifest::Admission;

use super::cleanup::Registry;
use super::scene::*;
use super::world::*;

#[test]
fn p19_what_was_unstaged_is_not_taken_for_what_came_in_its_place() {
    explore(|| {
        let (registry, dying) = Registry::with_owned(&["a", "z"]);
        let living = registry.owner();
        let ask = Ask::from(&living);
        let releasing = dying.clone();
        at_once!(registry:
            {
                registry.unstage("a");
                registry.stage_and_look("b", ask);
            },
            {
                registry.release(&releasing, "b");
                drop(releasing);
            },
            registry.end(dying),
        );
        registry.check(&["b"], 1);
    });
}

#[test]
fn p19_what_is_unstaged_has_no_owner_any_more() {
    explore(|| {
        let (registry, dying) = Registry::with_owned(&["a"]);
        let living = registry.owner();
        let ask = Ask::from(&living);
        at_once!(registry:
            registry.unstage("a"),
            registry.unstage("a"),
            registry.end(dying),
            {
                registry.stage("a", ask, Copying::Succeeds);
            },
        );
        let there = registry.settle();
        let owned = registry.manifest.metrics().totals.owned_count;
        assert_eq!(there.len() as u64, owned, "nothing else keeps it");
        drop(living);
        registry.check(&[], 0);
    });
}

#[test]
fn p19_a_release_that_meets_the_end_of_its_owner_lets_go_once() {
    explore(|| {
        let (registry, dying) = Registry::with_owned(&["a"]);
        let living = registry.owner();
        registry.stage_and_look("a", &living);
        let releasing = dying.clone();
        at_once!(registry:
            {
                registry.release(&releasing, "a");
                drop(releasing);
            },
            registry.end(dying),
            registry.sweep(),
        );
        registry.check(&["a"], 1);
        // Who is no owner has nothing to let go of.
        registry.release(&registry.owner(), "a");
        registry.check(&["a"], 1);
        registry.release(&living, "a");
        registry.check(&[], 0);
    });
}

#[test]
fn p19_a_release_that_meets_a_staging_by_its_owner_leaves_nothing_behind() {
    explore(|| {
        let (registry, owner) = Registry::with_owned(&["a"]);
        let (releasing, ask) = (owner.clone(), Ask::from(&owner));
        at_once!(registry:
            registry.release(&releasing, "a"),
            {
                registry.stage("a", ask, Copying::Succeeds);
            },
            registry.sweep(),
        );
        let there = registry.settle();
        let owned = registry.manifest.metrics().totals.owned_count;
        assert_eq!(there.len() as u64, owned, "nothing else keeps it");
        drop(owner);
        registry.check(&[], 0);
    });
}

#[test]
fn p19_a_release_before_the_commit_leaves_the_owner_its_file() {
    explore(|| {
        let registry = Registry::of(World::new());
        let owner = registry.owner();
        let (admission, _) = registry.admit("a", &(&owner).into(), None);
        let Ok(Admission::Lead(staging)) = admission else {
            panic!("a new key is copied");
        };
        let (releasing, ask) = (owner.clone(), Ask::from(&owner));
        let staging = std::sync::Mutex::new(Some(staging));
        at_once!(registry:
            {
                registry.release(&releasing, "a");
                let file = registry.copy("a");
                let staging = staging.lock().unwrap().take().unwrap();
                staging.commit(&file, NOW).unwrap();
            },
            registry.stage_and_look("a", ask),
            registry.sweep(),
        );
        registry.check(&["a"], 1);
        drop(owner);
        registry.check(&[], 0);
    });
}
