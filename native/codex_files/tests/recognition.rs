//! What is remembered of the sources of staged files, and for how long.

#![cfg(not(feature = "shuttle"))]

use std::sync::Arc;

use codex_files::disk::file_id::Fingerprint;
use codex_files::recognition::{Likeness, Recognition};
use nix::sys::stat::FileStat;
use once_cell::sync::Lazy;

/// Of a file that has nothing in common with those of other numbers but its size.
fn fingerprint(number: usize) -> Fingerprint {
    static LOOK: Lazy<FileStat> = Lazy::new(|| nix::sys::stat::stat("/").expect("it is there"));
    let mut stat = *LOOK;
    stat.st_ino = number as _;
    Fingerprint::of(&stat)
}

/// How many of the sources of these numbers are recognised as being the file's that `file` gives.
fn recognised(
    recognition: &Recognition<usize>,
    sources: std::ops::Range<usize>,
    file: impl Fn(usize) -> usize,
) -> usize {
    let found = sources.filter(|&number| {
        let found = recognition.find(&fingerprint(number), Likeness::Proof);
        assert!(found.as_ref().is_none_or(|found| **found == file(number)));
        found.is_some()
    });
    found.count()
}

#[test]
fn as_many_files_are_recognised_as_are_staged() {
    let recognition = Recognition::default();
    let mut staged = Vec::new();
    for number in 0..100_000 {
        let file = Arc::new(number);
        staged.push(file.clone());
        recognition.remember(&fingerprint(number), Likeness::Proof, &file, || number);
    }
    let found = recognised(&recognition, 0..100_000, |number| number);
    assert_eq!(found, 100_000);
    // Half as many are copies of others.
    for (number, file) in staged.iter().take(50_000).enumerate() {
        let seen = fingerprint(100_000 + number);
        recognition.remember(&seen, Likeness::Proof, file, || 100_000);
    }
    let found = recognised(&recognition, 0..150_000, |number| number % 100_000);
    assert_eq!(found, 150_000);
}

#[test]
fn however_many_sources_one_content_has_only_some_are_remembered() {
    let recognition = Recognition::default();
    let file = Arc::new(0);
    for number in 0..200_000 {
        recognition.remember(&fingerprint(number), Likeness::Proof, &file, || 1);
    }
    let all = recognised(&recognition, 0..200_000, |_| 0);
    assert!((40_000..150_000).contains(&all), "{all}");
    assert_eq!(recognition.remembered(), all);
}

#[test]
fn the_sources_of_removed_files_are_forgotten() {
    let recognition = Recognition::default();
    let kept = Arc::new(0);
    recognition.remember(&fingerprint(0), Likeness::Proof, &kept, || 1);
    for number in 1..10_000 {
        let file = Arc::new(number);
        recognition.remember(&fingerprint(number), Likeness::Proof, &file, || 1);
        drop(file);
        assert!(
            recognition
                .find(&fingerprint(number), Likeness::Proof)
                .is_none()
        );
        recognition.one_was_removed();
        recognition.forget_removed();
        // Some are, so that not every removal has to go through all of them.
        assert!(
            recognition.remembered() <= 20,
            "{}",
            recognition.remembered()
        );
    }
    assert_eq!(recognised(&recognition, 0..10_000, |number| number), 1);
}

#[test]
fn a_hint_is_no_proof() {
    let recognition = Recognition::default();
    let file = Arc::new(0);
    recognition.remember(&fingerprint(1), Likeness::Hint, &file, || 1);
    recognition.remember(&fingerprint(2), Likeness::Proof, &file, || 1);
    let found = |number, likeness| recognition.find(&fingerprint(number), likeness).is_some();
    assert!(found(1, Likeness::Hint) && !found(1, Likeness::Proof));
    assert!(found(2, Likeness::Proof) && !found(2, Likeness::Hint));
    assert!(!found(3, Likeness::Hint) && !found(3, Likeness::Proof));
}
