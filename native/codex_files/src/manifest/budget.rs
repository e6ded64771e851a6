//! The budget: how many bytes may be stored, and how many are.

/// What becomes of a staging for which there is no room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum WhenFull {
    /// It fails.
    #[default]
    Refuse,
    /// What would expire soonest goes, if that will do.
    Evict,
}

/// How many bytes may be stored at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// `None`: any number.
    pub max_bytes: Option<u64>,
    /// What becomes of a staging that would pass it.
    pub when_full: WhenFull,
}

/// The bytes that there are, as they are on the disk and not as callers claim.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    /// Of all entries.
    pub(super) stored: u128,
    /// Of those entries that expire at some time, and that no owner keeps.
    pub(super) evictable: u128,
    /// Of what is being written, or is about to be.
    pub(super) reserved: u128,
}

impl Usage {
    /// How many bytes would have to go, if there were so many more; `None` if there is room.
    pub(super) fn lacks(&self, more: u64, budget: Budget) -> Option<u128> {
        let wanted = self.stored + self.reserved + u128::from(more);
        let lacking = wanted.saturating_sub(u128::from(budget.max_bytes?));
        // What is there already may be more than a successor's budget: who needs nothing is not refused.
        (lacking > 0 && more > 0).then_some(lacking)
    }
}
