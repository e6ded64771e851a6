//! Content is found under each name that was asked for, and is the same under all of them.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use codex_files::registry::stage_file::{self, Miss};

use super::common::*;
use super::*;

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
