//! The threads: who does work, whatever it is.

pub(crate) mod copiers;
pub(crate) mod hasher;
pub(crate) mod sweeper;
