//! The directory on disk: published whole or not at all (P4), found again or copied again (P6),
//! removed without a trace (P7), closed to others (P8), and nothing of others' touched (P9, P10).

#![cfg(not(feature = "shuttle"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;

use codex_files::disk::source::INLINE_LIMIT;
use codex_files::disk::staging_dir::StagingDir;
use codex_files::error::{Error, FileType, Insecurity};
use codex_files::manifest::waiting::Origin;
use codex_files::registry::stage_file::{self, Miss, StageFile};
use codex_files::registry::{Attachment, Outcome, Request};
use codex_files::registry::{Registry, stage_at};
use codex_files::retention::{Retention, Ttl};
use common::*;
use nix::errno::Errno;

/// Somebody else.
const STRANGER: u32 = 65_534;

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Writes to a staged file, as its owner can who really wants to.
fn tamper(path: &Path, content: &[u8]) {
    chmod(path, 0o600);
    fs::write(path, content).unwrap();
    chmod(path, 0o400);
}

/// Two attachments, one in the area and one elsewhere, of two sizes.
fn stage_four(lab: &Lab) -> Vec<Attachment> {
    let mut staged = Vec::new();
    for (number, size) in [SMALL, LARGE].into_iter().enumerate() {
        let source = lab.source("source", &content(size, 1));
        staged.push(copied(lab.stage_file(&source)));
        let destination = lab.root.join(format!("elsewhere {number}/file"));
        staged.push(copied(lab.stage(
            &[b'k', number as u8],
            &source,
            &destination,
        )));
    }
    staged
}

// ---- P4 ------------------------------------------------------------------------------------

/// A process that stages and is killed: `CODEX_FILES_TEST_DIR` says where.
#[test]
#[ignore = "run in a process of its own by other tests"]
fn child_that_stages() {
    let lab = Lab::in_dir(&child_dir());
    let mut number = 0;
    loop {
        let size = [100, SMALL, LARGE, 4 * LARGE][number % 4];
        let source = lab.source("source", &content(size, number as u64));
        staged(lab.stage_file(&source));
        let destination = lab.root.join(format!("elsewhere {number}/file"));
        staged(lab.stage(&key(&fs::read(&source).unwrap()), &source, &destination));
        if number == 3 {
            println!("busy");
        }
        if number % 7 == 6 {
            lab.reset();
        }
        number += 1;
    }
}

fn child_dir() -> PathBuf {
    std::env::var_os("CODEX_FILES_TEST_DIR").unwrap().into()
}

/// A child that has said that it is where the test wants it.
struct Neighbour(Child, BufReader<std::process::ChildStdout>);

impl Neighbour {
    fn start(test: &str, dir: &Path) -> Self {
        let mut child = child(test, &[("CODEX_FILES_TEST_DIR", dir.as_os_str())])
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self(child, output)
    }

    fn said(&mut self, word: &str) {
        let mut line = String::new();
        while !line.contains(word) {
            line.clear();
            assert!(
                self.1.read_line(&mut line).unwrap() > 0,
                "the child has ended"
            );
        }
    }

    /// Ends as it should.
    fn ended(mut self) {
        assert!(self.0.wait().unwrap().success());
    }
}

/// Killed, also when the test fails.
impl Drop for Neighbour {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn p4_a_process_that_is_killed_leaves_nothing_in_part_and_the_next_start_nothing_at_all() {
    for round in 0..5_u64 {
        let mut lab = Lab::new();
        let mut child = Neighbour::start("child_that_stages", &lab.root);
        child.said("busy");
        // A different instant in every round.
        for _ in 0..round * 40 {
            std::thread::yield_now();
        }
        drop(child);
        lab.assert_areas_whole(Scratch::Allowed);
        for (path, is_dir) in tree(&lab.root) {
            let elsewhere = path.to_string_lossy().contains("elsewhere ");
            if elsewhere && !is_dir && path.ends_with("file") {
                // The child's sources were 100, SMALL, LARGE and 4 * LARGE bytes long.
                let whole = [100, SMALL, LARGE, 4 * LARGE].map(|size| size as u64);
                let size = fs::metadata(&path).unwrap().len();
                assert!(whole.contains(&size), "{}: {size}", path.display());
            }
        }
        lab.purge();
        fs::remove_file(lab.root.join("source")).unwrap();
        let left: Vec<_> = tree(&lab.root)
            .into_keys()
            .filter(|path| *path != lab.staging_path())
            .collect();
        assert!(left.is_empty(), "left behind: {left:?}");
        lab.assert_leaves_nothing();
    }
}

// ---- P6 ------------------------------------------------------------------------------------

#[test]
fn p6_a_file_that_was_removed_from_outside_is_staged_again() {
    let mut lab = Lab::new();
    for attachment in stage_four(&lab) {
        fs::remove_file(&attachment.file.path).unwrap();
    }
    stage_four(&lab);
    for attachment in lab.attachments() {
        fs::remove_dir_all(attachment.file.path.parent().unwrap()).unwrap();
    }
    stage_four(&lab);
    lab.assert_consistent();
    assert_eq!(lab.attachments().len(), 4);
    lab.assert_leaves_nothing();
    assert!(!lab.root.join("elsewhere 0").exists());
}

#[test]
fn p6_a_file_that_was_changed_from_outside_is_staged_again() {
    let mut lab = Lab::new();
    for attachment in stage_four(&lab) {
        tamper(&attachment.file.path, b"something else");
    }
    stage_four(&lab);
    lab.assert_consistent();
    lab.assert_leaves_nothing();
}

#[test]
fn p6_an_area_or_a_staging_directory_that_was_removed_is_made_again() {
    let mut lab = Lab::new();
    for _ in 0..2 {
        stage_four(&lab);
        for area in lab.areas() {
            fs::remove_dir_all(area).unwrap();
        }
        // A new file, and one that is known.
        copied(lab.stage_file(&lab.source("new", b"new")));
        copied(lab.stage_file(&lab.source("source", &content(LARGE, 1))));
        lab.reset();
        stage_four(&lab);
        fs::remove_dir_all(lab.staging_path()).unwrap();
        copied(lab.stage_file(&lab.source("source", &content(SMALL, 1))));
        copied(lab.stage_file(&lab.source("new", &content(LARGE, 9))));
        copied(lab.stage(
            b"new",
            &lab.source("new", b"new"),
            &lab.root.join("elsewhere new/file"),
        ));
        lab.reset();
    }
    lab.assert_leaves_nothing();
}

/// The short way, for threads that must not wait, trusts no more than the long one.
#[test]
fn p6_a_quick_refresh_is_of_a_file_that_is_there() {
    let lab = Lab::new();
    assert!(stage_at::refresh(&lab.registry, b"unknown", KEPT.into()).is_none());
    let persistent = Retention {
        persist: true,
        ttl: Ttl::Infinity,
    };
    for attachment in stage_four(&lab) {
        let file = &attachment.file;
        // It may refuse, and leave it to the long way: it must not refresh what has gone.
        if let Some(refreshed) = stage_at::refresh(&lab.registry, &file.checksum, persistent.into())
        {
            assert!(Arc::ptr_eq(&refreshed.file, file));
            assert!(refreshed.retention.persist);
        }
        fs::rename(&file.path, file.path.with_file_name("moved")).unwrap();
        assert!(stage_at::refresh(&lab.registry, &file.checksum, KEPT.into()).is_none());
        fs::write(&file.path, b"something else").unwrap();
        assert!(stage_at::refresh(&lab.registry, &file.checksum, KEPT.into()).is_none());
    }
    stop(&lab.registry);
    for attachment in lab.attachments() {
        assert!(stage_at::refresh(&lab.registry, &attachment.file.checksum, KEPT.into()).is_none());
    }
}

#[test]
fn p6_a_lost_file_keeps_what_was_promised_of_it() {
    let mut lab = Lab::new();
    let source = lab.source("source", b"content");
    lab.retention = Retention {
        persist: true,
        ttl: Ttl::Infinity,
    };
    let first = copied(lab.stage_file(&source));
    fs::remove_file(&first.file.path).unwrap();
    lab.retention = EXPIRED;
    let again = copied(lab.stage_file(&source));
    assert!(again.retention.persist);
    assert_eq!(again.retention.ttl, Ttl::Infinity);
    assert_eq!(lab.cleanup().cleaned.len(), 0);
}

#[test]
fn p8_a_staging_directory_that_is_swapped_for_a_link_leads_nowhere() {
    swap_for_a_link(false);
}

#[test]
#[ignore = "needs root"]
fn p8_as_root_one_that_is_swapped_for_a_link_of_a_strangers_leads_nowhere() {
    swap_for_a_link(true);
}

/// A directory swapped for a link while the registry runs leads no write and no removal astray.
fn swap_for_a_link(strangers: bool) {
    for size in [SMALL, LARGE] {
        let lab = Lab::new();
        let content = content(size, 1);
        let source = lab.source("source", &content);
        let first = copied(lab.stage_file(&source));
        fs::rename(lab.staging_path(), lab.root.join("moved")).unwrap();
        // Where it leads now there is what looks like the area, with something else in it.
        let trap = lab.root.join("trap");
        let dir = trap.join(area_name(&first)).join(digest_of(&content));
        fs::create_dir_all(&dir).unwrap();
        let bait = dir.join("source");
        fs::write(&bait, vec![0; size]).unwrap();
        symlink(&trap, lab.staging_path()).unwrap();
        if strangers {
            lchown(lab.staging_path(), Some(STRANGER), None).unwrap();
            match failed(lab.stage_file(&source)) {
                Error::InsecureStagingDir { reason, .. } => {
                    assert_eq!(reason, Insecurity::ForeignLink);
                }
                other => panic!("{other}"),
            }
        } else {
            // A link of our own is followed: the copy is made where it can be found.
            assert_whole(&copied(lab.stage_file(&source)));
            lab.assert_consistent();
        }
        lab.reset();
        let files: Vec<_> = tree(&trap)
            .into_iter()
            .filter_map(|(path, is_dir)| (!is_dir).then_some(path))
            .collect();
        assert_eq!(files, std::slice::from_ref(&bait));
        assert_eq!(fs::read(bait).unwrap(), vec![0; size]);
    }
}

fn area_name(attachment: &Attachment) -> &OsStr {
    let area = attachment.file.path.ancestors().nth(2).unwrap();
    area.file_name().unwrap()
}

// ---- P7 ------------------------------------------------------------------------------------

#[test]
fn p7_cleanup_reset_and_stop_leave_nothing_behind() {
    for round in 0..3 {
        let mut lab = Lab::new();
        lab.retention = EXPIRED;
        stage_four(&lab);
        match round {
            0 => {
                let report = lab.cleanup();
                assert_eq!(report.cleaned.len(), 4);
                assert!(report.failed.is_empty());
                let left: Vec<_> = tree(&lab.staging_path()).into_keys().collect();
                assert_eq!(left, lab.areas(), "the area itself stays for the next one");
            }
            1 => assert!(lab.reset().is_empty()),
            _ => assert!(lab.stop().is_empty()),
        }
        assert!(lab.attachments().is_empty());
        for number in 0..2 {
            assert!(!lab.root.join(format!("elsewhere {number}")).exists());
        }
        if round > 0 {
            assert!(tree(&lab.staging_path()).is_empty());
        }
    }
}

#[test]
fn p7_a_removal_that_fails_keeps_its_entry_is_reported_and_tried_again() {
    let mut lab = Lab::new();
    lab.retention = EXPIRED;
    let attachments = stage_four(&lab);
    let held = &attachments[0];
    // A directory where the file was cannot be unlinked, and is not what was staged; so make the
    // removal of the file itself fail.
    let hold = Hold::on(&held.file.path);
    for _ in 0..2 {
        let report = lab.cleanup();
        let failed: Vec<_> = report
            .failed
            .iter()
            .map(|(attachment, error)| (attachment.file.path.clone(), error.errno()))
            .collect();
        assert_eq!(failed.len(), 1);
        assert_eq!(failed[0].0, held.file.path);
        assert!(matches!(failed[0].1, Some(Errno::EBUSY | Errno::EACCES)));
        let listed = lab.attachments();
        assert_eq!(listed.len(), 1);
        assert_whole(&listed[0]);
        lab.assert_consistent();
    }
    let failures = lab.reset();
    assert_eq!(failures.len(), 1);
    assert_eq!(*failures[0].0, *held.file.path);
    drop(hold);
    let report = lab.cleanup();
    assert_eq!(report.cleaned.len(), 1);
    assert!(lab.attachments().is_empty());
    drop(attachments);
    lab.assert_leaves_nothing();
}

/// A file that cannot be removed, even by root, whom no mode keeps out.
enum Hold {
    Mount { _on_itself: Mount },
    Mode(PathBuf),
}

impl Hold {
    fn on(path: &Path) -> Self {
        if is_root() {
            let _on_itself = Mount::on_itself(path);
            return Self::Mount { _on_itself };
        }
        let dir = path.parent().unwrap();
        chmod(dir, 0o500);
        Self::Mode(dir.to_owned())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Self::Mode(dir) = self {
            chmod(dir, 0o700);
        }
    }
}

#[test]
fn p7_a_file_that_has_gone_already_counts_as_removed() {
    let mut lab = Lab::new();
    lab.retention = EXPIRED;
    for (number, attachment) in stage_four(&lab).iter().enumerate() {
        if number < 2 {
            fs::remove_file(&attachment.file.path).unwrap();
        } else {
            fs::remove_dir_all(attachment.file.path.parent().unwrap()).unwrap();
        }
    }
    let report = lab.cleanup();
    assert_eq!(report.cleaned.len(), 4);
    assert!(report.failed.is_empty());
    lab.assert_leaves_nothing();
}

#[test]
fn a_lost_file_that_moves_leaves_nothing_of_itself_where_it_was() {
    let mut lab = Lab::new();
    for size in [SMALL, LARGE] {
        let source = lab.source("source", &content(size, 1));
        let first = copied(lab.stage_file_as(&source, "first"));
        tamper(&first.file.path, b"changed");
        let second = copied(lab.stage_file_as(&source, "second"));
        assert_whole(&second);
        assert_eq!(second.file.path, first.file.path, "it keeps its first name");
    }
    lab.retention = EXPIRED;
    // A digest of the caller's, found missing, moves from a destination into the area and back.
    let content = content(SMALL, 5);
    let source = lab.source("source", &content);
    let elsewhere = lab.root.join("elsewhere/file");
    copied(lab.stage(&key(&content), &source, &elsewhere));
    tamper(&elsewhere, b"changed");
    let inside = copied(lab.stage_file(&source));
    fs::remove_file(&inside.file.path).unwrap();
    copied(lab.stage(&key(&content), &source, &elsewhere));
    drop((inside,));
    lab.assert_consistent();
    lab.assert_leaves_nothing();
}

// ---- P8 ------------------------------------------------------------------------------------

#[test]
fn p8_staged_files_are_for_their_owner_alone() {
    let lab = Lab::new();
    for (number, (source_mode, staged_mode)) in [
        (0o644, 0o400),
        (0o600, 0o400),
        (0o777, 0o500),
        (0o755, 0o500),
        (0o4755, 0o500),
        (0o400, 0o400),
        (0o466, 0o400),
    ]
    .into_iter()
    .enumerate()
    {
        for size in [SMALL, LARGE] {
            let source = lab.source("source", &content(size, number as u64));
            chmod(&source, source_mode);
            let inside = copied(lab.stage_file(&source));
            let elsewhere = lab.root.join(format!("elsewhere {number} {size}/file"));
            let outside =
                copied(lab.stage(format!("{number} {size}").as_bytes(), &source, &elsewhere));
            for file in [&inside.file, &outside.file] {
                assert_eq!(
                    mode(&file.path),
                    staged_mode,
                    "of a source of {source_mode:o}"
                );
                assert_eq!(mode(file.path.parent().unwrap()), 0o700);
            }
            fs::remove_file(source).unwrap();
        }
    }
    for (path, is_dir) in tree(&lab.staging_path()) {
        if is_dir {
            assert_eq!(mode(&path), 0o700, "{}", path.display());
        }
    }
    assert_eq!(mode(&lab.staging_path()), 0o700);
}

/// A umask holds for the whole process.
#[test]
#[ignore = "run in a process of its own by another test"]
fn child_with_a_umask() {
    use nix::sys::stat::{Mode, umask};
    let lab = Lab::in_dir(&child_dir());
    let source = lab.source("source", b"content");
    let script = lab.source("script", b"#!/bin/sh");
    chmod(&script, 0o755);
    for mask in [0, 0o022, 0o077, 0o177, 0o277, 0o577, 0o777] {
        umask(Mode::from_bits_truncate(mask));
        let inside = copied(lab.stage_file(&source));
        assert_eq!(mode(&inside.file.path), 0o400, "with the umask {mask:o}");
        let destination = lab.root.join("made/for it/file");
        let outside = copied(lab.stage(b"key", &script, &destination));
        assert_eq!(mode(&outside.file.path), 0o500, "with the umask {mask:o}");
        let dirs = inside.file.path.ancestors().skip(1).take(3);
        for dir in dirs.chain(destination.ancestors().skip(1).take(2)) {
            assert_eq!(mode(dir), 0o700, "with the umask {mask:o}");
        }
        assert!(lab.reset().is_empty());
        fs::remove_dir(lab.staging_path()).unwrap();
        fs::remove_dir(lab.root.join("made")).unwrap();
    }
    println!("shown");
}

#[test]
fn p8_the_umask_neither_opens_nor_closes_a_staged_file() {
    let lab = Lab::new();
    let mut child = Neighbour::start("child_with_a_umask", &lab.root);
    child.said("shown");
    child.ended();
}

fn request(source: &Path, staging_dir: StagingDir) -> StageFile {
    StageFile {
        source: source.to_owned(),
        to: Request {
            name: b"name".as_slice().into(),
            keep: KEPT.into(),
            owner: None,
            staging_dir,
        },
    }
}

#[track_caller]
fn assert_refused(registry: &Arc<Registry>, source: &Path, dir: &Path, expected: Insecurity) {
    let staging_dir = StagingDir {
        path: dir.to_owned(),
        is_default: false,
    };
    match failed(stage_file(registry, &request(source, staging_dir))) {
        Error::InsecureStagingDir { reason, .. } => assert_eq!(reason, expected),
        other => panic!("{other}"),
    }
}

#[test]
#[ignore = "needs a user other than root"]
fn p8_as_plain_user_a_staging_directory_of_roots_is_refused() {
    let lab = Lab::new();
    let source = lab.source("source", b"content");
    let theirs = Path::new("/usr");
    assert_refused(&lab.registry, &source, theirs, Insecurity::ForeignOwner);
}

#[test]
#[ignore = "needs root"]
fn p8_as_root_a_staging_directory_of_another_user_is_refused() {
    let lab = Lab::new();
    let source = lab.source("source", b"content");
    for mode in [0o700, 0o777, 0o1777] {
        let dir = lab.root.join(format!("theirs {mode:o}"));
        fs::create_dir(&dir).unwrap();
        chmod(&dir, mode);
        chown(&dir, Some(STRANGER), None).unwrap();
        assert_refused(&lab.registry, &source, &dir, Insecurity::ForeignOwner);
        assert!(tree(&dir).is_empty());
        // Through a link of our own as well.
        let link = lab.root.join(format!("link {mode:o}"));
        symlink(&dir, &link).unwrap();
        assert_refused(&lab.registry, &source, &link, Insecurity::ForeignOwner);
    }
}

#[test]
fn p8_a_link_of_our_own_is_followed() {
    let lab = Lab::new();
    let source = lab.source("source", b"content");
    let ours = lab.root.join("ours");
    fs::create_dir(&ours).unwrap();
    // It is somebody's wish.
    symlink(&ours, lab.staging_path()).unwrap();
    let staged = copied(lab.stage_file(&source));
    assert!(
        fs::canonicalize(&staged.file.path)
            .unwrap()
            .starts_with(&ours)
    );
    assert_whole(&staged);
}

#[test]
#[ignore = "needs root"]
fn p8_as_root_a_planted_link_is_refused() {
    let lab = Lab::new();
    let source = lab.source("source", b"content");
    let ours = lab.root.join("ours");
    fs::create_dir(&ours).unwrap();
    let planted = lab.root.join("planted");
    symlink(&ours, &planted).unwrap();
    lchown(&planted, Some(STRANGER), None).unwrap();
    let mut with_slash = planted.clone().into_os_string();
    with_slash.push("/");
    let with_dot = planted.join(".");
    for path in [&planted, &PathBuf::from(with_slash), &with_dot] {
        assert_refused(&lab.registry, &source, path, Insecurity::ForeignLink);
    }
    assert!(tree(&ours).is_empty(), "nothing was written through it");
}

#[test]
#[ignore = "needs root"]
fn p8_as_root_in_place_of_a_default_that_somebody_else_holds_a_name_of_our_own_is_used() {
    let lab = Lab::new();
    let source = lab.source("source", b"content");
    for plant in ["directory", "link", "file"] {
        let default = lab.root.join(plant);
        match plant {
            "link" => symlink(&lab.root, &default).unwrap(),
            "file" => fs::write(&default, b"").unwrap(),
            _ => fs::create_dir(&default).unwrap(),
        }
        lchown(&default, Some(STRANGER), None).unwrap();
        let own = lab.root.join(format!("{plant}-{}", nix::unistd::geteuid()));
        let request = request(
            &source,
            StagingDir {
                path: default.clone(),
                is_default: true,
            },
        );
        let attachment = copied(stage_file(&lab.registry, &request));
        assert!(attachment.file.path.starts_with(&own));
        assert_eq!(mode(&own), 0o700);
        if plant == "directory" {
            assert!(tree(&default).is_empty());
        }
        // And if that is somebody else's too, there is no place left.
        lab.reset();
        fs::remove_dir_all(&own).unwrap();
        fs::create_dir(&own).unwrap();
        chown(&own, Some(STRANGER), None).unwrap();
        let error = failed(stage_file(&lab.registry, &request));
        assert!(matches!(
            error,
            Error::InsecureStagingDir {
                reason: Insecurity::ForeignOwner,
                ..
            }
        ));
    }
}

#[test]
fn a_staging_directory_that_is_a_file_is_refused() {
    let lab = Lab::new();
    fs::write(lab.staging_path(), b"a file").unwrap();
    let error = failed(lab.stage_file(&lab.source("source", b"content")));
    assert_eq!(error.errno(), Some(Errno::ENOTDIR));
    lab.purge();
    lab.reset();
    assert_eq!(fs::read(lab.staging_path()).unwrap(), b"a file");
}

// ---- P9 ------------------------------------------------------------------------------------

/// Files that the library did not write, wherever somebody may have put them.
fn plant(lab: &Lab, attachments: &[Attachment]) -> Vec<PathBuf> {
    let mut planted = vec![
        lab.staging_path().join("notes"),
        lab.staging_path().join("dir/file"),
        lab.staging_path().join("codex_files-not-an-area/file"),
        lab.staging_path()
            .join("codex_files-0123456789abcdef0/file"),
        // It has the name of an area, and of nothing that we put there.
        lab.staging_path().join("codex_files-0123456789abcdef/file"),
        lab.staging_path()
            .join("codex_files-0123456789abcdef/dir/file"),
    ];
    for attachment in attachments {
        let dir = attachment.file.path.parent().unwrap();
        planted.push(dir.join("foreign"));
        if dir.starts_with(lab.staging_path()) {
            let area = dir.parent().unwrap();
            planted.push(area.join("foreign"));
            planted.push(area.join("foreign dir/file"));
            planted.push(area.join(".staging-foreign"));
            planted.push(area.join(".elsewhere-foreign"));
        }
    }
    for path in &planted {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"foreign").unwrap();
    }
    // Nobody else's directory goes because it is closed, or looks like one of ours.
    let checksum = digest_of(b"foreign");
    for dir in [
        "read-only".into(),
        "codex_files-fedcba9876543210/checksum".into(),
        format!("read-only/{checksum}"),
        // Almost the name of an area.
        format!("codex_files-0123456789abcdef0/{checksum}"),
        format!("codex_files-0123456789ABCDEF/{checksum}"),
    ] {
        let dir = lab.staging_path().join(dir);
        fs::create_dir_all(&dir).unwrap();
        let file = dir.join("file");
        fs::write(&file, b"foreign").unwrap();
        chmod(&file, 0o400);
        planted.push(file);
    }
    planted
}

#[track_caller]
fn assert_there(planted: &[PathBuf]) {
    for path in planted {
        assert_eq!(
            fs::read(path).ok().as_deref(),
            Some(&b"foreign"[..]),
            "{}",
            path.display()
        );
    }
}

#[test]
fn p9_foreign_files_survive_cleanup_reset_and_stop() {
    for round in 0..3 {
        let mut lab = Lab::new();
        lab.retention = EXPIRED;
        let attachments = stage_four(&lab);
        let planted = plant(&lab, &attachments);
        match round {
            0 => drop(lab.cleanup()),
            1 => assert!(lab.reset().is_empty()),
            _ => assert!(lab.stop().is_empty()),
        }
        for attachment in &attachments {
            assert!(!attachment.file.path.exists());
        }
        assert_there(&planted);
    }
}

#[test]
fn p9_foreign_files_survive_the_next_start_after_a_crash() {
    let mut lab = Lab::new();
    let attachments = stage_four(&lab);
    let paths: Vec<_> = attachments
        .iter()
        .map(|attachment| attachment.file.path.clone())
        .collect();
    let planted = plant(&lab, &attachments);
    drop(attachments);
    lab.crash();
    for path in &paths {
        assert!(path.exists(), "a crash removes nothing");
    }
    for _ in 0..2 {
        lab.purge();
        for path in &paths {
            assert!(!path.exists(), "{}", path.display());
        }
        assert_there(&planted);
    }
}

#[test]
fn p9_a_reset_of_any_directory_is_harmless() {
    let lab = Lab::new();
    let other = lab.root.join("other");
    fs::create_dir_all(other.join("dir")).unwrap();
    fs::write(other.join("dir/file"), b"foreign").unwrap();
    let before = tree(&other);
    for dir in [
        other.as_path(),
        Path::new("/"),
        Path::new(""),
        Path::new("/nowhere/at/all"),
        Path::new("/proc"),
    ] {
        stage_four(&lab);
        assert!(reset(&lab.registry, dir).is_empty(), "{}", dir.display());
        assert!(lab.attachments().is_empty());
    }
    assert_eq!(tree(&other), before);
}

/// The number of a file that has gone is given to the next one: it tells nothing by itself.
#[test]
fn p9_a_file_that_somebody_put_in_the_place_of_ours_stays() {
    for round in 0..4 {
        let mut lab = Lab::new();
        lab.retention = EXPIRED;
        let source = lab.source("source", b"content");
        let destination = lab.root.join("elsewhere/file");
        let mut same_number = false;
        for _ in 0..20 {
            let attachment = copied(lab.stage(b"key", &source, &destination));
            let number = fs::metadata(&attachment.file.path).unwrap().ino();
            drop(attachment);
            fs::remove_file(&destination).unwrap();
            fs::write(&destination, b"foreign").unwrap();
            same_number = fs::metadata(&destination).unwrap().ino() == number;
            if same_number {
                break;
            }
            fs::remove_file(&destination).unwrap();
        }
        if !same_number {
            println!("this file system does not give numbers again so soon");
            fs::write(&destination, b"foreign").unwrap();
        }
        match round {
            0 => drop(lab.cleanup()),
            1 => drop(lab.reset()),
            2 => drop(lab.stop()),
            _ => {
                lab.crash();
                lab.purge();
            }
        }
        assert_there(&[destination]);
        assert!(lab.attachments().is_empty());
    }
}

/// The first name that a copy gets on its way in may be taken: a foreign file of that name was
/// removed to make room.
#[test]
fn p9_a_foreign_file_where_a_copy_is_written_first_stays() {
    let lab = Lab::new();
    let small = lab.source("small", b"content");
    let large = lab.source("large", &vec![1; INLINE_LIMIT + 1]);
    let attachment = copied(lab.stage_file(&small));
    let dir = attachment.file.path.parent().unwrap();
    let mut foreign = vec![dir.join(".staging"), dir.join(".staging-")];
    foreign.extend((0..8).map(|number| dir.with_file_name(format!(".staging-{number}"))));
    for path in &foreign {
        fs::write(path, b"foreign").unwrap();
    }
    for name in ["name", ".staging", ".staging-"] {
        lab.reset();
        assert_there(&foreign);
        for source in [&small, &large] {
            let attachment = copied(lab.stage_file_as(source, name));
            let content = fs::read(&attachment.file.path).unwrap();
            assert!(content == fs::read(source).unwrap());
        }
        // Where it is to lie in the end is a copy's to take.
        foreign.retain(|path| path.file_name() != Some(OsStr::new(name)));
        assert_there(&foreign);
    }
    lab.reset();
    assert_there(&foreign);
    assert_eq!(tree(&lab.staging_path()).len(), 1 + foreign.len());
}

/// At a destination nothing is replaced but a regular file, whenever it came there.
#[test]
fn p9_what_comes_to_a_destination_during_the_copy_stays() {
    let lab = Lab::new();
    let source = lab.source("source", &content(64 << 20, 1));
    let dir = lab.root.join("elsewhere");
    fs::create_dir(&dir).unwrap();
    let destination = dir.join("file");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            eventually("the copy has begun", || !tree(&dir).is_empty());
            nix::unistd::mkfifo(&destination, nix::sys::stat::Mode::S_IRWXU).unwrap();
        });
        let error = failed(lab.stage(b"key", &source, &destination));
        assert!(
            matches!(error, Error::UnsupportedDestination(FileType::Fifo)),
            "{error}"
        );
    });
    let there: Vec<_> = tree(&dir).into_keys().collect();
    assert_eq!(there, std::slice::from_ref(&destination));
    assert!(lab.reset().is_empty());
    assert!(destination.exists() && records(&lab).is_empty());
}

/// What the purge of a dead area takes for the file that was staged there, and what it leaves.
#[test]
fn p9_a_start_tells_a_changed_file_from_a_foreign_one() {
    let mut lab = Lab::new();
    let stage = |lab: &Lab, name: &str| {
        let attachment = copied(lab.stage_file(&lab.source(name, name.as_bytes())));
        attachment.file.path.to_path_buf()
    };
    let [edited, opened, plain] = ["edited", "opened", "plain"].map(|name| stage(&lab, name));
    lab.retention = EXPIRED;
    let let_go = stage(&lab, "let go");
    let plant = |beside: &Path| {
        let path = beside.with_file_name("foreign");
        fs::write(&path, b"foreign").unwrap();
        path
    };
    // The only one in its directory.
    chmod(&edited, 0o644);
    fs::write(&edited, b"changed").unwrap();
    // The one of two that has the content.
    chmod(&opened, 0o644);
    // The one of two that has the mode.
    let mut foreign = vec![plant(&opened), plant(&plain), plant(&let_go)];
    // What is left alone when ours has been removed is not ours to remove.
    assert_eq!(lab.cleanup().cleaned.len(), 1);
    // A directory of that name that we have not made.
    let checksum = digest_of(b"somebody else's");
    let theirs = opened.ancestors().nth(2).unwrap().join(checksum);
    fs::create_dir(&theirs).unwrap();
    chmod(&theirs, 0o755);
    fs::write(theirs.join("file"), b"foreign").unwrap();
    foreign.push(theirs.join("file"));
    lab.crash();
    for _ in 0..2 {
        lab.purge();
        for path in [&edited, &opened, &plain, &let_go] {
            assert!(!path.exists(), "{}", path.display());
        }
        assert_there(&foreign);
    }
}

// ---- P10 -----------------------------------------------------------------------------------

#[test]
fn p10_two_registries_share_a_staging_directory() {
    let mut one = Lab::new();
    let mut two = Lab::in_dir(&one.root);
    one.retention = EXPIRED;
    let ones = stage_four(&one);
    // The same contents, and the same keys at other destinations.
    let mut twos = Vec::new();
    for (number, size) in [SMALL, LARGE].into_iter().enumerate() {
        let source = two.source("source", &content(size, 1));
        twos.push(copied(two.stage_file(&source)));
        let destination = two.root.join(format!("neighbour {number}/file"));
        twos.push(copied(two.stage(
            &[b'k', number as u8],
            &source,
            &destination,
        )));
    }
    // Neither's start, cleanup, reset nor end removes a file of the other's.
    one.purge();
    two.purge();
    two.cleanup();
    one.assert_consistent();
    assert_eq!(one.cleanup().cleaned.len(), 4);
    two.assert_consistent();
    drop(ones);
    stage_four(&one);
    assert!(one.reset().is_empty());
    two.assert_consistent();
    stage_four(&one);
    assert!(one.stop().is_empty());
    two.assert_consistent();
    assert_eq!(twos.len(), two.attachments().len());
    drop(twos);
    one.assert_areas_whole(Scratch::Forbidden);
    two.assert_leaves_nothing();
}

/// A process that has staged and waits to be killed.
#[test]
#[ignore = "run in a process of its own by other tests"]
fn child_that_holds_files() {
    let lab = Lab::in_dir(&child_dir());
    stage_four(&lab);
    println!("staged");
    // Until somebody closes the other end.
    let _ = std::io::stdin().read(&mut [0]);
    lab.assert_consistent();
    println!("missed nothing");
    std::io::stdout().flush().unwrap();
}

#[test]
fn p10_the_files_of_a_dead_process_go_at_the_next_start_and_those_of_a_living_one_stay() {
    let mut lab = Lab::new();
    let (dead, living) = (lab.root.join("dead"), lab.root.join("living"));
    // Two processes, with their sources and destinations apart, on one staging directory.
    for dir in [&dead, &living] {
        fs::create_dir(dir).unwrap();
        fs::create_dir_all(lab.staging_path()).unwrap();
        symlink(lab.staging_path(), dir.join("staging")).unwrap();
    }
    let mut first = Neighbour::start("child_that_holds_files", &dead);
    let mut second = Neighbour::start("child_that_holds_files", &living);
    first.said("staged");
    second.said("staged");
    assert_eq!(lab.areas().len(), 2);
    lab.purge();
    assert_eq!(lab.areas().len(), 2, "both are alive");
    drop(first);
    lab.purge();
    assert_eq!(lab.areas().len(), 1, "the dead one's is gone");
    let left: Vec<_> = tree(&dead)
        .into_keys()
        .filter(|path| !path.ends_with("source") && !path.ends_with("staging"))
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    // Nor does a reset take what the living one holds.
    lab.reset();
    drop(second.0.stdin.take());
    second.said("missed nothing");
    second.ended();
    // It ended without a stop: so it is dead as well.
    lab.assert_leaves_nothing();
    assert!(!living.join("elsewhere 0").exists());
}

#[test]
fn p10_registries_that_start_and_stage_at_once_take_nothing_from_each_other() {
    let dir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for worker in 0..4_u64 {
            let root = dir.path();
            scope.spawn(move || {
                for round in 0..25_u64 {
                    let mut lab = Lab::in_dir(root);
                    lab.purge();
                    let name = format!("source {worker}");
                    let source = lab.source(&name, &content(100, round % 3));
                    copied(lab.stage_file(&source));
                    lab.assert_consistent();
                    match round % 3 {
                        0 => lab.crash(),
                        1 => drop(lab.stop()),
                        _ => drop(lab.reset()),
                    }
                }
            });
        }
    });
    let mut last = Lab::in_dir(dir.path());
    last.assert_leaves_nothing();
}

// ---- destinations of the caller's ----------------------------------------------------------

fn records(lab: &Lab) -> Vec<PathBuf> {
    tree(&lab.staging_path())
        .into_keys()
        .filter(|path| path.to_string_lossy().contains(".elsewhere-"))
        .collect()
}

#[test]
fn a_destination_is_on_record_as_long_as_its_file_is_there() {
    let mut lab = Lab::new();
    let source = lab.source("source", b"content");
    let destination = lab.root.join("elsewhere/file");
    let staged = copied(lab.stage(b"key", &source, &destination));
    assert_eq!(*staged.file.path, *destination);
    let records_now = records(&lab);
    assert_eq!(records_now.len(), 1);
    assert_eq!(fs::read_link(&records_now[0]).unwrap(), destination);
    known(lab.stage(b"key", &source, &destination));
    assert_eq!(records(&lab), records_now);
    lab.reset();
    assert!(records(&lab).is_empty());
    drop(staged);
    lab.assert_leaves_nothing();
}

#[test]
fn after_a_crash_a_destination_goes_with_the_directory_made_for_it() {
    let mut lab = Lab::new();
    let source = lab.source("source", b"content");
    fs::create_dir(lab.root.join("there before")).unwrap();
    for dir in ["made", "there before"] {
        let destination = lab.root.join(dir).join("file");
        copied(lab.stage(dir.as_bytes(), &source, &destination));
    }
    lab.crash();
    lab.purge();
    assert!(!lab.root.join("made").exists());
    assert!(tree(&lab.root.join("there before")).is_empty());
    assert!(lab.root.join("there before").exists());
    assert!(tree(&lab.staging_path()).is_empty());
}

#[test]
fn after_a_crash_a_destination_that_somebody_has_taken_over_stays() {
    let mut lab = Lab::new();
    let source = lab.source("source", b"content");
    let [replaced, rewritten, moved] =
        ["replaced", "rewritten", "moved"].map(|name| lab.root.join(name).join("file"));
    for destination in [&replaced, &rewritten, &moved] {
        let key = destination.to_string_lossy();
        copied(lab.stage(key.as_bytes(), &source, destination));
    }
    let new = lab.root.join("new");
    fs::write(&new, b"foreign").unwrap();
    fs::rename(&new, &replaced).unwrap();
    // It is somebody else's from the moment at which it can be written.
    chmod(&rewritten, 0o600);
    fs::write(&rewritten, b"foreign").unwrap();
    let kept = lab.root.join("kept");
    fs::rename(&moved, &kept).unwrap();
    lab.crash();
    lab.purge();
    assert_there(&[replaced, rewritten]);
    assert_eq!(fs::read(kept).unwrap(), b"content");
    assert!(!moved.exists());
}

#[test]
fn a_relative_destination_and_staging_directory_are_taken_from_the_current_directory() {
    let lab = Lab::new();
    let relative = |path: PathBuf| {
        let up: PathBuf = std::env::current_dir()
            .unwrap()
            .components()
            .skip(1)
            .map(|_| "..")
            .collect();
        up.join(path.strip_prefix("/").unwrap())
    };
    let source = lab.source("source", b"content");
    let mut request = lab.request(b"key", &source, &relative(lab.root.join("elsewhere/file")));
    request.staging_dir.path = relative(lab.staging_path());
    let attachment = copied(stage(&lab.registry, &request));
    assert!(attachment.file.path.is_absolute());
    assert_eq!(
        fs::read(lab.root.join("elsewhere/file")).unwrap(),
        b"content"
    );
    assert_eq!(lab.areas().len(), 1);
    lab.reset();
    assert!(!lab.root.join("elsewhere").exists());
}

#[test]
fn two_keys_at_one_destination_do_not_remove_each_others_file() {
    let mut lab = Lab::new();
    let destination = lab.root.join("elsewhere/file");
    lab.retention = EXPIRED;
    copied(lab.stage(b"first", &lab.source("one", b"one"), &destination));
    lab.retention = KEPT;
    copied(lab.stage(b"second", &lab.source("two", b"two"), &destination));
    assert_eq!(lab.cleanup().cleaned.len(), 1);
    assert_eq!(fs::read(&destination).unwrap(), b"two");
    lab.assert_leaves_nothing();
}

#[test]
fn p3_of_two_keys_at_one_destination_at_once_none_answers_for_the_others_file() {
    let mut lab = Lab::new();
    let destination = lab.root.join("elsewhere/file");
    let sources = ["one", "two"].map(|key| (key.as_bytes(), lab.source(key, key.as_bytes())));
    for _ in 0..2_000 {
        std::thread::scope(|scope| {
            for (key, source) in &sources {
                scope.spawn(|| copied(lab.stage(key, source, &destination)));
            }
        });
        let content = fs::read(&destination).unwrap();
        for (key, _) in &sources {
            let there = stage_at::refresh(&lab.registry, key, KEPT.into()).is_some();
            assert_eq!(there, content == *key, "{key:?}");
        }
        lab.reset();
    }
    lab.assert_leaves_nothing();
}

// ---- many, and often ------------------------------------------------------------------------

#[test]
fn p12_a_reset_of_many_removes_all_of_them() {
    let mut lab = Lab::new();
    for number in 0..1_000_u64 {
        lab.retention = if number % 2 == 0 { KEPT } else { EXPIRED };
        copied(lab.stage_file(&lab.source("source", &number.to_le_bytes())));
    }
    // More than one batch of each.
    assert_eq!(lab.cleanup().cleaned.len(), 500);
    lab.assert_consistent();
    assert_eq!(lab.attachments().len(), 500);
    assert!(lab.reset().is_empty());
    assert!(lab.attachments().is_empty());
    assert!(tree(&lab.staging_path()).is_empty());
}

#[test]
fn concurrent_stagings_of_one_content_copy_it_once() {
    for size in [SMALL, LARGE] {
        let lab = Lab::new();
        let source = lab.source("source", &content(size, 1));
        let copies: usize = std::thread::scope(|scope| {
            let callers: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| match lab.stage_file(&source) {
                        Outcome::Staged { attachment, origin } => {
                            assert_whole(&attachment);
                            usize::from(origin == Origin::Copied)
                        }
                        other => panic!("{other:?}"),
                    })
                })
                .collect();
            callers
                .into_iter()
                .map(|caller| caller.join().unwrap())
                .sum()
        });
        assert_eq!(copies, 1);
        lab.assert_areas_whole(Scratch::Forbidden);
    }
}

/// P5 on a real disk: stagings against sweeps and resets.
#[test]
fn p5_what_is_staged_again_during_cleanups_is_there() {
    let mut lab = Lab::new();
    let sources: Vec<_> = (0..8)
        .map(|number| lab.source(&format!("source {number}"), &content(100, number)))
        .collect();
    lab.retention = EXPIRED;
    let long = Retention {
        persist: false,
        ttl: Ttl::Millis(600_000),
    };
    let done = Done::default();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.yet() {
                assert!(lab.cleanup().failed.is_empty());
            }
        });
        let _end = done.when_dropped();
        for _ in 0..100 {
            for source in &sources {
                staged(lab.stage_file(source));
            }
            for source in &sources {
                let mut request = lab.file_request(source, OsStr::new("name"));
                request.to.keep = long.into();
                assert_whole(&staged(stage_file(&lab.registry, &request)));
            }
            for source in &sources {
                let mut request = lab.file_request(source, OsStr::new("name"));
                request.to.keep = long.into();
                assert_whole(&known(stage_file(&lab.registry, &request)));
            }
            lab.reset();
        }
    });
    lab.assert_leaves_nothing();
}

// ---- unchanged files ------------------------------------------------------------------------

/// Rewritten in place, with the same size, within one tick of the clock that stamps files.
fn rewrite_and_stage(lab: &Lab, dir: &Path) {
    for size in [SMALL, LARGE] {
        let source = dir.join("source");
        for round in 0..60 {
            let content = content(size, round);
            if round == 0 {
                fs::write(&source, &content).unwrap();
            } else {
                let file = fs::OpenOptions::new().write(true).open(&source).unwrap();
                std::os::unix::fs::FileExt::write_all_at(&file, &content, 0).unwrap();
            }
            let attachment = staged(lab.stage_file(&source));
            assert_eq!(attachment.file.checksum, key(&content));
            assert_whole(&attachment);
        }
    }
}

#[test]
fn p3_a_file_rewritten_within_one_tick_gets_its_new_checksum() {
    let lab = Lab::new();
    rewrite_and_stage(&lab, &lab.root);
}

#[test]
#[ignore = "needs root, and a mount"]
fn p3_as_root_on_a_mount_with_a_coarse_clock_it_gets_its_new_checksum_too() {
    let lab = Lab::new();
    let coarse = lab.root.join("coarse");
    let _mount = Mount::new("ramfs", &coarse, "");
    rewrite_and_stage(&lab, &coarse);
}

#[test]
fn of_a_file_that_is_being_copied_no_second_copy_is_made() {
    let lab = Lab::new();
    let source = lab.source("source", &content(32 << 20, 1));
    std::thread::sleep(std::time::Duration::from_millis(2_100));
    let done = Done::default();
    let scratch_files = || {
        lab.areas()
            .iter()
            .flat_map(|area| tree(area).into_keys())
            .filter(|path| {
                path.file_name()
                    .unwrap()
                    .as_bytes()
                    .starts_with(b".staging-")
            })
            .count()
    };
    std::thread::scope(|scope| {
        let looker = scope.spawn(|| {
            let mut most = 0;
            while !done.yet() {
                most = most.max(scratch_files());
            }
            most
        });
        let copied = done.when_dropped();
        let callers: Vec<_> = (0..6)
            .map(|_| scope.spawn(|| lab.stage_file(&source)))
            .collect();
        for caller in callers {
            staged(caller.join().unwrap());
        }
        drop(copied);
        assert_eq!(looker.join().unwrap(), 1);
    });
    assert_eq!(lab.attachments().len(), 1);
    lab.assert_consistent();
}

/// The size of a file of which one has room there, and two have not.
const MUCH: usize = 8 << 20;

/// A lab for the sources, and a file system with little room.
fn room_for_one() -> (Lab, PathBuf, Mount) {
    let outer = Lab::new();
    let little = outer.root.join("little");
    let mount = Mount::new("tmpfs", &little, "size=12m");
    (outer, little, mount)
}

/// What a copy is of is known only in the end. Where there is no room for one in vain, it has to be
/// known before.
#[test]
#[ignore = "needs root, and a mount"]
fn as_root_on_a_mount_large_files_of_one_content_need_room_for_one() {
    let (outer, little, _mount) = room_for_one();
    let source = outer.source("source", &content(MUCH, 1));
    let twin = outer.source("twin", &content(MUCH, 1));
    // The source was changed just now at first, and long ago in the last rounds.
    for round in 0..9 {
        let mut lab = Lab::in_dir(&little);
        lab.registry = start_with(round % 3 > 0);
        let copies: usize = std::thread::scope(|scope| {
            let callers: Vec<_> = (0..6)
                .map(|number| {
                    let (lab, source, twin) = (&lab, &source, &twin);
                    let of_twin = round % 2 == 0 && number % 2 == 0;
                    scope.spawn(move || {
                        lab.stage_file_as(if of_twin { twin } else { source }, "name")
                    })
                })
                .collect();
            callers
                .into_iter()
                .map(|caller| match caller.join().unwrap() {
                    Outcome::Staged { origin, .. } => usize::from(origin == Origin::Copied),
                    other => panic!("round {round}: {other:?}"),
                })
                .sum()
        });
        assert_eq!(copies, 1);
        known(lab.stage_file(&source));
        known(lab.stage_file(&twin));
        let touched = fs::File::options().append(true).open(&twin).unwrap();
        touched.set_modified(std::time::SystemTime::now()).unwrap();
        known(lab.stage_file(&twin));
        lab.assert_consistent();
        // Another content is too much.
        let other = outer.source("other", &content(MUCH, 2));
        let error = failed(lab.stage_file(&other));
        assert_eq!(error.errno(), Some(nix::errno::Errno::ENOSPC));
        lab.assert_consistent();
        lab.assert_areas_whole(Scratch::Forbidden);
        lab.assert_leaves_nothing();
        if round == 5 {
            std::thread::sleep(std::time::Duration::from_millis(2_100));
        }
    }
}

#[test]
#[ignore = "needs root, and a mount"]
fn as_root_on_a_mount_large_files_with_room_for_one_get_it_or_an_error() {
    let (outer, little, _mount) = room_for_one();
    let mut lab = Lab::in_dir(&little);
    let sources: Vec<_> = (0..4)
        .map(|number| outer.source(&format!("source {number}"), &content(MUCH, number)))
        .collect();
    std::thread::scope(|scope| {
        for source in &sources {
            scope.spawn(|| match lab.stage_file(source) {
                Outcome::Staged { .. } => {}
                Outcome::Failed(error) => {
                    assert_eq!(error.errno(), Some(nix::errno::Errno::ENOSPC));
                }
                Outcome::Retry => panic!("nobody is told so in the end"),
            });
        }
    });
    assert_eq!(lab.attachments().len(), 1);
    lab.assert_consistent();
    lab.assert_areas_whole(Scratch::Forbidden);
    lab.assert_leaves_nothing();
}

#[test]
fn an_unchanged_file_is_staged_again_without_waiting_for_anything() {
    let lab = Lab::new();
    let source = lab.source("source", &content(SMALL, 1));
    let refresh = |path: &Path| stage_file::refresh(&lab.registry, path, b"source", KEPT.into());
    let miss = |path: &Path| refresh(path).unwrap_err();
    // A glance fails while anybody on this machine renames something.
    let is_new = |path: &Path| {
        eventually("it is seen to be new", || miss(path) == Miss::New);
    };
    let refreshed = |path: &Path| {
        let mut refreshed = None;
        eventually("it is seen to be unchanged", || {
            refreshed = refresh(path).ok();
            refreshed.is_some()
        });
        refreshed.unwrap()
    };
    is_new(&source);
    let attachment = copied(lab.stage_file(&source));
    // Its times are too young to prove anything.
    is_new(&source);
    eventually("the times are old enough", || {
        let staged = known(lab.stage_file(&source));
        assert_eq!(staged.file.checksum, attachment.file.checksum);
        refresh(&source).is_ok()
    });
    let link = lab.root.join("link");
    std::os::unix::fs::symlink(&source, &link).unwrap();
    // Some file systems cannot tell where a link leads without waiting for the disk.
    let linked = follows_links_at_once(&lab.root).then_some(&link);
    for path in [&source].into_iter().chain(linked) {
        let refreshed = refreshed(path);
        assert_eq!(refreshed.file.checksum, attachment.file.checksum);
        assert_eq!(refreshed.retention, KEPT);
    }
    let staged = known(lab.stage_file(&link));
    assert_eq!(staged.file.checksum, attachment.file.checksum);
    // Not what only looks like it, and not what is no file at all.
    let fifo = lab.root.join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let copy = lab.source("copy", &content(SMALL, 1));
    is_new(&copy);
    for path in [&fifo, &lab.root, &lab.root.join("missing")] {
        assert_eq!(miss(path), Miss::Unseen);
    }
    // Not once its copy has gone, under all of its names, and not once it has changed.
    fs::remove_dir_all(attachment.file.path.parent().unwrap()).unwrap();
    assert_eq!(miss(&source), Miss::Unseen);
    copied(lab.stage_file(&source));
    refreshed(&source);
    lab.registry.manifest().stop();
    assert_eq!(miss(&source), Miss::Unseen);
    fs::write(&source, content(SMALL, 2)).unwrap();
    is_new(&source);
}

/// Whether a look-up that must not wait gets beyond a link, as it does on ext4 and tmpfs. XFS, btrfs
/// and overlayfs ask for another that may.
fn follows_links_at_once(dir: &Path) -> bool {
    use nix::sys::statfs::{EXT4_SUPER_MAGIC, TMPFS_MAGIC, statfs};
    [EXT4_SUPER_MAGIC, TMPFS_MAGIC].contains(&statfs(dir).unwrap().filesystem_type())
}

/// Times can be set back by anybody; the change time cannot.
#[test]
fn p3_a_file_whose_times_were_set_back_gets_its_new_checksum() {
    let lab = Lab::new();
    let source = lab.source("source", &content(SMALL, 1));
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(3_600);
    let set_back = || {
        let file = fs::OpenOptions::new().write(true).open(&source).unwrap();
        file.set_modified(old).unwrap();
    };
    set_back();
    copied(lab.stage_file(&source));
    fs::write(&source, content(SMALL, 2)).unwrap();
    set_back();
    let attachment = copied(lab.stage_file(&source));
    assert_eq!(attachment.file.checksum, key(&content(SMALL, 2)));
}

#[test]
fn a_registry_that_recognises_nothing_stages_all_the_same() {
    let mut lab = Lab::new();
    lab.registry = start_with(false);
    let source = lab.source("source", &content(LARGE, 1));
    copied(lab.stage_file(&source));
    known(lab.stage_file(&source));
    lab.assert_leaves_nothing();
}
