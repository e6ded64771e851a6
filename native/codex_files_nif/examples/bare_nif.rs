//! The bare system calls of a staging, made by a NIF on a dirty I/O scheduler: what `bin/bench`
//! compares the library with to tell the price of the scheduler from its own.

#[path = "../../codex_files/examples/bare/mod.rs"]
mod bare;
#[path = "../../codex_files/benches/entries/mod.rs"]
mod entries;

use std::os::fd::OwnedFd;

use once_cell::sync::OnceCell;
use rustler::Error;

rustler::init!("Elixir.Bench.BareNif");

static DIR: OnceCell<OwnedFd> = OnceCell::new();

/// Names the directory to publish in, once and for all.
#[rustler::nif(schedule = "DirtyIo")]
fn open(dir: &str) -> Result<bool, Error> {
    let dir = bare::open_dir(dir).map_err(failed)?;
    Ok(DIR.set(dir).is_ok())
}

/// Makes a directory with a file of so many bytes in it.
#[rustler::nif(schedule = "DirtyIo")]
fn publish(number: usize, size: usize) -> Result<bool, Error> {
    let dir = DIR.get().ok_or(Error::BadArg)?;
    let names = bare::names(entries::digits(number), number);
    bare::publish(dir, &names, &vec![b'x'; size]).map_err(failed)?;
    Ok(true)
}

/// Gives the file in such a directory another name beside its own.
#[rustler::nif(schedule = "DirtyIo")]
fn link(number: usize, name: &str) -> Result<bool, Error> {
    let dir = DIR.get().ok_or(Error::BadArg)?;
    let names = bare::names(entries::digits(number), number);
    bare::link(dir, &names, name).map_err(failed)?;
    Ok(true)
}

fn failed(errno: nix::Error) -> Error {
    Error::RaiseTerm(Box::new(errno.desc()))
}
