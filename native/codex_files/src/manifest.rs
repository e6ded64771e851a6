//! The manifest: which checksums are staged, for how long, and who is working on which of them.
//!
//! A pure data structure behind one mutex: it does no I/O and reads no clock. Work on the disk is
//! *admitted* here and gets a ticket ([`Staging`] or [`Removal`]), runs without any lock, and is
//! *committed*. A ticket that is dropped instead leaves the manifest as if nothing had begun.
//! While a ticket for a checksum is out, everybody else who wants to stage it waits.

use std::collections::BTreeSet;
use std::ops::{Bound, DerefMut};
use std::sync::Arc;

use foldhash::HashMap;
use imbl::Vector;

use crate::attachment::{Attachment, Checksum, Deadline, Now, Retention, StagedFile, Ttl};
use crate::error::{Error, Result};
use crate::panics;
use crate::sync::Mutex;

/// How a staging ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The file is there.
    Staged {
        /// As it stands now.
        attachment: Attachment,
        /// Whether this call put the file there.
        origin: Origin,
    },
    /// It is not, and nothing has changed.
    Failed(Error),
    /// Others have given up the work that was waited for, or done it: ask again from the start.
    Retry,
}

/// Where the file of a successful staging came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This call copied it.
    Copied,
    /// An earlier call had.
    Known,
}

/// A caller that waits for the outcome of somebody else's work. Answered exactly once: one that is
/// dropped unanswered tells its caller to ask again, so no path of the code can leave it hanging.
pub struct Waiter(Option<Box<dyn FnOnce(Outcome) + Send>>);

impl Waiter {
    /// `answer` is called outside of every lock, on any thread; it must not block.
    pub fn new(answer: impl FnOnce(Outcome) + Send + 'static) -> Self {
        Self(Some(Box::new(answer)))
    }

    /// Answers.
    pub fn answer(mut self, outcome: Outcome) {
        if let Some(answer) = self.0.take() {
            answer(outcome);
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if let Some(answer) = self.0.take() {
            answer(Outcome::Retry);
        }
    }
}

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
    fn add(&mut self, attachment: &Attachment) {
        let size = u128::from(attachment.file.size);
        if attachment.retention.persist {
            self.persistent_count += 1;
            self.persistent_bytes += size;
        } else {
            self.expirable_count += 1;
            self.expirable_bytes += size;
        }
    }

    fn subtract(&mut self, attachment: &Attachment) {
        let size = u128::from(attachment.file.size);
        if attachment.retention.persist {
            self.persistent_count -= 1;
            self.persistent_bytes -= size;
        } else {
            self.expirable_count -= 1;
            self.expirable_bytes -= size;
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

#[derive(Clone)]
struct Entry {
    attachment: Attachment,
    deadline: Deadline,
}

/// A request to stage that waits for the ticket of its checksum to come back.
struct Waiting {
    retention: Retention,
    waiter: Waiter,
}

/// What [`State`] kept its entries in.
type Emptied = (Vector<Option<Entry>>, Vec<Slot>, HashMap<Checksum, Slot>);

#[derive(Default)]
struct State {
    /// The attachments. A persistent vector: `list` takes a snapshot in constant time and reads it
    /// without the lock.
    entries: Vector<Option<Entry>>,
    /// The slots of `entries` that are `None`, each once.
    free: Vec<Slot>,
    /// The slot of each checksum: exactly the occupied slots.
    index: HashMap<Checksum, Slot>,
    /// The occupied slots whose deadline is not [`Deadline::NEVER`], by deadline.
    expiry: BTreeSet<(Deadline, Slot)>,
    /// The sums over all occupied slots.
    totals: Totals,
    /// The checksums for which a ticket is out, and who waits for it, in order of arrival. An
    /// entry that is being removed or replaced is still listed.
    tickets: HashMap<Checksum, Vec<Waiting>>,
    /// Set once, at the end: no ticket is given or taken any more.
    stopped: bool,
}

impl State {
    fn entry(&self, checksum: &[u8]) -> Option<(Slot, &Entry)> {
        let slot = *self.index.get(checksum)?;
        let entry = self.entries.get(slot as usize)?.as_ref()?;
        Some((slot, entry))
    }

    fn insert(&mut self, attachment: Attachment, deadline: Deadline) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.entries.push_back(None);
            Slot::try_from(self.entries.len() - 1).expect("memory ends before 2^32 entries")
        });
        self.index.insert(attachment.file.checksum.clone(), slot);
        self.fill(slot, attachment, deadline);
    }

    fn replace(&mut self, slot: Slot, old: &Entry, attachment: Attachment, deadline: Deadline) {
        self.uncount(slot, old);
        self.fill(slot, attachment, deadline);
    }

    /// Fills a slot that counts for nothing and is in the index.
    fn fill(&mut self, slot: Slot, attachment: Attachment, deadline: Deadline) {
        self.totals.add(&attachment);
        if deadline != Deadline::NEVER {
            self.expiry.insert((deadline, slot));
        }
        self.entries.set(
            slot as usize,
            Some(Entry {
                attachment,
                deadline,
            }),
        );
    }

    fn uncount(&mut self, slot: Slot, entry: &Entry) {
        self.totals.subtract(&entry.attachment);
        if entry.deadline != Deadline::NEVER {
            self.expiry.remove(&(entry.deadline, slot));
        }
    }

    /// Takes `file`'s entry out, if it is still the one that is there. With the last one goes the
    /// memory for all: that takes as long as there have ever been entries, and is the caller's to do
    /// without the lock.
    fn take(&mut self, file: &Arc<StagedFile>) -> Option<Emptied> {
        let (slot, entry) = self.entry(&file.checksum)?;
        if !Arc::ptr_eq(&entry.attachment.file, file) {
            return None;
        }
        let entry = entry.clone();
        self.uncount(slot, &entry);
        self.index.remove(&file.checksum);
        self.entries.set(slot as usize, None);
        self.free.push(slot);
        self.index.is_empty().then(|| {
            let entries = std::mem::take(&mut self.entries);
            let free = std::mem::take(&mut self.free);
            let index = std::mem::take(&mut self.index);
            (entries, free, index)
        })
    }

    fn metrics(&self) -> Metrics {
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

    /// Stages a known checksum again.
    fn refresh(&mut self, file: &Arc<StagedFile>, new: Retention, now: Now) -> Option<Attachment> {
        let (slot, entry) = self.entry(&file.checksum)?;
        if !Arc::ptr_eq(&entry.attachment.file, file) {
            return None;
        }
        let entry = entry.clone();
        let retention = entry.attachment.retention.merge(new);
        let attachment = Attachment {
            file: file.clone(),
            retention,
            inserted_at_ms: now.wall_ms,
        };
        self.replace(slot, &entry, attachment.clone(), retention.deadline(now));
        Some(attachment)
    }
}

/// What became of a request to stage.
#[must_use]
pub enum Admission {
    /// The checksum is known. Look whether its file is still there, then [`Manifest::refresh`] it,
    /// or, if the file has gone, ask for admission again with it as `lost`.
    Known(Arc<StagedFile>),
    /// Copy the file, then commit.
    Lead(Staging),
    /// Somebody else is at work on this checksum; the waiter will be answered.
    Waiting,
}

/// The manifest. See the module's description.
#[derive(Default)]
pub struct Manifest {
    state: Mutex<State>,
}

impl Manifest {
    /// An empty one.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The state, locked. `point` is where a test can make its holder panic.
    fn lock(&self, point: &str) -> impl DerefMut<Target = State> {
        let state = self.state.lock();
        panics::point(point);
        state
    }

    /// The file of a checksum that is known and that nobody is working on.
    #[must_use]
    pub fn lookup(&self, checksum: &[u8]) -> Option<Arc<StagedFile>> {
        let state = self.lock("manifest-lookup");
        if state.tickets.contains_key(checksum) {
            return None;
        }
        let (_, entry) = state.entry(checksum)?;
        Some(entry.attachment.file.clone())
    }

    /// Asks to stage `checksum`. `waiter` is called for, under the lock, only if the caller must
    /// wait. `lost` is a file that was found to be missing: its entry does not count as known.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn admit(
        self: &Arc<Self>,
        checksum: &Checksum,
        retention: Retention,
        lost: Option<&Arc<StagedFile>>,
        waiter: impl FnOnce() -> Waiter,
    ) -> Result<Admission> {
        let mut state = self.lock("manifest-admit");
        if state.stopped {
            return Err(Error::Stopped);
        }
        if let Some(waiting) = state.tickets.get_mut(checksum) {
            waiting.push(Waiting {
                retention,
                waiter: waiter(),
            });
            return Ok(Admission::Waiting);
        }
        let replaces = state
            .entry(checksum)
            .map(|(_, entry)| entry.attachment.file.clone());
        if let Some(file) = &replaces
            && !lost.is_some_and(|lost| Arc::ptr_eq(lost, file))
        {
            return Ok(Admission::Known(file.clone()));
        }
        state.tickets.insert(checksum.clone(), Vec::new());
        Ok(Admission::Lead(Staging {
            ticket: Ticket {
                manifest: self.clone(),
                checksum: checksum.clone(),
                out: true,
            },
            retention,
            replaces,
        }))
    }

    /// Stages a known file again: its insertion time becomes `now`, its retention the merged one.
    /// `None` if it has been removed, or is being removed, since it was looked up.
    #[must_use]
    pub fn refresh(
        &self,
        file: &Arc<StagedFile>,
        retention: Retention,
        now: Now,
    ) -> Option<Attachment> {
        let mut state = self.lock("manifest-refresh");
        if state.stopped || state.tickets.contains_key(&file.checksum) {
            return None;
        }
        state.refresh(file, retention, now)
    }

    /// All attachments, those being removed included, in no particular order.
    #[must_use]
    pub fn list(&self) -> Listing {
        Listing(self.lock("manifest-list").entries.clone())
    }

    /// The counters.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.lock("manifest-metrics").metrics()
    }

    /// The counters, unless somebody has the lock.
    #[must_use]
    pub fn try_metrics(&self) -> Option<Metrics> {
        let state = self.state.try_lock()?;
        panics::point("manifest-try_metrics");
        Some(state.metrics())
    }

    /// Tickets to remove up to `limit` attachments that have expired `now`, the oldest deadline
    /// first, from `cursor` on. `cursor` moves past what was looked at, so that one whose removal
    /// fails is not met again in the same round; `None` at the end.
    pub fn claim_expired(
        self: &Arc<Self>,
        now: Now,
        cursor: &mut Option<ExpiryCursor>,
        limit: usize,
    ) -> Vec<Removal> {
        // Tickets that are dropped take the lock: a panic below must release that first.
        let mut removals = Vec::new();
        let mut state = self.lock("manifest-claim_expired");
        let Some(ExpiryCursor(from)) = cursor.take() else {
            return removals;
        };
        if state.stopped {
            return removals;
        }
        let due: Vec<(Deadline, Slot)> = state
            .expiry
            .range((
                from,
                Bound::Included((Deadline(now.monotonic_ns), Slot::MAX)),
            ))
            .take(limit)
            .copied()
            .collect();
        *cursor = due.last().map(|&last| ExpiryCursor(Bound::Excluded(last)));
        for (_, slot) in due {
            let entry = state.entries.get(slot as usize).and_then(Option::as_ref);
            if let Some(file) = entry.map(|entry| entry.attachment.file.clone()) {
                removals.extend(self.claim(&mut state, &file));
            }
            panics::point("manifest-claimed");
        }
        removals
    }

    /// Tickets to remove those of `files` that are still there and that nobody is working on.
    pub fn claim_files(self: &Arc<Self>, files: &[Arc<StagedFile>]) -> Vec<Removal> {
        // As in `claim_expired`.
        let mut removals = Vec::new();
        let mut state = self.lock("manifest-claim_files");
        for file in files {
            removals.extend(self.claim(&mut state, file));
            panics::point("manifest-claimed");
        }
        removals
    }

    fn claim(self: &Arc<Self>, state: &mut State, file: &Arc<StagedFile>) -> Option<Removal> {
        if state.tickets.contains_key(&file.checksum) {
            return None;
        }
        let attachment = state.entry(&file.checksum)?.1.attachment.clone();
        if !Arc::ptr_eq(&attachment.file, file) {
            return None;
        }
        state.tickets.insert(file.checksum.clone(), Vec::new());
        Some(Removal {
            ticket: Ticket {
                manifest: self.clone(),
                checksum: file.checksum.clone(),
                out: true,
            },
            attachment,
        })
    }

    /// Gives no more tickets, takes none back, and tells all who wait.
    pub fn stop(&self) {
        let tickets = {
            let mut state = self.lock("manifest-stop");
            state.stopped = true;
            std::mem::take(&mut state.tickets)
        };
        for waiting in tickets.into_values().flatten() {
            waiting.waiter.answer(Outcome::Failed(Error::Stopped));
        }
    }
}

/// Where a walk over the expired attachments stands.
pub struct ExpiryCursor(Bound<(Deadline, Slot)>);

impl ExpiryCursor {
    /// Before the first.
    #[must_use]
    pub fn start() -> Self {
        Self(Bound::Unbounded)
    }
}

/// A snapshot of the attachments. Later changes do not show in it.
pub struct Listing(Vector<Option<Entry>>);

impl Listing {
    /// The attachments, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &Attachment> {
        self.0.iter().flatten().map(|entry| &entry.attachment)
    }
}

/// The right to work on one checksum. Dropped, it is given back and all who wait ask again.
struct Ticket {
    manifest: Arc<Manifest>,
    checksum: Checksum,
    /// Not given back yet: the next ticket for this checksum is not ours to give back.
    out: bool,
}

impl Ticket {
    /// Gives the ticket back and says who waits for it.
    fn give_back(&mut self, state: &mut State) -> Vec<Waiting> {
        if std::mem::take(&mut self.out) {
            state.tickets.remove(&self.checksum).unwrap_or_default()
        } else {
            Vec::new()
        }
    }

    /// Gives the ticket back after `change`, all at once, and tells those who wait. What `change`
    /// leaves over is dropped without the lock.
    fn end<T>(mut self, change: impl FnOnce(&mut State) -> T, outcome: Outcome) {
        let manifest = self.manifest.clone();
        let (_left_over, waiting) = {
            let mut state = manifest.lock("manifest-end");
            (change(&mut state), self.give_back(&mut state))
        };
        answer_all(waiting, &outcome);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.out {
            return;
        }
        let manifest = self.manifest.clone();
        let waiting = self.give_back(&mut manifest.state.lock());
        answer_all(waiting, &Outcome::Retry);
    }
}

fn answer_all(waiting: Vec<Waiting>, outcome: &Outcome) {
    for waiting in waiting {
        waiting.waiter.answer(outcome.clone());
    }
}

/// The ticket to put a checksum's file in place.
#[must_use]
pub struct Staging {
    ticket: Ticket,
    retention: Retention,
    /// The file of the entry that is there, found missing or changed.
    replaces: Option<Arc<StagedFile>>,
}

impl Staging {
    /// The checksum admitted.
    #[must_use]
    pub fn checksum(&self) -> &Checksum {
        &self.ticket.checksum
    }

    /// The file that was found missing or changed, if that is why this one is staged.
    #[must_use]
    pub fn replaces(&self) -> Option<&Arc<StagedFile>> {
        self.replaces.as_ref()
    }

    /// Enters `file`, which is in place, and answers those who wait as stagings of a known
    /// checksum, in order of arrival.
    ///
    /// # Errors
    /// [`Error::Stopped`]: the file has no owner then, and should be removed.
    pub fn commit(mut self, file: &Arc<StagedFile>, now: Now) -> Result<Attachment> {
        let manifest = self.ticket.manifest.clone();
        let (attachment, answers) = {
            let mut state = manifest.lock("manifest-commit");
            if state.stopped {
                self.ticket.out = false;
                return Err(Error::Stopped);
            }
            // An entry that is there lost its file: what its callers were promised still holds.
            let lost = state
                .entry(&file.checksum)
                .map(|(slot, entry)| (slot, entry.clone()));
            let retention = match &lost {
                Some((_, entry)) => entry.attachment.retention.merge(self.retention),
                None => self.retention,
            };
            let attachment = Attachment {
                file: file.clone(),
                retention,
                inserted_at_ms: now.wall_ms,
            };
            let deadline = retention.deadline(now);
            match lost {
                Some((slot, entry)) => state.replace(slot, &entry, attachment.clone(), deadline),
                None => state.insert(attachment.clone(), deadline),
            }
            let answers: Vec<_> = self
                .ticket
                .give_back(&mut state)
                .into_iter()
                .map(|Waiting { retention, waiter }| (waiter, state.refresh(file, retention, now)))
                .collect();
            (attachment, answers)
        };
        for (waiter, refreshed) in answers {
            waiter.answer(match refreshed {
                Some(attachment) => Outcome::Staged {
                    attachment,
                    origin: Origin::Known,
                },
                None => Outcome::Retry,
            });
        }
        Ok(attachment)
    }

    /// Gives up: the error goes to all who wait.
    pub fn fail(self, error: Error) {
        self.ticket.end(|_| (), Outcome::Failed(error));
    }
}

/// The ticket to remove one attachment. Dropped, the attachment stays.
#[must_use]
pub struct Removal {
    ticket: Ticket,
    attachment: Attachment,
}

impl Removal {
    /// What is to be removed.
    #[must_use]
    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    /// Takes the entry out: its file is gone.
    pub fn commit(self) -> Attachment {
        let Self { ticket, attachment } = self;
        ticket.end(|state| state.take(&attachment.file), Outcome::Retry);
        attachment
    }
}
