//! The manifest under every order of events that shuttle's schedulers think of.
//!
//! `INTERLEAVINGS` says how many schedules of each kind are run for each scene.

#![cfg(feature = "shuttle")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[macro_use]
mod scene;
mod cleanup;
mod letting_go;
mod names;
mod owners;
mod staging;
mod world;
