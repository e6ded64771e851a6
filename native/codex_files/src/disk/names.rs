//! The other names of a staged file, and what is the same under all of them.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::Mutex;

/// A file under one name.
pub(super) trait Named {
    fn name(&self) -> &[u8];
}

/// Only whoever has the ticket of the checksum changes it. Most files have one name: it takes little memory
/// then. `F` is the file under one name.
#[derive(Debug)]
pub(super) struct Names<F> {
    /// Ordered by name, so that one of very many is soon found. Of those of one name the last one comes last.
    others: Mutex<Option<Arc<Vec<Arc<F>>>>>,
    /// How many files the others are that are not the same one.
    copies: AtomicU32,
    /// The owner may execute it.
    executable: AtomicBool,
}

impl<F: Named> Names<F> {
    pub(super) fn new(executable: bool) -> Self {
        Self {
            others: Mutex::default(),
            copies: AtomicU32::new(0),
            executable: AtomicBool::new(executable),
        }
    }

    pub(super) fn others(&self) -> Vec<Arc<F>> {
        let others = self.others.lock().clone();
        others.map_or_else(Vec::new, Arc::unwrap_or_clone)
    }

    /// The last of the others that has a name.
    pub(super) fn find(&self, name: &[u8]) -> Option<Arc<F>> {
        let others = self.others.lock();
        let others = others.as_deref()?;
        others[called(others, name)].last().cloned()
    }

    /// Adds one for that of the same name which it replaces, and returns that.
    pub(super) fn add(&self, other: Arc<F>, replaces: impl Fn(&F) -> bool) -> Option<Arc<F>> {
        let mut others = self.others.lock();
        let others = Arc::make_mut(others.get_or_insert_default());
        let Range { start, end } = called(others, other.name());
        let before = (start..end).find(|at| replaces(&others[*at]));
        others.insert(end, other);
        before.map(|at| others.remove(at))
    }

    pub(super) fn set_copies(&self, copies: usize) {
        let copies = u32::try_from(copies).unwrap_or(u32::MAX);
        self.copies.store(copies, Ordering::Relaxed);
    }

    pub(super) fn copies(&self) -> u32 {
        self.copies.load(Ordering::Relaxed)
    }

    pub(super) fn is_executable(&self) -> bool {
        self.executable.load(Ordering::Relaxed)
    }

    pub(super) fn set_executable(&self) {
        self.executable.store(true, Ordering::Relaxed);
    }
}

/// Where those are that have a name.
fn called<F: Named>(others: &[Arc<F>], name: &[u8]) -> Range<usize> {
    let start = others.partition_point(|other| other.name() < name);
    let end = others.partition_point(|other| other.name() <= name);
    start..end
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Watched {
        name: String,
        place: u32,
        looks: Arc<AtomicU32>,
    }

    impl Named for Watched {
        fn name(&self) -> &[u8] {
            self.looks.fetch_add(1, Ordering::Relaxed);
            self.name.as_bytes()
        }
    }

    #[test]
    fn one_of_very_many_is_added_and_found_with_a_look_at_a_few() {
        let looks = Arc::new(AtomicU32::new(0));
        let new = |number: u32, place| {
            let name = format!("name {number}");
            let looks = looks.clone();
            Arc::new(Watched { name, place, looks })
        };
        let names = Names::new(false);
        for number in 0..10_000 {
            let number = number * 7_919 % 10_000;
            assert!(names.add(new(number, 0), |_| false).is_none());
        }
        looks.store(0, Ordering::Relaxed);
        let place_of = |number| {
            let name = format!("name {number}");
            names.find(name.as_bytes()).map(|found| found.place)
        };
        assert_eq!(
            (place_of(0), place_of(9_999), place_of(10_000)),
            (Some(0), Some(0), None)
        );
        // Another of that name in another place, and one that takes the place of the first.
        assert!(names.add(new(5, 1), |before| before.place == 1).is_none());
        assert_eq!(place_of(5), Some(1));
        let replaced = names.add(new(5, 0), |before| before.place == 0);
        assert_eq!(replaced.map(|replaced| replaced.place), Some(0));
        assert_eq!(place_of(5), Some(0));
        let looks = looks.load(Ordering::Relaxed);
        assert!(looks < 500, "{looks} looks");
        assert_eq!(names.others().len(), 10_001);
    }
}
