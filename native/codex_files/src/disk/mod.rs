//! What touches the file system, and knows nothing of the manifest.

pub(crate) mod area;
pub(crate) mod areas;
pub(crate) mod buffer;
mod copying;
pub(crate) mod elsewhere;
pub mod fault;
pub mod file_id;
pub(crate) mod file_system;
pub(crate) mod link;
mod names;
pub(crate) mod purge;
mod remaining;
pub(crate) mod removing;
pub(crate) mod scratch;
pub mod source;
pub mod staged_file;
pub mod staging_dir;
pub(crate) mod sys;
pub(crate) mod verifying;
