//! Owners of a registry's files (P19): what a living one keeps is there, and what only ended ones have
//! kept goes soon, whatever else the cleanup thread is doing.

#![cfg(not(feature = "shuttle"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::ffi::OsStr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use codex_files::error::Error;
use codex_files::manifest::budget::Budget;
use codex_files::registry::admission::Answer;
use codex_files::registry::keeper::{self, Options};
use codex_files::registry::owner::Owner;
use codex_files::registry::reply::Reply;
use codex_files::registry::stage_file::{self, Miss, StageFile};
use codex_files::registry::{Observer, Outcome, Report, Waiter, Why, owners, remove};
use codex_files::retention::Keep;
use common::*;

const MANY: usize = 10_000;

/// What takes the cleanup thread many batches.
const SOME: usize = 2_500;

/// Hears of what is removed, part by part.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<Part>>>);

struct Part {
    cleaned: Vec<Attachment>,
    failed: usize,
}

type Attachment = codex_files::registry::Attachment;

impl Observer for Heard {
    fn removed(&self, why: Why, report: Report) {
        assert_eq!(why, Why::Expired);
        self.0.lock().unwrap().push(Part {
            cleaned: report.cleaned,
            failed: report.failed.len(),
        });
    }

    fn stopped(&self) {}
}

impl Heard {
    fn cleaned(&self) -> usize {
        let parts = self.0.lock().unwrap();
        assert!(parts.iter().all(|part| part.failed == 0));
        parts.iter().map(|part| part.cleaned.len()).sum()
    }

    fn most_at_once(&self) -> usize {
        let parts = self.0.lock().unwrap();
        parts.iter().map(|part| part.cleaned.len()).max().unwrap()
    }
}

fn lab(heard: &Heard) -> Lab {
    const LONG: Duration = Duration::from_secs(86_400);
    let mut lab = Lab::new();
    lab.registry = keeper::start(Options {
        cleanup_interval: LONG,
        orphan_grace: LONG,
        budget: Budget::default(),
        recognise_unchanged: true,
        observer: Arc::new(heard.clone()),
    })
    .unwrap();
    lab.started()
}

fn request(lab: &Lab, source: &Path, owner: &Arc<Owner>) -> StageFile {
    let mut request = lab.file_request(source, OsStr::new("name"));
    request.to.keep = Keep {
        persist: false,
        ttl: None,
        owner: Some(owner.id()),
    };
    request.to.owner = Some(owner.clone());
    request
}

fn stage_for(lab: &Lab, source: &Path, owner: &Arc<Owner>) -> Attachment {
    let request = request(lab, source, owner);
    staged(common::stage_file(&lab.registry, &request))
}

fn stage_files_for(lab: &Lab, owner: &Arc<Owner>, count: usize) {
    for number in 0..count {
        let source = lab.source("source", &number.to_le_bytes());
        stage_for(lab, &source, owner);
    }
}

fn owned_count(lab: &Lab) -> u64 {
    lab.registry.manifest().metrics().totals.owned_count
}

#[test]
fn p19_ten_thousand_files_go_with_their_owner() {
    let heard = Heard::default();
    let mut lab = lab(&heard);
    let (owner, other) = (owners::owner(&lab.registry), owners::owner(&lab.registry));
    stage_files_for(&lab, &owner, MANY);
    // One of them has another owner, and one has a time to live.
    let source = lab.source("source", &0_usize.to_le_bytes());
    let shared = stage_for(&lab, &source, &other);
    let kept = staged(lab.stage_file(&lab.source("kept", &1_usize.to_le_bytes())));
    assert_eq!(owned_count(&lab), MANY as u64);
    assert!(cleanup(&lab.registry).cleaned.is_empty());

    drop(owner);
    eventually("they go", || lab.attachments().len() == 2);
    assert_eq!(owned_count(&lab), 1);
    lab.assert_consistent();
    assert_whole(&shared);
    assert_whole(&kept);
    eventually("it is told of them", || heard.cleaned() == MANY - 2);
    assert!(heard.most_at_once() <= 64, "in parts");
    drop(other);
    eventually("the last one goes", || lab.attachments().len() == 1);
    lab.assert_leaves_nothing();
}

#[test]
fn p19_a_file_stays_until_the_last_of_ten_thousand_owners_ends() {
    let heard = Heard::default();
    let lab = lab(&heard);
    let source = lab.source("source", b"content");
    let mut owners: Vec<_> = (0..MANY).map(|_| owners::owner(&lab.registry)).collect();
    let mut attachments = Vec::new();
    for owner in &owners {
        attachments.push(stage_for(&lab, &source, owner));
    }
    let attachment = attachments.pop().unwrap();
    assert_eq!(owned_count(&lab), 1);
    let last = owners.swap_remove(MANY / 2);
    drop(owners);
    // The ends take turns, and a cleanup comes after those that were there before it.
    assert!(cleanup(&lab.registry).cleaned.is_empty());
    assert!(cleanup(&lab.registry).cleaned.is_empty());
    assert_whole(&attachment);
    assert_eq!(owned_count(&lab), 1);
    drop(last);
    eventually("it goes", || heard.cleaned() == 1);
    assert!(!attachment.file.path.exists());
    assert!(lab.attachments().is_empty());
}

/// The end of an owner takes turns with whatever the thread is at, and comes to its end before that.
#[test]
fn p19_what_an_owner_leaves_goes_during_a_long_reset() {
    let lab = Lab::new();
    for number in 0..SOME {
        staged(lab.stage_file(&lab.source("source", &number.to_le_bytes())));
    }
    let source = lab.source("owned", b"owned");
    let is_done = Arc::new(AtomicBool::new(false));
    let done = is_done.clone();
    let reply = Reply::new(move |_| done.store(true, Ordering::SeqCst));
    remove::reset(&lab.registry, lab.staging_path(), reply);
    eventually("it has begun", || lab.attachments().len() < SOME);
    // The reset removes what was there when it began.
    let owner = owners::owner(&lab.registry);
    let attachment = stage_for(&lab, &source, &owner);
    drop(owner);
    let ended = Instant::now();
    eventually("it goes", || !attachment.file.path.exists());
    assert!(ended.elapsed() < Duration::from_secs(1));
    assert!(!is_done.load(Ordering::SeqCst), "the reset came first");
    eventually("the reset ends", || is_done.load(Ordering::SeqCst));
    assert!(lab.attachments().is_empty());
}

#[test]
fn p19_what_an_owner_leaves_goes_before_all_that_another_left_earlier() {
    let heard = Heard::default();
    let lab = lab(&heard);
    let (large, small) = (owners::owner(&lab.registry), owners::owner(&lab.registry));
    stage_files_for(&lab, &large, SOME);
    let attachment = stage_for(&lab, &lab.source("owned", b"owned"), &small);
    drop(large);
    drop(small);
    eventually("all go", || lab.attachments().is_empty());
    eventually("it is told of them", || heard.cleaned() == SOME + 1);
    let parts = heard.0.lock().unwrap();
    let is_it = |cleaned: &Attachment| cleaned.entry == attachment.entry;
    let at = parts
        .iter()
        .position(|part| part.cleaned.iter().any(is_it))
        .unwrap();
    assert!(at < parts.len() / 2, "part {at} of {}", parts.len());
}

/// Whoever waits for a copier holds its owner, and nobody else has to.
#[test]
fn p19_an_owner_that_ends_during_the_copy_leaves_nothing() {
    let lab = Lab::new();
    let source = lab.source("large", &content(LARGE, 1));
    for _ in 0..20 {
        let owner = owners::owner(&lab.registry);
        let request = request(&lab, &source, &owner);
        let (sender, receiver) = mpsc::channel();
        let waiter = || {
            let (sender, owner) = (sender.clone(), request.to.owner.clone());
            Waiter::new(move |outcome| {
                // It is still there: the owner ends after this.
                let there = matches!(&outcome, Outcome::Staged { attachment, .. }
                    if attachment.file.path.exists());
                sender.send((outcome, there)).unwrap();
                drop(owner);
            })
        };
        let answer = stage_file::stage_file(&lab.registry, &request, Miss::New, &waiter);
        assert!(matches!(answer, Answer::ByWaiter));
        drop((request, owner));
        let (outcome, there) = receiver.recv_timeout(PATIENCE).expect("nobody hangs");
        let attachment = staged(outcome);
        assert!(there);
        eventually("it goes", || !attachment.file.path.exists());
        eventually("it is not listed", || lab.attachments().is_empty());
    }
    lab.assert_areas_whole(Scratch::Forbidden);
}

#[test]
fn p19_what_many_owners_share_goes_with_the_last_one_whenever_they_come_and_go() {
    let heard = Heard::default();
    let lab = lab(&heard);
    let sources: Vec<_> = (0..4_u8)
        .map(|number| lab.source(&format!("source {number}"), &[number]))
        .collect();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (lab, sources) = (&lab, &sources);
            scope.spawn(move || {
                for round in 0..100 {
                    let owner = owners::owner(&lab.registry);
                    let source = &sources[(thread + round) % sources.len()];
                    let attachment = stage_for(lab, source, &owner);
                    assert_whole(&attachment);
                    if round % 3 == 0 {
                        owners::release(&lab.registry, &owner, &attachment.file.checksum);
                        let attachment = stage_for(lab, source, &owner);
                        assert_whole(&attachment);
                    }
                    let fetched = lab.registry.manifest().get(&attachment.file.checksum);
                    assert!(fetched.is_some(), "it has an owner");
                }
            });
        }
    });
    eventually("all go", || lab.attachments().is_empty());
    assert_eq!(owned_count(&lab), 0);
}

#[test]
fn p19_what_its_owners_release_goes_and_is_told_of() {
    let heard = Heard::default();
    let lab = lab(&heard);
    let (owner, other) = (owners::owner(&lab.registry), owners::owner(&lab.registry));
    let source = lab.source("source", b"content");
    let attachment = stage_for(&lab, &source, &owner);
    stage_for(&lab, &source, &owner);
    stage_for(&lab, &source, &other);
    let release = |owner| owners::release(&lab.registry, owner, &attachment.file.checksum);
    release(&owner);
    release(&owner);
    assert!(cleanup(&lab.registry).cleaned.is_empty());
    assert_whole(&attachment);
    release(&other);
    eventually("it goes", || heard.cleaned() == 1);
    assert!(!attachment.file.path.exists());
    assert!(lab.attachments().is_empty());
}

#[test]
fn a_stop_does_not_wait_for_owners_and_leaves_nothing() {
    let heard = Heard::default();
    let lab = lab(&heard);
    let (owner, late) = (owners::owner(&lab.registry), owners::owner(&lab.registry));
    let source = lab.source("source", b"content");
    let attachment = stage_for(&lab, &source, &owner);
    assert!(stop(&lab.registry).is_empty());
    assert!(!attachment.file.path.exists());
    assert!(tree(&lab.staging_path()).is_empty());
    // Nobody is there any more to hear of it.
    owners::release(&lab.registry, &owner, &attachment.file.checksum);
    drop(owner);
    let request = request(&lab, &source, &late);
    let error = failed(common::stage_file(&lab.registry, &request));
    assert!(matches!(error, Error::Stopped));
    drop((request, late));
    assert!(lab.attachments().is_empty());
    assert_eq!(heard.cleaned(), 0);
}

#[test]
fn owners_that_end_during_a_stop_leave_nothing() {
    for _ in 0..20 {
        let lab = Lab::new();
        let owners: Vec<_> = (0..50_u8)
            .map(|number| {
                let owner = owners::owner(&lab.registry);
                stage_for(&lab, &lab.source("source", &[number]), &owner);
                owner
            })
            .collect();
        std::thread::scope(|scope| {
            scope.spawn(|| drop(owners));
            assert!(stop(&lab.registry).is_empty());
        });
        assert!(lab.attachments().is_empty());
        assert_eq!(owned_count(&lab), 0);
        let left = tree(&lab.staging_path());
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

/// An owner may live for very long, and what it kept may have gone long before.
#[test]
fn p14_a_reset_leaves_nothing_in_memory_of_what_an_owner_kept() {
    let lab = Lab::new();
    let owner = owners::owner(&lab.registry);
    stage_files_for(&lab, &owner, 100);
    assert!(lab.reset().is_empty());
    let left = lab.registry.manifest().take_owned(owner.id());
    assert_eq!(left.entries().count(), 0);
}

/// It holds no registry: one that nobody needs any more goes, whichever owners there are.
#[test]
fn an_owner_may_outlive_its_registry() {
    let lab = Lab::new();
    let owner = owners::owner(&lab.registry);
    let attachment = stage_for(&lab, &lab.source("source", b"content"), &owner);
    let registry = Arc::downgrade(&lab.registry);
    drop(lab);
    eventually("the registry goes", || registry.strong_count() == 0);
    drop(owner);
    drop(attachment);
}
