//! What must be known of one registry's attachments: a naive list.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use codex_files::manifest::budget::{Budget, WhenFull};
use codex_files::registry::Why;
use codex_files::retention::{Keep, OwnerId, Retention, Ttl};

/// What is known of a staged key.
#[derive(Clone, Debug, Default)]
pub struct Known {
    pub retention: Option<Retention>,
    /// The number of the staging that its time is counted from.
    since: u64,
    pub owners: BTreeSet<OwnerId>,
    pub content: Vec<u8>,
    /// What its caller said.
    pub size: u64,
    pub executable: bool,
    /// What is in the file that its names lead to: the content, unless somebody has spoilt it unseen.
    pub there: Vec<u8>,
    /// The first one is what is listed.
    pub names: Vec<Named>,
    /// Before the last staging nothing was in the way of a link in the place of the first name.
    pub first_is_free: bool,
    /// Where it has had other names since it was copied, and which file each was.
    pub counted: BTreeMap<PathBuf, u64>,
    /// Bytes in the budget.
    pub stored: u64,
}

#[derive(Clone, Debug)]
pub struct Named {
    pub name: Vec<u8>,
    /// In the registry's own directory, and not at a caller's destination.
    pub is_own: bool,
    pub path: PathBuf,
    /// Somebody has removed or changed the file since.
    pub harmed: bool,
    /// The same number for all that are links of one another.
    pub file: u64,
    /// What a look at it showed when it was last read: no need to read it again.
    read_as: Option<Look>,
}

/// Inode, size, and the time of the last change.
type Look = (u64, u64, i64, i64);

impl Named {
    /// Of a file that has no other name yet.
    pub fn new(name: &[u8], is_own: bool) -> Self {
        static FILES: AtomicU64 = AtomicU64::new(0);
        Self {
            file: FILES.fetch_add(1, Ordering::Relaxed),
            name: name.to_vec(),
            is_own,
            path: PathBuf::new(),
            harmed: false,
            read_as: None,
        }
    }

    pub fn leads_to(&self, content: &[u8]) -> bool {
        fs::read(&self.path).is_ok_and(|there| there == content)
    }

    /// Whether it is there with this content, and mode.
    pub fn check(&mut self, content: &[u8], mode: u32) {
        let stat = fs::metadata(&self.path).expect("it is there");
        assert_eq!(stat.permissions().mode() & 0o7777, mode);
        let look = Some((stat.ino(), stat.size(), stat.mtime(), stat.mtime_nsec()));
        if self.read_as != look {
            let there = fs::read(&self.path).expect("it is there");
            assert!(there == content, "another content is there");
            self.read_as = look;
        }
    }

    /// No destination of ours ends with a name that is asked for.
    pub fn is_called(&self, name: &[u8]) -> bool {
        self.is_own && self.name == name
    }
}

impl Known {
    pub fn path(&self) -> &Path {
        &self.names[0].path
    }

    /// Bytes of what is there of it.
    pub fn kept(&self) -> u64 {
        let there = self.names.iter().filter(|named| !named.harmed);
        let files: BTreeSet<u64> = there.map(|named| named.file).collect();
        self.content.len() as u64 * files.len() as u64
    }

    /// Whether reading it would show what a look does not.
    pub fn is_spoilt(&self) -> bool {
        self.there != self.content
    }

    pub fn is_persistent(&self) -> bool {
        self.retention.is_some_and(|retention| retention.persist)
    }

    /// In how many milliseconds it may go, if at all.
    fn goes_in(&self) -> Option<u64> {
        match self.retention? {
            Retention {
                persist: false,
                ttl: Ttl::Millis(ttl),
            } if self.owners.is_empty() => Some(ttl),
            _ => None,
        }
    }

    pub fn has_expired(&self) -> bool {
        self.goes_in() == Some(0)
    }

    /// Notes what somebody has done to its files.
    pub fn look(&mut self) {
        for named in &mut self.names {
            named.harmed |= !named.leads_to(&self.there);
        }
    }
}

pub type Key = Vec<u8>;

#[derive(Default)]
pub struct Model {
    pub known: BTreeMap<Key, Known>,
    pub budget: Budget,
    /// Bytes of streams that are under way.
    pub reserved: u128,
    /// What the bytes may come to: more than the budget, if they did so before it was set.
    ceiling: Option<u128>,
    /// What is to be told of.
    pub expected: Vec<(Why, Key)>,
    stagings: u64,
}

impl Model {
    pub fn pick(&self, pick: u8) -> Option<(&Key, &Known)> {
        let index = usize::from(pick) % self.known.len().max(1);
        self.known.iter().nth(index)
    }

    /// Bytes of all entries, and of what is being written.
    fn bytes(&self) -> u128 {
        let known = self.known.values();
        known.map(|known| u128::from(known.stored)).sum::<u128>() + self.reserved
    }

    pub fn set_budget(&mut self, budget: Budget) {
        self.budget = budget;
        self.ceiling = None;
        self.lower_ceiling();
    }

    /// What the bytes may come to from now on.
    fn lower_ceiling(&mut self) {
        self.ceiling = self.budget.max_bytes.map(|max_bytes| {
            let now = self.bytes();
            let before = self.ceiling.unwrap_or(now);
            u128::from(max_bytes).max(before.min(now))
        });
    }

    /// What the bytes may have come to by now.
    pub fn check_budget(&mut self) -> u128 {
        let ceiling = self.ceiling.unwrap_or(u128::MAX);
        assert!(self.bytes() <= ceiling, "the budget has been passed");
        self.lower_ceiling();
        ceiling
    }

    /// What has to go for so many more bytes, the first to go first; `None` if that would not do.
    pub fn victims(&self, more: u64, spared: Option<&Key>) -> Option<Vec<Key>> {
        self.going(more, spared, self.budget.when_full)
    }

    /// The same, of what has expired.
    pub fn expired(&self, more: u64) -> Option<Vec<Key>> {
        self.going(more, None, WhenFull::Refuse)
    }

    fn going(&self, more: u64, spared: Option<&Key>, when_full: WhenFull) -> Option<Vec<Key>> {
        let Some(max_bytes) = self.budget.max_bytes else {
            return Some(Vec::new());
        };
        let wanted = self.bytes() + u128::from(more);
        let lacking = wanted.saturating_sub(u128::from(max_bytes));
        if more == 0 || lacking == 0 {
            return Some(Vec::new());
        }
        let known = self.known.iter();
        let mut order: Vec<_> = known
            .filter(|(key, known)| Some(*key) != spared && known.stored > 0)
            .filter_map(|(key, known)| Some((known.goes_in()?, known.since, key)))
            .filter(|&(ttl, ..)| ttl == 0 || when_full == WhenFull::Evict)
            .collect();
        order.sort();
        let mut freed = 0;
        let mut victims = Vec::new();
        for (_, _, key) in order {
            if freed >= lacking {
                break;
            }
            freed += u128::from(self.known[key].stored);
            victims.push(key.clone());
        }
        (freed >= lacking).then_some(victims)
    }

    /// These have gone to make room.
    pub fn make_room(&mut self, victims: &[Key]) {
        for key in victims {
            let why = if self.known[key].has_expired() {
                Why::Expired
            } else {
                Why::Evicted
            };
            self.known.remove(key);
            self.expected.push((why, key.clone()));
        }
    }

    /// Enters, or renews, what has been staged.
    pub fn enter(&mut self, key: &Key, keep: Keep) -> &mut Known {
        self.stagings += 1;
        let known = self.known.entry(key.clone()).or_default();
        if known.retention.is_none() || keep.persist || keep.ttl.is_some() {
            known.since = self.stagings;
        }
        let retention = known.retention.unwrap_or(keep.retention());
        known.retention = Some(retention.merge(keep));
        known.owners.extend(keep.owner);
        known
    }

    /// Takes what has expired out.
    pub fn expire(&mut self) -> Vec<Key> {
        let expired = self.known.iter().filter(|(_, known)| known.has_expired());
        let expired: Vec<_> = expired.map(|(key, _)| key.clone()).collect();
        for key in &expired {
            self.known.remove(key);
        }
        expired
    }

    /// An owner lets go of a key. What nothing else keeps goes, and that is told.
    pub fn disown(&mut self, owner: OwnerId, key: &Key) {
        let Some(known) = self.known.get_mut(key) else {
            return;
        };
        if known.owners.remove(&owner) && known.has_expired() {
            self.known.remove(key);
            self.expected.push((Why::Expired, key.clone()));
        }
    }
    /// An owner has ended.
    pub fn disown_all(&mut self, owner: OwnerId) {
        let keys: Vec<Key> = self.known.keys().cloned().collect();
        for key in keys {
            self.disown(owner, &key);
        }
    }
}
