//! The NIF library of codex_files: each native function decodes terms, makes one call into the core,
//! and encodes the result. There is a file for each group of them, as in `Codex.Files.Native`.
//!
//! Functions that touch the disk run on dirty I/O schedulers, those that only read the manifest on
//! dirty CPU schedulers, so that neither holds up the other. Whatever takes longer than a small file is
//! done by threads of the core, and answered by a message: `:wait` says that it will come.

mod atoms;
mod attachments;
mod binary;
mod decode;
mod encode;
mod guard;
mod kept;
mod mailbox;
mod owners;
mod owning;
mod reading;
mod registries;
mod registry;
mod removing;
mod shapes;
mod staging;
mod streaming;
mod tables;

use rustler::{Env, Term};

rustler::init!("Elixir.Codex.Files.Native", load = load);

fn load(_env: Env<'_>, _info: Term<'_>) -> bool {
    mailbox::start().is_ok()
}
