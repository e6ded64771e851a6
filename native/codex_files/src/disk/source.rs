//! Looking at a source, and reading it.

use std::fs::File;
use std::ops::Deref;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::stat::{FileStat, Mode, SFlag};
use sha2::{Digest, Sha256};

use super::buffer::Buffer;
use super::file_id::{Fingerprint, Stamp, check_type};
use super::remaining::{Part, Remaining, zeros};
use super::{file_system, sys};
use crate::bytes::PIECE;
use crate::checksum::Content;
use crate::error::{Context, Error, Result};
use crate::time::Now;
use crate::turns::{self, Turn};

/// A file up to this size is read whole and staged by the thread that is asked; a larger one is
/// copied in pieces by a copier thread.
pub const INLINE_LIMIT: usize = 256 * 1024;

/// One byte more than a small file has shows that one of unknown size is larger.
pub(crate) const SMALL_BUFFER: usize = INLINE_LIMIT + 1;

/// A piece of a content.
pub(super) enum Piece<'a> {
    Data(&'a [u8]),
    /// Zeros that have not been read.
    Hole(&'a [u8]),
}

impl Deref for Piece<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let (Self::Data(bytes) | Self::Hole(bytes)) = self;
        bytes
    }
}

/// A look at a source that does not open it: opening a device can move a tape.
pub(crate) fn look(path: &Path) -> Result<FileStat> {
    let stat = sys::stat(path).context("stage", path)?;
    check_type(path, &stat)?;
    Ok(stat)
}

/// The state of a regular file, if caches can tell; nothing is waited for.
#[cfg(target_os = "linux")]
pub(crate) fn glance(path: &Path) -> Option<Fingerprint> {
    let stat = sys::stat_cached(path).ok()?;
    let kind = SFlag::from_bits_truncate(stat.stx_mode.into()) & SFlag::S_IFMT;
    (kind == SFlag::S_IFREG).then(|| Fingerprint::of_statx(&stat))
}

/// Other systems do not say what their caches hold.
#[cfg(not(target_os = "linux"))]
pub(crate) fn glance(_path: &Path) -> Option<Fingerprint> {
    None
}

/// An open source, and what it was when it was opened.
pub(crate) struct Source<'a> {
    pub(super) path: &'a Path,
    pub(super) file: File,
    stat: FileStat,
    /// When it had not been opened yet.
    before: Now,
    pub(super) called_off: &'a AtomicBool,
}

impl<'a> Source<'a> {
    /// Opens a source that [`look`] has let pass. Never blocks on a pipe or a device.
    pub(crate) fn open(path: &'a Path) -> Result<Self> {
        Self::of(Now::read(), sys::open_for_reading(path), path)
    }

    pub(crate) fn of(before: Now, file: nix::Result<File>, path: &'a Path) -> Result<Self> {
        let file = file.context("open", path)?;
        // Between the look and the open the path may have come to mean another file.
        let stat = sys::fstat(&file).context("stat", path)?;
        check_type(path, &stat)?;
        static NEVER: AtomicBool = AtomicBool::new(false);
        Ok(Self {
            path,
            file,
            stat,
            before,
            called_off: &NEVER,
        })
    }

    /// Once `called_off` is set, reading and copying it end at the next piece, with
    /// [`Error::Stopped`].
    pub(crate) fn until(self, called_off: &'a AtomicBool) -> Self {
        Self { called_off, ..self }
    }

    pub(super) fn go_on(&self) -> Result<()> {
        if self.called_off.load(Ordering::Relaxed) {
            return Err(Error::Stopped);
        }
        Ok(())
    }

    pub(crate) fn size(&self) -> u64 {
        Stamp::of(&self.stat).size()
    }

    /// Whether its owner may execute it.
    pub(crate) fn is_executable(&self) -> bool {
        Mode::from_bits_truncate(self.stat.st_mode).contains(Mode::S_IXUSR)
    }

    /// Whether it would have other times, had it changed since it was opened.
    pub(crate) fn would_show_changes(&self) -> bool {
        self.would_show_changes_since(self.before)
    }

    /// The same of a later moment, after `before`.
    pub(super) fn would_show_changes_since(&self, before: Now) -> bool {
        self.fingerprint().settled(before.wall_ms) && file_system::keeps_times(&self.file)
    }

    /// As it was when it was opened.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.stat)
    }

    /// Reads the whole content into `buffer`, of [`SMALL_BUFFER`] bytes, if it is a small file's;
    /// its length then.
    pub(crate) fn read_small(&self, buffer: &mut [u8]) -> Result<Option<usize>> {
        if self.size() > INLINE_LIMIT as u64 {
            return Ok(None);
        }
        let limit = self.remaining().limit(buffer.len());
        let count = sys::read_full(&self.file, &mut buffer[..limit]).context("read", self.path)?;
        Ok((count <= INLINE_LIMIT).then_some(count))
    }

    /// The digest of the content, and its size in bytes.
    pub(crate) fn content(&self) -> Result<Content> {
        sys::rewind(&self.file).context("read", self.path)?;
        self.hash_pieces(|| Some(turns::turn()), |_| Ok(()))
    }

    /// Reads the content, has `work` see each piece of it, and hashes that, with what `turn` gives.
    pub(super) fn hash_pieces(
        &self,
        turn: impl Fn() -> Option<Turn>,
        mut work: impl FnMut(Piece<'_>) -> Result<()>,
    ) -> Result<Content> {
        // The size of a file of `/proc` is not known, and said to be 0.
        let small = usize::try_from(self.size()).ok();
        let small = small.filter(|size| (1..=INLINE_LIMIT).contains(size));
        let mut buffer = Buffer::new(small.unwrap_or(PIECE));
        let mut hasher = Sha256::new();
        let mut left = self.remaining();
        loop {
            self.go_on()?;
            let piece = match left.next(buffer.len()).context("read", self.path)? {
                Part::Hole(count) => Piece::Hole(zeros(count)),
                Part::Data(count) => {
                    let wanted = &mut buffer[..count];
                    let count = sys::read_full(&self.file, wanted).context("read", self.path)?;
                    Piece::Data(&buffer[..count])
                }
            };
            left.took(piece.len());
            if piece.is_empty() {
                return Ok(Content {
                    digest: hasher.finalize().into(),
                    size: left.taken,
                });
            }
            let turn = turn();
            hasher.update(&*piece);
            drop(turn);
            work(piece)?;
        }
    }

    /// All of it, which is still to be read.
    pub(super) fn remaining(&self) -> Remaining<'_> {
        Remaining::new(&self.file, self.size(), self.may_have_holes())
    }

    /// Whether it is worth the while to look for holes: it takes less room than it would without.
    fn may_have_holes(&self) -> bool {
        let stored = u64::try_from(self.stat.st_blocks).map_or(0, |blocks| blocks * 512);
        self.size() > INLINE_LIMIT as u64
            && stored < self.size()
            && file_system::tells_holes(&self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::digest;
    use crate::error::FileType;

    /// What is staged is the file as long as it was when it was opened.
    #[test]
    fn p3_a_source_is_read_no_further_than_it_reached_when_it_was_opened() {
        use std::io::{Read, Seek, Write};
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        for size in [10, INLINE_LIMIT, INLINE_LIMIT + 1, 3 * PIECE] {
            std::fs::write(&path, vec![b'a'; size]).expect("a source");
            let source = Source::open(&path).expect("it is a regular file");
            let mut log = File::options().append(true).open(&path).expect("a log");
            log.write_all(&vec![b'b'; 2 * PIECE]).expect("it grows");
            let opened = digest(&vec![b'a'; size]);
            let opened = Content {
                digest: opened,
                size: size as u64,
            };
            assert_eq!(source.content().expect("a digest"), opened);
            let mut copy = tempfile::tempfile().expect("a target");
            assert_eq!(
                source.copy_into(&copy, &path, &|_| Ok(())).expect("a copy"),
                opened
            );
            let mut copied = Vec::new();
            copy.rewind().expect("a file");
            copy.read_to_end(&mut copied).expect("a file");
            assert!(copied == vec![b'a'; size]);
            sys::rewind(&source.file).expect("a file");
            let read = source.read_small(&mut Buffer::new(SMALL_BUFFER));
            let small = (size <= INLINE_LIMIT).then_some(size);
            assert_eq!(read.expect("it can be read"), small);
        }
    }

    /// Between the look and the open a path may come to mean a pipe.
    #[test]
    fn p13_a_pipe_is_refused_when_it_is_opened_too() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("fifo");
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).expect("a pipe");
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let refused = Source::open(&path).err();
            let _ = sender.send(refused);
        });
        let refused = receiver
            .recv_timeout(std::time::Duration::from_secs(10))
            .expect("it does not block");
        assert!(matches!(
            refused,
            Some(Error::UnsupportedFileType(FileType::Fifo))
        ));
    }
}
