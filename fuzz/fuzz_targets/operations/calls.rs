//! A registry as its callers have it: how it starts, how they wait, and what it tells of itself.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use codex_files::error::Error;
use codex_files::manifest::budget::Budget;
use codex_files::manifest::waiting::Origin;
use codex_files::registry::admission::Answer;
use codex_files::registry::keeper::{self, Options};
use codex_files::registry::reply::Reply;
use codex_files::registry::{Attachment, Observer, Outcome, Registry, Report, Waiter, Why};

const LIMIT: Duration = Duration::from_secs(30);

/// Starts a registry that does nothing by the clock.
pub fn start(observer: Arc<dyn Observer>) -> Arc<Registry> {
    const LONG: Duration = Duration::from_secs(86_400);
    keeper::start(Options {
        cleanup_interval: LONG,
        orphan_grace: LONG,
        budget: Budget::default(),
        recognise_unchanged: true,
        observer,
    })
    .expect("a thread can be had")
}

pub fn ask<T: Send + 'static>(command: impl FnOnce(Reply<T>)) -> T {
    let (reply, receiver) = replying();
    command(reply);
    answered(&receiver).expect("the registry runs")
}

/// A reply, and where it comes to.
pub fn replying<T: Send + 'static>() -> (Reply<T>, Receiver<Result<T, Error>>) {
    let (sender, receiver) = mpsc::channel();
    let reply = Reply::new(move |result| {
        let _ = sender.send(result);
    });
    (reply, receiver)
}

pub fn answered<T>(receiver: &Receiver<T>) -> T {
    receiver.recv_timeout(LIMIT).expect("nobody hangs")
}

/// As a caller does it: waits for the answer, and asks again if told to.
pub fn until_answered(
    mut stage: impl FnMut(&dyn Fn() -> Waiter) -> Answer,
) -> Result<(Attachment, Origin), Error> {
    loop {
        let (sender, receiver) = mpsc::channel();
        let answer = stage(&|| {
            let sender = sender.clone();
            Waiter::new(move |outcome| {
                let _ = sender.send(outcome);
            })
        });
        let outcome = match answer {
            Answer::Now(outcome) => outcome,
            Answer::ByWaiter => answered(&receiver),
        };
        match outcome {
            Outcome::Staged { attachment, origin } => return Ok((attachment, origin)),
            Outcome::Failed(error) => return Err(error),
            Outcome::Retry => {}
        }
    }
}

/// Polls until `look` gives nothing to complain of.
pub fn settle(look: impl Fn() -> Option<String>) {
    let deadline = Instant::now() + LIMIT;
    while let Some(complaint) = look() {
        assert!(Instant::now() < deadline, "{complaint}");
        std::thread::yield_now();
    }
}

/// What a registry has told of what it removed, and how full the disk was at these moments.
pub struct Log {
    staging: PathBuf,
    told: Mutex<Told>,
}

#[derive(Default)]
pub struct Told {
    /// Why, and the keys.
    pub removed: Vec<(Why, Vec<u8>)>,
    pub failed: Vec<String>,
    /// Bytes below the staging directories.
    pub most_bytes: u64,
}

impl Log {
    pub fn new(staging: &Path) -> Arc<Self> {
        let staging = staging.to_owned();
        let told = Mutex::default();
        Arc::new(Self { staging, told })
    }

    pub fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds up what is on the disk now.
    pub fn look(&self) {
        let bytes = bytes_in(&files_below(&self.staging));
        let mut told = self.told();
        told.most_bytes = told.most_bytes.max(bytes);
    }
}

impl Observer for Log {
    fn removed(&self, why: Why, report: Report) {
        self.look();
        let mut told = self.told();
        for attachment in report.cleaned {
            told.removed.push((why, attachment.file.checksum.to_vec()));
        }
        for failed in report.failed {
            told.failed.push(format!("{failed:?}"));
        }
    }

    fn stopped(&self) {}
}

pub fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files_below(&entry.path())),
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            // The records of what lies elsewhere are links.
            _ => {}
        }
    }
    found
}

/// The bytes of files, each once, whatever it is called.
pub fn bytes_in<P: AsRef<Path>>(paths: &[P]) -> u64 {
    let mut seen = HashSet::new();
    let stats = paths
        .iter()
        .filter_map(|path| fs::symlink_metadata(path).ok());
    stats
        .filter(|stat| stat.is_file() && seen.insert(stat.ino()))
        .map(|stat| stat.len())
        .sum()
}
