//! Stages files under their SHA-256 checksum: a private copy of each, deduplicated, listed,
//! counted, and removed when its time to live ends.
//!
//! This crate knows nothing of the BEAM. What can be done is in [`registry`], a file for each verb. They
//! use the [`manifest`], which says what is staged and who may work on it, the [`disk`], and the threads,
//! and none of these knows of another.
//!
//! Staged files do not outlive the process for which they were staged, so nothing is synced to the
//! disk: after a power failure the staging directory holds leftovers for the next start to remove.

pub mod bytes;
pub mod checksum;
pub mod disk;
pub mod error;
pub mod manifest;
pub mod name;
pub mod panics;
pub mod recognition;
pub mod registry;
pub mod retention;
mod space;
mod sync;
mod threads;
pub mod time;
mod turns;

#[cfg(feature = "fault-injection")]
pub use disk::fault;
