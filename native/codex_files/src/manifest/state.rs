//! The entries of the manifest, and what must always hold of them.

use std::collections::BTreeSet;
use std::ops::{Bound, DerefMut};

use foldhash::HashMap;

use super::attachment::{Attachment, EntryId, File};
use super::slots::Slots;
use super::waiting::{Outcome, UnderWay, Waiter};
use crate::checksum::Checksum;
use crate::panics;
use crate::retention::{Retention, Ttl};
use crate::sync::Mutex;
use crate::time::{Deadline, Now};

/// What the manifest counts, kept up to date with every change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Attachments whose `persist` is true.
    pub persistent_count: u64,
    /// Their bytes. Sizes may be claims of callers: 128 bits hold any sum of them.
    pub persistent_bytes: u128,
    /// Attachments whose `persist` is false, even if their TTL is infinite.
    pub expirable_count: u64,
    /// Their bytes.
    pub expirable_bytes: u128,
}

impl Totals {
    /// The count and the bytes that an attachment is a part of.
    fn of<F: File>(&mut self, attachment: &Attachment<F>) -> (&mut u64, &mut u128) {
        if attachment.retention.persist {
            (&mut self.persistent_count, &mut self.persistent_bytes)
        } else {
            (&mut self.expirable_count, &mut self.expirable_bytes)
        }
    }
}

/// [`Totals`], and what comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// The counters.
    pub totals: Totals,
    /// When the first attachment expires, in milliseconds since the Unix epoch, UTC, on a wall
    /// clock that has not been set since the attachment was staged.
    pub next_expiry_at_ms: Option<i64>,
}

/// Where an entry is in [`State::entries`].
type Slot = u32;

/// What the index holds of an entry; see [`State::expiry`].
pub(super) type Due = (Deadline, Slot);

#[derive(Clone)]
pub(super) struct Entry<F> {
    pub(super) attachment: Attachment<F>,
    deadline: Deadline,
}

/// Somebody who waits for the ticket of a checksum to come back.
pub(super) enum Waits<F> {
    /// To stage the same checksum.
    Staging {
        retention: Retention,
        waiter: Waiter<F>,
    },
    /// To remove the entry that is being worked on. It is told of the entry as it is then, and has
    /// the ticket for it; `None` if the entry has gone.
    Removal(Box<dyn FnOnce(Option<Attachment<F>>) + Send>),
}

impl<F> Waits<F> {
    /// Tells that the work has ended, and that this one has no ticket.
    pub(super) fn tell(self, outcome: Outcome<F>) {
        match self {
            Self::Staging { waiter, .. } => waiter.answer(outcome),
            Self::Removal(gone) => gone(None),
        }
    }
}

/// The memory of a manifest that has been emptied: [`State::entries`], `free` and `index`.
pub(super) type Emptied<F> = (Slots<Option<Entry<F>>>, Vec<Slot>, HashMap<Checksum, Slot>);

pub(super) struct State<F: File> {
    /// The attachments. `list` takes a copy and reads that without the lock.
    pub(super) entries: Slots<Option<Entry<F>>>,
    /// The slots of `entries` that are `None`, each once.
    free: Vec<Slot>,
    /// The slot of each checksum: exactly the occupied slots.
    index: HashMap<Checksum, Slot>,
    /// The occupied slots whose deadline is not [`Deadline::NEVER`], by deadline.
    expiry: BTreeSet<Due>,
    /// The sums over all occupied slots.
    totals: Totals,
    /// How many entries there have ever been: the next one's number.
    entered: u64,
    /// The checksums for which a ticket is out, and who waits for it. An entry that is being
    /// removed or replaced is still listed.
    pub(super) tickets: UnderWay<Checksum, Waits<F>>,
    /// Set once, at the stop: no ticket is given or taken any more.
    pub(super) stopped: bool,
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
    pub(super) fn enter(&mut self, file: &F, retention: Retention, now: Now) -> Attachment<F> {
        let lost = self.entry(file.key());
        let lost = lost.map(|(slot, entry)| (slot, entry.clone()));
        let (entry, retention) = if let Some((_, Entry { attachment, .. })) = &lost {
            (attachment.entry, attachment.retention.merge(retention))
        } else {
            self.entered += 1;
            (EntryId(self.entered), retention)
        };
        let attachment = Attachment {
            entry,
            file: file.clone(),
            retention,
            inserted_at_ms: now.wall_ms,
        };
        let deadline = retention.deadline(now);
        let slot = match lost {
            Some((slot, entry)) => {
                self.uncount(slot, &entry);
                slot
            }
            None => self.free_slot(file.key()),
        };
        self.fill(slot, attachment.clone(), deadline);
        attachment
    }

    /// Stages a known file again; `None` if it is not there any more.
    pub(super) fn refresh(&mut self, file: &F, new: Retention, now: Now) -> Option<Attachment<F>> {
        let (slot, entry) = self.entry_of(file)?;
        let retention = entry.attachment.retention.merge(new);
        let attachment = Attachment {
            retention,
            inserted_at_ms: now.wall_ms,
            ..entry.attachment.clone()
        };
        self.uncount(slot, &entry);
        self.fill(slot, attachment.clone(), retention.deadline(now));
        Some(attachment)
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
            (entries, free, index)
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
    fn fill(&mut self, slot: Slot, attachment: Attachment<F>, deadline: Deadline) {
        let (count, bytes) = self.totals.of(&attachment);
        *count += 1;
        *bytes += u128::from(attachment.file.size());
        if deadline != Deadline::NEVER {
            self.expiry.insert((deadline, slot));
        }
        let entry = Entry {
            attachment,
            deadline,
        };
        self.entries.set(slot as usize, Some(entry));
    }

    fn uncount(&mut self, slot: Slot, entry: &Entry<F>) {
        let (count, bytes) = self.totals.of(&entry.attachment);
        *count -= 1;
        *bytes -= u128::from(entry.attachment.file.size());
        if entry.deadline != Deadline::NEVER {
            self.expiry.remove(&(entry.deadline, slot));
        }
    }

    /// Up to `limit` attachments that have expired `now`, the oldest deadline first, after `from`;
    /// and where the last of them is.
    pub(super) fn due(
        &self,
        from: Bound<Due>,
        now: Now,
        limit: usize,
    ) -> (Vec<Attachment<F>>, Option<Due>) {
        let until = Bound::Included((Deadline(now.monotonic_ns), Slot::MAX));
        let due: Vec<Due> = self
            .expiry
            .range((from, until))
            .take(limit)
            .copied()
            .collect();
        let attachments = due
            .iter()
            .filter_map(|&(_, slot)| self.entries.get(slot as usize)?.as_ref())
            .map(|entry| entry.attachment.clone())
            .collect();
        (attachments, due.last().copied())
    }

    pub(super) fn metrics(&self) -> Metrics {
        let next = self
            .expiry
            .first()
            .and_then(|&(_, slot)| self.entries.get(slot as usize)?.as_ref());
        Metrics {
            totals: self.totals,
            next_expiry_at_ms: next.and_then(|entry| match entry.attachment.retention.ttl {
                Ttl::Millis(ttl) => entry.attachment.inserted_at_ms.checked_add_unsigned(ttl),
                Ttl::Infinity => None,
            }),
        }
    }
}

/// The state behind its lock, as the manifest and all tickets share it.
pub(super) struct Shared<F: File>(Mutex<State<F>>);

impl<F: File> Default for Shared<F> {
    fn default() -> Self {
        Self(Mutex::new(State {
            entries: Slots::default(),
            free: Vec::new(),
            index: HashMap::default(),
            expiry: BTreeSet::new(),
            totals: Totals::default(),
            entered: 0,
            tickets: UnderWay::default(),
            stopped: false,
        }))
    }
}

impl<F: File> Shared<F> {
    /// `point` is where a test can make the holder of the lock panic.
    pub(super) fn lock(&self, point: &str) -> impl DerefMut<Target = State<F>> {
        let state = self.0.lock();
        panics::point(point);
        state
    }

    /// As [`Shared::lock`], where a panic would be one too many.
    pub(super) fn lock_in_drop(&self) -> impl DerefMut<Target = State<F>> {
        self.0.lock()
    }

    /// As [`Shared::lock`], unless somebody has the lock.
    pub(super) fn try_lock(&self, point: &str) -> Option<impl DerefMut<Target = State<F>>> {
        let state = self.0.try_lock()?;
        panics::point(point);
        Some(state)
    }
}
