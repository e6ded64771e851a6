//! Owners (P19): what a living one keeps is there, and what only ended ones have kept goes.

use std::sync::atomic::Ordering;

use codex_files::error::Error;

use super::cleanup::Registry;
use super::scene::*;
use super::world::*;

#[test]
fn p19_an_owner_that_ends_while_its_file_is_staged_leaves_nothing() {
    explore(|| {
        let registry = Registry::of(World::new());
        let dying = registry.owner();
        let ask = Ask::from(&dying);
        at_once!(registry:
            registry.stage_and_look("a", ask),
            registry.end(dying),
        );
        registry.check(&[], 0);
        assert_eq!(registry.cleaned.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn p19_an_owner_that_ends_while_it_waits_leaves_the_file_to_the_others() {
    explore(|| {
        let registry = Registry::of(World::new());
        let (dying, living) = (registry.owner(), registry.owner());
        let (first, second) = (Ask::from(&dying), Ask::from(&living));
        at_once!(registry:
            registry.stage_for(first, "a"),
            registry.stage_and_look("a", second),
            registry.end(dying),
        );
        registry.check(&["a"], 1);
        drop(living);
        registry.check(&[], 0);
    });
}

#[test]
fn p19_owners_that_end_while_they_wait_leave_nothing() {
    explore(|| {
        let registry = Registry::of(World::new());
        let (one, two) = (registry.owner(), registry.owner());
        let asks = [&one, &two, &one].map(Ask::from);
        let [first, second, third] = asks;
        at_once!(registry:
            registry.stage_for(first, "a"),
            registry.stage_for(second, "a"),
            registry.stage_for(third, "a"),
            registry.end(one),
        );
        drop(two);
        registry.check(&[], 0);
    });
}

#[test]
fn p19_an_owner_that_ends_takes_nothing_from_who_has_a_time_to_live() {
    explore(|| {
        let (registry, dying) = Registry::with_owned(&["a"]);
        at_once!(registry:
            registry.end(dying),
            registry.stage_and_look("a", LONG),
            registry.sweep(),
        );
        registry.check(&["a"], 0);
    });
}

#[test]
fn p19_a_cleanup_takes_nothing_that_an_owner_keeps() {
    explore(|| {
        let registry = Registry::of(World::with_expired("a"));
        let (dying, living) = (registry.owner(), registry.owner());
        let (first, second) = (Ask::from(&dying), Ask::from(&living));
        at_once!(registry:
            registry.sweep(),
            registry.stage_and_look("a", first),
            registry.stage_and_look("a", second),
            registry.end(dying),
        );
        registry.check(&["a"], 1);
        drop(living);
        registry.check(&[], 0);
    });
}

#[test]
fn p19_owners_that_end_at_once_leave_a_file_to_be_removed_once() {
    explore(|| {
        let (registry, one) = Registry::with_owned(&["a"]);
        let two = registry.owner();
        registry.stage_and_look("a", &two);
        // Twice by the same owner: it counts once.
        registry.stage_and_look("a", &two);
        at_once!(registry:
            registry.end(one),
            registry.end(two),
            registry.sweep(),
        );
        registry.check(&[], 0);
        assert!(registry.cleaned.load(Ordering::SeqCst) <= 1);
    });
}

#[test]
fn p19_an_owner_of_many_leaves_them_one_by_one_to_those_who_come() {
    explore(|| {
        let (registry, dying) = Registry::with_owned(&["a", "b", "c"]);
        let living = registry.owner();
        let ask = Ask::from(&living);
        at_once!(registry:
            registry.end(dying),
            registry.stage_and_look("b", ask),
            registry.sweep(),
        );
        registry.check(&["b"], 1);
    });
}

/// What is there has its ticket out when its owner ends, and is given back as it was: nobody else comes
/// to remove it.
#[test]
fn p19_what_an_owner_leaves_while_somebody_fails_goes_all_the_same() {
    explore(|| {
        let (registry, dying) = Registry::with_owned(&["a", "b"]);
        let lost = registry.manifest.lookup(b"a").unwrap();
        registry.remove(&lost);
        at_once!(registry:
            {
                registry.stage("a", LONG, Copying::Fails);
            },
            registry.fail_to_unstage("b"),
            registry.end(dying),
        );
        registry.check(&[], 0);
    });
}

/// What comes to lie where the manifest had an entry that is unstaged is not its owner's.
/// A file that is staged anew has its ticket out when the owner of the lost one ends. Whoever stages it
/// finds it there at once, and not on its way to be removed.
#[test]
fn p19_what_is_staged_anew_stays_though_its_owner_has_ended() {
    explore(|| {
        let (registry, dying) = Registry::with_owned(&["a"]);
        let lost = registry.manifest.lookup(b"a").unwrap();
        registry.remove(&lost);
        let living = registry.owner();
        let ask = Ask::from(&living);
        at_once!(registry:
            registry.stage_and_look("a", ask),
            registry.stage_and_look("a", LONG),
            registry.end(dying),
        );
        registry.check(&["a"], 1);
    });
}

#[test]
fn p19_a_file_that_is_staged_anew_keeps_its_owners() {
    explore(|| {
        let (registry, living) = Registry::with_owned(&["a"]);
        let lost = registry.manifest.lookup(b"a").unwrap();
        registry.remove(&lost);
        let dying = registry.owner();
        let ask = Ask::from(&dying);
        at_once!(registry:
            registry.stage_and_look("a", ask),
            registry.end(dying),
            registry.sweep(),
        );
        registry.check(&["a"], 1);
        drop(living);
        registry.check(&[], 0);
    });
}

#[test]
fn p19_a_reset_ends_owners_and_spares_who_comes_later() {
    explore(|| {
        let (registry, dying) = Registry::with_owned(&["a", "b"]);
        let living = registry.owner();
        let ask = Ask::from(&living);
        at_once!(registry:
            registry.reset(),
            registry.end(dying),
            {
                registry.stage("a", ask, Copying::Succeeds);
            },
        );
        let there = registry.settle();
        assert!(there.is_empty() || there == ["a"], "{there:?}");
        registry.check(
            &there.iter().map(String::as_str).collect::<Vec<_>>(),
            there.len() as u64,
        );
        drop(living);
        registry.check(&[], 0);
    });
}

/// Whichever comes first: nothing is left of it when the owner ends.
/// A staging that has not been answered is not what a release is for.
#[test]
fn p19_what_cannot_be_removed_keeps_its_owners_and_is_tried_again() {
    explore(|| {
        let (registry, dying) = Registry::with_owned(&["a"]);
        let living = registry.owner();
        registry.be_stuck(true);
        let ask = Ask::from(&living);
        at_once!(registry:
            registry.end(dying),
            registry.sweep_by(|_| Err(Error::Panic("of the removal".into()))),
            registry.stage_and_look("a", ask),
        );
        registry.check(&["a"], 1);
        drop(living);
        registry.check(&["a"], 0);
        assert_eq!(registry.sweep().cleaned.len(), 1);
        registry.check(&[], 0);
    });
}

#[test]
fn p19_a_stop_leaves_nothing_whoever_ends_meanwhile() {
    explore(|| {
        let (registry, dying) = Registry::with_owned(&["a"]);
        let living = registry.owner();
        let ask = Ask::from(&living);
        at_once!(registry:
            registry.stop(),
            registry.end(dying),
            {
                registry.stage("b", ask, Copying::Succeeds);
            },
        );
        registry.check(&[], 0);
        drop(living);
        registry.check(&[], 0);
    });
}
