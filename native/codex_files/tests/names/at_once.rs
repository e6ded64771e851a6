//! Many who ask at once, and a stop in between.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Barrier, mpsc};

use codex_files::error::Error;
use codex_files::manifest::Admission;
use codex_files::name::Want;
use codex_files::registry::admission::Answer;
use codex_files::registry::stage_file::{self, Miss};
use codex_files::registry::{Outcome, Waiter};
use codex_files::time::Now;

use super::common::*;
use super::*;

#[test]
fn p21_many_who_want_it_under_many_names_at_once_have_it_under_each() {
    for size in [SMALL, LARGE] {
        let mut lab = Lab::new();
        for round in 0..5 {
            let source = lab.source("source", &content(size, round));
            let barrier = Barrier::new(16);
            let staged_as = |name: &str| {
                barrier.wait();
                let attachment = staged(lab.stage_file_as(&source, name));
                let file = path(&attachment, name);
                assert_eq!(digest(&file).as_bytes(), &*attachment.file.checksum);
                attachment
            };
            let names: Vec<_> = (0..16).map(|number| format!("name {number}")).collect();
            std::thread::scope(|scope| {
                for name in &names {
                    scope.spawn(|| staged_as(name));
                }
            });
            assert_eq!(lab.attachments().len(), 1);
            let all = lab.attachments().pop().unwrap();
            assert_named(&all, &names.iter().map(|name| &**name).collect::<Vec<_>>());
            lab.reset();
        }
        lab.assert_leaves_nothing();
    }
}

/// Whoever waits is answered by somebody who may not know of the name.
#[test]
fn p21_nobody_who_waits_is_answered_without_the_name() {
    let lab = Lab::new();
    let content = content(SMALL, 1);
    let source = lab.source("source", &content);
    let first = copied(lab.stage_file_as(&source, "first"));
    let (answers, answered) = mpsc::channel();
    for executable in [false, true] {
        let waiter = || unreachable!("nobody is at work on it");
        let admitted =
            lab.registry
                .manifest()
                .admit(&key(&content), KEPT.into(), Some(&first.file), waiter);
        let Ok(Admission::Lead(staging)) = admitted else {
            panic!("it is found missing");
        };
        if executable {
            fs::set_permissions(&source, Permissions::from_mode(0o700)).unwrap();
        }
        for name in ["first", "second"] {
            let request = lab.file_request(&source, name.as_ref());
            let make_waiter = || {
                let answers = answers.clone();
                Waiter::new(move |outcome| {
                    let _ = answers.send((name, outcome));
                })
            };
            let answer = stage_file::stage_file(&lab.registry, &request, Miss::New, &make_waiter);
            assert!(matches!(answer, Answer::ByWaiter));
        }
        let wanted: Vec<_> = staging.wanted().into_iter().collect();
        let want = |name: &'static str| Arc::new(Want::named(name.as_bytes(), executable));
        assert_eq!(wanted, [want("first"), want("second")]);
        staging.commit(&first.file, Now::read()).unwrap();
        for name in ["first", "second"] {
            let (told, outcome) = answered.recv_timeout(PATIENCE).unwrap();
            assert_eq!(told, name);
            if name == "first" && !executable {
                known(outcome);
            } else {
                assert!(matches!(outcome, Outcome::Retry), "{name}: {outcome:?}");
            }
        }
    }
}

#[test]
fn p7_a_stop_while_names_are_given_leaves_nothing() {
    let sources = Lab::new();
    let source = sources.source("source", &content(SMALL, 1));
    eventually("it is recognised, and so not read", || {
        staged(sources.stage_file(&source));
        stage_file::refresh(&sources.registry, &source, b"source", KEPT.into()).is_ok()
    });
    for _ in 0..150 {
        let mut lab = Lab::new();
        let started = Barrier::new(5);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (lab, source, started) = (&lab, &source, &started);
                scope.spawn(move || {
                    staged(lab.stage_file_as(source, format!("{thread}")));
                    started.wait();
                    let error = (0..).find_map(|name| {
                        match lab.stage_file_as(source, format!("{thread} {name}")) {
                            Outcome::Failed(error) => Some(error),
                            _ => None,
                        }
                    });
                    assert!(matches!(error, Some(Error::Stopped)), "{error:?}");
                });
            }
            started.wait();
            let failures = stop(&lab.registry);
            assert!(failures.is_empty(), "{failures:?}");
            // The stop has waited for those who were at work.
            let left = tree(&lab.staging_path());
            assert!(left.is_empty(), "left behind: {left:?}");
        });
        lab.registry = start();
        let left = tree(&lab.staging_path());
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}
