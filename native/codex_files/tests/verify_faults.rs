//! Verifying where system calls fail, and where there are no links: what cannot be read is reported, what
//! says nothing of a file is an error, and neither is remembered of a file that turns out to be intact.

#![cfg(feature = "fault-injection")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::{Mutex, MutexGuard, mpsc};

use codex_files::error::{Error, Result};
use codex_files::fault::{self, Failure, Plan};
use codex_files::registry::fetch::{self, Fetched};
use codex_files::registry::reply::Reply;
use codex_files::registry::verify::{self, Verified};
use common::*;
use nix::errno::Errno;

/// Plans hold for the whole process: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
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

fn verify_under(plan: Plan, lab: &Lab) -> (Result<Verified>, Vec<&'static str>) {
    fault::run(plan, || {
        let (sender, receiver) = mpsc::channel();
        let reply = Reply::new(move |result| drop(sender.send(result)));
        verify::verify(&lab.registry, reply);
        receiver.recv_timeout(PATIENCE).expect("nobody hangs")
    })
}

#[test]
fn whichever_call_of_a_verification_fails_it_is_told_and_not_held_against_a_file() {
    let _alone = alone();
    let lab = Lab::new();
    let small = lab.source("small", &content(SMALL, 1));
    copied(lab.stage_file(&small));
    known(lab.stage_file_as(&small, "another name"));
    copied(lab.stage_file(&lab.source("large", &content(LARGE, 2))));
    copied(lab.stage(b"a key", &small, &lab.root.join("elsewhere/file")));
    let sparse = lab.source("sparse", b"");
    let file = File::options().write(true).open(&sparse).unwrap();
    file.set_len(3 * LARGE as u64).unwrap();
    file.write_all_at(b"data", LARGE as u64).unwrap();
    copied(lab.stage_file(&sparse));
    let all_intact = || {
        let verified = verify(&lab.registry);
        assert!(verified.damaged.is_empty(), "{verified:?}");
        assert_eq!(verified.intact, 4);
        for attachment in lab.attachments() {
            let fetched = fetch::fetch(&lab.registry, &attachment.file.checksum);
            assert!(matches!(fetched, Fetched::Staged(_)), "{fetched:?}");
        }
    };
    let calls = verify_under(NO_FAULT, &lab).1;
    for at in 0..calls.len() {
        for errno in [
            Errno::EIO,
            Errno::EACCES,
            Errno::ENOENT,
            Errno::EMFILE,
            Errno::ENFILE,
            Errno::ENOMEM,
        ] {
            let plan = Plan {
                at,
                times: 1,
                failure: Failure::Error(errno),
                ..NO_FAULT
            };
            let (result, made) = verify_under(plan, &lab);
            let call = made[at];
            let about = format!("{call} failed with {errno}: {result:?}");
            let errno_of = |error: &Error| error.errno() == Some(errno);
            let of_the_system = [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM].contains(&errno);
            let is_told = match &result {
                Err(error) => {
                    assert!(of_the_system, "{about}");
                    errno_of(error)
                }
                Ok(verified) => {
                    assert!(
                        verified.damaged.len() <= usize::from(!of_the_system),
                        "{about}"
                    );
                    assert!(verified.damaged.iter().all(|(_, error)| errno_of(error)));
                    !verified.damaged.is_empty()
                }
            };
            // What a look would show reading shows too; a file is read where it may have holes.
            let can_be_done_without =
                call.contains("stat") || ["seek_data", "seek_hole"].contains(&call);
            assert!(is_told || can_be_done_without, "{about}");
            all_intact();
        }
    }
    assert!(
        ["open", "fstat", "read", "lstat", "lseek"]
            .iter()
            .all(|call| calls.contains(call))
    );
}

#[test]
fn a_name_that_is_a_copy_is_read_as_well() {
    let _alone = alone();
    let plan = Plan {
        without: Some("link"),
        ..NO_FAULT
    };
    fault::run(plan, || {
        let lab = Lab::new();
        let content = content(SMALL, 1);
        let source = lab.source("source", &content);
        copied(lab.stage_file_as(&source, "first"));
        let attachment = known(lab.stage_file_as(&source, "second"));
        let copy = attachment.file.named(Some(b"second")).unwrap();
        assert_eq!(verify(&lab.registry).intact, 1);

        let before = fs::metadata(&copy.path).unwrap();
        fs::set_permissions(&copy.path, Permissions::from_mode(0o600)).unwrap();
        let file = File::options().write(true).open(&copy.path).unwrap();
        file.write_all_at(&[!content[0]], 0).unwrap();
        file.set_modified(before.modified().unwrap()).unwrap();
        known(lab.stage_file_as(&source, "second"));

        let damaged = verify(&lab.registry).damaged;
        assert_eq!(damaged.len(), 1);
        assert_eq!(*damaged[0].0, *copy.path);
        assert!(matches!(damaged[0].1, Error::ChecksumMismatch { .. }));
        let again = known(lab.stage_file_as(&source, "second"));
        let copy = again.file.named(Some(b"second")).unwrap();
        assert_eq!(fs::read(&copy.path).unwrap(), content);
        assert_eq!(verify(&lab.registry).intact, 1);
    });
}
