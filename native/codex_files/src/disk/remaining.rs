//! What is still to be read of a source, and what of that is a hole, which need not be read.

use std::fs::File;

use nix::Result;

use super::file_id::Stamp;
use super::sys;
use crate::bytes::PIECE;

/// The content of a hole.
static ZEROS: [u8; PIECE] = [0; PIECE];

/// The content of the next `count` bytes of a hole, or as many of them as a piece has.
pub(super) fn zeros(count: usize) -> &'static [u8] {
    &ZEROS[..count.min(PIECE)]
}

/// What comes next of a source.
pub(super) enum Part {
    /// Up to so many bytes, to be read from where the file stands: it ends where there are none.
    Data(usize),
    /// So many zeros. The file stands behind them, or they are the last of it.
    Hole(usize),
}

/// How much of a source is still to be read. What is staged is the file as long as it was when it
/// was opened, or shorter: a log that grows faster than it is copied would never end. The files of
/// `/proc` have no size: they are read to their end, unless they turn out to grow.
pub(super) struct Remaining<'a> {
    file: &'a File,
    bytes: Option<u64>,
    pub(super) taken: u64,
    /// What was found where it was last looked for holes, and how far it reaches.
    in_hole: bool,
    until: u64,
}

impl<'a> Remaining<'a> {
    /// Of a file that stands at its beginning. Holes are looked for only if it `may_have_holes`.
    pub(super) fn new(file: &'a File, size: u64, may_have_holes: bool) -> Self {
        Self {
            file,
            bytes: (size > 0).then_some(size),
            taken: 0,
            in_hole: false,
            until: if may_have_holes { 0 } else { u64::MAX },
        }
    }

    /// How much to ask for at once, at most `wanted`.
    pub(super) fn limit(&mut self, wanted: usize) -> usize {
        if self.bytes.is_none() && self.taken > 0 {
            let size = sys::fstat(self.file).map_or(0, |stat| Stamp::of(&stat).size());
            self.bytes = (size > 0).then(|| size.saturating_sub(self.taken));
        }
        at_most(wanted, self.bytes.unwrap_or(u64::MAX))
    }

    /// What comes next, at most `wanted` of it.
    pub(super) fn next(&mut self, wanted: usize) -> Result<Part> {
        let wanted = self.limit(wanted);
        if wanted > 0 && self.taken >= self.until {
            self.look_for_hole()?;
        }
        let count = at_most(wanted, self.until.saturating_sub(self.taken));
        Ok(if self.in_hole {
            Part::Hole(count)
        } else {
            Part::Data(count)
        })
    }

    pub(super) fn took(&mut self, count: usize) {
        self.taken += count as u64;
        if let Some(bytes) = self.bytes.as_mut() {
            *bytes = bytes.saturating_sub(count as u64);
        }
    }

    /// Finds out whether there is a hole, and how far that or the data reaches. To read is never wrong:
    /// wherever the answer is none, all that follows counts as data.
    fn look_for_hole(&mut self) -> Result<()> {
        let at = self.taken;
        let size = || Ok(Stamp::of(&sys::fstat(self.file)?).size());
        let data = sys::next_data(self.file, at).and_then(|data| data.map_or_else(size, Ok));
        (self.in_hole, self.until) = match data {
            Ok(data) if data > at => (true, data),
            Ok(data) if data == at => match sys::next_hole(self.file, at) {
                Ok(hole) if hole > at => (false, hole),
                // Somebody changes it right now.
                _ => (false, u64::MAX),
            },
            _ => (false, u64::MAX),
        };
        sys::seek(self.file, if self.in_hole { self.until } else { at })
    }
}

fn at_most(wanted: usize, limit: u64) -> usize {
    usize::try_from(limit).map_or(wanted, |limit| limit.min(wanted))
}
