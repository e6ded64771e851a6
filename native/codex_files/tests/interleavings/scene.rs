//! A scene: what is in it, and how it is explored.

use std::sync::Arc;

use codex_files::checksum::Checksum;
use codex_files::manifest::attachment::File;
use codex_files::registry::owner::Owner;
use codex_files::retention::{Keep, Retention, Ttl};
use codex_files::time::Now;
use shuttle::thread;

pub const BEFORE: Now = Now {
    monotonic_ns: 1_000_000,
    wall_ms: 1,
};
pub const NOW: Now = Now {
    monotonic_ns: 60_000_000_000,
    wall_ms: 60_000,
};
pub const SHORT: Retention = Retention {
    persist: false,
    ttl: Ttl::Millis(1),
};
pub const LONG: Retention = Retention {
    persist: false,
    ttl: Ttl::Millis(600_000),
};

/// A file that is nothing but a number, which is its size too.
#[derive(Clone)]
pub struct Staged {
    pub checksum: Checksum,
    pub number: u64,
}

impl File for Staged {
    fn key(&self) -> &Checksum {
        &self.checksum
    }

    fn size(&self) -> u64 {
        self.number
    }

    fn same(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

/// What a staging asks for. It holds its owner until it is answered.
#[derive(Clone)]
pub struct Ask {
    ttl: Option<Ttl>,
    pub owner: Option<Arc<Owner>>,
}

impl Ask {
    pub fn keep(&self) -> Keep {
        Keep {
            persist: false,
            ttl: self.ttl,
            owner: self.owner.as_ref().map(|owner| owner.id()),
        }
    }
}

impl From<Retention> for Ask {
    fn from(retention: Retention) -> Self {
        Self {
            ttl: Some(retention.ttl),
            owner: None,
        }
    }
}

impl From<&Arc<Owner>> for Ask {
    fn from(owner: &Arc<Owner>) -> Self {
        Self {
            ttl: None,
            owner: Some(owner.clone()),
        }
    }
}

/// Explores a scene: at random, and with few but well-placed preemptions, which finds what needs
/// several things to happen in the right order.
pub fn explore(scene: impl Fn() + Send + Sync + Clone + 'static) {
    let schedules = std::env::var("INTERLEAVINGS")
        .ok()
        .and_then(|number| number.parse().ok())
        .unwrap_or(4_000);
    shuttle::check_random(scene.clone(), schedules);
    for depth in [2, 3] {
        shuttle::check_pct(scene.clone(), schedules / 2, depth);
    }
}

pub fn checksum(key: &str) -> Checksum {
    key.as_bytes().into()
}

/// Runs all at once and waits for all.
pub fn all(tasks: Vec<Box<dyn FnOnce() + Send>>) {
    let threads: Vec<_> = tasks.into_iter().map(thread::spawn).collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

macro_rules! at_once {
    ($world:ident: $($task:expr),+ $(,)?) => {
        all(vec![$({
            let $world = $world.clone();
            Box::new(move || { $task; })
        }),+])
    };
}
