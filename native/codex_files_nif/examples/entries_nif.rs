//! The library, and one native function more: it enters attachments that have no file, since a million
//! real ones take too long to stage. `bin/bench` measures with it what it costs to list and to count so
//! many.

#[path = "../src/atoms.rs"]
mod atoms;
#[path = "../src/attachments.rs"]
mod attachments;
#[path = "../src/binary.rs"]
mod binary;
#[path = "../src/decode.rs"]
mod decode;
#[path = "../src/encode.rs"]
mod encode;
#[path = "../../codex_files/benches/entries/mod.rs"]
mod entries;
#[path = "../src/guard.rs"]
mod guard;
#[path = "../src/kept.rs"]
mod kept;
#[path = "../src/mailbox.rs"]
mod mailbox;
#[path = "../src/owners.rs"]
mod owners;
#[path = "../src/owning.rs"]
mod owning;
#[path = "../src/reading.rs"]
mod reading;
#[path = "../src/registries.rs"]
mod registries;
#[path = "../src/registry.rs"]
mod registry;
#[path = "../src/removing.rs"]
mod removing;
#[path = "../src/shapes.rs"]
mod shapes;
#[path = "../src/staging.rs"]
mod staging;
#[path = "../src/streaming.rs"]
mod streaming;
#[path = "../src/tables.rs"]
mod tables;

use std::sync::Arc;

use rustler::{Atom, Env, Error, ResourceArc, Term};

use crate::registries::Handle;

rustler::init!("Elixir.Bench.EntriesNif", load = load);

fn load(_env: Env<'_>, _info: Term<'_>) -> bool {
    mailbox::start().is_ok()
}

/// Enters so many as if they were beside one that is really there.
#[rustler::nif(schedule = "DirtyCpu")]
fn enter(handle: ResourceArc<Handle>, count: usize) -> Result<Atom, Error> {
    let manifest = handle.registry.manifest();
    let listing = manifest.list();
    let real = &listing.iter().next().ok_or(Error::BadArg)?.file;
    for number in 0..count {
        let name = format!("file-{number}.bin");
        let file = Arc::new(real.pretend_another(entries::checksum(number), &name));
        entries::enter(manifest, &file, entries::DAY);
    }
    Ok(atoms::ok())
}
