//! What the tests share: a registry on a directory of its own, and looks at what it leaves there.

#![allow(dead_code, reason = "each test uses a part")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use codex_files::bytes::Bytes;
use codex_files::checksum::Checksum;
use codex_files::disk::source::INLINE_LIMIT;
use codex_files::disk::staging_dir::StagingDir;
use codex_files::error::{Error, Failures};
use codex_files::manifest::Totals;
use codex_files::manifest::budget::Budget;
use codex_files::manifest::waiting::Origin;
use codex_files::registry::admission::Answer;
use codex_files::registry::keeper::{self, Options};
use codex_files::registry::remove;
use codex_files::registry::reply::Reply;
use codex_files::registry::stage_at::{self, StageAt};
use codex_files::registry::stage_data;
use codex_files::registry::stage_file::{self, StageFile};
use codex_files::registry::stage_stream::{self, End, Purpose, Stream};
use codex_files::registry::verify::{self, Verified};
use codex_files::registry::{
    Attachment, Observer, Outcome, Registry, Report, Request, Waiter, Why,
};
use codex_files::retention::{Retention, Ttl};

/// How long anything may take before a test gives up on it: far longer than it ever should.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Never expires, but is not persistent either.
pub const KEPT: Retention = Retention {
    persist: false,
    ttl: Ttl::Infinity,
};

/// Gone at the next cleanup.
pub const EXPIRED: Retention = Retention {
    persist: false,
    ttl: Ttl::Millis(0),
};

struct Deaf;

impl Observer for Deaf {
    fn removed(&self, _why: Why, _report: Report) {}
    fn stopped(&self) {}
}

/// A registry whose cleanup thread does nothing of itself.
pub fn start() -> Arc<Registry> {
    start_with(true)
}

pub fn start_with(recognise_unchanged: bool) -> Arc<Registry> {
    keeper::start(Options {
        cleanup_interval: Duration::from_secs(86_400),
        orphan_grace: Duration::from_secs(86_400),
        budget: Budget::default(),
        recognise_unchanged,
        observer: Arc::new(Deaf),
    })
    .unwrap()
}

/// A registry, and a directory for its files and their sources.
pub struct Lab {
    pub registry: Arc<Registry>,
    pub root: PathBuf,
    pub retention: Retention,
    /// Removed with the lab, unless it is somebody else's.
    _dir: Option<tempfile::TempDir>,
}

impl Lab {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            root: dir.path().to_owned(),
            _dir: Some(dir),
            ..Self::in_dir(Path::new(""))
        }
        .started()
    }

    /// Does what a start does, so that it is not done beside the first staging.
    pub fn started(self) -> Self {
        remove::purge(&self.registry, &self.staging_dir());
        self.cleanup();
        self
    }

    pub fn in_dir(dir: &Path) -> Self {
        Self {
            registry: start(),
            root: dir.to_owned(),
            retention: KEPT,
            _dir: None,
        }
    }

    pub fn staging_path(&self) -> PathBuf {
        self.root.join("staging")
    }

    pub fn staging_dir(&self) -> StagingDir {
        StagingDir {
            path: self.staging_path(),
            is_default: false,
        }
    }

    /// A file to stage.
    pub fn source(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.root.join(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// Stages a file under its digest and its own name.
    pub fn stage_file(&self, source: &Path) -> Outcome {
        stage_file(
            &self.registry,
            &self.file_request(source, source.file_name().unwrap()),
        )
    }

    pub fn stage_file_as(&self, source: &Path, name: impl AsRef<OsStr>) -> Outcome {
        stage_file(&self.registry, &self.file_request(source, name.as_ref()))
    }

    pub fn file_request(&self, source: &Path, name: &OsStr) -> StageFile {
        StageFile {
            source: source.to_owned(),
            to: Request {
                name: name.as_bytes().into(),
                keep: self.retention.into(),
                owner: None,
                staging_dir: self.staging_dir(),
            },
        }
    }

    /// Stages a content that is in memory.
    pub fn stage_data(&self, content: &[u8]) -> Outcome {
        let to = self.file_request(Path::new(""), OsStr::new("name")).to;
        until_answered(|waiter| {
            match stage_data::refresh(&self.registry, content, &to.name, to.keep) {
                Some(known) => Answer::Now(Outcome::known(known)),
                None => {
                    let kept = || -> Box<dyn Bytes> { Box::new(content.to_vec()) };
                    stage_data::stage_data(&self.registry, content, kept, &to, waiter)
                }
            }
        })
    }

    /// Stages a content that comes in pieces of so many bytes.
    pub fn stage_stream(&self, content: &[u8], piece: usize) -> Outcome {
        self.stage_stream_while(content, piece, || {})
    }

    /// The same, while `disturb` is called after each.
    pub fn stage_stream_while(&self, content: &[u8], piece: usize, disturb: impl Fn()) -> Outcome {
        let stream = self.open_stream();
        for piece in content.chunks(piece) {
            if let Err(error) = write_stream(&stream, piece) {
                return Outcome::Failed(error);
            }
            disturb();
        }
        commit_stream(&stream)
    }

    pub fn open_stream(&self) -> Stream {
        let to = self.file_request(Path::new(""), OsStr::new("name")).to;
        stage_stream::open(&self.registry, to, Purpose::Stage)
    }

    /// Stages a file under a key and at a destination of the caller's.
    pub fn stage(&self, key: &[u8], source: &Path, destination: &Path) -> Outcome {
        stage(&self.registry, &self.request(key, source, destination))
    }

    pub fn request(&self, key: &[u8], source: &Path, destination: &Path) -> StageAt {
        StageAt {
            checksum: key.into(),
            name: destination.file_name().unwrap().as_bytes().into(),
            keep: self.retention.into(),
            size: fs::metadata(source).map_or(0, |metadata| metadata.len()),
            source: source.to_owned(),
            destination: destination.to_owned(),
            staging_dir: self.staging_dir(),
        }
    }

    pub fn cleanup(&self) -> Report {
        cleanup(&self.registry)
    }

    pub fn reset(&self) -> Failures {
        reset(&self.registry, &self.staging_path())
    }

    /// What a start does first: removes what the dead have left.
    pub fn purge(&self) {
        purge(&self.staging_dir());
    }

    /// Ends the registry in order; a new one, with nothing in it, takes its place.
    pub fn stop(&mut self) -> Failures {
        let ended = std::mem::replace(&mut self.registry, start());
        stop(&ended)
    }

    /// Ends the registry as a crash does: its lock goes, its files stay.
    pub fn crash(&mut self) {
        let gone = Arc::downgrade(&std::mem::replace(&mut self.registry, start()));
        // The cleanup thread may be looking at it right now.
        eventually("the registry goes", || gone.strong_count() == 0);
    }

    pub fn areas(&self) -> Vec<PathBuf> {
        areas(&self.staging_path())
    }

    pub fn totals_of_listing(&self) -> Totals {
        totals(&self.attachments())
    }

    pub fn attachments(&self) -> Vec<Attachment> {
        self.registry.manifest().list().iter().cloned().collect()
    }

    /// Every file that is listed is there and whole, and the counters are those of the listing.
    pub fn assert_consistent(&self) {
        let attachments = self.attachments();
        for attachment in &attachments {
            assert_whole(attachment);
        }
        let counted = self.registry.manifest().metrics().totals;
        let expected = Totals {
            // A listing does not say who owns what.
            owned_count: counted.owned_count,
            ..totals(&attachments)
        };
        assert_eq!(counted, expected);
    }

    /// No file in an area is in part what its place says it is, and no scratch file is there
    /// unless `scratch` allows it.
    pub fn assert_areas_whole(&self, scratch: Scratch) {
        assert_areas_whole(&self.staging_path(), scratch);
    }

    /// After a stop and the purge of the next start nothing is left below the staging directory.
    pub fn assert_leaves_nothing(&mut self) {
        self.stop();
        self.assert_areas_whole(Scratch::Allowed);
        self.purge();
        let left = tree(&self.staging_path());
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

/// Whether scratch files may be lying about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scratch {
    Allowed,
    Forbidden,
}

pub fn assert_areas_whole(staging: &Path, scratch: Scratch) {
    for area in areas(staging) {
        for (path, is_dir) in tree(&area) {
            let name = path.file_name().unwrap().as_bytes();
            if is_dir {
                continue;
            }
            if let Some(record) = name.strip_prefix(b".elsewhere-")
                && record.contains(&b'-')
                && path.exists()
            {
                // The record of a file that is in place.
                continue;
            }
            if name.starts_with(b".staging") || name.starts_with(b".elsewhere-") {
                assert!(
                    scratch == Scratch::Allowed,
                    "scratch file left behind: {}",
                    path.display()
                );
                continue;
            }
            let checksum = path.parent().unwrap().file_name().unwrap();
            assert_eq!(
                digest(&path).as_bytes(),
                checksum.as_bytes(),
                "not whole: {}",
                path.display()
            );
        }
    }
}

pub fn areas(staging: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(staging) else {
        return Vec::new();
    };
    entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.file_name()
                .unwrap()
                .as_bytes()
                .starts_with(b"codex_files-")
        })
        .collect()
}

/// The paths below a directory, and whether each is a directory. Links are not followed.
pub fn tree(dir: &Path) -> BTreeMap<PathBuf, bool> {
    let mut found = BTreeMap::new();
    let Ok(entries) = fs::read_dir(dir) else {
        return found;
    };
    for entry in entries {
        let entry = entry.unwrap();
        let is_dir = entry.file_type().unwrap().is_dir();
        if is_dir {
            found.extend(tree(&entry.path()));
        }
        found.insert(entry.path(), is_dir);
    }
    found
}

pub fn assert_whole(attachment: &Attachment) {
    let file = &attachment.file;
    assert!(file.path.exists(), "missing: {}", file.path.display());
    if is_digest(&file.checksum) {
        assert_eq!(
            digest(&file.path).as_bytes(),
            &*file.checksum,
            "not whole: {}",
            file.path.display()
        );
        assert_eq!(fs::metadata(&file.path).unwrap().len(), file.size);
    }
}

fn is_digest(key: &[u8]) -> bool {
    key.len() == 64 && key.iter().all(u8::is_ascii_hexdigit)
}

pub fn totals(attachments: &[Attachment]) -> Totals {
    let sum = |persist| {
        let kept = attachments
            .iter()
            .filter(move |attachment| attachment.retention.persist == persist);
        let bytes = kept
            .clone()
            .map(|attachment| u128::from(attachment.file.size))
            .sum();
        (kept.count() as u64, bytes)
    };
    let ((persistent_count, persistent_bytes), (expirable_count, expirable_bytes)) =
        (sum(true), sum(false));
    Totals {
        persistent_count,
        persistent_bytes,
        expirable_count,
        expirable_bytes,
        owned_count: 0,
    }
}

pub fn digest(path: &Path) -> String {
    digest_of(&fs::read(path).unwrap())
}

/// An implementation of its own: a wrong one in the crate would agree with itself.
pub fn digest_of(content: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(content)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

pub fn key(content: &[u8]) -> Checksum {
    digest_of(content).into_bytes().into()
}

/// `size` bytes that differ from place to place and from seed to seed.
pub fn content(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    (0..size).map(|_| next()).collect()
}

pub const SMALL: usize = 4096;
pub const LARGE: usize = INLINE_LIMIT + 1;

pub fn stage_file(registry: &Arc<Registry>, request: &StageFile) -> Outcome {
    match stage_file::refresh(registry, &request.source, &request.to.name, request.to.keep) {
        Ok(attachment) => {
            let origin = Origin::Known;
            Outcome::Staged { attachment, origin }
        }
        Err(miss) => {
            until_answered(|waiter| stage_file::stage_file(registry, request, miss, waiter))
        }
    }
}

pub fn stage(registry: &Arc<Registry>, request: &StageAt) -> Outcome {
    until_answered(|waiter| stage_at::stage_at(registry, request, waiter))
}

/// Appends a piece, in two parts, and waits if the caller is to.
pub fn write_stream(stream: &Stream, piece: &[u8]) -> Result<(), Error> {
    let (sender, told) = mpsc::channel();
    let reply = || reply_to(sender);
    let kept = Box::new(piece.to_vec());
    let (first, second) = piece.split_at(piece.len() / 2);
    if stream.write(&[first, second], kept, reply)? {
        told.recv_timeout(PATIENCE).expect("nobody hangs")?;
    }
    Ok(())
}

/// Ends a stream, and asks again if told to.
pub fn commit_stream(stream: &Stream) -> Outcome {
    until_answered(|waiter| {
        let (sender, told) = mpsc::channel();
        match stream.commit(&|_owner| waiter(), || reply_to(sender)) {
            Ok(End::Answer(answer)) => answer,
            Ok(End::NotHashed) => {
                let told = told.recv_timeout(PATIENCE).expect("nobody hangs");
                Answer::Now(told.map_or_else(Outcome::Failed, |()| Outcome::Retry))
            }
            Ok(End::New) => panic!("it was to be staged"),
            Err(error) => Answer::Now(Outcome::Failed(error)),
        }
    })
}

fn reply_to<T: Send + 'static>(sender: mpsc::Sender<Result<T, Error>>) -> Reply<T> {
    Reply::new(move |result| {
        let _ = sender.send(result);
    })
}

/// As a caller does it: waits for the answer, and asks again if told to.
fn until_answered(ask: impl Fn(&dyn Fn() -> Waiter) -> Answer) -> Outcome {
    loop {
        let (sender, receiver) = mpsc::channel();
        let make_waiter = || {
            let sender = sender.clone();
            Waiter::new(move |outcome| {
                let _ = sender.send(outcome);
            })
        };
        let outcome = match ask(&make_waiter) {
            Answer::Now(outcome) => outcome,
            Answer::ByWaiter => receiver.recv_timeout(PATIENCE).expect("nobody hangs"),
        };
        drop(sender);
        assert!(
            receiver.recv_timeout(PATIENCE).is_err(),
            "nobody is answered twice"
        );
        if !matches!(outcome, Outcome::Retry) {
            return outcome;
        }
    }
}

pub fn cleanup(registry: &Arc<Registry>) -> Report {
    ask(|reply| remove::cleanup(registry, reply))
}

pub fn reset(registry: &Arc<Registry>, dir: &Path) -> Failures {
    ask(|reply| remove::reset(registry, dir.to_owned(), reply))
}

pub fn purge(staging_dir: &StagingDir) {
    let registry = start();
    remove::purge(&registry, staging_dir);
    // The last thing that the thread does.
    stop(&registry);
}

pub fn stop(registry: &Arc<Registry>) -> Failures {
    ask(|reply| keeper::stop(registry, reply))
}

pub fn unstage(registry: &Arc<Registry>, checksum: &[u8]) -> Report {
    ask(|reply| remove::unstage(registry, checksum, reply))
}

/// What is intact, and what is damaged.
pub fn verify(registry: &Arc<Registry>) -> Verified {
    ask(|reply| verify::verify(registry, reply))
}

fn ask<T: Send + 'static>(command: impl FnOnce(Reply<T>)) -> T {
    let (sender, receiver) = mpsc::channel();
    command(reply_to(sender));
    receiver
        .recv_timeout(PATIENCE)
        .expect("nobody hangs")
        .expect("the registry runs")
}

/// The attachment of a success.
#[track_caller]
pub fn staged(outcome: Outcome) -> Attachment {
    match outcome {
        Outcome::Staged { attachment, .. } => attachment,
        other => panic!("expected a staged file, got: {other:?}"),
    }
}

/// The attachment of a success that has copied.
#[track_caller]
pub fn copied(outcome: Outcome) -> Attachment {
    assert!(
        matches!(
            outcome,
            Outcome::Staged {
                origin: Origin::Copied,
                ..
            }
        ),
        "expected a copy, got: {outcome:?}"
    );
    staged(outcome)
}

/// The attachment of a success that has not copied.
#[track_caller]
pub fn known(outcome: Outcome) -> Attachment {
    assert!(
        matches!(
            outcome,
            Outcome::Staged {
                origin: Origin::Known,
                ..
            }
        ),
        "expected a known file, got: {outcome:?}"
    );
    staged(outcome)
}

#[track_caller]
pub fn failed(outcome: Outcome) -> codex_files::error::Error {
    match outcome {
        Outcome::Failed(error) => error,
        other => panic!("expected a failure, got: {other:?}"),
    }
}

/// Ends what threads beside a test do, also when the test fails: its scope waits for them.
#[derive(Default)]
pub struct Done(AtomicBool);

impl Done {
    pub fn yet(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    #[must_use]
    pub fn when_dropped(&self) -> impl Drop + '_ {
        struct Sets<'a>(&'a AtomicBool);
        impl Drop for Sets<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        Sets(&self.0)
    }
}

/// Polls until something holds.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Runs a test of this binary, one that is ignored otherwise, in a process of its own.
pub fn child(test: &str, environment: &[(&str, &OsStr)]) -> std::process::Command {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command
        .args([test, "--exact", "--ignored", "--nocapture", "--quiet"])
        .envs(environment.iter().copied())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped());
    command
}

/// A file system of its own for a test, as only root can have one.
pub struct Mount(PathBuf);

impl Mount {
    pub fn new(kind: &str, at: &Path, options: &str) -> Self {
        use nix::mount::{MsFlags, mount};
        fs::create_dir_all(at).unwrap();
        let none = MsFlags::empty();
        mount(Some("none"), at, Some(kind), none, Some(options)).unwrap();
        Self(at.to_owned())
    }

    /// What is a mount, be it of itself, cannot be removed.
    pub fn on_itself(path: &Path) -> Self {
        use nix::mount::{MsFlags, mount};
        mount(
            Some(path),
            path,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .unwrap();
        Self(path.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}
