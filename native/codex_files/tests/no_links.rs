//! Names where the file system has no links (P21): each is a copy, and counts in the budget.

#![cfg(feature = "fault-injection")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use codex_files::error::Error;
use codex_files::fault::{self, Failure, Plan};
use codex_files::manifest::budget::{Budget, WhenFull};
use codex_files::registry::admission::Answer;
use codex_files::registry::stage_file::{self, Miss};
use codex_files::registry::{Attachment, Outcome, Waiter, keeper};
use common::*;
use nix::errno::Errno;

/// Plans hold for the whole process: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

const NO_LINKS: Plan = Plan {
    at: usize::MAX,
    times: 0,
    failure: Failure::Error(Errno::EIO),
    write_limit: usize::MAX,
    without: Some("link"),
};

/// On a file system without links.
fn without_links<T>(work: impl FnOnce() -> T) -> T {
    fault::run(NO_LINKS, work).0
}

fn path(attachment: &Attachment, name: &str) -> PathBuf {
    let file = attachment.file.named(Some(name.as_bytes())).unwrap();
    file.path.to_path_buf()
}

fn inode(attachment: &Attachment, name: &str) -> u64 {
    fs::symlink_metadata(path(attachment, name)).unwrap().ino()
}

/// It is there under each of these names, whole.
#[track_caller]
fn assert_named(attachment: &Attachment, names: &[&str]) {
    for name in names {
        let path = path(attachment, name);
        assert_eq!(digest(&path).as_bytes(), &*attachment.file.checksum);
    }
}

fn limit(lab: &Lab, max_bytes: usize) {
    let budget = Budget {
        max_bytes: Some(max_bytes as u64),
        when_full: WhenFull::Refuse,
    };
    keeper::set_budget(&lab.registry, budget);
}

#[test]
fn p21_where_there_are_no_links_each_name_is_a_copy() {
    let _alone = alone();
    for size in [SMALL, LARGE] {
        let mut lab = Lab::new();
        let source = lab.source("source", &content(size, 1));
        without_links(|| {
            copied(lab.stage_file_as(&source, "first"));
            known(lab.stage_file_as(&source, "second"));
            // As a scratch file may be called.
            let all = known(lab.stage_file_as(&source, ".staging"));
            assert_named(&all, &["first", "second", ".staging"]);
            assert_ne!(inode(&all, "first"), inode(&all, "second"));
            // One that is lost is copied anew, whichever it is.
            let third = inode(&all, ".staging");
            // No other file gets its number.
            fs::hard_link(path(&all, ".staging"), lab.root.join("held")).unwrap();
            fs::remove_file(path(&all, "second")).unwrap();
            assert_named(&known(lab.stage_file_as(&source, "second")), &["second"]);
            fs::remove_file(path(&all, "first")).unwrap();
            let all = copied(lab.stage_file_as(&source, "first"));
            assert_named(&all, &["first", "second", ".staging"]);
            assert_eq!(inode(&all, ".staging"), third, "it was there all the time");
        });
        assert_eq!(lab.attachments().len(), 1);
        lab.assert_consistent();
        lab.assert_leaves_nothing();
    }
}

#[test]
fn p21_whatever_the_system_says_of_a_link_that_cannot_be_there_is_a_copy() {
    let _alone = alone();
    for errno in [
        Errno::EPERM,
        Errno::EACCES,
        Errno::EXDEV,
        Errno::EMLINK,
        Errno::EOPNOTSUPP,
        Errno::ENOSYS,
    ] {
        let lab = Lab::new();
        let source = lab.source("source", &content(SMALL, 1));
        copied(lab.stage_file_as(&source, "first"));
        let plan = Plan {
            without: None,
            ..NO_LINKS
        };
        let (_, calls) = fault::run(plan, || lab.stage_file_as(&source, "second"));
        let plan = Plan {
            at: calls.iter().position(|call| *call == "link").unwrap(),
            times: 1,
            failure: Failure::Error(errno),
            ..plan
        };
        let (outcome, _) = fault::run(plan, || lab.stage_file_as(&source, "third"));
        let all = known(outcome);
        assert_named(&all, &["first", "second", "third"]);
        assert_eq!(inode(&all, "first"), inode(&all, "second"));
        assert_ne!(inode(&all, "first"), inode(&all, "third"));
    }
}

#[test]
fn p21_copies_can_be_executed_if_one_can() {
    let _alone = alone();
    let lab = Lab::new();
    let source = lab.source("source", &content(SMALL, 1));
    without_links(|| {
        copied(lab.stage_file_as(&source, "first"));
        known(lab.stage_file_as(&source, "second"));
        fs::set_permissions(&source, Permissions::from_mode(0o700)).unwrap();
        let all = known(lab.stage_file_as(&source, "third"));
        for name in ["first", "second", "third"] {
            assert_eq!(mode(&path(&all, name)), 0o500, "{name}");
        }
    });
}

/// A thread of a scheduler that is asked for a name does not copy a large file for it.
#[test]
fn p15_a_large_file_is_copied_by_a_copier_for_a_name_too() {
    let _alone = alone();
    let lab = Lab::new();
    let source = lab.source("source", &content(LARGE, 1));
    eventually("the times are old enough", || {
        staged(lab.stage_file_as(&source, "first"));
        stage_file::refresh(&lab.registry, &source, b"first", KEPT.into()).is_ok()
    });
    let request = lab.file_request(&source, "second".as_ref());
    let (answers, answered) = std::sync::mpsc::channel();
    let make_waiter = || {
        let answers = answers.clone();
        Waiter::new(move |outcome| {
            let _ = answers.send(outcome);
        })
    };
    without_links(|| {
        let answer = stage_file::stage_file(&lab.registry, &request, Miss::Unseen, &make_waiter);
        assert!(matches!(answer, Answer::ByWaiter));
        let outcome = answered.recv_timeout(PATIENCE).unwrap();
        assert_named(&known(outcome), &["first", "second"]);
    });
}

#[test]
fn p22_a_name_that_is_a_copy_counts_in_the_budget_and_one_that_is_a_link_does_not() {
    let _alone = alone();
    for size in [SMALL, LARGE] {
        let lab = Lab::new();
        limit(&lab, 2 * size);
        let source = lab.source("source", &content(size, 1));
        let other = lab.source("other", &content(size, 2));
        copied(lab.stage_file_as(&source, "first"));
        let refused = |outcome| match failed(outcome) {
            Error::OverBudget { size, max_bytes } => (size as usize, max_bytes as usize),
            error => panic!("{error}"),
        };
        without_links(|| {
            known(lab.stage_file_as(&source, "second"));
            for _ in 0..2 {
                let outcome = lab.stage_file_as(&source, "third");
                assert_eq!(refused(outcome), (size, 2 * size));
                assert_eq!(refused(lab.stage_file(&other)), (size, 2 * size));
            }
            let all = known(lab.stage_file_as(&source, "second"));
            assert_named(&all, &["first", "second"]);
            // The room of what was lost is there for it, whichever it is.
            for lost in ["second", "first"] {
                fs::remove_file(path(&all, lost)).unwrap();
                let all = staged(lab.stage_file_as(&source, lost));
                assert_named(&all, &["first", "second"]);
            }
        });
        let all = known(lab.stage_file_as(&source, "third"));
        assert_named(&all, &["first", "second", "third"]);
        drop(all);
        lab.reset();
        // The room has been given back.
        copied(lab.stage_file(&other));
        copied(lab.stage_file(&source));
    }
}

/// A look at the source, one at what is linked, and one at the link.
#[test]
fn p21_a_new_name_takes_few_calls_and_does_not_read_the_source() {
    let _alone = alone();
    for size in [SMALL, LARGE] {
        let lab = Lab::new();
        let source = lab.source("source", &content(size, 1));
        eventually("the times are old enough", || {
            staged(lab.stage_file_as(&source, "first"));
            stage_file::refresh(&lab.registry, &source, b"first", KEPT.into()).is_ok()
        });
        let plan = Plan {
            without: None,
            ..NO_LINKS
        };
        let (outcome, calls) = fault::run(plan, || lab.stage_file_as(&source, "second"));
        assert_named(&known(outcome), &["first", "second"]);
        let glance = ["openat2", "statx"];
        let calls = calls.strip_prefix(&glance).unwrap_or(&calls);
        assert_eq!(calls, ["stat", "lstat", "link", "lstat"]);
        let (outcome, calls) = fault::run(plan, || lab.stage_file_as(&source, "second"));
        known(outcome);
        let calls = calls.strip_prefix(&glance).unwrap_or(&calls);
        assert_eq!(calls, ["lstat", "lstat"]);
    }
}

/// What was changed so that it does not show is not copied on.
#[test]
fn p3_a_copy_for_a_name_is_checked() {
    let _alone = alone();
    let lab = Lab::new();
    let source = lab.source("source", &content(SMALL, 1));
    let first = copied(lab.stage_file_as(&source, "first"));
    let path = first.file.path.to_path_buf();
    let times = fs::metadata(&path).unwrap().modified().unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    fs::write(&path, content(SMALL, 2)).unwrap();
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(times)
        .unwrap();
    let outcome: Outcome = without_links(|| lab.stage_file_as(&source, "second"));
    assert_named(&copied(outcome), &["first", "second"]);
}

/// A copy is not the file that belongs at the caller's destination.
#[test]
fn p9_nothing_is_left_at_a_destination_for_which_there_is_only_a_copy() {
    let _alone = alone();
    let mut lab = Lab::new();
    let content = content(SMALL, 1);
    let source = lab.source("source", &content);
    let dir = lab.root.join("elsewhere");
    fs::create_dir(&dir).unwrap();
    let destination = dir.join("first");
    copied(lab.stage(&key(&content), &source, &destination));
    known(without_links(|| lab.stage_file_as(&source, "second")));
    fs::remove_file(&destination).unwrap();
    // What is staged goes on under the name that is there.
    let all = known(lab.stage_file_as(&source, "third"));
    assert_named(&all, &["second", "third"]);
    drop(all);
    lab.assert_leaves_nothing();
    assert!(!destination.exists());
}

/// What cannot be removed is listed under a name that is there.
#[test]
fn p7_a_name_that_cannot_be_removed_keeps_the_first_one() {
    let _alone = alone();
    let mut unlinks = 0;
    for at in 0..8 {
        let mut lab = Lab::new();
        lab.retention = EXPIRED;
        let source = lab.source("source", &content(SMALL, 1));
        let first = copied(lab.stage_file_as(&source, "first"));
        known(lab.stage_file_as(&source, "second"));
        let plan = Plan {
            at,
            times: 1,
            without: None,
            ..NO_LINKS
        };
        let (report, calls) = fault::run(plan, || lab.cleanup());
        if !report.failed.is_empty() && calls[at] != "rmdir" {
            unlinks += usize::from(calls[at] == "unlink");
            assert_eq!(lab.attachments().len(), 1);
            assert!(first.file.path.exists(), "{calls:?}");
        }
        drop((first, report));
        lab.assert_leaves_nothing();
    }
    assert_eq!(unlinks, 2);
}

/// Its first name is lost, and another is there still: that goes on without more bytes, and gives none away.
#[test]
fn p22_a_lost_file_that_is_there_under_another_name_gives_nothing_away() {
    let _alone = alone();
    let lab = Lab::new();
    limit(&lab, SMALL);
    let content = content(SMALL, 1);
    let source = lab.source("source", &content);
    let destination = lab.root.join("first");
    copied(lab.stage(&key(&content), &source, &destination));
    let all = known(lab.stage_file_as(&source, "second"));
    fs::remove_file(&destination).unwrap();
    fs::write(&destination, b"somebody else's").unwrap();
    let again = known(lab.stage_file_as(&source, "first"));
    assert_eq!(again.entry, all.entry);
    assert_named(&again, &["second", "first"]);
    let other = lab.source("other", b"x");
    let error = failed(lab.stage_file(&other));
    assert!(matches!(error, Error::OverBudget { .. }), "{error}");
    limit(&lab, SMALL + 1);
    staged(lab.stage_file(&other));
}
