//! The bare system calls of a staging and of a removal, in the same order and nothing else: what
//! `bin/bench` compares the library with. Takes commands on standard input and answers each with
//! the nanoseconds that it took:
//!
//! ```text
//! publish <directory> <threads> <first> <count> <size>   mkdir, create, write, close, rename
//! remove <directory> <first> <count>                     unlink, rmdir
//! look <directory> <threads> <there> <different> <count> lstat, so often, of so many of those there
//! ```

mod bare;
#[path = "../benches/entries/mod.rs"]
mod entries;

use std::error::Error;
use std::ffi::CString;
use std::io::{BufRead, Write};
use std::ops::Range;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use bare::{Names, open_dir};
use nix::sys::stat::lstat;
use nix::unistd::{UnlinkatFlags, unlinkat};

fn main() -> Result<(), Box<dyn Error>> {
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let elapsed = match words[..] {
            ["publish", dir, threads, first, count, size] => publish(
                dir,
                threads.parse()?,
                range(first, count)?,
                &vec![b'x'; size.parse()?],
            )?,
            ["remove", dir, first, count] => remove(dir, range(first, count)?)?,
            ["look", dir, threads, there, different, count] => look(
                dir,
                threads.parse()?,
                there.parse()?,
                different.parse()?,
                count.parse()?,
            )?,
            _ => return Err(format!("expected publish, remove or look, got: {line}").into()),
        };
        println!("{}", elapsed.as_nanos());
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn range(first: &str, count: &str) -> Result<Range<usize>, Box<dyn Error>> {
    let first = first.parse()?;
    let count: usize = count.parse()?;
    Ok(first..first + count)
}

/// Made before the clock runs.
fn names(numbers: Range<usize>) -> Vec<Names> {
    // Directory names as long as a checksum, and as random.
    numbers
        .map(|number| bare::names(entries::digits(number), number))
        .collect()
}

fn publish(
    dir: &str,
    threads: usize,
    numbers: Range<usize>,
    content: &[u8],
) -> Result<Duration, Box<dyn Error>> {
    let dir = open_dir(dir)?;
    let names = names(numbers);
    in_threads(threads, &names, |names| bare::publish(&dir, names, content))
}

/// How long the threads take, from the first start to the last end, each with its share.
fn in_threads<T: Sync>(
    threads: usize,
    items: &[T],
    work: impl Fn(&T) -> nix::Result<()> + Sync,
) -> Result<Duration, Box<dyn Error>> {
    let share = items.len().div_ceil(threads).max(1);
    let shares: Vec<&[T]> = items.chunks(share).collect();
    let ready = Barrier::new(shares.len());
    let times: Vec<nix::Result<(Instant, Instant)>> = std::thread::scope(|scope| {
        let threads: Vec<_> = shares
            .into_iter()
            .map(|share| {
                let (ready, work) = (&ready, &work);
                scope.spawn(move || {
                    ready.wait();
                    let start = Instant::now();
                    share.iter().try_for_each(work)?;
                    Ok((start, Instant::now()))
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("the threads do not panic"))
            .collect()
    });
    let times = times.into_iter().collect::<nix::Result<Vec<_>>>()?;
    let start = times.iter().map(|&(start, _)| start).min();
    let stop = times.iter().map(|&(_, stop)| stop).max();
    Ok(start.zip(stop).map_or(Duration::ZERO, |(a, b)| b - a))
}

fn remove(dir: &str, numbers: Range<usize>) -> Result<Duration, Box<dyn Error>> {
    let dir = open_dir(dir)?;
    let names = names(numbers);
    let start = Instant::now();
    for names in &names {
        unlinkat(&dir, names.file.as_c_str(), UnlinkatFlags::NoRemoveDir)?;
        unlinkat(&dir, names.dir.as_c_str(), UnlinkatFlags::RemoveDir)?;
    }
    Ok(start.elapsed())
}

fn look(
    dir: &str,
    threads: usize,
    there: usize,
    different: usize,
    count: usize,
) -> Result<Duration, Box<dyn Error>> {
    let different = different.min(there);
    // Spread over all that are there, by their whole paths, as the library looks at them.
    let paths = (0..different)
        .map(|index| {
            let number = index * there / different;
            CString::new(format!("{dir}/{}/{number:08}.bin", entries::digits(number)))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let looks: Vec<&CString> = (0..count).map(|index| &paths[index % different]).collect();
    in_threads(threads, &looks, |path| lstat(path.as_c_str()).map(drop))
}
