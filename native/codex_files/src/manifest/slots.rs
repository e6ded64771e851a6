//! A vector that can be copied in no time, so that a list is read without the lock.

use std::sync::Arc;

/// How many values, and how many of such groups, are together. A value that is set while a copy shares
/// its group has the group copied first: so it has to be small, since that happens under the lock.
const GROUP: usize = 64;

type Group<T> = Vec<T>;

/// Values by their number. A copy shares all groups with the original: what it takes is a counter for
/// 4,096 values.
#[derive(Clone)]
pub(super) struct Slots<T>(Vec<Arc<Group<Arc<Group<T>>>>>);

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Slots<T> {
    pub(super) fn get(&self, slot: usize) -> Option<&T> {
        self.0
            .get(slot / GROUP / GROUP)?
            .get(slot / GROUP % GROUP)?
            .get(slot % GROUP)
    }

    pub(super) fn len(&self) -> usize {
        let Some((last, full)) = self.0.split_last() else {
            return 0;
        };
        let rest = last.iter().map(|group| group.len());
        full.len() * GROUP * GROUP + rest.sum::<usize>()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0
            .iter()
            .flat_map(|groups| groups.iter())
            .flat_map(|group| group.iter())
    }
}

impl<T: Clone> Slots<T> {
    /// Sets a value that is there, or the one after the last.
    pub(super) fn set(&mut self, slot: usize, value: T) {
        let groups = own(&mut self.0, slot / GROUP / GROUP);
        let group = own(groups, slot / GROUP % GROUP);
        match group.get_mut(slot % GROUP) {
            Some(old) => *old = value,
            None => group.push(value),
        }
    }
}

/// The group of a number, or a new one after the last; copied if somebody shares it.
fn own<T: Clone>(groups: &mut Vec<Arc<Group<T>>>, number: usize) -> &mut Group<T> {
    if number == groups.len() {
        groups.push(Arc::default());
    }
    Arc::make_mut(&mut groups[number])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_stays_as_it_was() {
        let mut slots = Slots::default();
        let mut expected = Vec::new();
        let mut copies = Vec::new();
        // Over the ends of groups and of groups of groups.
        for number in 0..2 * GROUP * GROUP + GROUP + 1 {
            slots.set(number, number);
            expected.push(number);
            if number % 997 == 0 {
                copies.push((slots.clone(), expected.clone()));
                slots.set(number / 2, 0);
                expected[number / 2] = 0;
            }
        }
        copies.push((slots, expected));
        for (slots, expected) in copies {
            assert_eq!(slots.iter().copied().collect::<Vec<_>>(), expected);
            let each = (0..expected.len()).map_while(|number| slots.get(number));
            assert_eq!(each.copied().collect::<Vec<_>>(), expected);
            assert_eq!(slots.get(expected.len()), None);
            assert_eq!(slots.len(), expected.len());
        }
    }
}
