//! Sequences of operations on two registries with real files in the same staging directories. After each
//! one, what is listed is what was staged and nothing has removed since, its files are there and whole
//! under all their names (P3, P4, P5, P19, P21), neither registry has touched what is the other's (P23) or
//! somebody else's (P9), and no budget has been passed (P22). At the end nothing of ours is left (P7).
//!
//! `FUZZ_DIR` says where the files are; a file system in memory is best.

#![no_main]

mod asked;
mod calls;
mod harm;
mod model;
mod op;
mod open;
mod removing;
mod source;
mod staging;
mod streams;
mod tenant;
mod world;

use libfuzzer_sys::fuzz_target;
use op::Step;
use world::World;

fuzz_target!(|steps: Vec<Step>| {
    let mut world = World::new();
    for step in steps.into_iter().take(32) {
        world.step(step);
        world.check();
    }
    world.end();
});
