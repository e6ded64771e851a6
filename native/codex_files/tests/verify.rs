//! Reading all that is staged shows what is damaged, and nothing else.

#![cfg(not(feature = "shuttle"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};

use codex_files::error::{Error, FileType, Result};
use codex_files::registry::fetch::{self, Fetched};
use codex_files::registry::reply::Reply;
use codex_files::registry::verify::{self, Verified};
use codex_files::registry::{Attachment, Registry, stage_file};
use common::*;
use nix::errno::Errno;
use nix::sys::stat::Mode;

/// Changes a byte of a file, and nothing that a look at it shows.
fn damage(path: &Path) {
    let before = fs::metadata(path).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, before.len() / 2).unwrap();
    file.write_all_at(&[!byte[0]], before.len() / 2).unwrap();
    file.set_modified(before.modified().unwrap()).unwrap();
    fs::set_permissions(path, before.permissions()).unwrap();
}

#[track_caller]
fn assert_intact(lab: &Lab, count: u64) {
    let verified = verify(&lab.registry);
    assert!(verified.damaged.is_empty(), "{verified:?}");
    assert_eq!(verified.intact, count);
}

#[track_caller]
fn assert_damaged(lab: &Lab, path: &Path) -> Error {
    let mut damaged = verify(&lab.registry).damaged;
    assert_eq!(damaged.len(), 1, "{damaged:?}");
    let (there, error) = damaged.remove(0);
    assert_eq!(there, path);
    error
}

#[track_caller]
fn assert_another_content(lab: &Lab, path: &Path) {
    match assert_damaged(lab, path) {
        Error::ChecksumMismatch { actual } => assert_eq!(actual, digest(path)),
        other => panic!("{other}"),
    }
}

fn is_fetched(lab: &Lab, attachment: &Attachment) -> bool {
    matches!(
        fetch::fetch(&lab.registry, &attachment.file.checksum),
        Fetched::Staged(_)
    )
}

#[test]
fn what_is_as_it_was_staged_is_counted() {
    let lab = Lab::new();
    assert_intact(&lab, 0);
    let mut count = 0;
    for size in [0, 1, SMALL, LARGE, 3 * LARGE] {
        let source = lab.source("source", &content(size, 1));
        copied(lab.stage_file(&source));
        known(lab.stage_file_as(&source, "another name"));
        let destination = lab.root.join(format!("elsewhere/{size}"));
        copied(lab.stage(format!("key {size}").as_bytes(), &source, &destination));
        count += 2;
        assert_intact(&lab, count);
    }
    // More than are looked up at once, with gaps between them.
    let attachments: Vec<_> = (0..300)
        .map(|seed| {
            let source = lab.source("source", &content(100, seed + 2));
            copied(lab.stage_file(&source))
        })
        .collect();
    assert_intact(&lab, count + 300);
    for attachment in &attachments[..200] {
        unstage(&lab.registry, &attachment.file.checksum);
    }
    assert_intact(&lab, count + 100);
    lab.reset();
    assert_intact(&lab, 0);
}

#[test]
fn what_is_damaged_is_copied_anew_when_it_is_next_staged_however_it_looks() {
    for size in [SMALL, LARGE] {
        let lab = Lab::new();
        let content = content(size, 1);
        let source = lab.source("source", &content);
        let recognised =
            || stage_file::refresh(&lab.registry, &source, b"source", lab.retention.into()).is_ok();
        // Once its times are old enough.
        eventually("it is recognised", || {
            staged(lab.stage_file(&source));
            recognised()
        });
        let attachment = known(lab.stage_file(&source));
        damage(&attachment.file.path);
        assert!(recognised() && is_fetched(&lab, &attachment));

        for _ in 0..2 {
            assert_another_content(&lab, &attachment.file.path);
            assert!(!recognised() && !is_fetched(&lab, &attachment));
            assert_eq!(lab.attachments().len(), 1);
        }
        let again = copied(lab.stage_file(&source));
        assert_eq!(again.file.path, attachment.file.path);
        assert_whole(&again);
        assert!(is_fetched(&lab, &again));
        assert_intact(&lab, 1);

        // At a destination of the caller's.
        let destination = lab.root.join("elsewhere/file");
        lab.reset();
        let stage = || lab.stage(&key(&content), &source, &destination);
        copied(stage());
        damage(&destination);
        known(stage());
        assert_another_content(&lab, &destination);
        copied(stage());
        assert_intact(&lab, 1);
        assert_eq!(fs::read(&destination).unwrap(), content);
    }
}

#[test]
fn whatever_has_come_in_its_place_is_damage_and_blocks_nothing() {
    let lab = Lab::new();
    let source = lab.source("source", &content(SMALL, 1));
    let copy = lab.source("copy", &content(SMALL, 1));
    type Put<'a> = &'a dyn Fn(&Path);
    type IsExpected<'a> = &'a dyn Fn(&Error) -> bool;
    let puts: [(&str, Put<'_>, IsExpected<'_>); 6] = [
        ("nothing", &|_| (), &|error| {
            error.errno() == Some(Errno::ENOENT)
        }),
        ("a link", &|path| symlink(&copy, path).unwrap(), &|error| {
            error.errno() == Some(Errno::ELOOP)
        }),
        (
            "a directory",
            &|path| fs::create_dir(path).unwrap(),
            &|error| error.errno() == Some(Errno::EISDIR),
        ),
        (
            "a pipe",
            &|path| nix::unistd::mkfifo(path, Mode::S_IRWXU).unwrap(),
            &|error| matches!(error, Error::UnsupportedFileType(FileType::Fifo)),
        ),
        (
            "a file that was cut off",
            &|path| fs::write(path, &content(SMALL, 1)[..10]).unwrap(),
            &|error| matches!(error, Error::ChecksumMismatch { .. }),
        ),
        (
            "a longer file",
            &|path| fs::write(path, content(SMALL + 1, 1)).unwrap(),
            &|error| matches!(error, Error::ChecksumMismatch { .. }),
        ),
    ];
    for (name, put, is_expected) in puts {
        let attachment = staged(lab.stage_file(&source));
        fs::remove_file(&attachment.file.path).unwrap();
        put(&attachment.file.path);
        let error = assert_damaged(&lab, &attachment.file.path);
        assert!(is_expected(&error), "{name}: {error}");
        copied(lab.stage_file(&source));
        assert_intact(&lab, 1);
    }
    // The same content is no damage.
    let attachment = staged(lab.stage_file(&source));
    fs::rename(&copy, &attachment.file.path).unwrap();
    assert_intact(&lab, 1);
}

#[test]
fn what_has_a_key_that_is_no_digest_is_looked_at() {
    let lab = Lab::new();
    let source = lab.source("source", &content(SMALL, 1));
    let destination = lab.root.join("elsewhere/file");
    copied(lab.stage(b"key", &source, &destination));
    damage(&destination);
    assert_intact(&lab, 1);
    let file = File::options().append(true).open(&destination).unwrap();
    file.set_len(0).unwrap();
    assert!(matches!(assert_damaged(&lab, &destination), Error::Changed));
    fs::remove_file(&destination).unwrap();
    let error = assert_damaged(&lab, &destination);
    assert_eq!(error.errno(), Some(Errno::ENOENT));
    copied(lab.stage(b"key", &source, &destination));
    assert_intact(&lab, 1);
}

#[test]
fn a_file_that_has_several_names_is_read_once_and_damaged_under_all_of_them() {
    let lab = Lab::new();
    let source = lab.source("source", &content(SMALL, 1));
    let names = ["first", "second", "third"];
    let stage = |name: &str| {
        let attachment = staged(lab.stage_file_as(&source, name));
        let file = attachment.file.named(Some(name.as_bytes())).unwrap();
        file.path.to_path_buf()
    };
    let paths = || names.map(stage);
    let [first, second, third] = paths();
    // Whoever wants it is given it anew.
    fs::remove_file(&second).unwrap();
    assert_intact(&lab, 1);
    // Somebody has put something else under one of its names.
    fs::write(&second, "something else").unwrap();
    assert_another_content(&lab, &second);
    assert_whole(&lab.attachments()[0]);
    assert_eq!(paths(), [&first, &second, &third].map(PathBuf::clone));
    assert_intact(&lab, 1);
    // It is one file.
    for path in [&first, &third] {
        damage(path);
        assert_another_content(&lab, &first);
        for name in names.iter().rev() {
            assert_eq!(digest(&stage(name)), digest_of(&content(SMALL, 1)));
        }
        assert_intact(&lab, 1);
    }
    // The first is linked anew from another, which is intact.
    fs::remove_file(&first).unwrap();
    let error = assert_damaged(&lab, &first);
    assert_eq!(error.errno(), Some(Errno::ENOENT));
    known(lab.stage_file_as(&source, "first"));
    assert_intact(&lab, 1);
}

/// What the library itself removes, or replaces, is not damaged, whenever it is looked at.
#[test]
fn what_is_removed_or_staged_anew_meanwhile_is_not_damaged() {
    let mut lab = Lab::new();
    lab.retention = EXPIRED;
    let sources: Vec<_> = (0..8)
        .map(|seed| lab.source(&seed.to_string(), &content(100, seed)))
        .collect();
    let done = Done::default();
    std::thread::scope(|scope| {
        let (lab, done, sources) = (&lab, &done, &sources);
        for worker in 0..2 {
            scope.spawn(move || {
                let destination = lab.root.join(format!("elsewhere {worker}"));
                for round in worker.. {
                    if done.yet() {
                        return;
                    }
                    let source = &sources[round % sources.len()];
                    let attachment = staged(lab.stage_file(source));
                    // One place for many contents.
                    lab.stage(&attachment.file.checksum, source, &destination);
                    lab.stage(b"key", source, &destination);
                    match round % 7 {
                        0 => drop(lab.reset()),
                        1 | 3 => drop(unstage(&lab.registry, &attachment.file.checksum)),
                        _ => drop(lab.cleanup()),
                    }
                    unstage(&lab.registry, b"key");
                }
            });
        }
        let _end = done.when_dropped();
        let mut intact = 0;
        for _ in 0..2_000 {
            let verified = verify(&lab.registry);
            assert!(verified.damaged.is_empty(), "{verified:?}");
            intact += verified.intact;
        }
        assert!(intact > 0, "there was something to verify");
    });
}

fn begin(registry: &Arc<Registry>) -> Receiver<Result<Verified>> {
    let (sender, receiver) = mpsc::channel();
    let reply = Reply::new(move |result| drop(sender.send(result)));
    verify::verify(registry, reply);
    receiver
}

/// A file that takes long to read: zeros of which none are on the disk.
fn stage_long(lab: &Lab) -> PathBuf {
    let source = lab.source("long", b"");
    let file = File::options().write(true).open(&source).unwrap();
    file.set_len(1 << 30).unwrap();
    copied(lab.stage_file(&source));
    source
}

#[test]
fn p15_nobody_waits_for_what_is_being_read() {
    let lab = Lab::new();
    let long = stage_long(&lab);
    let mut seed = 0;
    eventually("others go on meanwhile", || {
        seed += 1;
        let verified = begin(&lab.registry);
        // More than there are threads for it.
        let others: Vec<_> = (0..4).map(|_| begin(&lab.registry)).collect();
        known(lab.stage_file(&long));
        for size in [SMALL, LARGE] {
            copied(lab.stage_file(&lab.source("source", &content(size, seed))));
        }
        lab.cleanup();
        let first = lab.attachments().pop().unwrap();
        assert!(is_fetched(&lab, &first));
        let is_beside = verified.try_recv().is_err();
        for verified in others.into_iter().chain([verified]) {
            let verified = verified.recv_timeout(PATIENCE).unwrap().unwrap();
            assert!(verified.damaged.is_empty());
        }
        is_beside
    });
}

#[test]
fn it_ends_when_the_registry_stops() {
    let lab = Lab::new();
    stage_long(&lab);
    let verified = begin(&lab.registry);
    stop(&lab.registry);
    let verified = verified.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(verified, Err(Error::Stopped)), "{verified:?}");
    let verified = begin(&lab.registry).recv_timeout(PATIENCE).unwrap();
    assert!(matches!(verified, Err(Error::Stopped)), "{verified:?}");
}
