//! What can be staged and what comes of it: sizes, names, files that change while they are copied
//! (P3), files that are not regular (P13), paths of any bytes (P17).

#![cfg(not(feature = "shuttle"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::sync::mpsc;

use codex_files::disk::source::INLINE_LIMIT;
use codex_files::error::{Error, FileType};
use codex_files::name::{check_name, default_name};
use codex_files::registry::stage_at::StageAt;
use codex_files::registry::{Outcome, stage_data};
use codex_files::retention::Keep;
use common::*;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::stat::Mode;
use nix::unistd::{Whence, lseek};

const MIB: usize = 1024 * 1024;

#[test]
fn p3_p20_files_and_bytes_of_every_size_are_staged_whole() {
    let mut lab = Lab::new();
    for size in [
        0,
        1,
        4096,
        INLINE_LIMIT - 1,
        INLINE_LIMIT,
        INLINE_LIMIT + 1,
        2 * INLINE_LIMIT,
        3 * MIB + 1,
    ] {
        let content = content(size, size as u64);
        let source = lab.source("source", &content);
        let attachment = copied(lab.stage_file(&source));
        assert_eq!(attachment.file.checksum, key(&content), "{size} bytes");
        assert_eq!(attachment.file.size, size as u64);
        assert_eq!(fs::read(&attachment.file.path).unwrap(), content);

        let attachment = known(lab.stage_data(&content));
        assert_eq!(attachment.file.checksum, key(&content));
        lab.reset();
        let attachment = copied(lab.stage_data(&content));
        assert_eq!(attachment.file.checksum, key(&content), "{size} bytes");
        assert_eq!(attachment.file.size, size as u64);
        assert_eq!(fs::read(&attachment.file.path).unwrap(), content);

        let destination = lab.root.join(format!("elsewhere/{size}"));
        let attachment = copied(lab.stage(size.to_string().as_bytes(), &source, &destination));
        assert_eq!(fs::read(&attachment.file.path).unwrap(), content);
    }
    lab.assert_consistent();
    lab.assert_leaves_nothing();
}

#[test]
fn p20_few_known_bytes_are_staged_again_at_a_glance() {
    let lab = Lab::new();
    let refresh = |content: &[u8]| {
        let keep = Keep::from(lab.retention);
        stage_data::refresh(&lab.registry, content, b"name", keep)
    };
    let few = content(4096, 1);
    assert!(refresh(&few).is_none());
    assert!(lab.attachments().is_empty());
    let staged = copied(lab.stage_data(&few));
    assert_eq!(refresh(&few).unwrap().file.path, staged.file.path);
    fs::remove_file(&*staged.file.path).unwrap();
    assert!(refresh(&few).is_none());

    // To hash as many would hold up others on the same scheduler.
    let many = content(INLINE_LIMIT, 2);
    copied(lab.stage_data(&many));
    assert!(refresh(&many).is_none());
}

#[test]
fn p3_a_checksum_that_claims_another_content_is_refused() {
    let lab = Lab::new();
    for (size, seed) in [(SMALL, 1), (LARGE, 2)] {
        let content = content(size, seed);
        let source = lab.source("source", &content);
        let destination = lab.root.join("elsewhere/file");
        let claimed = key(b"another content");
        match failed(lab.stage(&claimed, &source, &destination)) {
            Error::ChecksumMismatch { actual } => assert_eq!(actual, digest_of(&content)),
            other => panic!("{other}"),
        }
        assert!(!destination.parent().unwrap().exists());
        assert!(lab.attachments().is_empty());
        // Anything that is not a digest claims nothing.
        let attachment = copied(lab.stage(b"any key", &source, &destination));
        assert_eq!(fs::read(&attachment.file.path).unwrap(), content);
        lab.reset();
    }
}

/// Stages a source again and again while a thread does something to it; every success must be of
/// the bytes that are in place.
fn stage_while(size: usize, disturb: impl Fn(&Path, u64) + Sync) {
    let mut lab = Lab::new();
    let source = lab.source("source", &content(size, 0));
    let done = Done::default();
    let mut successes = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0;
            while !done.yet() {
                round += 1;
                disturb(&source, round);
            }
        });
        let _end = done.when_dropped();
        for round in 0..20 {
            match lab.stage_file(&source) {
                Outcome::Staged { attachment, .. } => {
                    successes += 1;
                    assert_whole(&attachment);
                }
                Outcome::Failed(error) => {
                    assert_eq!(error.errno(), Some(Errno::ENOENT), "{error}");
                }
                Outcome::Retry => unreachable!("it was asked again"),
            }
            let destination = lab.root.join(format!("elsewhere/{round}"));
            // The size is what the caller says: that of the content, not of the file just now.
            let claim = StageAt {
                size: size as u64,
                ..lab.request(&key(&content(size, 0)), &source, &destination)
            };
            match stage(&lab.registry, &claim) {
                Outcome::Staged { attachment, .. } => assert_whole(&attachment),
                Outcome::Failed(_) => assert!(!destination.exists()),
                Outcome::Retry => unreachable!("it was asked again"),
            }
        }
    });
    assert!(successes > 0, "there was something to stage all the time");
    lab.assert_consistent();
    lab.assert_areas_whole(Scratch::Forbidden);
    lab.assert_leaves_nothing();
}

#[test]
fn p3_a_source_that_is_rewritten_during_the_copy_is_staged_as_it_was_read() {
    for size in [SMALL, LARGE] {
        let contents = [content(size, 1), content(size, 2)];
        stage_while(size, |source, round| {
            let file = OpenOptions::new().write(true).open(source).unwrap();
            for (at, piece) in contents[round as usize % 2].chunks(1000).enumerate() {
                file.write_at(piece, at as u64 * 1000).unwrap();
            }
        });
    }
}

#[test]
fn p3_a_source_that_grows_during_the_copy_is_staged_as_it_was_read() {
    for size in [SMALL, LARGE] {
        stage_while(size, |source, round| {
            let mut file = OpenOptions::new().append(true).open(source).unwrap();
            file.write_all(&content(997, round)).unwrap();
            if file.metadata().unwrap().len() > 2 * LARGE as u64 {
                file.set_len(size as u64).unwrap();
            }
        });
    }
}

#[test]
fn p3_a_source_that_shrinks_during_the_copy_is_staged_as_it_was_read() {
    for size in [SMALL, LARGE] {
        stage_while(size, |source, _| {
            let file = OpenOptions::new().write(true).open(source).unwrap();
            for part in [3, 2, 1, 0, 3] {
                file.set_len((size * part / 3) as u64).unwrap();
            }
        });
    }
}

#[test]
fn p3_a_source_that_is_replaced_during_the_copy_is_staged_as_it_was_read() {
    for size in [SMALL, LARGE] {
        stage_while(size, |source, round| {
            let new = source.with_file_name("new");
            fs::write(&new, content(size + round as usize % 3, round % 5)).unwrap();
            fs::rename(&new, source).unwrap();
        });
    }
}

/// A writer that never ends must not keep a copy from ending.
#[test]
fn a_source_that_grows_faster_than_it_is_copied_comes_to_an_end() {
    let lab = Lab::new();
    let source = lab.source("log", &content(MIB, 3));
    let opened = fs::metadata(&source).unwrap().len();
    let mut log = OpenOptions::new().append(true).open(&source).unwrap();
    log.write_all(&content(MIB, 4)).unwrap();
    let done = Done::default();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.yet() && log.metadata().unwrap().len() < 512 * MIB as u64 {
                (&log).write_all(&[0; 65_536]).unwrap();
            }
        });
        let end = done.when_dropped();
        let attachment = copied(lab.stage_file(&source));
        drop(end);
        assert_whole(&attachment);
        assert!(attachment.file.size > opened);
    });
}

#[cfg(target_os = "linux")]
#[test]
fn files_of_proc_are_staged_whatever_their_size_says() {
    let lab = Lab::new();
    let version = copied(lab.stage_file(Path::new("/proc/version")));
    assert_eq!(
        fs::read(&version.file.path).unwrap(),
        fs::read("/proc/version").unwrap()
    );
    let status = copied(lab.stage_file(Path::new("/proc/self/status")));
    assert!(status.file.size > 0);
    let elsewhere = lab.root.join("elsewhere/version");
    copied(lab.stage(b"version", Path::new("/proc/version"), &elsewhere));
    assert_eq!(
        fs::read(elsewhere).unwrap(),
        fs::read("/proc/version").unwrap()
    );
    lab.assert_consistent();
}

/// Parts of a file, and whether each is data.
type Parts = Vec<(u64, bool)>;

/// Makes a file of parts: of data, or of holes.
fn sparse(path: &Path, parts: &[(u64, bool)]) {
    let file = File::create(path).unwrap();
    let mut at = 0;
    for &(length, is_data) in parts {
        if is_data {
            let bytes = content(length as usize, at);
            file.write_all_at(&bytes, at).unwrap();
        }
        at += length;
    }
    file.set_len(at).unwrap();
}

/// The data in a file, as the system tells.
fn data_in(path: &Path) -> Vec<(i64, i64)> {
    let file = File::open(path).unwrap();
    let mut data = Vec::new();
    let mut at = 0;
    while let Ok(start) = lseek(&file, at, Whence::SeekData) {
        at = lseek(&file, start, Whence::SeekHole).unwrap();
        data.push((start, at));
    }
    data
}

fn assert_as_sparse(copy: &Path, source: &Path) {
    // What XFS is about to write counts as data with what is around it: the copy may have more holes.
    let in_source = data_in(source);
    for (from, to) in data_in(copy) {
        let is_in_source = in_source
            .iter()
            .any(|&(first, last)| first <= from && to <= last);
        let name = source.display();
        assert!(
            is_in_source,
            "{name}: {from} to {to} is a hole in the source"
        );
    }
    let blocks = |path: &Path| fs::metadata(path).unwrap().blocks();
    let more = 512 * blocks(copy).saturating_sub(blocks(source));
    assert!(more <= MIB as u64, "{}: {more}", source.display());
}

#[test]
fn p24_holes_stay_holes() {
    let mib = MIB as u64;
    let mut patterns: Vec<(&str, Parts)> = vec![
        ("all hole", vec![(9 * mib, false)]),
        ("hole first", vec![(5 * mib, false), (mib, true)]),
        ("hole last", vec![(mib, true), (5 * mib, false)]),
        ("data only", vec![(3 * mib + 7, true)]),
        (
            "a byte",
            vec![(3 * mib + 7, false), (1, true), (mib, false)],
        ),
        (
            "in odd places",
            vec![(mib + 1, true), (3 * mib - 1, false), (333, true)],
        ),
        ("tiny holes", [(4096, true), (4096, false)].repeat(200)),
        (
            "holes around tiny data",
            [(mib, false), (1, true)].repeat(5),
        ),
    ];
    for seed in 0..4 {
        let bytes = content(60, seed);
        let length = |part: &[u8]| u64::from(part[0]) * u64::from(part[1]) * 16 + 1;
        let parts = bytes.chunks(3).map(|part| (length(part), part[2] % 2 == 0));
        patterns.push(("random", parts.collect()));
    }
    let mut lab = Lab::new();
    for (number, (name, parts)) in patterns.iter().enumerate() {
        let source = lab.root.join(format!("{name} {number}"));
        sparse(&source, parts);
        let attachment = copied(lab.stage_file(&source));
        assert_whole(&attachment);
        assert_eq!(attachment.file.checksum, key(&fs::read(&source).unwrap()));
        assert_as_sparse(&attachment.file.path, &source);

        let destination = lab.root.join(format!("elsewhere/{number}"));
        let attachment = copied(lab.stage(number.to_string().as_bytes(), &source, &destination));
        assert!(fs::read(&destination).unwrap() == fs::read(&source).unwrap());
        assert_as_sparse(&attachment.file.path, &source);

        // It may be read first, since it looks as one that was staged.
        fs::write(lab.source("other", b""), fs::read(&source).unwrap()).unwrap();
        known(lab.stage_file(&source));
        known(lab.stage_file(&lab.root.join("other")));
    }
    lab.assert_consistent();
    lab.assert_leaves_nothing();
}

#[test]
fn p3_a_source_whose_holes_change_during_the_copy_is_staged_as_it_was_read() {
    let size = 6 * MIB;
    let piece = content(MIB / 4, 1);
    stage_while(size, |source, round| {
        let file = OpenOptions::new().write(true).open(source).unwrap();
        let length = piece.len() as u64;
        let at = round * 7 % 24 * length;
        match round % 5 {
            0 => file.set_len(0).unwrap(),
            1 => file.set_len(size as u64 - at).unwrap(),
            2 => file.set_len(size as u64).unwrap(),
            3 => {
                let punch =
                    FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                fallocate(&file, punch, at as i64, length as i64).unwrap();
            }
            _ => file.write_all_at(&piece, at).unwrap(),
        }
    });
}

#[test]
fn p17_names_and_paths_of_every_byte_are_staged() {
    let mut lab = Lab::new();
    let every_byte: Vec<u8> = (1..=255).filter(|&byte| byte != b'/').collect();
    let mut names: Vec<OsString> = vec![
        OsString::from_vec(every_byte),
        OsString::from_vec(b"\xff\xfe".to_vec()),
        OsString::from_vec(vec![b'n'; 255]),
        "ä ö\n\t'\"\\*".into(),
        "-rf".into(),
        "...".into(),
    ];
    // Those that the library gives to its own.
    names.extend(
        [
            ".staging",
            ".staging-",
            ".staging-0",
            ".elsewhere-0",
            "codex_files-0123456789abcdef",
        ]
        .map(OsString::from),
    );
    for (number, name) in names.iter().enumerate() {
        let content = content(SMALL, number as u64);
        let dir = lab.root.join(OsStr::from_bytes(b"dir \xff"));
        fs::create_dir_all(&dir).unwrap();
        let source = dir.join(name);
        fs::write(&source, &content).unwrap();
        let name = default_name(&source);
        check_name(name).unwrap();
        let attachment = copied(lab.stage_file(&source));
        assert_eq!(&*attachment.file.name, name);
        assert_eq!(attachment.file.path.file_name().unwrap().as_bytes(), name);
        let large = lab.source("large", &common::content(LARGE, number as u64));
        let attachment = copied(lab.stage_file_as(&large, OsStr::from_bytes(name)));
        assert_whole(&attachment);
        // A record of any destination fits into a symbolic link.
        let parent = lab.root.join(format!("elsewhere {number}"));
        let destination = parent.join(OsStr::from_bytes(name));
        copied(lab.stage(number.to_string().as_bytes(), &source, &destination));
        assert_eq!(fs::read(&destination).unwrap(), content);
    }
    lab.assert_consistent();
    lab.assert_leaves_nothing();
    assert!(!lab.root.join("elsewhere 0").exists());
}

#[test]
fn p2_a_name_is_one_path_component() {
    let long = [b'n'; 256];
    for name in [
        &b""[..],
        b".",
        b"..",
        b"a/b",
        b"../../x",
        b"/",
        b"/etc/passwd",
        b"a\0b",
        &long,
    ] {
        match check_name(name) {
            Err(Error::InvalidName(refused)) => assert_eq!(&*refused, name),
            other => panic!("{other:?} for {}", name.escape_ascii()),
        }
    }
    for name in [&b"a"[..], b"...", b" ", b"\xff", &long[..255]] {
        check_name(name).unwrap();
    }
}

/// Stages in a thread of its own, so that a call that blocks is seen to do so.
fn stage_at_once(lab: &Lab, source: &Path) -> [Error; 2] {
    let (sender, receiver) = mpsc::channel();
    let file = lab.file_request(source, OsStr::new("name"));
    let elsewhere = lab.request(b"key", source, &lab.root.join("elsewhere/file"));
    let registry = lab.registry.clone();
    std::thread::spawn(move || {
        let outcomes = [stage_file(&registry, &file), stage(&registry, &elsewhere)];
        let _ = sender.send(outcomes);
    });
    receiver
        .recv_timeout(PATIENCE)
        .expect("it blocks")
        .map(failed)
}

#[test]
fn p13_what_is_not_a_regular_file_is_refused_at_once() {
    let lab = Lab::new();
    let at = |name: &str| lab.root.join(name);
    nix::unistd::mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    symlink(at("fifo"), at("link to a fifo")).unwrap();
    symlink("/dev/zero", at("link to a device")).unwrap();
    for (name, expected) in [
        ("fifo", FileType::Fifo),
        ("link to a fifo", FileType::Fifo),
        ("socket", FileType::Socket),
        ("link to a device", FileType::Device),
        ("/dev/zero", FileType::Device),
        ("/dev/null", FileType::Device),
    ] {
        for error in stage_at_once(&lab, &at(name)) {
            assert!(
                matches!(error, Error::UnsupportedFileType(kind) if kind == expected),
                "{name}: {error}"
            );
        }
    }
    assert!(lab.attachments().is_empty());
    assert!(!lab.staging_path().exists() || tree(&lab.staging_path()).values().all(|dir| *dir));
}

/// The path may come to mean a pipe after it has been looked at.
#[test]
fn p13_a_file_that_becomes_a_fifo_does_not_block() {
    let lab = Lab::new();
    let source = lab.source("source", b"content");
    let done = Done::default();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let new = source.with_file_name("new");
            while !done.yet() {
                nix::unistd::mkfifo(&new, Mode::S_IRWXU).unwrap();
                fs::rename(&new, &source).unwrap();
                fs::write(&new, b"content").unwrap();
                fs::rename(&new, &source).unwrap();
            }
        });
        let _end = done.when_dropped();
        let (sender, receiver) = mpsc::channel();
        let (registry, request) = (
            lab.registry.clone(),
            lab.file_request(&source, OsStr::new("name")),
        );
        std::thread::spawn(move || {
            let refused = (0..2_000)
                .filter(|_| match stage_file(&registry, &request) {
                    Outcome::Failed(Error::UnsupportedFileType(FileType::Fifo)) => true,
                    Outcome::Staged { attachment, .. } => {
                        assert_eq!(attachment.file.checksum, key(b"content"));
                        false
                    }
                    other => panic!("{other:?}"),
                })
                .count();
            let _ = sender.send(refused);
        });
        let refused = receiver.recv_timeout(PATIENCE).expect("it blocks");
        assert!(refused > 0);
    });
}

#[test]
fn sources_that_cannot_be_read_say_why() {
    let lab = Lab::new();
    let at = |name: &str| lab.root.join(name);
    fs::create_dir(at("dir")).unwrap();
    symlink("nowhere", at("dangling")).unwrap();
    symlink("loop", at("loop")).unwrap();
    lab.source("file", b"content");
    for (name, expected) in [
        ("missing", Errno::ENOENT),
        ("dangling", Errno::ENOENT),
        ("dir", Errno::EISDIR),
        ("loop", Errno::ELOOP),
        ("file/below", Errno::ENOTDIR),
        (&"n".repeat(300), Errno::ENAMETOOLONG),
    ] {
        for error in stage_at_once(&lab, &at(name)) {
            assert_eq!(error.errno(), Some(expected), "{name}: {error}");
        }
    }
}

/// Staging a file onto itself would let it expire.
#[test]
fn a_destination_that_is_the_source_is_refused() {
    let lab = Lab::new();
    for size in [SMALL, LARGE] {
        let source = lab.source("source", &content(size, 1));
        symlink(&source, lab.root.join("link")).unwrap();
        fs::hard_link(&source, lab.root.join("hard")).unwrap();
        for destination in ["source", "link", "hard"] {
            let error = failed(lab.stage(b"key", &source, &lab.root.join(destination)));
            let refused = match error {
                Error::DestinationIsSource(_) => destination != "link",
                Error::UnsupportedDestination(kind) => {
                    destination == "link" && kind == FileType::Symlink
                }
                _ => false,
            };
            assert!(refused, "{destination}: {error}");
        }
        assert_eq!(fs::read(&source).unwrap(), content(size, 1));
        for name in ["source", "link", "hard"] {
            fs::remove_file(lab.root.join(name)).unwrap();
        }
    }
}

#[test]
fn a_staged_file_can_be_staged_again_by_its_path() {
    let lab = Lab::new();
    for size in [SMALL, LARGE] {
        let first = copied(lab.stage_file(&lab.source("source", &content(size, 1))));
        let again = known(lab.stage_file(&first.file.path));
        assert_eq!(again.file.path, first.file.path);
        assert_whole(&again);
    }
}

#[test]
fn a_key_is_a_claim_about_the_content_only_in_the_very_form_of_a_digest() {
    let lab = Lab::new();
    let claim = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let stage = |key: &str, content: &[u8]| {
        let source = lab.source("source", content);
        let destination = lab.root.join(format!("staged as {key}"));
        lab.stage(key.as_bytes(), &source, &destination)
    };
    let mismatch = failed(stage(claim, b"not empty"));
    assert!(matches!(mismatch, Error::ChecksumMismatch { .. }));
    copied(stage(claim, b""));
    copied(stage(&claim.to_uppercase(), b"not empty"));
    copied(stage(&claim[1..], b"not empty"));
    copied(stage(&format!("{claim}0"), b"not empty"));
    copied(stage(&claim.replace('e', "g"), b"not empty"));
    copied(stage("", b"not empty"));
}
