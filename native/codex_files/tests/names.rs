//! Whoever stages known content under another name finds it there too (P21).

#![cfg(not(feature = "shuttle"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use codex_files::registry::Attachment;
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
