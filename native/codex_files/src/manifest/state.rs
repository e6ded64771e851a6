//! The entries of the manifest, and what must always hold of them.

use std::collections::BTreeSet;
use std::ops::Bound;

use foldhash::HashMap;

use super::attachment::{Attachment, EntryId, File};
use super::budget::{Budget, Usage};
use super::out::Out;
use super::slots::Slots;
use super::totals::{Metrics, Totals};
use crate::checksum::Checksum;
use crate::retention::{Keep, OwnerId, Ttl};
use crate::time::{Deadline, Now};

/// Where an entry is in [`State::entries`].
type Slot = u32;

/// What the index holds of an entry; see [`State::expiry`].
pub(super) type Due = (Deadline, Slot);

#[derive(Clone)]
pub(super) struct Entry<F> {
    pub(super) attachment: Attachment<F>,
    /// From when on it has expired, unless it has an owner.
    deadline: Deadline,
    /// How many of the sets of [`State::owned`] it is in.
    owners: u32,
    /// The bytes that it counts for in [`State::usage`].
    pub(super) stored: u64,
}

impl<F> Entry<F> {
    /// Its place in the index of those that expire.
    fn due(&self) -> Option<Deadline> {
        (self.owners == 0 && self.deadline != Deadline::NEVER).then_some(self.deadline)
    }

    pub(super) fn has_expired(&self, now: Now) -> bool {
        self.due()
            .is_some_and(|Deadline(at)| at <= now.monotonic_ns)
    }
}

/// An entry that an owner keeps, if it is still the one in that slot.
pub(super) type OwnedEntry = (Slot, EntryId);

/// The memory of a manifest that has been emptied: [`State::entries`], `free`, `index` and `owned`.
pub(super) type Emptied<F> = (
    Slots<Option<Entry<F>>>,
    Vec<Slot>,
    HashMap<Checksum, Slot>,
    Sets,
);

/// A set of entries for each owner.
type Sets = HashMap<OwnerId, HashMap<Slot, EntryId>>;

pub(super) struct State<F: File> {
    /// The attachments. `list` takes a copy and reads that without the lock.
    pub(super) entries: Slots<Option<Entry<F>>>,
    /// The slots of `entries` that are `None`, each once.
    free: Vec<Slot>,
    /// The slot of each checksum: exactly the occupied slots.
    index: HashMap<Checksum, Slot>,
    /// The occupied slots that are [`Entry::due`] at some time, by that time.
    expiry: BTreeSet<Due>,
    /// What each owner keeps. An entry that has gone stays in the sets: its slot is empty then, or
    /// another's.
    owned: Sets,
    /// The sums over all occupied slots.
    totals: Totals,
    /// The bytes of all occupied slots, of those in `expiry`, and of all reservations.
    pub(super) usage: Usage,
    /// What `usage` may come to. It may be more, if it was so before the budget was set.
    pub(super) budget: Budget,
    /// How many entries there have ever been: the next one's number.
    entered: u64,
    /// The checksums for which a ticket is out. An entry that is being removed or replaced is still
    /// listed.
    pub(super) tickets: HashMap<Checksum, Out<F>>,
    /// Set once, at the stop: no ticket is given or taken any more.
    pub(super) stopped: bool,
}

impl<F: File> Default for State<F> {
    fn default() -> Self {
        Self {
            entries: Slots::default(),
            free: Vec::new(),
            index: HashMap::default(),
            expiry: BTreeSet::new(),
            totals: Totals::default(),
            usage: Usage::default(),
            budget: Budget::default(),
            entered: 0,
            owned: HashMap::default(),
            tickets: HashMap::default(),
            stopped: false,
        }
    }
}

impl<F: File> State<F> {
    fn entry(&self, key: &[u8]) -> Option<(Slot, &Entry<F>)> {
        let slot = *self.index.get(key)?;
        let entry = self.entries.get(slot as usize)?.as_ref()?;
        Some((slot, entry))
    }

    /// The attachment of a checksum.
    pub(super) fn attachment(&self, key: &[u8]) -> Option<&Attachment<F>> {
        Some(&self.entry(key)?.1.attachment)
    }

    /// The entry of `file`, if that is still the one of its checksum.
    fn entry_of(&self, file: &F) -> Option<(Slot, Entry<F>)> {
        let (slot, entry) = self.entry(file.key())?;
        let is_it = entry.attachment.file.same(file);
        is_it.then(|| (slot, entry.clone()))
    }

    /// Enters `file`. An entry of its checksum that is there has lost its file: what its callers
    /// were promised still holds.
    pub(super) fn enter(&mut self, file: &F, keep: Keep, now: Now) -> Attachment<F> {
        if let Some((slot, entry)) = self.entry(file.key()) {
            let entry = entry.clone();
            return self.renew(slot, entry, file, keep, now);
        }
        self.entered += 1;
        let retention = keep.retention();
        let attachment = Attachment {
            entry: EntryId(self.entered),
            file: file.clone(),
            retention,
            inserted_at_ms: now.wall_ms,
        };
        let entry = Entry {
            attachment,
            deadline: retention.deadline(now),
            owners: 0,
            stored: file.stored(),
        };
        let slot = self.free_slot(file.key());
        self.fill_owned(slot, entry, keep.owner)
    }

    /// Stages a known file again; `None` if it is not there any more.
    pub(super) fn refresh(&mut self, file: &F, keep: Keep, now: Now) -> Option<Attachment<F>> {
        let (slot, entry) = self.entry_of(file)?;
        Some(self.renew(slot, entry, file, keep, now))
    }

    /// Stages what is in a slot again, with `file` as its file.
    fn renew(
        &mut self,
        slot: Slot,
        mut entry: Entry<F>,
        file: &F,
        keep: Keep,
        now: Now,
    ) -> Attachment<F> {
        self.uncount(slot, &entry);
        entry.stored = file.stored();
        let attachment = &mut entry.attachment;
        attachment.file = file.clone();
        attachment.retention = attachment.retention.merge(keep);
        if keep.persist || keep.ttl.is_some() {
            attachment.inserted_at_ms = now.wall_ms;
            entry.deadline = attachment.retention.deadline(now);
        }
        self.fill_owned(slot, entry, keep.owner)
    }

    /// Fills a slot with an entry that gets one more owner, or none.
    fn fill_owned(
        &mut self,
        slot: Slot,
        mut entry: Entry<F>,
        owner: Option<OwnerId>,
    ) -> Attachment<F> {
        let attachment = entry.attachment.clone();
        if let Some(owner) = owner {
            let id = attachment.entry;
            if self.owned.entry(owner).or_default().insert(slot, id) != Some(id) {
                entry.owners += 1;
            }
        }
        self.fill(slot, entry);
        attachment
    }

    /// What an owner keeps, which it has no longer.
    pub(super) fn take_owned(&mut self, owner: OwnerId) -> HashMap<Slot, EntryId> {
        self.owned.remove(&owner).unwrap_or_default()
    }

    /// Ends an owner's hold on the entry of a checksum; the entry, if it had one.
    pub(super) fn release(&mut self, owner: OwnerId, key: &[u8]) -> Option<OwnedEntry> {
        let (slot, entry) = self.entry(key)?;
        let id = entry.attachment.entry;
        let owned = self.owned.get_mut(&owner)?;
        let is_it = owned.remove(&slot) == Some(id);
        if owned.is_empty() {
            self.owned.remove(&owner);
        }
        is_it.then_some((slot, id))
    }

    /// Counts one owner less of an entry. If that was the last one, and nothing else keeps the entry
    /// `now`, it is the attachment that is left.
    pub(super) fn disown(&mut self, (slot, id): OwnedEntry, now: Now) -> Option<Attachment<F>> {
        let entry = self.entries.get(slot as usize)?.as_ref();
        let mut entry = entry.filter(|entry| entry.attachment.entry == id)?.clone();
        self.uncount(slot, &entry);
        entry.owners -= 1;
        let left = entry.has_expired(now).then(|| entry.attachment.clone());
        self.fill(slot, entry);
        left
    }

    /// The attachment of a checksum, unless something keeps it that did not keep it `since` then.
    pub(super) fn unless_kept(&self, key: &[u8], since: Option<Now>) -> Option<Attachment<F>> {
        let (_, entry) = self.entry(key)?;
        let is_left = since.is_none_or(|since| entry.has_expired(since));
        is_left.then(|| entry.attachment.clone())
    }

    /// Takes `file`'s entry out, if it is still the one that is there. With the last one goes the
    /// memory for all: that takes as long as there have ever been entries, and is the caller's to do
    /// without the lock.
    pub(super) fn take(&mut self, file: &F) -> Option<Emptied<F>> {
        let (slot, entry) = self.entry_of(file)?;
        self.uncount(slot, &entry);
        self.index.remove(file.key());
        self.entries.set(slot as usize, None);
        self.free.push(slot);
        self.index.is_empty().then(|| {
            let entries = std::mem::take(&mut self.entries);
            let free = std::mem::take(&mut self.free);
            let index = std::mem::take(&mut self.index);
            let owned = std::mem::take(&mut self.owned);
            (entries, free, index, owned)
        })
    }

    /// A slot for a checksum that has none, entered into the index.
    fn free_slot(&mut self, key: &Checksum) -> Slot {
        // Where none is free all are occupied.
        let slot = self.free.pop().unwrap_or_else(|| {
            Slot::try_from(self.index.len()).expect("memory ends before 2^32 entries")
        });
        self.index.insert(key.clone(), slot);
        slot
    }

    /// Fills a slot that counts for nothing and is in the index.
    fn fill(&mut self, slot: Slot, entry: Entry<F>) {
        let (count, bytes) = self.totals.of(&entry.attachment);
        *count += 1;
        *bytes += u128::from(entry.attachment.file.size());
        self.totals.owned_count += u64::from(entry.owners > 0);
        self.usage.stored += u128::from(entry.stored);
        if let Some(deadline) = entry.due() {
            self.usage.evictable += u128::from(entry.stored);
            self.expiry.insert((deadline, slot));
        }
        self.entries.set(slot as usize, Some(entry));
    }

    fn uncount(&mut self, slot: Slot, entry: &Entry<F>) {
        let (count, bytes) = self.totals.of(&entry.attachment);
        *count -= 1;
        *bytes -= u128::from(entry.attachment.file.size());
        self.totals.owned_count -= u64::from(entry.owners > 0);
        self.usage.stored -= u128::from(entry.stored);
        if let Some(deadline) = entry.due() {
            self.usage.evictable -= u128::from(entry.stored);
            self.expiry.remove(&(deadline, slot));
        }
    }

    /// The bytes of the entry of a file that has been lost.
    pub(super) fn stored_of(&self, lost: &F) -> u64 {
        self.entry_of(lost).map_or(0, |(_, entry)| entry.stored)
    }

    /// The entries that expire, the first to go first, between two places of the index.
    pub(super) fn expiring(
        &self,
        from: Bound<Due>,
        until: Deadline,
    ) -> impl Iterator<Item = (Due, &Entry<F>)> {
        let until = Bound::Included((until, Slot::MAX));
        self.expiry.range((from, until)).filter_map(|&due| {
            let entry = self.entries.get(due.1 as usize)?.as_ref()?;
            Some((due, entry))
        })
    }

    pub(super) fn metrics(&self) -> Metrics {
        let next = self.expiring(Bound::Unbounded, Deadline::NEVER).next();
        Metrics {
            totals: self.totals,
            max_bytes: self.budget.max_bytes,
            next_expiry_at_ms: next.and_then(|(_, entry)| match entry.attachment.retention.ttl {
                Ttl::Millis(ttl) => entry.attachment.inserted_at_ms.checked_add_unsigned(ttl),
                Ttl::Infinity => None,
            }),
        }
    }
}
