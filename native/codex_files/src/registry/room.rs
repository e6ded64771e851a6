//! Room in the budget: reserved before anything is written, and made by the removal of what may go.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use super::remove::{forget_removed, remove_from};
use super::{Registry, Report, Reservation, StagedFile, Staging, Why};
use crate::disk::removing;
use crate::disk::source::Source;
use crate::error::{Error, Result};
use crate::manifest::attachment::File;
use crate::manifest::budget::WhenFull;
use crate::manifest::{self, ExpiryCursor, Manifest, Removal, Room};
use crate::time::Now;

/// Reserves bytes of the budget. A file that was found missing or changed, for which the caller has the
/// ticket, gives its own.
///
/// # Errors
/// [`Error::OverBudget`].
pub(super) fn reserve(
    registry: &Registry,
    bytes: u64,
    lost: Option<&Arc<StagedFile>>,
) -> Result<Reservation> {
    reserve_at_most(registry, bytes, lost, WhenFull::Evict)
}

fn reserve_at_most(
    registry: &Registry,
    bytes: u64,
    lost: Option<&Arc<StagedFile>>,
    at_most: WhenFull,
) -> Result<Reservation> {
    let remove = |why, removals: Vec<_>| {
        let mut report = Report::default();
        for removal in removals {
            report.note(remove_from(registry, removal));
        }
        registry.tell_removed(why, report);
        forget_removed(registry);
    };
    // What is there of it under another name stays there.
    let kept = lost.map_or(0, |lost| lost.kept());
    let all = bytes.saturating_add(kept);
    let (reservation, took_over) = reserve_in(&registry.manifest, all, lost, at_most, remove)
        .map_err(|error| of_all(error, bytes))?;
    if let Some(lost) = lost.filter(|_| took_over) {
        removing::clear_away(lost);
    }
    Ok(reservation)
}

/// Reserves bytes of a manifest's budget, and has `remove` make room; whether some of the bytes are those
/// of the lost file, of which the rest has to go before others are written.
///
/// # Errors
/// As [`Manifest::reserve`].
pub fn reserve_in<F: File>(
    manifest: &Manifest<F>,
    bytes: u64,
    lost: Option<&F>,
    at_most: WhenFull,
    remove: impl Fn(Why, Vec<Removal<F>>),
) -> Result<(manifest::Reservation<F>, bool)> {
    let mut cursor = ExpiryCursor::start();
    loop {
        match manifest.reserve(bytes, lost, at_most, Now::read(), &mut cursor)? {
            Room::Reserved {
                reservation,
                took_over,
            } => return Ok((reservation, took_over)),
            Room::ToMake { expired, evicted } => {
                for (why, removals) in [(Why::Expired, expired), (Why::Evicted, evicted)] {
                    if !removals.is_empty() {
                        remove(why, removals);
                    }
                }
            }
        }
    }
}

/// Reserves more for what turns out to be larger.
///
/// # Errors
/// As [`reserve`], of all of it.
pub(super) fn grow(registry: &Registry, reservation: &mut Reservation, more: u64) -> Result<()> {
    grow_at_most(registry, reservation, more, WhenFull::Evict)
}

fn grow_at_most(
    registry: &Registry,
    reservation: &mut Reservation,
    more: u64,
    at_most: WhenFull,
) -> Result<()> {
    let all = reservation.bytes().saturating_add(more);
    let added = reserve_at_most(registry, more, None, at_most);
    reservation.add(added.map_err(|error| of_all(error, all))?);
    Ok(())
}

/// The error, of all that was to be stored.
fn of_all(error: Error, size: u64) -> Error {
    match error {
        Error::OverBudget { max_bytes, .. } => Error::OverBudget { size, max_bytes },
        error => error,
    }
}

/// What is reserved for a source. The system may not say how large it is: then it grows with what is
/// written.
pub(super) struct ForSource<'a> {
    registry: &'a Registry,
    reservation: RefCell<Reservation>,
    /// Bytes, those of a lost file included.
    covered: Cell<u64>,
    at_most: WhenFull,
}

impl<'a> ForSource<'a> {
    /// As [`reserve`]. Without a ticket, the content may yet turn out to be known: nothing is evicted
    /// for that.
    pub(super) fn reserve(
        registry: &'a Registry,
        source: &Source<'_>,
        staging: Option<&Staging>,
    ) -> Result<Self> {
        let covered = source.size();
        let lost = staging.and_then(Staging::replaces);
        let at_most = match staging {
            Some(_) => WhenFull::Evict,
            None => WhenFull::Refuse,
        };
        Ok(Self {
            registry,
            reservation: RefCell::new(reserve_at_most(registry, covered, lost, at_most)?),
            covered: Cell::new(covered),
            at_most,
        })
    }

    /// To be called before so many bytes are there.
    pub(super) fn cover(&self, bytes: u64) -> Result<()> {
        let more = bytes.saturating_sub(self.covered.get());
        if more > 0 {
            let mut reservation = self.reservation.borrow_mut();
            grow_at_most(self.registry, &mut reservation, more, self.at_most)?;
            self.covered.set(bytes);
        }
        Ok(())
    }

    pub(super) fn into_reservation(self) -> Reservation {
        self.reservation.into_inner()
    }
}
