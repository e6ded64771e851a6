//! The core without the BEAM: the manifest alone, and stagings of files on the disk.
//!
//! `cargo bench -p codex_files`; the files are in the system's temporary directory (`TMPDIR`).

mod entries;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use codex_files::disk::staging_dir::StagingDir;
use codex_files::manifest::budget::Budget;
use codex_files::registry::admission::Answer;
use codex_files::registry::keeper::{self, Options};
use codex_files::registry::remove;
use codex_files::registry::reply::Reply;
use codex_files::registry::stage_file::{self, Miss, StageFile};
use codex_files::registry::{
    Attachment, Observer, Outcome, Registry, Report, Request, Waiter, Why,
};
use codex_files::retention::Retention;
use codex_files::time::Now;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use entries::{DAY, NOTHING, Samples, checksum, enter, file, sweep};

/// What is in the manifest beside the entries that an operation is about.
const SIZES: [usize; 3] = [1_000, 100_000, 1_000_000];

/// How many entries a sweep finds expired.
const DUE: usize = 1_000;

fn manifest(criterion: &mut Criterion) {
    for size in SIZES {
        let manifest = filled(size);
        let mut group = criterion.benchmark_group(format!("manifest of {size}"));
        let mut number = 0;
        let mut next = || {
            number = (number + 7_919) % size;
            checksum(number)
        };
        group.bench_function("lookup", |bencher| {
            bencher.iter_batched(
                &mut next,
                |key| manifest.lookup(&key),
                BatchSize::SmallInput,
            );
        });
        group.bench_function("refresh", |bencher| {
            bencher.iter_batched(
                || manifest.lookup(&next()).expect("it was entered"),
                |file| manifest.refresh(&file, DAY.into(), Now::read()),
                BatchSize::SmallInput,
            );
        });
        group.bench_function("metrics", |bencher| bencher.iter(|| manifest.metrics()));
        group.bench_function("list, the snapshot", |bencher| {
            bencher.iter(|| manifest.list());
        });
        group.bench_function("sweep, nothing due", |bencher| {
            bencher.iter(|| sweep(&manifest));
        });
        // Removed again outside of the measurement: the size stays.
        let mut number = size;
        group.bench_function("admit and commit", |bencher| {
            bencher.iter_batched(
                || {
                    number += 1;
                    file(number)
                },
                |file| enter(&manifest, &file, NOTHING),
                BatchSize::NumIterations(DUE as u64),
            );
            sweep(&manifest);
        });
        group.throughput(Throughput::Elements(DUE as u64));
        group.bench_function(BenchmarkId::new("sweep", DUE), |bencher| {
            bencher.iter_batched(
                || {
                    for number in size..size + DUE {
                        enter(&manifest, &file(number), NOTHING);
                    }
                },
                |()| sweep(&manifest),
                BatchSize::PerIteration,
            );
        });
        group.finish();
    }
}

fn disk(criterion: &mut Criterion) {
    let scratch = tempfile::tempdir().expect("there is a temporary directory");
    let sources = scratch.path().join("sources");
    std::fs::create_dir(&sources).expect("the directory is ours");

    let mut group = criterion.benchmark_group("disk");
    let registry = registry();
    let request = |source: PathBuf, retention: Retention| StageFile {
        source,
        to: Request {
            name: b"source.bin".as_slice().into(),
            keep: retention.into(),
            owner: None,
            staging_dir: StagingDir {
                path: scratch.path().join("staging"),
                is_default: false,
            },
        },
    };

    for (name, size) in [
        ("4 KiB", 4 << 10),
        ("256 KiB", 256 << 10),
        ("64 MiB", 64 << 20),
    ] {
        let source = sources.join(size.to_string());
        let mut number = 0_u64;
        group.throughput(Throughput::Bytes(size));
        group.sample_size(if size > 1 << 20 { 10 } else { 100 });
        group.bench_function(BenchmarkId::new("stage_file, new", name), |bencher| {
            bencher.iter_batched(
                || {
                    number += 1;
                    write_source(&source, number, size);
                },
                |()| stage_file(&registry, &request(source.clone(), NOTHING)),
                BatchSize::PerIteration,
            );
            cleanup(&registry);
        });
    }

    // Old enough to be recognised.
    let source = sources.join("unchanged");
    write_source(&source, 0, 4 << 10);
    std::thread::sleep(Duration::from_millis(2_100));
    let unchanged = request(source, DAY);
    stage_file(&registry, &unchanged);
    group.throughput(Throughput::Elements(1));
    group.sample_size(100);
    group.bench_function("stage_file, recognised", |bencher| {
        bencher.iter(|| stage_file(&registry, &unchanged));
    });

    let source = sources.join("unsettled");
    write_source(&source, u64::MAX, 4 << 10);
    // Times in the future never count as settled: this one is read every time.
    let file = std::fs::File::options()
        .write(true)
        .open(&source)
        .expect("it was written");
    file.set_modified(SystemTime::now() + Duration::from_secs(3_600))
        .expect("it is ours");
    let unsettled = request(source, DAY);
    group.bench_function("stage_file, known and read", |bencher| {
        bencher.iter(|| stage_file(&registry, &unsettled));
    });
    group.finish();

    let (reply, ended) = mpsc::channel();
    keeper::stop(
        &registry,
        Reply::new(move |_| {
            let _ = reply.send(());
        }),
    );
    ended.recv().expect("the cleanup thread replies");
}

fn registry() -> Arc<Registry> {
    struct Nobody;
    impl Observer for Nobody {
        fn removed(&self, _why: Why, _report: Report) {}
        fn stopped(&self) {}
    }
    keeper::start(Options {
        cleanup_interval: Duration::from_secs(3_600),
        orphan_grace: Duration::from_secs(60),
        budget: Budget::default(),
        recognise_unchanged: true,
        observer: Arc::new(Nobody),
    })
    .expect("a thread can be had")
}

fn stage_file(registry: &Arc<Registry>, request: &StageFile) -> Attachment {
    let (sender, answer) = mpsc::channel();
    let waiter = || {
        let sender = sender.clone();
        Waiter::new(move |outcome| {
            let _ = sender.send(outcome);
        })
    };
    let outcome = match stage_file::stage_file(registry, request, Miss::Unseen, &waiter) {
        Answer::Now(outcome) => outcome,
        Answer::ByWaiter => answer.recv().expect("a waiter is answered"),
    };
    match outcome {
        Outcome::Staged { attachment, .. } => attachment,
        outcome => panic!("could not stage {}: {outcome:?}", request.source.display()),
    }
}

fn cleanup(registry: &Arc<Registry>) {
    let (reply, cleaned) = mpsc::channel();
    remove::cleanup(
        registry,
        Reply::new(move |report| {
            let _ = reply.send(report);
        }),
    );
    cleaned
        .recv()
        .expect("the cleanup thread replies")
        .expect("it does not panic");
}

fn write_source(path: &Path, number: u64, size: u64) {
    let size = usize::try_from(size).expect("it fits into memory");
    let mut content = vec![b'x'; size];
    content[..8].copy_from_slice(&number.to_le_bytes());
    std::fs::write(path, content).expect("there is room on the disk");
}

fn filled(size: usize) -> Samples {
    let manifest = Samples::default();
    for number in 0..size {
        enter(&manifest, &file(number), DAY);
    }
    manifest
}

criterion_group!(benches, manifest, disk);
criterion_main!(benches);
