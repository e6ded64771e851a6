//! Tickets in the hands of Elixir processes, which do the disk work through a file module. A ticket
//! whose process dies is given back when the VM collects it.

use codex_files::attachment::{Removal, Staging};
use codex_files::registry::StageRequest;
use parking_lot::Mutex;
use rustler::Resource;

/// A staging; empty once it has been committed or given up.
pub(crate) struct StagingTicket(Mutex<Option<(Staging, StageRequest)>>);

#[rustler::resource_impl]
impl Resource for StagingTicket {}

impl StagingTicket {
    pub(crate) fn new(staging: Staging, request: StageRequest) -> Self {
        Self(Mutex::new(Some((staging, request))))
    }

    pub(crate) fn request(&self) -> Option<StageRequest> {
        self.0.lock().as_ref().map(|(_, request)| request.clone())
    }

    pub(crate) fn take(&self) -> Option<(Staging, StageRequest)> {
        self.0.lock().take()
    }
}

/// A removal; empty once it has been committed or given up.
pub(crate) struct RemovalTicket(Mutex<Option<Removal>>);

#[rustler::resource_impl]
impl Resource for RemovalTicket {}

impl RemovalTicket {
    pub(crate) fn new(removal: Removal) -> Self {
        Self(Mutex::new(Some(removal)))
    }

    pub(crate) fn take(&self) -> Option<Removal> {
        self.0.lock().take()
    }
}
