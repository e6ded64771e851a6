//! Copying a source, and hashing what is written of it.

use std::fs::File;
use std::path::Path;

use crossbeam_channel::{Receiver, Sender};
use nix::errno::Errno;
use sha2::{Digest, Sha256};

use super::buffer::Buffer;
use super::file_id::{Fingerprint, Stamp};
use super::source::{INLINE_LIMIT, Remaining, Source};
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
        let copy_pieces = || {
            let mut there = 0;
            self.hash_pieces(|piece| {
                there += piece.len() as u64;
                grow(there)?;
                sys::write_all(target, piece).context("write to", target_path)
            })
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
        let clone = Source::of(Now::read(), sys::duplicate(clone), path)?.until(self.called_off);
        clone.content()
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
}
