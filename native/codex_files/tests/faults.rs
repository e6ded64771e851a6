//! The disk fails, at every system call in turn: what was promised holds all the same. There is a
//! clear error, nothing in part at a published path (P4), the manifest agrees with the disk, and
//! nothing is left behind for longer than till the next start.

#![cfg(feature = "fault-injection")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, OnceLock};

use codex_files::checksum::Checksum;
use codex_files::disk::source::INLINE_LIMIT;
use codex_files::error::Error;
use codex_files::fault::{self, Failure, Plan};
use codex_files::registry::Outcome;
use common::*;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Plans and limits hold for the whole process: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    // That another test failed says nothing about this one.
    ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

const NO_FAULT: Plan = Plan {
    at: usize::MAX,
    times: 0,
    failure: Failure::Error(Errno::EIO),
    write_limit: usize::MAX,
    without: None,
};

/// Errors without a meaning of their own: they must come out as they went in.
const PLAIN: [Errno; 6] = [
    Errno::ENOSPC,
    Errno::EIO,
    Errno::EACCES,
    Errno::EMFILE,
    Errno::EROFS,
    Errno::EXDEV,
];

/// Errors that the code takes for a sign of something. They may lead to another try.
const MEANINGFUL: [Errno; 5] = [
    Errno::ENOENT,
    Errno::EEXIST,
    Errno::ENOTDIR,
    Errno::ENOTEMPTY,
    Errno::EWOULDBLOCK,
];

// ---- staging -------------------------------------------------------------------------------

/// One way to stage a file.
#[derive(Clone, Copy, Debug)]
struct Scene {
    name: &'static str,
    from: From,
    size: usize,
    to: To,
    before: Before,
    /// A call that the file system has not.
    without: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum From {
    File,
    /// Bytes in memory.
    Data,
    /// The same, in pieces of a third of a large content.
    Stream,
    /// The same, and its file is removed from outside in the middle.
    LostStream,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum To {
    /// The registry's own area.
    Area,
    /// A destination of the caller's, in a directory that is not there yet.
    Elsewhere,
    /// The same, with a digest for a key.
    ElsewhereVerified,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Before {
    Nothing,
    /// Another file has been staged: the area is there.
    Another,
    /// The file has been staged.
    Staged,
    /// The file has been staged, and removed from outside (P6).
    Lost,
    /// The same, and is staged again under another name.
    LostUnderAnotherName,
    /// The file has been staged, and is staged under another name.
    UnderAnotherName,
    /// The file has been staged under two names, and the first one was removed from outside.
    FirstNameLost,
}

/// Data between holes, of which each is more than a small file has.
const SPARSE: usize = 2 * LARGE + BLOCK;

const BLOCK: usize = 4096;

const SCENES: [Scene; 31] = [
    scene("first", SMALL, To::Area, Before::Nothing),
    scene("small", SMALL, To::Area, Before::Another),
    scene("known", SMALL, To::Area, Before::Staged),
    scene("lost", SMALL, To::Area, Before::Lost),
    scene("renamed", SMALL, To::Area, Before::LostUnderAnotherName),
    scene("large", LARGE, To::Area, Before::Another),
    scene("first-large", LARGE, To::Area, Before::Nothing),
    scene("lost-large", LARGE, To::Area, Before::Lost),
    scene("elsewhere", SMALL, To::Elsewhere, Before::Nothing),
    scene(
        "elsewhere-verified",
        SMALL,
        To::ElsewhereVerified,
        Before::Another,
    ),
    scene("elsewhere-large", LARGE, To::Elsewhere, Before::Another),
    scene("elsewhere-lost", SMALL, To::Elsewhere, Before::Lost),
    scene("linked", SMALL, To::Area, Before::UnderAnotherName),
    scene(
        "linked-elsewhere",
        SMALL,
        To::ElsewhereVerified,
        Before::UnderAnotherName,
    ),
    scene("relinked", SMALL, To::Area, Before::FirstNameLost),
    scene("copied", SMALL, To::Area, Before::UnderAnotherName).without("link"),
    scene("recopied", SMALL, To::Area, Before::LostUnderAnotherName).without("link"),
    data("data-first", SMALL, Before::Nothing),
    data("data-known", SMALL, Before::Staged),
    data("data-lost", SMALL, Before::Lost),
    data("data-large-first", LARGE, Before::Nothing),
    data("data-large-known", LARGE, Before::Staged),
    data("data-large-lost", LARGE, Before::Lost),
    stream("stream-first", SMALL, Before::Nothing),
    stream("stream", LARGE, Before::Another),
    stream("stream-known", LARGE, Before::Staged),
    stream("stream-lost", LARGE, Before::Lost),
    lost_stream("lost-stream", Before::Another),
    lost_stream("lost-stream-known", Before::Staged),
    scene("sparse", SPARSE, To::Area, Before::Another),
    scene("elsewhere-sparse", SPARSE, To::Elsewhere, Before::Another),
];

const fn data(name: &'static str, size: usize, before: Before) -> Scene {
    Scene {
        from: From::Data,
        ..scene(name, size, To::Area, before)
    }
}

const fn stream(name: &'static str, size: usize, before: Before) -> Scene {
    Scene {
        from: From::Stream,
        ..scene(name, size, To::Area, before)
    }
}

const fn lost_stream(name: &'static str, before: Before) -> Scene {
    Scene {
        from: From::LostStream,
        ..scene(name, LARGE, To::Area, before)
    }
}

const fn scene(name: &'static str, size: usize, to: To, before: Before) -> Scene {
    Scene {
        name,
        from: From::File,
        size,
        to,
        before,
        without: None,
    }
}

impl Scene {
    const fn without(self, call: &'static str) -> Self {
        Self {
            without: Some(call),
            ..self
        }
    }

    fn content(&self) -> &'static [u8] {
        static SMALL_CONTENT: OnceLock<Vec<u8>> = OnceLock::new();
        static LARGE_CONTENT: OnceLock<Vec<u8>> = OnceLock::new();
        static SPARSE_CONTENT: OnceLock<Vec<u8>> = OnceLock::new();
        match self.size {
            SMALL => SMALL_CONTENT.get_or_init(|| content(SMALL, 7)),
            LARGE => LARGE_CONTENT.get_or_init(|| content(LARGE, 7)),
            _ => SPARSE_CONTENT.get_or_init(|| {
                let (hole, data) = (vec![0; LARGE], content(BLOCK, 7));
                [&hole[..], &data, &hole].concat()
            }),
        }
    }

    fn key(&self) -> Checksum {
        static SMALL_KEY: OnceLock<Checksum> = OnceLock::new();
        assert_eq!(self.size, SMALL, "the key of that content is not kept");
        SMALL_KEY.get_or_init(|| key(self.content())).clone()
    }

    /// There may be room when others have ended.
    fn tries_again_after(&self, errno: Errno) -> bool {
        let copies = self.from == From::File && self.to == To::Area;
        self.size != SMALL && copies && errno == Errno::ENOSPC
    }

    fn destination(&self, lab: &Lab) -> PathBuf {
        lab.root.join("parent/destination")
    }

    /// What is there before the faults begin.
    fn set(&self, lab: &Lab) {
        let source = lab.source("source", self.content());
        if self.size == SPARSE {
            let file = fs::File::create(source).unwrap();
            file.set_len(SPARSE as u64).unwrap();
            let data = &self.content()[LARGE..LARGE + BLOCK];
            file.write_all_at(data, LARGE as u64).unwrap();
        }
        if self.before == Before::Another {
            let other = lab.source("other", b"another content");
            staged(lab.stage_file(&other));
        }
        if matches!(self.before, Before::Nothing | Before::Another) {
            return;
        }
        let attachment = staged(self.play(lab));
        if self.before == Before::FirstNameLost {
            staged(self.play_as(lab, "another name"));
        }
        if !matches!(self.before, Before::Staged | Before::UnderAnotherName) {
            fs::remove_file(&attachment.file.path).unwrap();
        }
    }

    fn play(&self, lab: &Lab) -> Outcome {
        self.play_as(lab, "name")
    }

    fn play_again(&self, lab: &Lab) -> Outcome {
        match self.before {
            Before::LostUnderAnotherName => self.play_as(lab, "another name"),
            Before::UnderAnotherName => lab.stage_file_as(&lab.root.join("source"), "another name"),
            _ => self.play(lab),
        }
    }

    fn play_as(&self, lab: &Lab, name: &str) -> Outcome {
        let source = lab.root.join("source");
        match self.to {
            To::Area if self.from == From::Data => lab.stage_data(self.content()),
            To::Area if self.from == From::Stream => lab.stage_stream(self.content(), LARGE / 3),
            To::Area if self.from == From::LostStream => {
                lab.stage_stream_while(self.content(), LARGE / 3, || {
                    let files = tree(&lab.staging_path()).into_keys();
                    let mut scratch =
                        files.filter(|path| path.to_string_lossy().contains("/.staging-"));
                    scratch.try_for_each(fs::remove_file).unwrap();
                })
            }
            To::Area => lab.stage_file_as(&source, name),
            To::Elsewhere => lab.stage(b"a key", &source, &self.destination(lab)),
            To::ElsewhereVerified => lab.stage(&self.key(), &source, &self.destination(lab)),
        }
    }

    fn calls(&self) -> Vec<&'static str> {
        let lab = Lab::new();
        self.set(&lab);
        let plan = self.plan(NO_FAULT);
        let (outcome, calls) = fault::run(plan, || self.play_again(&lab));
        staged(outcome);
        calls
    }

    /// The plan, on the file system of the scene.
    fn plan(&self, plan: Plan) -> Plan {
        Plan {
            without: self.without,
            ..plan
        }
    }

    /// Plays it under a plan and looks at what is left.
    fn suffer(&self, plan: Plan) -> Result<(), Error> {
        self.suffer_and_name(plan).1
    }

    /// The same, and the first call that failed: two threads copy a large file, and make their calls in
    /// another order each time.
    fn suffer_and_name(&self, plan: Plan) -> (Option<&'static str>, Result<(), Error>) {
        let mut lab = Lab::new();
        self.set(&lab);
        let plan = self.plan(plan);
        let (outcome, calls) = fault::run(plan, || self.play_again(&lab));
        let about = || format!("{} under {plan:?}: {calls:?}, {outcome:?}", self.name);

        // Nothing in part, and counters that agree with the listing.
        lab.assert_areas_whole(Scratch::Allowed);
        if self.to != To::Area {
            let destination = self.destination(&lab);
            if destination.exists() {
                assert_eq!(
                    fs::read(&destination).unwrap(),
                    self.content(),
                    "{}",
                    about()
                );
            }
        }
        let attachments = lab.attachments();
        assert_eq!(
            lab.registry.manifest().metrics().totals,
            totals(&attachments),
            "{}",
            about()
        );
        let result = match outcome {
            Outcome::Staged { ref attachment, .. } => {
                assert!(attachment.file.path.exists(), "{}", about());
                Ok(())
            }
            Outcome::Failed(ref error) => {
                let listed = attachments.len();
                let expected = usize::from(self.before != Before::Nothing);
                assert_eq!(listed, expected, "{}", about());
                if plan.times == 1 {
                    self.assert_tidy(&lab, &about());
                }
                Err(error.clone())
            }
            Outcome::Retry => panic!("{}", about()),
        };
        // Whoever has an attachment holds on to its area.
        drop((outcome, attachments));

        // The next one finds nothing in its way.
        staged(self.play_again(&lab));
        lab.assert_consistent();
        lab.assert_leaves_nothing();
        if plan.times <= 1 {
            let parent = self.destination(&lab).parent().unwrap().to_owned();
            assert!(!parent.exists(), "left behind: {:?}", tree(&parent));
        }
        (calls.get(plan.at).copied(), result)
    }

    /// One failed call is tidied up after at once: only what was there before is there.
    fn assert_tidy(&self, lab: &Lab, about: &str) {
        let was_there =
            self.to != To::Area && matches!(self.before, Before::Lost | Before::UnderAnotherName);
        let left: Vec<_> = tree(&lab.staging_path())
            .into_keys()
            .filter(|path| !lab.areas().contains(path))
            .filter(|path| {
                !lab.attachments().iter().any(|attachment| {
                    let file = &attachment.file;
                    let named = |name: &str| file.named(Some(name.as_bytes()));
                    let mut names = [Some(file.clone()), named("name"), named("another name")]
                        .into_iter()
                        .flatten();
                    file.path.parent() == Some(path) || names.any(|file| *file.path == **path)
                })
            })
            // The record of a file that was lost is there till the file has another place.
            .filter(|path| !(was_there && path.to_string_lossy().contains("elsewhere-0")))
            .collect();
        assert!(left.is_empty(), "{about}: left behind: {left:?}");
        if self.to != To::Area && !was_there {
            let parent = lab.root.join("parent");
            assert!(
                !parent.exists(),
                "{about}: left behind: {:?}",
                tree(&parent)
            );
        }
    }
}

#[test]
fn p4_whichever_call_of_a_staging_fails_nothing_in_part_is_left() {
    let _alone = alone();
    let mut points = 0;
    for scene in SCENES {
        let calls = scene.calls();
        for at in 0..calls.len() {
            for errno in PLAIN {
                // Whether one call fails or all from then on; two errors stand for all there.
                let times = if [Errno::EIO, Errno::ENOSPC].contains(&errno) {
                    &[1, usize::MAX][..]
                } else {
                    &[1]
                };
                for &times in times {
                    let plan = Plan {
                        at,
                        times,
                        failure: Failure::Error(errno),
                        ..NO_FAULT
                    };
                    points += 1;
                    let (call, result) = scene.suffer_and_name(plan);
                    let Some(call) = call else { continue };
                    match result {
                        Err(error) => assert_eq!(
                            error.errno(),
                            Some(errno),
                            "{}: {call} failed with {errno}, the caller heard: {error}",
                            scene.name,
                        ),
                        // A look, or a removal of what is in the way of nobody, can be done
                        // without, and so can a way to copy, or a link, that the file system has not.
                        // Nothing else can: errors at close count.
                        Ok(()) => assert!(
                            call.contains("stat")
                                || ["openat2", "unlink", "rmdir"].contains(&call)
                                || ["clone", "seek_data", "seek_hole"].contains(&call)
                                || (times == 1 && scene.tries_again_after(errno))
                                || scene.without == Some(call)
                                // What cannot be linked is put in place anew.
                                || (call == "link" && scene.before == Before::FirstNameLost)
                                || (["link", "copy_file_range"].contains(&call)
                                    && [Errno::EXDEV, Errno::EACCES].contains(&errno)),
                            "{}: nobody heard that {call} failed with {errno}",
                            scene.name,
                        ),
                    }
                }
            }
            for errno in MEANINGFUL {
                points += 1;
                let plan = Plan {
                    at,
                    times: 1,
                    failure: Failure::Error(errno),
                    ..NO_FAULT
                };
                if let Err(error) = scene.suffer(plan) {
                    assert!(error.errno().is_some(), "{error}");
                }
            }
        }
    }
    println!("{points} faults of stagings");
}

/// The directory that was made for one file goes with it, also while another is staged beside it.
#[test]
fn a_directory_that_goes_before_the_scratch_file_is_in_it_is_made_again() {
    let _alone = alone();
    let mut points = 0;
    for scene in SCENES.iter().filter(|scene| scene.to != To::Area) {
        let calls = scene.calls();
        let Some(record) = calls.iter().position(|call| *call == "symlink") else {
            // It is linked.
            continue;
        };
        for at in (record..calls.len()).filter(|&at| calls[at] == "create") {
            points += 1;
            let plan = Plan {
                at,
                times: 1,
                failure: Failure::Error(Errno::ENOENT),
                ..NO_FAULT
            };
            scene.suffer(plan).unwrap();
        }
    }
    assert!(points > 0);
}

/// Bytes that are known already are hashed, and their file is looked at: nothing else.
#[test]
fn p20_known_bytes_write_nothing() {
    let _alone = alone();
    for scene in SCENES {
        if scene.from == From::Data && scene.before == Before::Staged {
            assert_eq!(scene.calls(), ["lstat"], "{}", scene.name);
        }
    }
}

/// What is in a hole is known.
#[test]
fn p24_holes_are_neither_read_nor_written() {
    let _alone = alone();
    for scene in SCENES.iter().filter(|scene| scene.size == SPARSE) {
        let calls = scene.calls();
        let of = |names: &[&str]| calls.iter().filter(|call| names.contains(call)).count();
        // What stands around the data in its page, and that there is no more of it.
        assert!(of(&["read", "pread"]) <= 2, "{}: {calls:?}", scene.name);
        let written = of(&["copy_file_range", "write"]);
        assert!(written <= 1, "{}: {calls:?}", scene.name);
    }
}

/// ext4 would write a copy out at its close, and the caller wait for the disk.
#[test]
fn a_copy_is_not_cut_where_a_clone_has_left_nothing() {
    let _alone = alone();
    for scene in SCENES.iter().filter(|scene| scene.size == LARGE) {
        let calls = scene.calls();
        assert!(!calls.contains(&"ftruncate"), "{}: {calls:?}", scene.name);
    }
}

#[test]
fn an_interrupted_call_goes_on() {
    let _alone = alone();
    for scene in SCENES {
        for at in 0..scene.calls().len() {
            for times in [1, 3] {
                let plan = Plan {
                    at,
                    times,
                    failure: Failure::Error(Errno::EINTR),
                    ..NO_FAULT
                };
                scene.suffer(plan).unwrap();
            }
        }
    }
}

#[test]
fn p4_short_writes_are_completed() {
    let _alone = alone();
    for scene in SCENES {
        for write_limit in [1, 7, 1000, 4096, INLINE_LIMIT - 1] {
            // Byte by byte takes long.
            if write_limit == 1 && scene.size != SMALL {
                continue;
            }
            let plan = Plan {
                write_limit,
                ..NO_FAULT
            };
            scene.suffer(plan).unwrap();
        }
    }
}

/// A process that ends at a chosen call: the scene, the call and the place are told to it.
#[test]
#[ignore = "run in a process of its own by another test"]
fn child_that_crashes() {
    // It leaves enough behind without its core.
    setrlimit(Resource::RLIMIT_CORE, 0, 0).unwrap();
    let variable = |name| std::env::var(name).unwrap();
    let dir = PathBuf::from(variable("CODEX_FILES_TEST_DIR"));
    let scene = SCENES
        .into_iter()
        .find(|scene| scene.name == variable("CODEX_FILES_TEST_SCENE"))
        .unwrap();
    let lab = Lab::in_dir(&dir).started();
    scene.set(&lab);
    let plan = scene.plan(Plan {
        at: variable("CODEX_FILES_TEST_CALL").parse().unwrap(),
        times: 1,
        failure: Failure::Crash,
        ..NO_FAULT
    });
    let _ = fault::run(plan, || scene.play_again(&lab));
    std::process::abort();
}

#[test]
fn p4_a_crash_at_whichever_call_leaves_nothing_in_part_and_the_next_start_nothing_at_all() {
    let _alone = alone();
    let mut crashes = 0;
    for scene in SCENES {
        let calls = scene.calls();
        // One more call than there are: a crash after all of them.
        for at in 0..=calls.len() {
            let mut lab = Lab::new();
            let status = child(
                "child_that_crashes",
                &[
                    ("CODEX_FILES_TEST_DIR", lab.root.as_os_str()),
                    ("CODEX_FILES_TEST_SCENE", OsStr::new(scene.name)),
                    ("CODEX_FILES_TEST_CALL", OsStr::new(&at.to_string())),
                ],
            )
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
            assert!(status.signal().is_some(), "it has crashed: {status}");
            crashes += 1;

            lab.assert_areas_whole(Scratch::Allowed);
            let destination = scene.destination(&lab);
            if destination.exists() {
                assert_eq!(fs::read(&destination).unwrap(), scene.content());
            }
            lab.purge();
            let left = tree(&lab.staging_path());
            assert!(left.is_empty(), "{} at {at}: left: {left:?}", scene.name);
            let parent = destination.parent().unwrap();
            let left = tree(parent);
            assert!(left.is_empty(), "{} at {at}: left: {left:?}", scene.name);
            // A directory is on record when it has been made and looked at.
            let rest = calls.get(at..).unwrap_or_default();
            let recorded =
                !(rest.starts_with(&["symlink"]) || rest.starts_with(&["fstatat", "symlink"]));
            assert!(!(parent.exists() && recorded), "{} at {at}", scene.name);
            // And nothing stands in the way of the next one.
            staged(scene.play_again(&lab));
            lab.assert_leaves_nothing();
        }
    }
    println!("{crashes} crashes");
}

// ---- removing ------------------------------------------------------------------------------

#[derive(Clone, Copy, Debug, PartialEq)]
enum Removing {
    Cleanup,
    Reset,
    Stop,
}

/// Two attachments of each kind, all of them expired. One of each has two names.
fn stage_some(lab: &mut Lab) {
    lab.retention = EXPIRED;
    for number in 0..2_u8 {
        let source = lab.source("source", &[number; 10]);
        staged(lab.stage_file(&source));
        let elsewhere = lab.source("elsewhere", &[number; 11]);
        let destination = lab.root.join(format!("elsewhere {number}/file"));
        staged(lab.stage(&key(&[number; 11]), &elsewhere, &destination));
        if number == 1 {
            staged(lab.stage_file_as(&source, "another name"));
            staged(lab.stage_file_as(&elsewhere, "another name"));
        }
    }
}

/// The paths of what was reported as failed, each with its error.
fn remove(lab: &Lab, removing: Removing) -> Vec<(PathBuf, Error)> {
    match removing {
        Removing::Cleanup => {
            let failed = lab.cleanup().failed.into_iter();
            failed
                .map(|(attachment, error)| (attachment.file.path.to_path_buf(), error))
                .collect()
        }
        Removing::Reset => lab.reset(),
        Removing::Stop => stop(&lab.registry),
    }
}

#[test]
fn p7_whichever_call_of_a_removal_fails_it_is_reported_and_tried_again() {
    let _alone = alone();
    let mut points = 0;
    for removing in [Removing::Cleanup, Removing::Reset, Removing::Stop] {
        let mut lab = Lab::new();
        stage_some(&mut lab);
        let (failed, calls) = fault::run(NO_FAULT, || remove(&lab, removing));
        assert!(failed.is_empty());
        drop(lab);
        for (at, call) in calls.iter().enumerate() {
            for errno in PLAIN.into_iter().chain(MEANINGFUL).chain([Errno::EINTR]) {
                for times in [1, usize::MAX] {
                    if errno == Errno::EINTR && times > 1 {
                        continue; // it would go on for ever
                    }
                    points += 1;
                    let plan = Plan {
                        at,
                        times,
                        failure: Failure::Error(errno),
                        ..NO_FAULT
                    };
                    fail_to_remove(removing, plan, call);
                }
            }
        }
    }
    println!("{points} faults of removals");
}

fn fail_to_remove(removing: Removing, plan: Plan, call: &str) {
    let mut lab = Lab::new();
    stage_some(&mut lab);
    let all = lab.attachments().len();
    let (failed, calls) = fault::run(plan, || remove(&lab, removing));
    let about = || format!("{removing:?} under {plan:?} at {call}: {calls:?}, {failed:?}");
    let listed = lab.attachments();
    assert_eq!(
        lab.registry.manifest().metrics().totals,
        totals(&listed),
        "{}",
        about()
    );
    let Failure::Error(errno) = plan.failure else {
        unreachable!("nobody crashes here");
    };
    // What is listed has been reported, and the other way round.
    let reported: BTreeSet<_> = failed.iter().map(|(path, _)| path.clone()).collect();
    for attachment in &listed {
        assert!(reported.contains(&*attachment.file.path), "{}", about());
    }
    if PLAIN.contains(&errno) {
        for (_, error) in &failed {
            assert_eq!(error.errno(), Some(errno), "{}", about());
        }
        for attachment in all_paths(&lab) {
            // Whole, or gone.
            if attachment.exists() {
                assert_eq!(fs::read(&attachment).unwrap().len(), 11);
            }
        }
    }
    if errno == Errno::EINTR {
        assert!(failed.is_empty() && listed.is_empty(), "{}", about());
    }
    if removing == Removing::Cleanup && plan.times == 1 && PLAIN.contains(&errno) {
        // The others are removed all the same; this one the next time, and counted then.
        assert!(failed.len() <= 1, "{}", about());
        let left = listed.len();
        drop(listed);
        let report = lab.cleanup();
        assert!(report.failed.is_empty());
        assert_eq!(report.cleaned.len(), left);
        assert_eq!(lab.attachments().len(), 0);
        assert!(left < all);
        for number in 0..2 {
            assert!(
                !lab.root.join(format!("elsewhere {number}")).exists(),
                "{}",
                about()
            );
        }
        drop(report);
        lab.assert_leaves_nothing();
    } else {
        drop(listed);
        if removing != Removing::Stop {
            lab.stop();
        }
        // What is still there the next start takes away.
        lab.crash();
        lab.purge();
        let files: Vec<_> = tree(&lab.staging_path()).into_keys().collect();
        assert!(
            files.is_empty() || MEANINGFUL.contains(&errno),
            "{}: left behind: {files:?}",
            about()
        );
    }
}

fn all_paths(lab: &Lab) -> Vec<PathBuf> {
    tree(&lab.root)
        .into_iter()
        .filter(|(path, is_dir)| !is_dir && path.ends_with("file"))
        .map(|(path, _)| path)
        .collect()
}

#[test]
fn p10_whichever_call_of_a_start_fails_the_next_one_removes_the_rest_and_nothing_of_others() {
    let _alone = alone();
    let set = || {
        let mut lab = Lab::new();
        stage_some(&mut lab);
        let notes = lab.staging_path().join("notes");
        fs::write(&notes, b"foreign").unwrap();
        // A neighbour that is alive, with files of its own. It looks for the dead while there are none.
        let neighbour = Lab::in_dir(&lab.root).started();
        staged(neighbour.stage_file(&neighbour.source("source", b"neighbour")));
        lab.crash();
        (lab, neighbour, notes)
    };
    let (lab, neighbour, _) = set();
    let (failed, calls) = fault::run(NO_FAULT, || lab.reset());
    assert!(failed.is_empty());
    drop((lab, neighbour));
    let mut points = 0;
    for at in 0..calls.len() {
        for errno in PLAIN.into_iter().chain([Errno::EINTR]) {
            for times in [1, usize::MAX] {
                if errno == Errno::EINTR && times > 1 {
                    continue; // it would go on for ever
                }
                points += 1;
                let plan = Plan {
                    at,
                    times,
                    failure: Failure::Error(errno),
                    ..NO_FAULT
                };
                let (mut lab, mut neighbour, notes) = set();
                // A reset does what a start does, and says what it could not do.
                let (failed, calls) = fault::run(plan, || lab.reset());
                let about = format!("{plan:?}: {calls:?}, {failed:?}");
                let dead: Vec<_> = all_paths(&lab);
                let all_gone = dead.is_empty();
                let said = !failed.is_empty();
                // A directory that may not be opened is a stranger's.
                assert!(
                    all_gone || said || errno == Errno::EACCES,
                    "silence over {dead:?}: {about}"
                );
                if errno == Errno::EINTR {
                    assert!(all_gone && !said, "{about}");
                }
                neighbour.assert_consistent();
                assert_eq!(fs::read(&notes).unwrap(), b"foreign");
                lab.purge();
                neighbour.assert_consistent();
                assert_eq!(lab.areas().len(), 1, "{about}: {:?}", tree(&lab.root));
                assert!(all_paths(&lab).is_empty(), "{about}");
                fs::remove_file(&notes).unwrap();
                lab.stop();
                neighbour.assert_leaves_nothing();
            }
        }
    }
    println!("{points} faults of purges");
}

// ---- the real thing ------------------------------------------------------------------------

fn open_files() -> usize {
    fs::read_dir("/dev/fd").unwrap().count()
}

/// The lowest limit is the number of the next descriptor, for as long as this lives.
struct LowLimit(u64, u64);

impl LowLimit {
    fn leaving(free: usize) -> Self {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        // Numbers are given from the lowest on: the holes below count.
        let mut held = Vec::new();
        let mut next = || {
            let file = fs::File::open("/").unwrap();
            let number = file.as_raw_fd();
            held.push(file);
            number
        };
        let mut limit = next();
        for _ in 0..free {
            limit = next();
        }
        let limit = u64::try_from(limit).unwrap();
        drop(held);
        setrlimit(Resource::RLIMIT_NOFILE, limit, hard).unwrap();
        Self(soft, hard)
    }
}

impl Drop for LowLimit {
    fn drop(&mut self) {
        setrlimit(Resource::RLIMIT_NOFILE, self.0, self.1).unwrap();
    }
}

#[test]
fn with_too_few_descriptors_there_is_a_clear_error_and_nothing_is_left() {
    let _alone = alone();
    for scene in SCENES {
        let mut failures = 0;
        for free in 0..12 {
            let mut lab = Lab::new();
            scene.set(&lab);
            let limit = LowLimit::leaving(free);
            let outcome = scene.play_again(&lab);
            drop(limit);
            match &outcome {
                Outcome::Failed(error) => {
                    assert_eq!(error.errno(), Some(Errno::EMFILE), "{error}");
                    failures += 1;
                    scene.assert_tidy(&lab, scene.name);
                }
                Outcome::Staged { attachment, .. } => assert_whole(attachment),
                Outcome::Retry => unreachable!("it was asked again"),
            }
            let succeeded = matches!(outcome, Outcome::Staged { .. });
            drop(outcome);
            staged(scene.play_again(&lab));
            lab.assert_leaves_nothing();
            if succeeded {
                break;
            }
        }
        assert!(
            failures > 0 || scene.before == Before::Staged,
            "{} needs descriptors",
            scene.name
        );
    }
}

#[test]
fn no_descriptor_is_lost_by_any_failure() {
    let _alone = alone();
    for scene in SCENES {
        let calls = scene.calls().len();
        eventually("the last registry is gone", || {
            let before = open_files();
            std::thread::yield_now();
            open_files() == before
        });
        let before = open_files();
        for at in 0..calls {
            let plan = Plan {
                at,
                times: 1,
                ..NO_FAULT
            };
            let _ = scene.suffer(plan);
        }
        eventually("every descriptor is closed", || open_files() <= before);
    }
}

/// The plans above stand for it where nobody may mount anything.
#[test]
#[ignore = "needs root, and a mount"]
fn as_root_on_a_mount_that_is_full_there_is_a_clear_error_and_nothing_is_left() {
    let _alone = alone();
    let outer = Lab::new();
    let _mount = Mount::new("tmpfs", &outer.root.join("full"), "size=1m");
    for size in [64 * 1024, LARGE] {
        for room in [0, 4096, size / 2, size - 1] {
            let mut lab = Lab::in_dir(&outer.root.join("full"));
            let content = content(size, 1);
            let source = outer.source("source", &content);
            // The area is there already; then somebody else takes the rest, but for a little.
            staged(lab.stage_file(&outer.source("first", b"first")));
            let filler = lab.root.join("filler");
            fill(&filler, room);
            let error = failed(lab.stage_file(&source));
            assert_eq!(error.errno(), Some(Errno::ENOSPC), "{error}");
            let destination = lab.root.join("elsewhere/file");
            let error = failed(lab.stage(b"key", &source, &destination));
            assert_eq!(error.errno(), Some(Errno::ENOSPC), "{error}");
            assert!(!destination.parent().unwrap().exists());
            lab.assert_areas_whole(Scratch::Forbidden);
            assert_eq!(lab.attachments().len(), 1);
            lab.assert_consistent();
            fs::remove_file(&filler).unwrap();
            staged(lab.stage_file(&source));
            staged(lab.stage(b"key", &source, &destination));
            lab.assert_consistent();
            lab.assert_leaves_nothing();
        }
    }
}

/// Fills a file system, but for less than `room` bytes and a page.
fn fill(path: &Path, room: usize) {
    let mut file = fs::File::create(path).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    let size = file.metadata().unwrap().len();
    file.set_len(size.saturating_sub(room as u64)).unwrap();
}

// ---- unchanged files -----------------------------------------------------------------------

/// What a staging does to the disk says whether it has read the file.
#[test]
fn an_unchanged_file_is_recognised_without_being_opened() {
    let _alone = alone();
    for size in [SMALL, LARGE] {
        let lab = Lab::new();
        let source = lab.source("source", &content(size, 1));
        copied(lab.stage_file(&source));
        let mut calls = Vec::new();
        // Only when its times are old enough to prove anything.
        eventually("it is recognised", || {
            let (outcome, made) = fault::run(NO_FAULT, || lab.stage_file(&source));
            assert_eq!(known(outcome).file.checksum, key(&content(size, 1)));
            calls = made;
            !calls.contains(&"open")
        });
        assert_eq!(calls, ["openat2", "statx", "lstat"]);
        // A change shows at once.
        fs::write(&source, content(size, 2)).unwrap();
        assert_eq!(
            copied(lab.stage_file(&source)).file.checksum,
            key(&content(size, 2))
        );
    }
}

/// The calls of a staging are its price: one more is to be noticed.
#[cfg(target_os = "linux")]
#[test]
fn a_small_file_takes_no_more_system_calls_than_these() {
    let _alone = alone();
    let lab = Lab::new();
    let sources = [0_u8, 1, 2, 3, 4].map(|number| lab.source(&format!("{number}"), &[number]));
    // Old enough to be recognised, and the directories are there.
    std::thread::sleep(std::time::Duration::from_millis(2_100));
    copied(lab.stage_file(&sources[0]));

    // The calls of a thread that another test has left behind are among them: the fewest count.
    let fewest = |name, check: fn(Outcome)| {
        let calls = sources[1..].iter().map(|source| {
            let (outcome, calls) = fault::run(NO_FAULT, || lab.stage_file_as(source, name));
            check(outcome);
            calls
        });
        calls.min_by_key(Vec::len).unwrap()
    };
    let look = ["openat2", "statx"];
    let read = ["open", "fstat", "read"];
    let write = ["mkdir", "create", "write", "fstat", "close", "rename"];
    let new = fewest("first", |outcome| drop(copied(outcome)));
    assert_eq!(
        new,
        [&look[..], &read, &write, &["lstat", "fstatfs"]].concat()
    );
    let unchanged = fewest("first", |outcome| drop(known(outcome)));
    assert_eq!(unchanged, ["openat2", "statx", "lstat"]);
    let renamed = fewest("second", |outcome| drop(known(outcome)));
    assert_eq!(
        renamed,
        [&look[..], &["stat", "lstat", "link", "lstat"]].concat()
    );
}

/// How a staged copy goes while its source stays.
type Loss = fn(&Lab, &Path);

/// Of a large file that was staged before, and whose copy has gone, nothing is known that would make it
/// worth reading before it is copied.
#[test]
fn a_large_file_whose_copy_has_gone_is_read_once() {
    let _alone = alone();
    let mut lab = Lab::new();
    lab.retention = EXPIRED;
    let source = lab.source("source", &content(LARGE, 1));
    let stage = || fault::run(NO_FAULT, || copied(lab.stage_file(&source)));
    let reads = |calls: &[&str]| calls.iter().filter(|call| call.contains("read")).count();
    let expire: Loss = |lab, _| assert_eq!(lab.cleanup().cleaned.len(), 1);
    let reset: Loss = |lab, _| assert!(lab.reset().is_empty());
    let lose: Loss = |_, path| fs::remove_file(path).unwrap();

    let (_, first) = stage();
    for times in ["young", "old"] {
        for (name, go) in [("expired", expire), ("reset", reset), ("lost", lose)] {
            // So that its times are remembered as what they are.
            let (attachment, _) = fault::run(NO_FAULT, || staged(lab.stage_file(&source)));
            go(&lab, &attachment.file.path);
            let (_, again) = stage();
            assert_eq!(reads(&again), reads(&first), "{name}, {times}: {again:?}");
        }
        std::thread::sleep(std::time::Duration::from_millis(2_100));
    }
}
