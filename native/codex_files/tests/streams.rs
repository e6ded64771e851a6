//! Streams: contents that come piece by piece (P20). Whole or not at all, whatever happens in the middle.

#![cfg(not(feature = "shuttle"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use codex_files::bytes::Bytes;
use codex_files::disk::source::INLINE_LIMIT;
use codex_files::error::{Error, Result};
use codex_files::manifest::budget::Budget;
use codex_files::manifest::waiting::Origin;
use codex_files::registry::admission::Answer;
use codex_files::registry::keeper::{self, Options};
use codex_files::registry::reply::Reply;
use codex_files::registry::stage_stream::{self, End, Purpose, Stream};
use codex_files::registry::{Observer, Outcome, Report, Waiter, Why};
use common::*;

const MIB: usize = 1024 * 1024;

/// The files of streams that are under way.
fn scratch_files(lab: &Lab) -> Vec<PathBuf> {
    let mut files: Vec<_> = tree(&lab.staging_path()).into_keys().collect();
    files.retain(|path| path.file_name().unwrap().to_string_lossy().starts_with('.'));
    files
}

fn only_renew(lab: &Lab) -> Stream {
    let to = lab.file_request(Path::new(""), OsStr::new("name")).to;
    stage_stream::open(&lab.registry, to, Purpose::Renew)
}

fn no_waiter(_owner: Option<Arc<codex_files::registry::owner::Owner>>) -> Waiter {
    panic!("nobody else is at work on it")
}

/// Ends a stream all of which has been hashed, or waits until it has.
fn end(stream: &Stream) -> Result<End> {
    loop {
        let (sender, told) = mpsc::channel();
        let reply = || Reply::new(move |_| sender.send(()).unwrap());
        match stream.commit(&no_waiter, reply)? {
            End::NotHashed => told.recv_timeout(PATIENCE).unwrap(),
            end => return Ok(end),
        }
    }
}

#[test]
fn p20_streams_of_every_size_are_staged_whole() {
    let mut lab = Lab::new();
    for size in [0, 1, SMALL, INLINE_LIMIT, LARGE, 3 * MIB + 1] {
        let content = content(size, 1);
        for piece in [size.max(1), 1000.max(size / 7), MIB] {
            let attachment = copied(lab.stage_stream(&content, piece));
            assert_eq!(attachment.file.checksum, key(&content));
            assert_eq!(attachment.file.size, size as u64);
            assert_eq!(fs::read(&attachment.file.path).unwrap(), content);
            known(lab.stage_stream(&content, piece));
            known(lab.stage_file_as(&attachment.file.path, "name"));
            lab.assert_areas_whole(Scratch::Forbidden);
            lab.reset();
        }
    }
    lab.assert_leaves_nothing();
}

#[test]
fn p20_a_stream_that_is_given_up_leaves_nothing() {
    let mut lab = Lab::new();
    let other = copied(lab.stage_data(b"other"));
    for aborted in [false, true] {
        let stream = lab.open_stream();
        write_stream(&stream, &content(LARGE, 1)).unwrap();
        assert_eq!(scratch_files(&lab).len(), 1);
        if aborted {
            stream.abort();
            assert!(scratch_files(&lab).is_empty());
            assert!(matches!(
                write_stream(&stream, b"more"),
                Err(Error::Stopped)
            ));
            assert!(matches!(end(&stream), Err(Error::Stopped)));
        } else {
            drop(stream);
            // By the cleanup thread.
            eventually("it goes", || scratch_files(&lab).is_empty());
        }
    }
    assert_eq!(lab.attachments().len(), 1);
    assert_whole(&other);
    drop(other);
    lab.assert_leaves_nothing();
}

/// The VM drops what a process had on the thread of a scheduler.
#[test]
fn a_stream_is_dropped_without_a_look_at_the_disk() {
    /// Keeps the cleanup thread until a test lets go of it.
    struct Keeps(Mutex<mpsc::Receiver<()>>);

    impl Observer for Keeps {
        fn removed(&self, _why: Why, _report: Report) {
            let _ = self.0.lock().unwrap().recv_timeout(PATIENCE);
        }
        fn stopped(&self) {}
    }

    let (let_go, kept) = mpsc::channel();
    let mut lab = Lab::new();
    lab.registry = keeper::start(Options {
        cleanup_interval: Duration::from_millis(5),
        orphan_grace: Duration::from_secs(86_400),
        budget: Budget::default(),
        recognise_unchanged: true,
        observer: Arc::new(Keeps(Mutex::new(kept))),
    })
    .unwrap();
    lab.retention = EXPIRED;
    staged(lab.stage_data(b"expired"));
    eventually("it is cleaned up", || lab.attachments().is_empty());
    let stream = lab.open_stream();
    write_stream(&stream, &content(LARGE, 1)).unwrap();
    drop(stream);
    assert_eq!(scratch_files(&lab).len(), 1);
    drop(let_go);
    eventually("it goes", || scratch_files(&lab).is_empty());
}

/// Its caller may be waiting for the next piece, and not come back for a long time.
#[test]
fn p20_the_stop_of_a_registry_takes_away_the_streams_that_are_under_way() {
    let mut lab = Lab::new();
    let streams: Vec<_> = (0..3).map(|_| lab.open_stream()).collect();
    write_stream(&streams[0], &content(LARGE, 1)).unwrap();
    write_stream(&streams[1], &content(SMALL, 2)).unwrap();
    assert_eq!(scratch_files(&lab).len(), 2);
    assert!(lab.stop().is_empty());
    // Before the stop has been answered.
    assert!(tree(&lab.staging_path()).is_empty());
    for stream in &streams {
        assert!(matches!(write_stream(stream, b"more"), Err(Error::Stopped)));
        assert!(matches!(end(stream), Err(Error::Stopped)));
    }
    assert!(tree(&lab.staging_path()).is_empty());
}

#[test]
fn p20_a_stop_while_streams_are_being_written_leaves_nothing() {
    for _ in 0..10 {
        let mut lab = Lab::new();
        let mut streams: Vec<_> = (0..4).map(|_| lab.open_stream()).collect();
        std::thread::scope(|scope| {
            for (seed, stream) in streams.iter_mut().enumerate() {
                let content = content(LARGE, seed as u64);
                scope.spawn(move || {
                    let stopped = loop {
                        match write_stream(stream, &content) {
                            Ok(()) => {}
                            Err(error) => break error,
                        }
                    };
                    assert!(matches!(stopped, Error::Stopped), "{stopped}");
                });
            }
            eventually("all are under way", || scratch_files(&lab).len() == 4);
            lab.stop();
        });
        eventually("nothing is left", || tree(&lab.staging_path()).is_empty());
    }
}

#[test]
fn p20_a_stream_whose_file_or_area_is_taken_away_is_staged_all_the_same() {
    type TakeAway = fn(&Lab);
    let ways: [TakeAway; 5] = [
        |lab| {
            scratch_files(lab)
                .iter()
                .for_each(|path| fs::remove_file(path).unwrap())
        },
        |lab| {
            lab.areas()
                .iter()
                .for_each(|area| fs::remove_dir_all(area).unwrap())
        },
        |lab| fs::remove_dir_all(lab.staging_path()).unwrap(),
        |lab| fs::rename(lab.staging_path(), lab.root.join("moved")).unwrap(),
        // Another file in its place.
        |lab| {
            for path in scratch_files(lab) {
                fs::remove_file(&path).unwrap();
                fs::write(&path, b"not ours").unwrap();
            }
        },
    ];
    for take_away in ways {
        let lab = Lab::new();
        let content = content(3 * MIB, 1);
        let (first, rest) = content.split_at(MIB);
        let stream = lab.open_stream();
        write_stream(&stream, first).unwrap();
        take_away(&lab);
        write_stream(&stream, rest).unwrap();
        // Somebody else may have found a new area before.
        if lab.areas().is_empty() {
            copied(lab.stage_data(b"other"));
        }
        let attachment = copied(commit_stream(&stream));
        assert_eq!(fs::read(&attachment.file.path).unwrap(), content);
        assert!(attachment.file.path.starts_with(lab.staging_path()));
        lab.assert_consistent();
    }
}

#[test]
fn p20_of_streams_of_one_content_at_once_one_is_kept() {
    let mut lab = Lab::new();
    for round in 0..10 {
        let content = content(2 * MIB, round);
        let origins: Vec<_> = std::thread::scope(|scope| {
            let stage = || match lab.stage_stream(&content, 300_000) {
                Outcome::Staged { origin, .. } => origin,
                other => panic!("{other:?}"),
            };
            let callers: Vec<_> = (0..6).map(|_| scope.spawn(stage)).collect();
            callers
                .into_iter()
                .map(|caller| caller.join().unwrap())
                .collect()
        });
        let copied = origins.iter().filter(|origin| **origin == Origin::Copied);
        assert_eq!(copied.count(), 1);
        lab.assert_areas_whole(Scratch::Forbidden);
    }
    lab.assert_consistent();
    lab.assert_leaves_nothing();
}

/// Bytes that are kept from being hashed until a test lets go of them.
struct Held(Vec<u8>, mpsc::Receiver<()>);

impl Bytes for Held {
    fn each(&self, see: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let _ = self.1.recv_timeout(PATIENCE);
        see(&self.0)
    }
}

/// Otherwise all that is not hashed yet would be in memory.
#[test]
fn p14_a_caller_that_is_faster_than_the_hash_waits() {
    let lab = Lab::new();
    let stream = lab.open_stream();
    let piece = content(MIB, 1);
    let (let_go, held) = mpsc::channel();
    let (sender, told) = mpsc::channel();
    let tell = |sender: &mpsc::Sender<Result<()>>| {
        let sender = sender.clone();
        move || {
            Reply::new(move |result| {
                let _ = sender.send(result);
            })
        }
    };
    let first = Box::new(Held(piece.clone(), held));
    assert!(!stream.write(&[&piece], first, tell(&sender)).unwrap());
    for written in 2..=6 {
        let kept = Box::new(piece.clone());
        let wait = stream.write(&[&piece], kept, tell(&sender)).unwrap();
        assert_eq!(wait, written > 4, "{written} MiB ahead of the hash");
    }
    // Nor is it staged before.
    let end = stream.commit(&no_waiter, tell(&sender)).unwrap();
    assert!(matches!(end, End::NotHashed));
    assert!(lab.attachments().is_empty());
    let_go.send(()).unwrap();
    // Those that were told before somebody else asked have heard that they are not.
    while told.recv_timeout(PATIENCE).unwrap().is_err() {}
    let attachment = copied(commit_stream(&stream));
    assert_eq!(fs::read(&attachment.file.path).unwrap(), piece.repeat(6));
}

/// What a caller has left at the end may be nothing.
#[test]
fn p3_a_piece_without_bytes_changes_nothing() {
    /// Tells when somebody begins to hash it, or drops it.
    struct Nothing(mpsc::Sender<()>, Held);

    impl Bytes for Nothing {
        fn each(&self, see: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
            self.0.send(()).unwrap();
            self.1.each(see)
        }
    }

    let lab = Lab::new();
    let stream = lab.open_stream();
    write_stream(&stream, b"content").unwrap();
    let (sender, seen) = mpsc::channel();
    let (let_go, held) = mpsc::channel();
    let nothing = Box::new(Nothing(sender, Held(Vec::new(), held)));
    let reply = || Reply::new(|_| {});
    assert!(!stream.write(&[], nothing, reply).unwrap());
    let _ = seen.recv_timeout(PATIENCE);
    let attachment = copied(commit_stream(&stream));
    assert_eq!(attachment.file.checksum, key(b"content"));
    drop(let_go);
}

/// Whoever waits for the hash hears of the end of the stream.
#[test]
fn p11_nobody_waits_for_a_stream_that_has_ended() {
    for stop in [true, false] {
        let mut lab = Lab::new();
        let stream = lab.open_stream();
        let piece = content(5 * MIB, 1);
        let (let_go, held) = mpsc::channel();
        let (sender, told) = mpsc::channel();
        let reply = || Reply::new(move |result: Result<()>| sender.send(result).unwrap());
        let kept = Box::new(Held(piece.clone(), held));
        assert!(stream.write(&[&piece], kept, reply).unwrap());
        if stop {
            lab.stop();
        } else {
            stream.abort();
        }
        let told = told.recv_timeout(PATIENCE).unwrap();
        assert!(matches!(told, Err(Error::Stopped)));
        assert!(scratch_files(&lab).is_empty());
        drop(let_go);
    }
}

#[test]
fn p18_a_panic_of_the_thread_that_hashes_is_the_error_of_this_stream_alone() {
    struct Panics;

    impl Bytes for Panics {
        fn each(&self, _see: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
            panic!("on purpose")
        }
    }

    let lab = Lab::new();
    let (stream, other) = (lab.open_stream(), lab.open_stream());
    let reply = || Reply::new(|_| {});
    assert!(!stream.write(&[b"a"], Box::new(Panics), reply).unwrap());
    write_stream(&stream, b"b").unwrap();
    write_stream(&other, b"other").unwrap();
    assert!(matches!(failed(commit_stream(&stream)), Error::Panic(_)));
    copied(commit_stream(&other));
    assert!(scratch_files(&lab).is_empty());
    assert_eq!(lab.attachments().len(), 1);
}

#[test]
fn p20_what_is_only_to_be_renewed_is_never_written() {
    let lab = Lab::new();
    let content = content(LARGE, 1);
    let renew = || {
        let stream = only_renew(&lab);
        write_stream(&stream, &content).unwrap();
        assert!(scratch_files(&lab).is_empty());
        end(&stream).unwrap()
    };
    assert!(matches!(renew(), End::New));
    assert!(lab.attachments().is_empty() && lab.areas().is_empty());
    let attachment = copied(lab.stage_stream(&content, MIB));
    match renew() {
        End::Answer(Answer::Now(outcome)) => {
            assert_eq!(known(outcome).file.path, attachment.file.path);
        }
        _ => panic!("it is known"),
    }
    // One that was lost has to be written.
    fs::remove_file(&attachment.file.path).unwrap();
    assert!(matches!(renew(), End::New));
    copied(lab.stage_stream(&content, MIB));
    lab.assert_consistent();
}
