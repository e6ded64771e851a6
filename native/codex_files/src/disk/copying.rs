//! Copying a source, and hashing what is written of it.

use std::fs::File;
use std::path::Path;

use crossbeam_channel::{Receiver, Sender};
use nix::errno::Errno;
use sha2::{Digest, Sha256};

use super::buffer::Buffer;
use super::file_id::{Fingerprint, Stamp};
use super::remaining::{Part, zeros};
use super::source::{INLINE_LIMIT, Piece, Source};
use super::sys;
use crate::bytes::PIECE;
use crate::checksum::Content;
use crate::error::{Context, Error, Result};
use crate::panics;
use crate::time::Now;
use crate::turns;

/// How much the kernel copies at once: little enough for the hash to follow closely, and enough that
/// the two threads seldom wait for each other.
const COPIED_AT_ONCE: usize = 1024 * 1024;

/// How many of these the copy may be ahead of the hash: a file larger than the memory would not be
/// in a cache any more when the hash comes to it.
const COPIES_AHEAD: usize = 4;

impl Source<'_> {
    /// Copies the content into `target`, which is empty, and gives its size and the digest of what
    /// was written.
    /// If it may be more than the source's size, `grow` is called with how much there will be, before.
    pub(crate) fn copy_into(
        &self,
        target: &File,
        target_path: &Path,
        grow: &dyn Fn(u64) -> Result<()>,
    ) -> Result<Content> {
        sys::rewind(&self.file).context("read", self.path)?;
        // What there is to gain from a second thread costs less than one.
        if self.size() <= INLINE_LIMIT as u64 {
            return self.copy_in_pieces(Copy::into(target, target_path), grow);
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
            let ahead = move || self.copy_ahead(Copy::into(target, target_path), &copied);
            let Ok(copier) = std::thread::Builder::new().spawn_scoped(scope, ahead) else {
                // No thread can be had: late is better than never.
                return self.copy_in_pieces(Copy::into(target, target_path), grow);
            };
            let digest = digest_behind(target, target_path, &progress);
            drop(progress);
            let copied = copier
                .join()
                .unwrap_or_else(|panic| Err(Error::from_panic(&*panic)));
            copied.and(digest)
        })
    }

    /// Copies and hashes one piece after the other.
    fn copy_in_pieces(
        &self,
        mut copy: Copy<'_>,
        grow: &dyn Fn(u64) -> Result<()>,
    ) -> Result<Content> {
        // A small file need not wait for those that are hashed for long.
        let turn = || (self.size() > INLINE_LIMIT as u64).then(turns::turn);
        let content = self.hash_pieces(turn, |piece| {
            grow(copy.end + piece.len() as u64)?;
            match piece {
                Piece::Data(bytes) => copy.write(bytes),
                Piece::Hole(zeros) => {
                    copy.skip(zeros.len());
                    Ok(())
                }
            }
        })?;
        copy.finish()?;
        Ok(content)
    }

    /// Copies, in the kernel where it can, and tells how far it has come.
    fn copy_ahead(&self, mut copy: Copy<'_>, copied: &Sender<Copied>) -> Result<()> {
        let mut left = self.remaining();
        let mut buffer = None;
        let mut in_kernel = true;
        loop {
            panics::point("write");
            self.go_on()?;
            let next = left.next(COPIED_AT_ONCE).context("read", self.path)?;
            let count = match next {
                Part::Hole(count) => {
                    copy.skip(count);
                    count
                }
                Part::Data(wanted) if in_kernel => copy.copy_range(&self.file, wanted)?,
                Part::Data(wanted) => {
                    let buffer = buffer.get_or_insert_with(|| Buffer::new(PIECE));
                    let piece = &mut buffer[..wanted.min(PIECE)];
                    let count = sys::read_full(&self.file, piece).context("read", self.path)?;
                    copy.write(&piece[..count])?;
                    count
                }
            };
            if count == 0 {
                // Some file systems say so of a file that they cannot copy.
                if std::mem::take(&mut in_kernel) {
                    continue;
                }
                return copy.finish();
            }
            left.took(count);
            let copy = Copied {
                end: copy.end,
                is_hole: copy.is_in_hole(),
            };
            // If nobody hashes any more that has failed, and is the error that counts.
            if copied.send(copy).is_err() {
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
        let clone = Source::of(Now::read(), sys::duplicate(clone), path)?.until(self.called_off);
        clone.content()
    }
}

/// A copy that is being written, from its beginning to its end.
struct Copy<'a> {
    file: &'a File,
    path: &'a Path,
    end: u64,
    /// Where the last that was written ends. Up to `end`, it is a hole, behind which the file does not
    /// stand yet.
    written: u64,
}

impl<'a> Copy<'a> {
    /// Into a file that is empty.
    fn into(file: &'a File, path: &'a Path) -> Self {
        Self {
            file,
            path,
            end: 0,
            written: 0,
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.leave_hole_behind()?;
        sys::write_all(self.file, bytes).context("write to", self.path)?;
        self.wrote(bytes.len());
        Ok(())
    }

    /// Writes up to so many bytes of a source; how many. See [`sys::copy_range`].
    fn copy_range(&mut self, source: &File, wanted: usize) -> Result<usize> {
        self.leave_hole_behind()?;
        let count = sys::copy_range(source, self.file, wanted).context("write to", self.path)?;
        self.wrote(count);
        Ok(count)
    }

    fn wrote(&mut self, count: usize) {
        if count > 0 {
            self.end += count as u64;
            self.written = self.end;
        }
    }

    fn skip(&mut self, count: usize) {
        self.end += count as u64;
    }

    fn is_in_hole(&self) -> bool {
        self.written < self.end
    }

    fn leave_hole_behind(&self) -> Result<()> {
        if self.is_in_hole() {
            sys::seek(self.file, self.end).context("write to", self.path)?;
        }
        Ok(())
    }

    /// Gives the file its size, if it has not got that by what was written.
    fn finish(&self) -> Result<()> {
        if self.is_in_hole() {
            sys::truncate(self.file, self.end).context("write to", self.path)?;
        }
        Ok(())
    }
}

/// How far a copy has come, and whether the last of that is a hole.
struct Copied {
    end: u64,
    is_hole: bool,
}

/// Reads back and hashes what has been copied, while the next piece is. What is in the file is what
/// counts; it is still in a cache. What is in a hole need not be read.
fn digest_behind(copy: &File, path: &Path, progress: &Receiver<Copied>) -> Result<Content> {
    let mut hasher = Sha256::new();
    let mut buffer = Buffer::new(PIECE);
    let mut done = 0;
    for Copied { end, is_hole } in progress {
        while done < end {
            panics::point("read");
            let wanted = usize::try_from(end - done).map_or(PIECE, |left| left.min(PIECE));
            let piece = if is_hole {
                zeros(wanted)
            } else {
                let count =
                    sys::read_at(copy, &mut buffer[..wanted], done).context("read", path)?;
                &buffer[..count]
            };
            if piece.is_empty() {
                // Somebody has cut it off.
                return Err(Error::io("read", path, Errno::EIO));
            }
            let turn = turns::turn();
            hasher.update(piece);
            drop(turn);
            done += piece.len() as u64;
        }
    }
    Ok(Content {
        digest: hasher.finalize().into(),
        size: done,
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::checksum::digest;

    /// What a clone holds is known without a look at it only while nobody touches the source.
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

    /// Where no thread can be had, one does it all.
    #[test]
    fn p24_holes_stay_holes_in_a_copy_made_in_pieces() {
        use std::os::unix::fs::{FileExt, MetadataExt};
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("source");
        let size = 9 << 20;
        let file = File::create(&path).expect("a source");
        file.write_all_at(b"in the middle", size / 2).expect("data");
        file.set_len(size).expect("a hole");
        let source = Source::open(&path).expect("it is a regular file");
        let copy = File::create_new(dir.path().join("copy")).expect("a copy");
        let grown = std::cell::Cell::new(0);
        let grow = |bytes| {
            grown.set(bytes);
            Ok(())
        };
        let target = Copy::into(&copy, &path);
        let content = source.copy_in_pieces(target, &grow).expect("a copy");
        let read = std::fs::read(dir.path().join("copy")).expect("a copy");
        assert!(read == std::fs::read(&path).expect("a source"));
        let digest = digest(&read);
        assert_eq!(content, Content { digest, size });
        assert_eq!(grown.get(), size);
        let blocks = |file: &File| file.metadata().expect("a file").blocks();
        assert!(blocks(&copy) <= blocks(&file), "{}", blocks(&copy));
    }

    /// A source that is cut off behind a hole has nothing more to copy.
    #[test]
    fn p3_a_copy_that_ends_with_a_hole_is_as_long_as_it_says() {
        let file = tempfile::tempfile().expect("a copy");
        let source = tempfile::tempfile().expect("a source");
        let mut copy = Copy::into(&file, Path::new("copy"));
        copy.write(b"data").expect("written");
        copy.skip(1000);
        assert_eq!(copy.copy_range(&source, 10).expect("none is left"), 0);
        copy.write(b"").expect("nothing to write");
        copy.finish().expect("it is given its size");
        assert_eq!(file.metadata().expect("a file").len(), 1004);
    }
}
