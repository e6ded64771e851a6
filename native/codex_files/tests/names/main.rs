//! Whoever stages known content under another name finds it there too (P21).

#![cfg(not(feature = "shuttle"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod at_once;
#[path = "../common/mod.rs"]
mod common;
mod given;
mod lost;
mod removed;

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
