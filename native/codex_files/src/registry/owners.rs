//! What becomes of attachments when an owner lets go of them, or ends.

use std::sync::{Arc, Weak};

use super::owner::Owner;
use super::remove::{self, BATCH};
use super::{Registry, Report, StagedFile, Why};
use crate::manifest::{Later, Removal};
use crate::panics::contained;
use crate::retention::OwnerId;
use crate::threads::sweeper::Progress;
use crate::time::Now;

/// A new owner of attachments of a registry. When it ends, the cleanup thread removes what nothing else
/// keeps, and tells of that as of a cleanup.
#[must_use]
pub fn owner(registry: &Arc<Registry>) -> Arc<Owner> {
    let registry = Arc::downgrade(registry);
    Owner::new(move |id| ended(&registry, id))
}

fn ended(registry: &Weak<Registry>, id: OwnerId) {
    let Some(registry) = registry.upgrade() else {
        return;
    };
    let sweeper = registry.sweeper.clone();
    let mut owned = None;
    sweeper.give(move || {
        let disowned = contained(|| {
            let manifest = &registry.manifest;
            let owned = owned.get_or_insert_with(|| manifest.take_owned(id));
            manifest.disown(owned, BATCH, Now::read(), || later(&registry))
        });
        match disowned {
            Ok(Some(removals)) => remove_left(&registry, removals),
            Ok(None) => {
                remove::forget_removed(&registry);
                return Progress::Done;
            }
            // The rest is still to be disowned, or it would stay for ever.
            Err(_panic) => {}
        }
        Progress::More
    });
}

/// Ends an owner's hold on an attachment. What nothing else keeps then, the cleanup thread removes.
pub fn release(registry: &Arc<Registry>, owner: &Owner, checksum: &[u8]) {
    let later = || later(registry);
    let removal = registry
        .manifest
        .release(owner.id(), checksum, Now::read(), later);
    if let Some(removal) = removal {
        give_removal(registry, removal);
    }
}

/// Has the cleanup thread remove what is left once somebody else has ended the work on it.
fn later(registry: &Arc<Registry>) -> Later<Arc<StagedFile>> {
    let registry = registry.clone();
    Box::new(move |removal| {
        if let Some(removal) = removal {
            give_removal(&registry, removal);
        }
    })
}

fn give_removal(registry: &Arc<Registry>, removal: Removal<Arc<StagedFile>>) {
    let mut removal = Some(removal);
    let given_to = registry.clone();
    registry.sweeper.give(move || {
        remove_left(&given_to, removal.take());
        Progress::Done
    });
}

fn remove_left(registry: &Registry, removals: impl IntoIterator<Item = Removal<Arc<StagedFile>>>) {
    let mut report = Report::default();
    for removal in removals {
        // A panic over one of them does not keep the others.
        if let Ok(removed) = contained(|| remove::remove_from(registry, removal)) {
            report.note(removed);
        }
    }
    registry.tell_removed(Why::Expired, report);
}
