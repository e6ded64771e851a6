//! Sequences of operations on a registry with real files. After each one, what is listed is what
//! was staged and has neither expired nor been reset, its files are there and whole (P3, P4, P5),
//! and what somebody else put there stays (P9). At the end nothing of ours is left (P7).
//!
//! `FUZZ_DIR` says where the files are; a file system in memory is best.

#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use arbitrary::Arbitrary;
use codex_files::disk::staging_dir::StagingDir;
use codex_files::error::Error;
use codex_files::name::check_name;
use codex_files::registry::admission::Answer;
use codex_files::registry::keeper::{self, Options};
use codex_files::registry::remove;
use codex_files::registry::reply::Reply;
use codex_files::registry::stage_at::{self, StageAt};
use codex_files::registry::stage_file::{self, Miss, StageFile};
use codex_files::manifest::budget::Budget;
use codex_files::registry::{Attachment, Observer, Outcome, Registry, Report, Request, Waiter, Why};
use codex_files::retention::{Retention, Ttl};
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};

#[derive(Arbitrary, Debug)]
enum Op {
    /// Under the digest of the content.
    StageFile {
        source: u8,
        name: Option<Vec<u8>>,
        keep: Keep,
    },
    /// Under a key and at a destination of the caller's.
    Stage {
        source: u8,
        key: Key,
        keep: Keep,
    },
    /// Somebody writes to a source.
    Write {
        source: u8,
        content: Content,
    },
    Cleanup,
    Reset,
    /// Somebody removes, or overwrites, what is staged.
    Lose {
        pick: u8,
        how: Loss,
    },
    /// Somebody puts a file of their own beside what is staged.
    Foreign {
        pick: u8,
        name: u8,
    },
    /// The process that answers for the registry is killed and has a successor.
    Successor,
    /// Another registry on the same directory, that starts, stages and ends.
    Neighbour {
        source: u8,
    },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Keep {
    Expired,
    Endless,
    Persistent,
}

#[derive(Arbitrary, Debug)]
enum Key {
    /// Any string.
    Name(u8),
    /// What the content is said to be.
    Claim,
    /// What it is not.
    FalseClaim,
}

#[derive(Arbitrary, Debug)]
enum Content {
    Small(Vec<u8>),
    /// Above the size from which on a copier copies.
    Large(u8),
}

#[derive(Arbitrary, Debug)]
enum Loss {
    File,
    ChecksumDir,
    Area,
    Overwritten,
    Replaced,
}

struct Deaf;

impl Observer for Deaf {
    fn removed(&self, _why: Why, _report: Report) {}
    fn stopped(&self) {}
}

fn start() -> Arc<Registry> {
    const LONG: Duration = Duration::from_secs(86_400);
    keeper::start(Options {
        cleanup_interval: LONG,
        orphan_grace: LONG,
        budget: Budget::default(),
        recognise_unchanged: true,
        observer: Arc::new(Deaf),
    })
    .expect("a thread can be had")
}

fn ask<T: Send + 'static>(command: impl FnOnce(Reply<T>)) -> T {
    let (sender, receiver) = mpsc::channel();
    command(Reply::new(move |result| {
        let _ = sender.send(result);
    }));
    receiver
        .recv_timeout(Duration::from_secs(60))
        .expect("nobody hangs")
        .expect("the registry runs")
}

/// As a caller does it: waits for the answer, and asks again if told to.
fn until_answered(stage: impl Fn(&dyn Fn() -> Waiter) -> Answer) -> Result<Attachment, Error> {
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
            Answer::ByWaiter => receiver
                .recv_timeout(Duration::from_secs(60))
                .expect("nobody hangs"),
        };
        match outcome {
            Outcome::Staged { attachment, .. } => return Ok(attachment),
            Outcome::Failed(error) => return Err(error),
            Outcome::Retry => {}
        }
    }
}

fn hex_digest(content: &[u8]) -> Vec<u8> {
    let digest = Sha256::digest(content);
    digest
        .iter()
        .flat_map(|byte| format!("{byte:02x}").into_bytes())
        .collect()
}

/// What is known of a staged key.
struct Known {
    retention: Retention,
    content: Vec<u8>,
    path: PathBuf,
    /// Somebody has harmed the file since.
    lost: bool,
}

struct World {
    _dir: tempfile::TempDir,
    root: PathBuf,
    staging_dir: StagingDir,
    registry: Arc<Registry>,
    sources: [Vec<u8>; 4],
    known: BTreeMap<Vec<u8>, Known>,
    foreign: BTreeSet<PathBuf>,
}

const FOREIGN: &[u8] = b"of somebody else";

impl World {
    fn new() -> Self {
        let base = std::env::var_os("FUZZ_DIR").unwrap_or_else(|| std::env::temp_dir().into());
        let dir = tempfile::tempdir_in(base).expect("a directory");
        let root = dir.path().to_owned();
        let world = Self {
            staging_dir: StagingDir {
                path: root.join("staging"),
                is_default: false,
            },
            registry: start(),
            sources: Default::default(),
            known: BTreeMap::new(),
            foreign: BTreeSet::new(),
            _dir: dir,
            root,
        };
        for source in 0..4 {
            fs::write(world.source(source), b"").expect("a source");
        }
        world
    }

    fn source(&self, number: u8) -> PathBuf {
        self.root.join(format!("source {}", number % 4))
    }

    fn content(&self, number: u8) -> &[u8] {
        &self.sources[usize::from(number % 4)]
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::StageFile { source, name, keep } => self.stage_file(source, name, keep),
            Op::Stage { source, key, keep } => self.stage(source, &key, keep),
            Op::Write { source, content } => {
                let content = match content {
                    Content::Small(bytes) => bytes,
                    Content::Large(byte) => vec![byte; 300_000 + usize::from(byte)],
                };
                fs::write(self.source(source), &content).expect("a source");
                self.sources[usize::from(source % 4)] = content;
            }
            Op::Cleanup => {
                let report = ask(|reply| remove::cleanup(&self.registry, reply));
                assert!(report.failed.is_empty(), "{report:?}");
                self.known
                    .retain(|_, known| known.retention.ttl != Ttl::Millis(0));
            }
            Op::Reset => {
                let dir = self.staging_dir.path.clone();
                let failures = ask(|reply| remove::reset(&self.registry, dir, reply));
                assert!(failures.is_empty(), "{failures:?}");
                self.known.clear();
            }
            Op::Lose { pick, how } => self.lose(pick, &how),
            Op::Foreign { pick, name } => {
                if let Some(path) = self.pick(pick).and_then(|known| known.path.parent()) {
                    let path = path.join(format!(".foreign {name}"));
                    if fs::write(&path, FOREIGN).is_ok() {
                        self.foreign.insert(path);
                    }
                }
            }
            Op::Successor => {
                let keeper = keeper::adopt(&self.registry).expect("it has not ended");
                let successor = keeper::adopt(&self.registry);
                // The word that a keeper has gone may come late.
                keeper::abandon(&self.registry, keeper);
                assert!(successor.is_some_and(|successor| successor != keeper));
            }
            Op::Neighbour { source } => {
                let neighbour = start();
                remove::purge(&neighbour, &self.staging_dir);
                let request = self.file_request(source, b"neighbour", Keep::Persistent);
                let staged = until_answered(|waiter| {
                    stage_file::stage_file(&neighbour, &request, Miss::Unseen, waiter)
                })
                .expect("nothing is in its way");
                let content = fs::read(&staged.file.path).expect("it is there");
                assert!(content == self.content(source));
                assert!(ask(|reply| keeper::stop(&neighbour, reply)).is_empty());
                assert!(!staged.file.path.exists());
            }
        }
    }

    fn pick(&self, pick: u8) -> Option<&Known> {
        let index = usize::from(pick) % self.known.len().max(1);
        self.known.values().nth(index)
    }

    fn file_request(&self, source: u8, name: &[u8], keep: Keep) -> StageFile {
        StageFile {
            source: self.source(source),
            to: Request {
                name: name.into(),
                keep: retention(keep).into(),
                owner: None,
                staging_dir: self.staging_dir.clone(),
            },
        }
    }

    fn stage_file(&mut self, source: u8, name: Option<Vec<u8>>, keep: Keep) {
        let mut name = name.unwrap_or_else(|| b"name".to_vec());
        // Others are refused before.
        name.truncate(255);
        if check_name(&name).is_err() {
            name = b".staging".to_vec();
        }
        let request = self.file_request(source, &name, keep);
        let staged = until_answered(|waiter| {
            stage_file::stage_file(&self.registry, &request, Miss::New, waiter)
        });
        let content = self.content(source).to_vec();
        let key = hex_digest(&content);
        self.staged(key, content, retention(keep), staged);
    }

    fn stage(&mut self, source: u8, key: &Key, keep: Keep) {
        let content = self.content(source).to_vec();
        let (key, destination) = match key {
            Key::Name(name) => (vec![b'k', name % 4], format!("places/{}/copy", name % 4)),
            Key::Claim => (hex_digest(&content), format!("claim {}", source % 4)),
            Key::FalseClaim => (hex_digest(b"another"), "false claim".into()),
        };
        let request = StageAt {
            checksum: key.as_slice().into(),
            name: b"name".as_slice().into(),
            keep: retention(keep).into(),
            size: content.len() as u64,
            source: self.source(source),
            destination: self.root.join(destination),
            staging_dir: self.staging_dir.clone(),
        };
        let staged = until_answered(|waiter| stage_at::stage_at(&self.registry, &request, waiter));
        if key == hex_digest(b"another") && content != b"another" && !self.known.contains_key(&key)
        {
            assert!(
                matches!(staged, Err(Error::ChecksumMismatch { .. })),
                "{staged:?}"
            );
            assert!(!request.destination.exists());
        } else if matches!(staged, Err(Error::ChecksumMismatch { .. })) {
            // Its file was lost, and the source does not have what is to be copied anew.
            let known = self.known.get(&key).expect("it was known");
            assert!(known.lost && known.content != content);
        } else {
            self.staged(key, content, retention(keep), staged);
        }
    }

    fn staged(
        &mut self,
        key: Vec<u8>,
        content: Vec<u8>,
        retention: Retention,
        staged: Result<Attachment, Error>,
    ) {
        let attachment = staged.expect("nothing is in its way");
        assert_eq!(&*attachment.file.checksum, key.as_slice());
        let (retention, content) = match self.known.remove(&key) {
            // What is there stays as it was first staged; what is not is copied anew.
            Some(known) if known.lost => (known.retention.merge(retention.into()), content),
            Some(known) => (known.retention.merge(retention.into()), known.content),
            None => (retention, content),
        };
        assert_eq!(attachment.retention, retention);
        let known = Known {
            retention,
            content,
            path: attachment.file.path.to_path_buf(),
            lost: false,
        };
        // What is in the place where a file is to be staged gives way to it.
        self.foreign.remove(&known.path);
        // Be it another key's.
        for other in self.known.values_mut() {
            other.lost |= other.path == known.path;
        }
        self.known.insert(key, known);
    }

    fn lose(&mut self, pick: u8, how: &Loss) {
        let Some(path) = self.pick(pick).map(|known| known.path.clone()) else {
            return;
        };
        let elsewhere = !path.starts_with(&self.staging_dir.path);
        let dir = path.parent().expect("it has one").to_owned();
        let gone = match how {
            Loss::File => {
                let _ = fs::remove_file(&path);
                path
            }
            Loss::Overwritten | Loss::Replaced => {
                if matches!(how, Loss::Replaced) {
                    let _ = fs::remove_file(&path);
                } else {
                    make_writable(&path);
                }
                // In our own directory it is ours all the same, since it is in the place of ours.
                let is_written = fs::write(&path, FOREIGN).is_ok();
                if is_written && elsewhere && matches!(how, Loss::Replaced) {
                    self.foreign.insert(path.clone());
                }
                path
            }
            Loss::ChecksumDir | Loss::Area if elsewhere => return,
            Loss::ChecksumDir => {
                let _ = fs::remove_dir_all(&dir);
                dir
            }
            Loss::Area => {
                let area = dir.parent().expect("it has one").to_owned();
                let _ = fs::remove_dir_all(&area);
                area
            }
        };
        for known in self.known.values_mut() {
            known.lost |= known.path.starts_with(&gone);
        }
        self.foreign
            .retain(|path| path.exists() || !path.starts_with(&gone));
    }

    fn check(&mut self) {
        let listing = self.registry.manifest().list();
        let listed: BTreeMap<Vec<u8>, &Attachment> = listing
            .iter()
            .map(|attachment| (attachment.file.checksum.to_vec(), attachment))
            .collect();
        assert!(listed.keys().eq(self.known.keys()), "other keys are listed");
        let totals = self.registry.manifest().metrics().totals;
        let count = totals.persistent_count + totals.expirable_count;
        assert_eq!(count, self.known.len() as u64);
        for (key, known) in &self.known {
            let attachment = listed[key];
            assert_eq!(attachment.retention, known.retention);
            if !known.lost {
                let content = fs::read(&attachment.file.path).expect("it is there");
                assert!(content == known.content, "another content is there");
            }
        }
        for path in &self.foreign {
            assert!(is_foreign(path), "{} is not as it was", path.display());
        }
    }

    fn end(mut self) {
        assert!(ask(|reply| keeper::stop(&self.registry, reply)).is_empty());
        for path in std::mem::take(&mut self.foreign) {
            assert!(is_foreign(&path), "{} is not as it was", path.display());
            fs::remove_file(path).expect("it is there");
        }
        // Directories in which there was a foreign file are left.
        assert_eq!(
            files_below(&self.root.join("staging")),
            Vec::<PathBuf>::new()
        );
    }
}

fn is_foreign(path: &Path) -> bool {
    fs::read(path).is_ok_and(|content| content == FOREIGN)
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found
}

fn make_writable(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o600));
}

fn retention(keep: Keep) -> Retention {
    let (persist, ttl) = match keep {
        Keep::Expired => (false, Ttl::Millis(0)),
        Keep::Endless => (false, Ttl::Infinity),
        Keep::Persistent => (true, Ttl::Infinity),
    };
    Retention { persist, ttl }
}

fuzz_target!(|ops: Vec<Op>| {
    let mut world = World::new();
    for op in ops.into_iter().take(24) {
        world.step(op);
        world.check();
    }
    world.end();
});
