//! Stages files under their SHA-256 checksum: a private copy of each, deduplicated, listed,
//! counted, and removed when its time to live ends.
//!
//! This crate knows nothing of the BEAM. The [`registry`] puts the parts together: the
//! [`manifest`] says what is staged and who may work on it, [`disk`] and [`staging_area`] do the
//! work, [`sweeper`] removes what has expired.
//!
//! Staged files do not outlive the process for which they were staged, so nothing is synced to the
//! disk: after a power failure the staging directory holds leftovers for the next start to remove.

pub mod attachment;
pub mod checksum;
mod copiers;
pub mod disk;
pub mod error;
mod large_copies;
pub mod manifest;
pub mod panics;
pub mod recognition;
pub mod registry;
pub mod retention;
pub mod staging_area;
pub mod sweeper;
mod sync;
mod sys;
pub mod time;
mod turns;

#[cfg(feature = "fault-injection")]
pub use sys::fault;
