//! Reading a source, and hashing what is written of it.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender};
use nix::errno::Errno;
use nix::sys::stat::{FileStat, Mode, SFlag};
use sha2::{Digest, Sha256};

use super::buffer::Buffer;
use super::file_id::{Fingerprint, Stamp, check_type};
use super::sys;
use crate::checksum::Content;
use crate::error::{Context, Error, Result};
use crate::panics;
use crate::time::Now;
use crate::turns;

/// A file up to this size is read whole and staged by the thread that is asked; a larger one is
/// copied in pieces by a copier thread.
pub const INLINE_LIMIT: usize = 256 * 1024;

/// One byte more than a small file has shows that one of unknown size is larger.
pub(crate) const SMALL_BUFFER: usize = INLINE_LIMIT + 1;

/// The size of a piece: small enough to stay in a core's cache between the read and the hash.
const PIECE: usize = 256 * 1024;

/// How much the kernel copies at once: little enough for the hash to follow closely, and enough that
/// the two threads seldom wait for each other.
const COPIED_AT_ONCE: usize = 1024 * 1024;

/// How many of these the copy may be ahead of the hash: a file larger than the memory would not be
/// in a cache any more when the hash comes to it.
const COPIES_AHEAD: usize = 4;

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
    path: &'a Path,
    file: File,
    stat: FileStat,
    called_off: &'a AtomicBool,
}

impl<'a> Source<'a> {
    /// Opens a source that [`look`] has let pass. Never blocks on a pipe or a device.
    pub(crate) fn open(path: &'a Path) -> Result<Self> {
        Self::of(sys::open_for_reading(path), path)
    }

    pub(crate) fn of(file: nix::Result<File>, path: &'a Path) -> Result<Self> {
        let file = file.context("open", path)?;
        // Between the look and the open the path may have come to mean another file.
        let stat = sys::fstat(&file).context("stat", path)?;
        check_type(path, &stat)?;
        static NEVER: AtomicBool = AtomicBool::new(false);
        Ok(Self {
            path,
            file,
            stat,
            called_off: &NEVER,
        })
    }

    /// Once `called_off` is set, reading and copying it end at the next piece, with
    /// [`Error::Stopped`].
    pub(crate) fn until(self, called_off: &'a AtomicBool) -> Self {
        Self { called_off, ..self }
    }

    fn go_on(&self) -> Result<()> {
        if self.called_off.load(Ordering::Relaxed) {
            return Err(Error::Stopped);
        }
        Ok(())
    }

    pub(crate) fn size(&self) -> u64 {
        Stamp::of(&self.stat).size()
    }

    /// The mode of the staged copy: what the owner may do with the source, except to write it, and
    /// always to read it.
    pub(crate) fn staged_mode(&self) -> Mode {
        let owner = Mode::from_bits_truncate(self.stat.st_mode) & Mode::S_IXUSR;
        owner | Mode::S_IRUSR
    }

    /// Whether it cannot have changed since `before`, when it had not been opened yet, and have the
    /// times that it had when it was opened.
    pub(crate) fn would_show_changes_since(&self, before: Now) -> bool {
        self.fingerprint().settled(before.wall_ms) && sys::keeps_times(&self.file)
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
        let limit = Remaining::new(self).limit(buffer.len());
        let count = sys::read_full(&self.file, &mut buffer[..limit]).context("read", self.path)?;
        Ok((count <= INLINE_LIMIT).then_some(count))
    }

    /// The digest of the content, and its size in bytes.
    pub(crate) fn content(&self) -> Result<Content> {
        sys::rewind(&self.file).context("read", self.path)?;
        self.hash_pieces(|_| Ok(()))
    }

    /// Copies the content into `target`, which is empty, and gives its size and the digest of what
    /// was written.
    pub(crate) fn copy_into(&self, target: &File, target_path: &Path) -> Result<Content> {
        sys::rewind(&self.file).context("read", self.path)?;
        let copy_pieces = || {
            self.hash_pieces(|piece| sys::write_all(target, piece).context("write to", target_path))
        };
        // What there is to gain from a second thread costs less than one.
        if self.size() <= INLINE_LIMIT as u64 {
            return copy_pieces();
        }
        let before = Now::read();
        if sys::clone_content(target, &self.file).context("write to", target_path)? {
            return match self.digest_if_unchanged_since(before)? {
                Some(content) => Ok(content),
                None => self.digest_of_clone(target, target_path),
            };
        }
        let (copied, progress) = crossbeam_channel::bounded(COPIES_AHEAD);
        std::thread::scope(|scope| {
            let ahead = move || self.copy_ahead(target, target_path, &copied);
            let Ok(copier) = std::thread::Builder::new().spawn_scoped(scope, ahead) else {
                // No thread can be had: late is better than never.
                return copy_pieces();
            };
            let digest = digest_behind(target, target_path, &progress);
            drop(progress);
            let copied = copier
                .join()
                .unwrap_or_else(|panic| Err(Error::from_panic(&*panic)));
            copied.and(digest)
        })
    }

    /// Copies, in the kernel where it can, and tells how far it has come.
    fn copy_ahead(&self, target: &File, target_path: &Path, copied: &Sender<u64>) -> Result<()> {
        let mut left = Remaining::new(self);
        let mut buffer = None;
        let mut end = 0;
        let mut in_kernel = true;
        loop {
            panics::point("write");
            self.go_on()?;
            let wanted = left.limit(COPIED_AT_ONCE);
            let count = if in_kernel {
                sys::copy_range(&self.file, target, wanted).context("write to", target_path)?
            } else {
                let buffer = buffer.get_or_insert_with(|| Buffer::new(PIECE));
                let piece = &mut buffer[..wanted.min(PIECE)];
                let count = sys::read_full(&self.file, piece).context("read", self.path)?;
                sys::write_all(target, &piece[..count]).context("write to", target_path)?;
                count
            };
            if count == 0 {
                // Some file systems say so of a file that they cannot copy.
                if std::mem::take(&mut in_kernel) {
                    continue;
                }
                return Ok(());
            }
            left.took(count);
            end += count as u64;
            // If nobody hashes any more that has failed, and is the error that counts.
            if copied.send(end).is_err() {
                return Ok(());
            }
        }
    }

    /// The digest of the source, which may be in a cache where its clone, made after `before`, never
    /// is; `None` unless the source is sure to be what was cloned. File systems write out what is
    /// mapped before they clone it, so that whatever changes it later changes its times too.
    fn digest_if_unchanged_since(&self, before: Now) -> Result<Option<Content>> {
        if !self.would_show_changes_since(before) {
            return Ok(None);
        }
        let content = self.content()?;
        let unchanged =
            sys::fstat(&self.file).is_ok_and(|stat| Fingerprint::of(&stat) == self.fingerprint());
        Ok(unchanged.then_some(content))
    }

    /// A clone is the source as it was at one moment, which may have been a later one than that in
    /// which it was opened.
    fn digest_of_clone(&self, clone: &File, path: &Path) -> Result<Content> {
        let grown = Stamp::of(&sys::fstat(clone).context("stat", path)?).size() > self.size();
        if grown {
            sys::truncate(clone, self.size()).context("write to", path)?;
        }
        let clone = Source::of(sys::duplicate(clone), path)?.until(self.called_off);
        clone.content()
    }

    /// Reads the content, has `work` see each piece of it, and hashes that.
    fn hash_pieces(&self, mut work: impl FnMut(&[u8]) -> Result<()>) -> Result<Content> {
        // The size of a file of `/proc` is not known, and said to be 0.
        let small = usize::try_from(self.size()).ok();
        let small = small.filter(|size| (1..=INLINE_LIMIT).contains(size));
        let mut buffer = Buffer::new(small.unwrap_or(PIECE));
        let mut hasher = Sha256::new();
        let mut left = Remaining::new(self);
        loop {
            self.go_on()?;
            let wanted = left.limit(buffer.len());
            let count =
                sys::read_full(&self.file, &mut buffer[..wanted]).context("read", self.path)?;
            left.took(count);
            let piece = &buffer[..count];
            if piece.is_empty() {
                return Ok(Content {
                    digest: hasher.finalize().into(),
                    size: left.taken,
                });
            }
            // A small file need not wait for those that are hashed for long.
            let turn = small.is_none().then(turns::turn);
            hasher.update(piece);
            drop(turn);
            work(piece)?;
        }
    }
}

/// Reads back and hashes what has been copied, while the next piece is. What is in the file is what
/// counts; it is still in a cache.
fn digest_behind(copy: &File, path: &Path, progress: &Receiver<u64>) -> Result<Content> {
    let mut hasher = Sha256::new();
    let mut buffer = Buffer::new(PIECE);
    let mut done = 0;
    for end in progress {
        while done < end {
            panics::point("read");
            let wanted = usize::try_from(end - done).map_or(PIECE, |left| left.min(PIECE));
            let count = sys::read_at(copy, &mut buffer[..wanted], done).context("read", path)?;
            if count == 0 {
                // Somebody has cut it off.
                return Err(Error::io("read", path, Errno::EIO));
            }
            let turn = turns::turn();
            hasher.update(&buffer[..count]);
            drop(turn);
            done += count as u64;
        }
    }
    Ok(Content {
        digest: hasher.finalize().into(),
        size: done,
    })
}

/// How much of a source is still to be read. What is staged is the file as long as it was when it
/// was opened, or shorter: a log that grows faster than it is copied would never end. The files of
/// `/proc` have no size: they are read to their end, unless they turn out to grow.
struct Remaining<'a> {
    source: &'a Source<'a>,
    bytes: Option<u64>,
    taken: u64,
}

impl<'a> Remaining<'a> {
    fn new(source: &'a Source<'a>) -> Self {
        let size = source.size();
        Self {
            source,
            bytes: (size > 0).then_some(size),
            taken: 0,
        }
    }

    /// How much to ask for at once, at most `wanted`.
    fn limit(&mut self, wanted: usize) -> usize {
        if self.bytes.is_none() && self.taken > 0 {
            let size = sys::fstat(&self.source.file).map_or(0, |stat| Stamp::of(&stat).size());
            self.bytes = (size > 0).then(|| size.saturating_sub(self.taken));
        }
        match self.bytes {
            Some(bytes) => usize::try_from(bytes).map_or(wanted, |bytes| bytes.min(wanted)),
            None => wanted,
        }
    }

    fn took(&mut self, count: usize) {
        self.taken += count as u64;
        if let Some(bytes) = self.bytes.as_mut() {
            *bytes = bytes.saturating_sub(count as u64);
        }
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
            assert_eq!(source.copy_into(&copy, &path).expect("a copy"), opened);
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

    /// What a clone holds is known without a look at it only while nobody touches the source.
    #[cfg(target_os = "linux")]
    #[test]
    fn p3_a_source_stands_for_its_clone_only_if_nothing_changed_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("source");
        std::fs::write(&path, b"before").expect("a source");
        let source = Source::open(&path).expect("it is a regular file");
        let now = Now::read();
        let later = Now {
            wall_ms: now.wall_ms + 10_000,
            ..now
        };
        let asked = |now| source.digest_if_unchanged_since(now).expect("a digest");
        // Its times are too young to show a change.
        assert_eq!(asked(now), None);
        let before = Content {
            digest: digest(b"before"),
            size: 6,
        };
        assert_eq!(asked(later), Some(before));
        std::thread::sleep(std::time::Duration::from_millis(50));
        std::fs::write(&path, b"after!").expect("it is ours");
        assert_eq!(asked(later), None);
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
