//! A registry from its start to its end: its cleanup thread, its keepers (P11), and those who are
//! waiting when it ends.

#![cfg(not(feature = "shuttle"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::ffi::OsStr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant};

use codex_files::bytes::Bytes;
use codex_files::disk::source::INLINE_LIMIT;
use codex_files::error::Error;
use codex_files::manifest::budget::Budget;
use codex_files::manifest::{Admission, Manifest};
use codex_files::registry::admission::Answer;
use codex_files::registry::keeper::{self, Options};
use codex_files::registry::remove;
use codex_files::registry::reply::Reply;
use codex_files::registry::stage_file::{self, Miss};
use codex_files::registry::{Observer, Outcome, Report, Waiter, Why};
use codex_files::registry::{Registry, stage_at, stage_data};
use common::*;

#[derive(Clone, Default)]
struct Heard {
    cleanups: Arc<AtomicUsize>,
    cleaned: Arc<AtomicUsize>,
    most_at_once: Arc<AtomicUsize>,
    ended: Arc<AtomicBool>,
    panics: bool,
}

impl Observer for Heard {
    fn removed(&self, _why: Why, report: Report) {
        self.cleanups.fetch_add(1, Ordering::SeqCst);
        self.cleaned
            .fetch_add(report.cleaned.len(), Ordering::SeqCst);
        self.most_at_once
            .fetch_max(report.cleaned.len(), Ordering::SeqCst);
        assert!(!self.panics, "an observer that panics");
    }

    fn stopped(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }
}

const LONG: Duration = Duration::from_secs(86_400);

fn lab_with(cleanup_interval: Duration, orphan_grace: Duration, heard: &Heard) -> Lab {
    let mut lab = Lab::new();
    lab.registry = keeper::start(Options {
        cleanup_interval,
        orphan_grace,
        budget: Budget::default(),
        recognise_unchanged: true,
        observer: Arc::new(heard.clone()),
    })
    .unwrap();
    lab
}

#[test]
fn what_has_expired_is_cleaned_up_at_every_interval() {
    let heard = Heard {
        panics: true,
        ..Heard::default()
    };
    let mut lab = lab_with(Duration::from_millis(5), LONG, &heard);
    for round in 1..=3 {
        lab.retention = EXPIRED;
        staged(lab.stage_file(&lab.source("expires", b"expires")));
        lab.retention = KEPT;
        staged(lab.stage_file(&lab.source("stays", b"stays")));
        // It goes on even if those who hear of it fail.
        eventually("it is cleaned up", || {
            heard.cleaned.load(Ordering::SeqCst) == round
        });
        assert_eq!(lab.attachments().len(), 1);
    }
    // From now on only once in a day.
    keeper::set_cleanup_interval(&lab.registry, LONG);
    cleanup(&lab.registry);
    let before = heard.cleanups.load(Ordering::SeqCst);
    lab.retention = EXPIRED;
    staged(lab.stage_file(&lab.source("expires", b"expires")));
    assert_eq!(cleanup(&lab.registry).cleaned.len(), 1);
    assert_eq!(heard.cleanups.load(Ordering::SeqCst), before);
}

#[test]
fn a_cleanup_of_many_files_is_told_of_in_parts() {
    const FILES: usize = 1_100;
    let heard = Heard {
        panics: true,
        ..Heard::default()
    };
    let mut lab = lab_with(LONG, LONG, &heard);
    lab.retention = EXPIRED;
    for number in 0..FILES {
        staged(lab.stage_file(&lab.source("source", &number.to_le_bytes())));
    }
    keeper::set_cleanup_interval(&lab.registry, Duration::from_millis(1));
    // Each part is told of, even if those who hear of another fail.
    eventually("all are cleaned up", || {
        heard.cleaned.load(Ordering::SeqCst) == FILES
    });
    assert!(heard.most_at_once.load(Ordering::SeqCst) <= 1_000);
}

/// Stages a file that has expired at once whenever it hears of a cleanup, and has the next cleanup come
/// only in a day.
#[derive(Default)]
struct Restages {
    lab: OnceLock<Lab>,
    cleaned: AtomicUsize,
}

impl Observer for Restages {
    fn removed(&self, _why: Why, report: Report) {
        self.cleaned
            .fetch_add(report.cleaned.len(), Ordering::SeqCst);
        let lab = self.lab.wait();
        keeper::set_cleanup_interval(&lab.registry, LONG);
        staged(lab.stage_file(&lab.source("expires", b"expires")));
    }

    fn stopped(&self) {}
}

#[test]
fn a_cleanup_ends_though_there_is_always_more_that_has_expired() {
    let observer = Arc::new(Restages::default());
    let mut lab = Lab::new();
    lab.retention = EXPIRED;
    lab.registry = keeper::start(Options {
        cleanup_interval: Duration::from_millis(1),
        orphan_grace: LONG,
        budget: Budget::default(),
        recognise_unchanged: true,
        observer: observer.clone(),
    })
    .unwrap();
    staged(lab.stage_file(&lab.source("expires", b"expires")));
    let lab = observer.lab.get_or_init(|| lab);
    eventually("it is cleaned up", || {
        observer.cleaned.load(Ordering::SeqCst) > 0
    });
    // The pieces of work of the cleanup thread take turns.
    eventually("what was staged meanwhile is there", || {
        cleanup(&lab.registry).cleaned.len() == 1
    });
    assert_eq!(cleanup(&lab.registry).cleaned.len(), 0);
    assert_eq!(observer.cleaned.load(Ordering::SeqCst), 1);
    keeper::stop(&lab.registry, Reply::new(drop));
}

#[test]
fn p11_an_abandoned_registry_lives_on_in_a_successor() {
    let heard = Heard::default();
    let mut lab = lab_with(LONG, LONG, &heard);
    for number in 0..3_u8 {
        let keeper = keeper::adopt(&lab.registry).unwrap();
        keeper::abandon(&lab.registry, keeper);
        // Callers do not need its process.
        staged(lab.stage_file(&lab.source("source", &[number])));
    }
    assert_eq!(lab.attachments().len(), 3);
    lab.assert_consistent();
    assert!(!heard.ended.load(Ordering::SeqCst));
    lab.assert_leaves_nothing();
}

#[test]
fn p11_an_adopted_registry_does_not_end_when_its_grace_would_have() {
    let heard = Heard::default();
    // Longer than it takes to find a successor.
    let grace = Duration::from_millis(500);
    let lab = lab_with(LONG, grace, &heard);
    let keeper = keeper::adopt(&lab.registry).unwrap();
    staged(lab.stage_file(&lab.source("source", b"content")));
    keeper::abandon(&lab.registry, keeper);
    keeper::adopt(&lab.registry).unwrap();
    // The word that the first has gone may come late, or twice.
    keeper::abandon(&lab.registry, keeper);
    let later = Instant::now() + 3 * grace;
    eventually("the grace is over", || Instant::now() > later);
    assert_eq!(cleanup(&lab.registry).cleaned.len(), 0);
    assert!(!heard.ended.load(Ordering::SeqCst));
    lab.assert_consistent();
    assert_eq!(lab.attachments().len(), 1);
}

/// A process that copies through a file module holds the ticket, which goes with it.
#[test]
fn p11_whoever_waits_for_one_that_was_killed_is_told_to_ask_again() {
    let manifest = Manifest::default();
    let key: codex_files::checksum::Checksum = b"key".as_slice().into();
    let (sender, receiver) = mpsc::channel();
    let admit = || {
        let sender = sender.clone();
        let waiter = || {
            Waiter::new(move |outcome| {
                let _ = sender.send(outcome);
            })
        };
        manifest.admit(&key, KEPT.into(), None, waiter).unwrap()
    };
    let Admission::Lead(staging) = admit() else {
        panic!("nobody else is at it");
    };
    for _ in 0..3 {
        assert!(matches!(admit(), Admission::Waiting));
    }
    drop(staging);
    for _ in 0..3 {
        let told = receiver.recv_timeout(PATIENCE).expect("nobody hangs");
        assert!(matches!(told, Outcome::Retry));
    }
    assert!(matches!(admit(), Admission::Lead(_)));
}

#[test]
fn p11_an_abandoned_registry_without_a_successor_ends_and_leaves_nothing() {
    let heard = Heard::default();
    let lab = lab_with(LONG, Duration::from_millis(200), &heard);
    let keeper = keeper::adopt(&lab.registry).unwrap();
    staged(lab.stage_file(&lab.source("source", b"content")));
    keeper::abandon(&lab.registry, keeper);
    eventually("it ends", || heard.ended.load(Ordering::SeqCst));
    assert!(
        keeper::adopt(&lab.registry).is_none(),
        "it has ended for good"
    );
    assert!(lab.attachments().is_empty());
    assert!(tree(&lab.staging_path()).is_empty());
    let error = failed(lab.stage_file(&lab.source("source", b"content")));
    assert!(matches!(error, Error::Stopped));
}

#[test]
fn p11_a_registry_whose_first_keeper_never_comes_ends_too() {
    let heard = Heard::default();
    let _lab = lab_with(LONG, Duration::from_millis(5), &heard);
    eventually("it ends", || heard.ended.load(Ordering::SeqCst));
}

#[test]
fn whoever_commands_a_registry_that_ends_is_answered() {
    for _ in 0..50 {
        let lab = Lab::new();
        staged(lab.stage_file(&lab.source("source", b"content")));
        let (sender, receiver) = mpsc::channel();
        let answer = || {
            let sender = sender.clone();
            move |ok: bool| sender.send(ok).unwrap()
        };
        let command = |registry: &Arc<Registry>| {
            let (one, two) = (answer(), answer());
            remove::cleanup(registry, Reply::new(move |result| one(result.is_ok())));
            let reply = Reply::new(move |result| two(result.is_ok()));
            remove::reset(registry, lab.staging_path(), reply);
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..5 {
                    command(&lab.registry);
                }
            });
            let end = answer();
            keeper::stop(&lab.registry, Reply::new(move |result| end(result.is_ok())));
            for _ in 0..5 {
                command(&lab.registry);
            }
        });
        drop(sender);
        for _ in 0..21 {
            receiver.recv_timeout(PATIENCE).expect("nobody hangs");
        }
        assert!(receiver.recv().is_err(), "nobody is answered twice");
        // And after the end as well.
        let (sender, receiver) = mpsc::channel();
        keeper::stop(
            &lab.registry,
            Reply::new(move |result| {
                sender.send(result.is_err()).unwrap();
            }),
        );
        assert!(receiver.recv_timeout(PATIENCE).expect("nobody hangs"));
    }
}

#[test]
fn whoever_stages_with_a_registry_that_ends_is_answered_and_leaves_nothing() {
    for round in 0..20 {
        let lab = Lab::new();
        let sources: Vec<_> = [SMALL, LARGE]
            .into_iter()
            .map(|size| lab.source(&format!("source {size}"), &content(size, 1)))
            .collect();
        let begun = AtomicUsize::new(0);
        let failed = Done::default();
        std::thread::scope(|scope| {
            for number in 0..4 {
                let (lab, sources, begun, failed) = (&lab, &sources, &begun, &failed);
                scope.spawn(move || {
                    while !failed.yet() {
                        begun.fetch_add(1, Ordering::SeqCst);
                        let outcome = if number % 2 == 0 {
                            lab.stage_file(&sources[number / 2])
                        } else {
                            let key = [number as u8];
                            let destination = lab.root.join(format!("elsewhere {number}/file"));
                            lab.stage(&key, &sources[number / 2], &destination)
                        };
                        match outcome {
                            Outcome::Staged { .. } => {}
                            Outcome::Failed(Error::Stopped) => return,
                            other => panic!("{other:?}"),
                        }
                    }
                });
            }
            eventually("all are at it", || begun.load(Ordering::SeqCst) > 4 + round);
            stop(&lab.registry);
        });
        assert!(lab.attachments().is_empty());
        let left = tree(&lab.staging_path());
        assert!(left.is_empty(), "left behind: {left:?}");
        for number in [1, 3] {
            assert!(!lab.root.join(format!("elsewhere {number}")).exists());
        }
    }
}

/// The VM may end right after the registry, and take the copiers along.
#[test]
fn a_copy_that_is_under_way_at_the_end_is_given_up_and_leaves_nothing() {
    let lab = Lab::new();
    let size = 4 << 30;
    // Nothing but holes: large, and made at once.
    let source = lab.source("source", b"");
    std::fs::File::options()
        .write(true)
        .open(&source)
        .and_then(|file| file.set_len(size))
        .unwrap();
    let request = lab.file_request(&source, OsStr::new("name"));
    let destination = lab.root.join("elsewhere/file");
    let elsewhere = lab.request(b"key", &source, &destination);
    let (sender, receiver) = mpsc::channel();
    let waiter = || {
        let sender = sender.clone();
        Waiter::new(move |outcome| sender.send(outcome).unwrap())
    };
    assert!(matches!(
        stage_file::stage_file(&lab.registry, &request, Miss::New, &waiter),
        Answer::ByWaiter
    ));
    assert!(matches!(
        stage_at::stage_at(&lab.registry, &elsewhere, &waiter),
        Answer::ByWaiter
    ));
    eventually("both copy", || {
        destination.parent().is_some_and(|dir| dir.exists())
            && tree(&lab.staging_path())
                .values()
                .filter(|is_dir| !**is_dir)
                .count()
                == 2
    });
    assert!(stop(&lab.registry).is_empty());
    let left = tree(&lab.staging_path());
    assert!(left.is_empty(), "left behind: {left:?}");
    assert!(!lab.root.join("elsewhere").exists());
    for _ in 0..2 {
        let told = receiver.recv_timeout(PATIENCE).expect("nobody hangs");
        assert!(matches!(failed(told), Error::Stopped));
    }
}

/// Copiers are few: one that waited for whoever has the ticket for its content would be missed.
#[test]
fn p15_large_copies_of_what_somebody_else_is_at_keep_no_copier() {
    let lab = Lab::new();
    let content = vec![7; INLINE_LIMIT + 1];
    let key = key(&content);
    let nobody = || Waiter::new(drop);
    let admission = lab
        .registry
        .manifest()
        .admit(&key, KEPT.into(), None, nobody);
    let Ok(Admission::Lead(staging)) = admission else {
        panic!("nobody else is at it");
    };
    let (sender, receiver) = mpsc::channel();
    for number in 0..4 {
        let source = lab.source(&format!("large {number}"), &content);
        let request = lab.file_request(&source, OsStr::new("large"));
        let sender = sender.clone();
        let answer = stage_file::stage_file(&lab.registry, &request, Miss::New, &|| {
            let sender = sender.clone();
            Waiter::new(move |outcome| {
                let _ = sender.send(outcome);
            })
        });
        assert!(matches!(answer, Answer::ByWaiter), "it is for a copier");
    }
    staged(lab.stage_file(&lab.source("other", &vec![8; INLINE_LIMIT + 1])));
    assert!(receiver.try_recv().is_err(), "the ticket is still out");
    drop(staging);
    for _ in 0..4 {
        let told = receiver.recv_timeout(PATIENCE).expect("nobody hangs");
        // Whoever was still copying when the ticket came back has got it, or found what the one who
        // got it has staged.
        assert!(matches!(told, Outcome::Retry | Outcome::Staged { .. }));
    }
}

/// A copier must never wait for what is queued behind it.
#[test]
fn p15_more_large_copies_than_copiers_come_to_an_end() {
    let lab = Lab::new();
    let (sender, receiver) = mpsc::channel();
    let mut waiting = 0;
    for number in 0..24_u64 {
        // Each content several times, so that copiers meet at the manifest.
        let name = format!("source {number}");
        let source = lab.source(&name, &content(LARGE, number % 4));
        let request = lab.file_request(&source, source.file_name().unwrap());
        let make_waiter = || {
            let sender = sender.clone();
            Waiter::new(move |outcome| sender.send(outcome).unwrap())
        };
        match stage_file::stage_file(&lab.registry, &request, Miss::New, &make_waiter) {
            Answer::ByWaiter => waiting += 1,
            Answer::Now(outcome) => drop(staged(outcome)),
        }
    }
    // Small stagings and looks go on beside them.
    staged(lab.stage_file(&lab.source("small", b"small")));
    assert!(lab.registry.manifest().metrics().totals.expirable_count >= 1);
    for _ in 0..waiting {
        let outcome = receiver.recv_timeout(PATIENCE).expect("nobody hangs");
        assert_whole(&staged(outcome));
    }
    assert_eq!(lab.attachments().len(), 5);
    lab.assert_areas_whole(Scratch::Forbidden);
}

/// Bytes that come to an end only because the registry is stopped.
struct Endless(mpsc::Sender<()>);

impl Bytes for Endless {
    fn each(&self, see: &mut dyn FnMut(&[u8]) -> Result<(), Error>) -> Result<(), Error> {
        loop {
            let _ = self.0.send(());
            see(&[7; 4096])?;
        }
    }
}

#[test]
fn p20_a_stop_ends_bytes_that_are_being_staged() {
    let mut lab = Lab::new();
    let to = lab.file_request(Path::new(""), OsStr::new("name")).to;
    let (under_way, pieces) = mpsc::channel();
    let (sender, receiver) = mpsc::channel();
    let waiter = || {
        let sender = sender.clone();
        Waiter::new(move |outcome| sender.send(outcome).unwrap())
    };
    let content = vec![7; INLINE_LIMIT + 1];
    let kept = || -> Box<dyn Bytes> { Box::new(Endless(under_way)) };
    let answer = stage_data::stage_data(&lab.registry, &content, kept, &to, &waiter);
    assert!(matches!(answer, Answer::ByWaiter));
    pieces.recv_timeout(PATIENCE).unwrap();
    assert!(lab.stop().is_empty());
    let outcome = receiver.recv_timeout(PATIENCE).expect("nobody hangs");
    assert!(matches!(failed(outcome), Error::Stopped));
    assert!(tree(&lab.staging_path()).is_empty());
}

#[cfg(target_os = "linux")]
#[test]
fn the_cleanup_thread_ends_with_the_last_handle() {
    let lab = Lab::new();
    let registry = Arc::downgrade(&lab.registry);
    drop(lab);
    eventually("the registry goes", || registry.strong_count() == 0);
    // Other tests of this process have cleanup threads of their own, which go as well.
    eventually("no more threads than tests", || {
        let registries: Vec<_> = (0..20).map(|_| start()).collect();
        let with = threads();
        drop(registries);
        let deadline = Instant::now() + Duration::from_secs(1);
        while threads() + 15 > with && Instant::now() < deadline {
            std::thread::yield_now();
        }
        threads() + 15 <= with
    });
}

#[cfg(target_os = "linux")]
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

/// P18: whoever waits for an answer may fail to take it. Others wait for the same threads.
#[test]
fn p18_an_answer_that_panics_ends_no_thread() {
    let mut lab = Lab::new();
    lab.retention = EXPIRED;
    for round in 0..4_u8 {
        remove::cleanup(&lab.registry, Reply::new(|_| panic!("a cleanup's")));
        let reset = Reply::new(|_| panic!("a reset's"));
        remove::reset(&lab.registry, lab.root.clone(), reset);
        // The copiers are as many as there are cores, or fewer.
        let content = vec![round; INLINE_LIMIT + 1];
        let source = lab.source(&format!("large {round}"), &content);
        let request = lab.file_request(&source, OsStr::new("large"));
        let answer = stage_file::stage_file(&lab.registry, &request, Miss::New, &|| {
            Waiter::new(|_| panic!("a copy's"))
        });
        assert!(
            matches!(answer, Answer::ByWaiter),
            "it comes later, and panics"
        );
    }
    // Behind all of those, whose resets would take what is staged next.
    cleanup(&lab.registry);
    let large = lab.source("other", &vec![9; INLINE_LIMIT + 1]);
    staged(lab.stage_file(&large));
    assert!(!cleanup(&lab.registry).cleaned.is_empty());
    lab.assert_consistent();
}
