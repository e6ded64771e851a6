//! Whoever stages known content under another name finds it there too (P21).

#![cfg(not(feature = "shuttle"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier, mpsc};

use codex_files::error::Error;
use codex_files::manifest::Admission;
use codex_files::name::Want;
use codex_files::registry::admission::Answer;
use codex_files::registry::fetch::{Fetched, fetch};
use codex_files::registry::stage_file::{self, Miss};
use codex_files::registry::{Attachment, Outcome, Waiter};
use codex_files::time::Now;
use common::*;

/// Where it is under a name.
#[track_caller]
fn path(attachment: &Attachment, name: &str) -> PathBuf {
    let file = attachment.file.named(Some(name.as_bytes()));
    let file = file.unwrap_or_else(|| panic!("it has no name {name}: {attachment:?}"));
    assert_eq!(file.path.file_name().unwrap().as_bytes(), name.as_bytes());
    assert_eq!(*file.name, *name.as_bytes());
    file.path.to_path_buf()
}

/// It is there under each of these names, whole, and one file.
#[track_caller]
fn assert_named(attachment: &Attachment, names: &[&str]) {
    let key = std::str::from_utf8(&attachment.file.checksum).unwrap();
    let files: Vec<_> = names.iter().map(|name| path(attachment, name)).collect();
    for file in &files {
        assert_eq!(digest(file), key, "{}", file.display());
        assert_eq!(inode(file), inode(&files[0]), "{}", file.display());
    }
}

fn inode(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

#[test]
fn p21_known_content_is_found_under_each_name_that_was_asked_for() {
    for size in [SMALL, LARGE] {
        let mut lab = Lab::new();
        let source = lab.source("source", &content(size, 1));
        let first = copied(lab.stage_file_as(&source, "first"));
        for name in ["second", "third", "first", "second"] {
            let again = known(lab.stage_file_as(&source, name));
            assert_eq!(again.file.path, first.file.path);
            assert_named(&again, &["first", name]);
        }
        assert_named(&first, &["first", "second", "third"]);
        assert_eq!(lab.attachments().len(), 1);
        lab.assert_consistent();
        lab.assert_leaves_nothing();
    }
}

#[test]
fn p21_what_was_lost_under_any_name_is_there_again() {
    for size in [SMALL, LARGE] {
        let mut lab = Lab::new();
        let names = ["first", "second", "third"];
        let source = lab.source("source", &content(size, 1));
        copied(lab.stage_file_as(&source, "first"));
        known(lab.stage_file_as(&source, "second"));
        let all = known(lab.stage_file_as(&source, "third"));
        for lost in names {
            fs::remove_file(path(&all, lost)).unwrap();
            assert_named(&known(lab.stage_file_as(&source, lost)), &names);
        }
        for asked in names {
            for name in names {
                fs::remove_file(path(&all, name)).unwrap();
            }
            let again = copied(lab.stage_file_as(&source, asked));
            assert_named(&again, &names);
            assert_eq!(again.file.path, all.file.path);
        }
        lab.assert_consistent();
        lab.assert_leaves_nothing();
    }
}

/// Where the caller put it its name may be another than that of the file, or the same.
#[test]
fn p21_a_file_at_a_callers_destination_has_its_other_names_in_the_area() {
    for size in [SMALL, LARGE] {
        for (reported, at, asked) in [
            ("file", "file", "second"),
            ("report", "file", "report"),
            ("report", "file", "file"),
        ] {
            let mut lab = Lab::new();
            let content = content(size, 1);
            let source = lab.source("source", &content);
            let destination = lab.root.join("parent").join(at);
            let mut request = lab.request(&key(&content), &source, &destination);
            request.name = reported.as_bytes().into();
            let first = copied(stage(&lab.registry, &request));
            let second = known(lab.stage_file_as(&source, asked));
            assert_eq!(*second.file.path, *destination);
            assert_eq!(*second.file.name, *reported.as_bytes());
            let beside = path(&second, asked);
            assert!(beside.starts_with(lab.staging_path()));
            assert_eq!(inode(&beside), inode(&destination));
            assert_eq!(lab.attachments().len(), 1);
            // The first name stays the first one's.
            let again = known(stage(&lab.registry, &request));
            assert_eq!(again.file.path, first.file.path);
            lab.assert_leaves_nothing();
            assert!(!destination.parent().unwrap().exists());
        }
    }
}

#[test]
fn p21_what_has_gone_from_a_callers_destination_goes_on_under_another_name() {
    for size in [SMALL, LARGE] {
        let mut lab = Lab::new();
        let content = content(size, 1);
        let source = lab.source("source", &content);
        fs::set_permissions(&source, Permissions::from_mode(0o700)).unwrap();
        let dir = lab.root.join("a caller's");
        fs::create_dir(&dir).unwrap();
        let first = copied(lab.stage(&key(&content), &source, &dir.join("first")));
        for name in ["second", "third"] {
            known(lab.stage_file_as(&source, name));
        }
        fs::remove_dir_all(&dir).unwrap();
        let again = known(lab.stage_file_as(&source, "third"));
        assert_eq!(again.entry, first.entry);
        assert_eq!(*again.file.path, *path(&again, "third"));
        assert_named(&again, &["third", "second"]);
        assert!(again.file.path.starts_with(lab.staging_path()));
        let mode = fs::metadata(&*again.file.path).unwrap().permissions();
        assert_eq!(mode.mode() & 0o7777, 0o500);
        assert!(!dir.exists());
        let fetched = fetch(&lab.registry, &again.file.checksum);
        assert!(matches!(fetched, Fetched::Staged(_)), "{fetched:?}");
        lab.assert_consistent();
        lab.assert_leaves_nothing();
    }
}

#[test]
fn p21_a_first_name_that_was_lost_is_linked_from_another_without_the_source() {
    for size in [SMALL, LARGE] {
        let mut lab = Lab::new();
        let content = content(size, 1);
        let source = lab.source("source", &content);
        let kept = lab.root.join("kept");
        fs::create_dir(&kept).unwrap();
        let destination = kept.join("first");
        let request = lab.request(&key(&content), &source, &destination);
        copied(stage(&lab.registry, &request));
        let all = known(lab.stage_file_as(&source, "second"));
        fs::remove_file(&destination).unwrap();
        fs::remove_file(&source).unwrap();
        let again = known(stage(&lab.registry, &request));
        assert_eq!(*again.file.path, *destination);
        assert_eq!(inode(&destination), inode(&path(&all, "second")));
        // Somebody else's file at the caller's destination is not replaced for another caller's sake.
        fs::remove_file(&destination).unwrap();
        fs::write(&destination, b"somebody else's").unwrap();
        lab.source("source", &content);
        assert_eq!(
            digest(&path(&all, "second")).as_bytes(),
            &*all.file.checksum
        );
        let staged = staged(lab.stage_file_as(&source, "first"));
        assert_eq!(
            digest(&path(&staged, "first")).as_bytes(),
            &*all.file.checksum
        );
        let second = path(&staged, "second");
        assert_eq!(digest(&second).as_bytes(), &*all.file.checksum);
        drop(staged);
        lab.assert_leaves_nothing();
        assert_eq!(fs::read(&destination).unwrap(), b"somebody else's");
    }
}

/// Whatever a scratch file may be called: these are names like any other.
#[test]
fn p21_names_of_scratch_files_are_names() {
    let names = [
        ".staging",
        ".staging-",
        ".staging-0",
        ".staging-1",
        ".staging-2",
        ".staging-7",
        ".elsewhere-0",
        ".aside-0",
    ];
    for size in [SMALL, LARGE] {
        for first in names {
            let mut lab = Lab::new();
            let source = lab.source("source", &content(size, 1));
            copied(lab.stage_file_as(&source, first));
            for name in names {
                assert_named(&staged(lab.stage_file_as(&source, name)), &[first, name]);
            }
            let all = lab.attachments().pop().unwrap();
            assert_named(&all, &names);
            // The others are as they were while the first one is put in place anew.
            for lost in [&names[..], &[first]] {
                for name in lost {
                    fs::remove_file(path(&all, name)).unwrap();
                }
                assert_named(&staged(lab.stage_file_as(&source, first)), &names);
            }
            drop(all);
            lab.assert_leaves_nothing();
        }
    }
}

#[test]
fn p21_what_is_in_the_place_of_a_name_gives_way() {
    let place: [fn(&Path); 4] = [
        |path| fs::write(path, b"a file").unwrap(),
        |path| symlink("/nowhere", path).unwrap(),
        |path| fs::create_dir(path).unwrap(),
        |path| {
            fs::create_dir(path).unwrap();
            fs::write(path.join("notes"), b"kept").unwrap();
        },
    ];
    for (number, place) in place.into_iter().enumerate() {
        let lab = Lab::new();
        let source = lab.source("source", b"content");
        let first = copied(lab.stage_file_as(&source, "first"));
        let second = first.file.path.with_file_name("second");
        place(&second);
        assert_named(
            &known(lab.stage_file_as(&source, "second")),
            &["first", "second"],
        );
        // Once more, now that it was promised.
        fs::remove_file(&second).unwrap();
        place(&second);
        assert_named(
            &known(lab.stage_file_as(&source, "second")),
            &["first", "second"],
        );
        fs::remove_file(&first.file.path).unwrap();
        place(&first.file.path);
        assert_named(
            &known(lab.stage_file_as(&source, "first")),
            &["first", "second"],
        );
        let aside = tree(first.file.path.parent().unwrap());
        let notes = aside.keys().filter(|path| path.ends_with("notes")).count();
        assert_eq!(notes, if number == 3 { 3 } else { 0 }, "{aside:?}");
    }
}

#[test]
fn p21_many_who_want_it_under_many_names_at_once_have_it_under_each() {
    for size in [SMALL, LARGE] {
        let mut lab = Lab::new();
        for round in 0..5 {
            let source = lab.source("source", &content(size, round));
            let barrier = Barrier::new(16);
            let staged_as = |name: &str| {
                barrier.wait();
                let attachment = staged(lab.stage_file_as(&source, name));
                let file = path(&attachment, name);
                assert_eq!(digest(&file).as_bytes(), &*attachment.file.checksum);
                attachment
            };
            let names: Vec<_> = (0..16).map(|number| format!("name {number}")).collect();
            std::thread::scope(|scope| {
                for name in &names {
                    scope.spawn(|| staged_as(name));
                }
            });
            assert_eq!(lab.attachments().len(), 1);
            let all = lab.attachments().pop().unwrap();
            assert_named(&all, &names.iter().map(|name| &**name).collect::<Vec<_>>());
            lab.reset();
        }
        lab.assert_leaves_nothing();
    }
}

/// Whoever waits is answered by somebody who may not know of the name.
#[test]
fn p21_nobody_who_waits_is_answered_without_the_name() {
    let lab = Lab::new();
    let content = content(SMALL, 1);
    let source = lab.source("source", &content);
    let first = copied(lab.stage_file_as(&source, "first"));
    let (answers, answered) = mpsc::channel();
    for executable in [false, true] {
        let waiter = || unreachable!("nobody is at work on it");
        let admitted =
            lab.registry
                .manifest()
                .admit(&key(&content), KEPT.into(), Some(&first.file), waiter);
        let Ok(Admission::Lead(staging)) = admitted else {
            panic!("it is found missing");
        };
        if executable {
            fs::set_permissions(&source, Permissions::from_mode(0o700)).unwrap();
        }
        for name in ["first", "second"] {
            let request = lab.file_request(&source, name.as_ref());
            let make_waiter = || {
                let answers = answers.clone();
                Waiter::new(move |outcome| {
                    let _ = answers.send((name, outcome));
                })
            };
            let answer = stage_file::stage_file(&lab.registry, &request, Miss::New, &make_waiter);
            assert!(matches!(answer, Answer::ByWaiter));
        }
        let wanted: Vec<_> = staging.wanted().into_iter().collect();
        let want = |name: &'static str| Arc::new(Want::named(name.as_bytes(), executable));
        assert_eq!(wanted, [want("first"), want("second")]);
        staging.commit(&first.file, Now::read()).unwrap();
        for name in ["first", "second"] {
            let (told, outcome) = answered.recv_timeout(PATIENCE).unwrap();
            assert_eq!(told, name);
            if name == "first" && !executable {
                known(outcome);
            } else {
                assert!(matches!(outcome, Outcome::Retry), "{name}: {outcome:?}");
            }
        }
    }
}

#[test]
fn p21_what_its_owner_may_execute_can_be_executed_under_all_names() {
    for size in [SMALL, LARGE] {
        for recognise_unchanged in [true, false] {
            let mut lab = Lab::new();
            if !recognise_unchanged {
                lab.registry = start_with(false);
            }
            let plain = lab.source("plain", &content(size, 1));
            let script = lab.source("script", &content(size, 1));
            fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
            let first = copied(lab.stage_file_as(&plain, "first"));
            let all = known(lab.stage_file_as(&plain, "second"));
            let modes = |names: &[&str]| -> Vec<_> {
                names.iter().map(|name| mode(&path(&all, name))).collect()
            };
            assert_eq!(modes(&["first", "second"]), [0o400, 0o400]);
            // Under a name that is known as well as under one that is new, and one that is not asked for.
            known(lab.stage_file_as(&script, "second"));
            assert_eq!(modes(&["first", "second"]), [0o500, 0o500]);
            known(lab.stage_file_as(&plain, "third"));
            assert_eq!(modes(&["first", "second", "third"]), [0o500; 3]);
            // Also once it is put in place anew, of a source that nobody may execute.
            fs::remove_dir_all(first.file.path.parent().unwrap()).unwrap();
            let again = staged(lab.stage_file_as(&plain, "third"));
            assert_named(&again, &["first", "second", "third"]);
            assert_eq!(modes(&["first", "second", "third"]), [0o500; 3]);
            drop((first, all, again));
            lab.assert_leaves_nothing();
        }
    }
}

/// It is recognised by the times of its inode, and so of its mode.
#[test]
fn p21_a_source_that_becomes_executable_is_seen_to_be() {
    let lab = Lab::new();
    for size in [SMALL, LARGE] {
        let source = lab.source(&format!("source {size}"), &content(size, 1));
        for executable in [0o400, 0o500] {
            fs::set_permissions(&source, Permissions::from_mode(0o200 | executable)).unwrap();
            eventually("it is recognised", || {
                let staged = staged(lab.stage_file_as(&source, "name"));
                assert_eq!(mode(&staged.file.path), executable);
                stage_file::refresh(&lab.registry, &source, b"name", KEPT.into()).is_ok()
            });
        }
    }
}

/// A second name that is known is as quick as the first one.
#[test]
fn p21_an_unchanged_file_is_found_under_a_second_name_without_waiting() {
    let lab = Lab::new();
    let source = lab.source("source", &content(SMALL, 1));
    let refresh =
        |name: &str| stage_file::refresh(&lab.registry, &source, name.as_bytes(), KEPT.into());
    eventually("the times are old enough", || {
        staged(lab.stage_file_as(&source, "first"));
        refresh("first").is_ok()
    });
    assert_eq!(refresh("second").unwrap_err(), Miss::Unseen);
    known(lab.stage_file_as(&source, "second"));
    let found = refresh("second").unwrap();
    assert_named(&found, &["first", "second"]);
    fs::remove_file(path(&found, "second")).unwrap();
    assert_eq!(refresh("second").unwrap_err(), Miss::Unseen);
    assert!(refresh("first").is_ok());
    // It is listed under its first name, which is looked at too.
    known(lab.stage_file_as(&source, "second"));
    fs::remove_file(path(&found, "first")).unwrap();
    assert_eq!(refresh("second").unwrap_err(), Miss::Unseen);
    assert_eq!(refresh("first").unwrap_err(), Miss::Unseen);
}

/// Whoever has just staged it under one name can fetch it, which gives the first.
#[test]
fn p21_a_staging_under_a_second_name_brings_the_first_one_back() {
    for size in [SMALL, LARGE] {
        let mut lab = Lab::new();
        let source = lab.source("source", &content(size, 1));
        copied(lab.stage_file_as(&source, "first"));
        let all = known(lab.stage_file_as(&source, "second"));
        let fetched = || fetch(&lab.registry, &all.file.checksum);
        fs::remove_file(path(&all, "first")).unwrap();
        assert!(matches!(fetched(), Fetched::NotStaged));
        assert_named(
            &known(lab.stage_file_as(&source, "second")),
            &["first", "second"],
        );
        assert!(matches!(fetched(), Fetched::Staged(_)));
        drop(all);
        lab.assert_consistent();
        lab.assert_leaves_nothing();
    }
}

/// Its names are not on record when its registry is dead.
#[test]
fn p7_a_changed_file_with_two_names_goes_at_the_next_start() {
    let change: [fn(&Path); 2] = [
        |path| fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap(),
        |path| {
            fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
            fs::write(path, b"changed").unwrap();
        },
    ];
    for change in change {
        for size in [SMALL, LARGE] {
            let mut lab = Lab::new();
            let source = lab.source("source", &content(size, 1));
            let first = copied(lab.stage_file_as(&source, "first"));
            known(lab.stage_file_as(&source, "second"));
            change(&first.file.path);
            drop(first);
            lab.crash();
            lab.purge();
            let left = tree(&lab.staging_path());
            assert!(left.is_empty(), "left behind: {left:?}");
        }
    }
}

/// Two files are not one: none of them is known to be ours.
#[test]
fn p9_two_changed_files_of_a_dead_registry_are_not_taken_for_two_names() {
    let mut lab = Lab::new();
    let source = lab.source("source", b"content");
    let first = copied(lab.stage_file_as(&source, "first"));
    let path = first.file.path.to_path_buf();
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    fs::write(&path, b"changed").unwrap();
    fs::write(path.with_file_name("notes"), b"notes").unwrap();
    drop(first);
    lab.crash();
    lab.purge();
    assert_eq!(fs::read(&path).unwrap(), b"changed");
    assert_eq!(fs::read(path.with_file_name("notes")).unwrap(), b"notes");
}

#[test]
fn p7_whatever_removes_a_file_removes_all_of_its_names() {
    for removing in ["cleanup", "reset", "stop"] {
        let mut lab = Lab::new();
        lab.retention = EXPIRED;
        let content = content(SMALL, 1);
        let source = lab.source("source", &content);
        copied(lab.stage(&key(&content), &source, &lab.root.join("parent/first")));
        let other = lab.source("other", b"another content");
        copied(lab.stage_file_as(&other, "first"));
        for name in ["second", "third"] {
            known(lab.stage_file_as(&source, name));
            known(lab.stage_file_as(&other, name));
        }
        match removing {
            "cleanup" => assert_eq!(lab.cleanup().cleaned.len(), 2),
            "reset" => assert!(lab.reset().is_empty()),
            _ => assert!(lab.stop().is_empty()),
        }
        let left = tree(&lab.staging_path());
        let areas = usize::from(removing == "cleanup");
        assert_eq!(left.len(), areas, "{removing}: left behind: {left:?}");
        assert!(!lab.root.join("parent").exists());
    }
}

#[test]
fn p7_a_stop_while_names_are_given_leaves_nothing() {
    let sources = Lab::new();
    let source = sources.source("source", &content(SMALL, 1));
    eventually("it is recognised, and so not read", || {
        staged(sources.stage_file(&source));
        stage_file::refresh(&sources.registry, &source, b"source", KEPT.into()).is_ok()
    });
    for _ in 0..150 {
        let mut lab = Lab::new();
        let started = Barrier::new(5);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (lab, source, started) = (&lab, &source, &started);
                scope.spawn(move || {
                    staged(lab.stage_file_as(source, format!("{thread}")));
                    started.wait();
                    let error = (0..).find_map(|name| {
                        match lab.stage_file_as(source, format!("{thread} {name}")) {
                            Outcome::Failed(error) => Some(error),
                            _ => None,
                        }
                    });
                    assert!(matches!(error, Some(Error::Stopped)), "{error:?}");
                });
            }
            started.wait();
            let failures = stop(&lab.registry);
            assert!(failures.is_empty(), "{failures:?}");
            // The stop has waited for those who were at work.
            let left = tree(&lab.staging_path());
            assert!(left.is_empty(), "left behind: {left:?}");
        });
        lab.registry = start();
        let left = tree(&lab.staging_path());
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}
