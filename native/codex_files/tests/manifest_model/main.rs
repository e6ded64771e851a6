//! The manifest against a naive model of it: lists that are searched and folded, no totals, no
//! index, no slots. Random sequences of operations must give the same answers, in the same order.
//!
//! `PROPTEST_CASES` says how many sequences; 2,000 unless it is set.

#![cfg(not(feature = "shuttle"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod checking;
mod entry;
mod model;
mod operations;
mod owning;
mod removing;
mod run;

use codex_files::checksum::Checksum;
use codex_files::manifest::attachment::File;
use proptest::prelude::*;

use operations::op;
use run::Run;

const MILLISECOND: u64 = 1_000_000;

/// A file that is nothing but its number.
#[derive(Clone, Debug)]
struct Staged {
    number: usize,
    checksum: Checksum,
    size: u64,
}

impl File for Staged {
    fn key(&self) -> &Checksum {
        &self.checksum
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn same(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

fn checksum(key: u8) -> Checksum {
    vec![b'k', key].into()
}

fn key_of(checksum: &[u8]) -> u8 {
    checksum[1]
}

fn config() -> ProptestConfig {
    let mut config = ProptestConfig {
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 2_000;
    }
    config
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_manifest_does_what_the_naive_model_does(
        distinct_times in prop::bool::weighted(0.7),
        ops in prop::collection::vec(op(), 1..80),
    ) {
        let mut run = Run::new(distinct_times);
        for op in ops {
            run.step(op);
        }
        run.end();
    }
}
