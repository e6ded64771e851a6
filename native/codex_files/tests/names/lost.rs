//! What was lost from outside is there again, under the names that earlier callers know.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use codex_files::registry::fetch::{Fetched, fetch};

use super::common::*;
use super::*;

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
