//! What removes a file removes all of its names, at the next start too.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::common::*;

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
