//! Staging a content that comes piece by piece, in the registry's own area. It is written and hashed as
//! it comes, and admitted at its end.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::errno::Errno;
use parking_lot::Mutex;

use super::admission::{Admitted, Answer, admit, enter, fail};
use super::owner::Owner;
use super::reply::Reply;
use super::room::{grow, reserve};
use super::streams::{UnderWay, Written};
use super::{
    Ask, MakeWaiter, Outcome, Registry, Request, Reservation, StagedFile, Staging, Waiter, names,
};
use crate::bytes::{Bytes, PIECE};
use crate::checksum::{self, Content};
use crate::disk::scratch::{self, Scratch};
use crate::disk::staged_file::staged_mode;
use crate::error::{Error, Result};
use crate::panics;
use crate::threads::hasher::{Hasher, Tell};
use crate::threads::sweeper::Progress;

/// How many bytes may have been written that are not hashed yet: a caller that gives them faster than that
/// waits, or all of them would be in memory at once.
const AHEAD: u64 = 4 * 1024 * 1024;

/// What is done with the bytes of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// They are staged.
    Stage,
    /// They are hashed, and renewed if they are known.
    Renew,
}

/// How a stream ends.
pub enum End {
    /// With an answer.
    Answer(Answer),
    /// Not yet: a reply that the caller has made tells when the rest has been hashed.
    NotHashed,
    /// It was only to be renewed, and is not known.
    New,
}

/// A stream. Dropped before its end, it leaves nothing: the cleanup thread removes what there is of it.
pub struct Stream {
    registry: Arc<Registry>,
    to: Request,
    purpose: Purpose,
    under_way: UnderWay,
}

/// Begins a stream. Nothing is written yet.
#[must_use]
pub fn open(registry: &Arc<Registry>, mut to: Request, purpose: Purpose) -> Stream {
    let written = Written {
        hasher: Hasher::new(),
        file: None,
        owner: to.owner.take(),
    };
    let under_way = Arc::new(Mutex::new(Some(written)));
    registry.streams.add(&under_way);
    Stream {
        registry: registry.clone(),
        to,
        purpose,
        under_way,
    }
}

impl Stream {
    /// The name that it is staged under.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        &self.to.name
    }

    /// Appends bytes, which are `kept` to be hashed. `true` if the hash is far behind: then no more are to
    /// be given before the reply tells so.
    ///
    /// # Errors
    /// What the disk fails with, [`Error::OverBudget`] or [`Error::Stopped`]. The stream has ended then.
    pub fn write(
        &self,
        pieces: &[&[u8]],
        kept: Box<dyn Bytes>,
        reply: impl FnOnce() -> Reply<()>,
    ) -> Result<bool> {
        let _work = self.registry.work()?;
        let mut under_way = self.under_way.lock();
        let written = under_way.as_mut().ok_or(Error::Stopped)?;
        let result = self.append(written, pieces, kept, reply);
        if result.is_err() {
            self.end_locked(&mut under_way);
        }
        result
    }

    fn append(
        &self,
        written: &mut Written,
        pieces: &[&[u8]],
        kept: Box<dyn Bytes>,
        reply: impl FnOnce() -> Reply<()>,
    ) -> Result<bool> {
        let size = pieces.iter().map(|piece| piece.len() as u64).sum();
        // They never change: what is hashed meanwhile is what is written.
        written.hasher.give(kept, size);
        if self.purpose == Purpose::Stage {
            let (scratch, room) = match &mut written.file {
                Some(file) => file,
                none => none.insert(self.new_file()?),
            };
            grow(&self.registry, room, size)?;
            for piece in pieces.iter().flat_map(|piece| piece.chunks(PIECE)) {
                panics::point("write");
                self.go_on()?;
                scratch.write(piece)?;
            }
        }
        self.go_on()?;
        let tell = || tell(reply());
        Ok(written.hasher.tell_once_behind(AHEAD, tell))
    }

    fn new_file(&self) -> Result<(Scratch, Reservation)> {
        let room = reserve(&self.registry, 0, None)?;
        let areas = &self.registry.areas;
        let scratch = areas.with_area(&self.to.staging_dir, |area| {
            scratch::numbered(area, staged_mode(false))
        })?;
        Ok((scratch, room))
    }

    fn go_on(&self) -> Result<()> {
        if self.registry.stopping.load(Ordering::Relaxed) {
            return Err(Error::Stopped);
        }
        Ok(())
    }

    /// Ends the stream, unless its caller is to ask again: when the rest has been hashed, or if the answer
    /// that it waits for says so. A waiter holds the owner that it is given.
    ///
    /// # Errors
    /// As [`Stream::write`].
    pub fn commit(
        &self,
        make_waiter: &dyn Fn(Option<Arc<Owner>>) -> Waiter,
        reply: impl FnOnce() -> Reply<()>,
    ) -> Result<End> {
        let _work = self.registry.work()?;
        let mut under_way = self.under_way.lock();
        let written = under_way.as_mut().ok_or(Error::Stopped)?;
        if written.hasher.tell_once_behind(0, || tell(reply())) {
            return Ok(End::NotHashed);
        }
        let owner = written.owner.clone();
        let result = self.finish(written, &|| make_waiter(owner.clone()));
        if !matches!(result, Ok(End::Answer(Answer::ByWaiter))) {
            self.end_locked(&mut under_way);
        }
        result
    }

    fn finish(&self, written: &mut Written, make_waiter: MakeWaiter<'_>) -> Result<End> {
        self.go_on()?;
        let content = written.hasher.content()?;
        let checksum = checksum::key(&content.digest);
        let ask = Ask {
            may_take_long: true,
            ..self.to.ask(false)
        };
        let answer = match admit(&self.registry, &checksum, &ask, make_waiter)? {
            Admitted::Known(attachment) => Answer::Now(Outcome::known(attachment)),
            Admitted::Waiting => Answer::ByWaiter,
            Admitted::Lead(_) if self.purpose == Purpose::Renew => return Ok(End::New),
            Admitted::Lead(staging) => {
                let file = written.file.take().map_or_else(|| self.new_file(), Ok);
                let published = file.and_then(|(scratch, room)| {
                    Ok((self.publish(scratch, &staging, content, &ask)?, room))
                });
                Answer::Now(match published {
                    Ok((file, room)) => enter(&self.registry, staging, file, room, &ask),
                    Err(error) => fail(staging, error),
                })
            }
        };
        Ok(End::Answer(answer))
    }

    /// Puts the file in place. If it has been taken away from outside, with its area or without, its content
    /// is there as long as it is open: that is copied.
    fn publish(
        &self,
        scratch: Scratch,
        staging: &Staging,
        content: Content,
        ask: &Ask<'_>,
    ) -> Result<StagedFile> {
        let (name, mode) = names::first_name(staging, ask);
        let path = scratch.path().to_owned();
        let written = scratch.as_source(&path)?.until(&self.registry.stopping);
        let mut scratch = Some(scratch);
        let areas = &self.registry.areas;
        areas.with_area(&self.to.staging_dir, |area| {
            let scratch = match scratch.take() {
                Some(scratch) if Arc::ptr_eq(scratch.area(), area) => scratch,
                _gone => {
                    let _room = reserve(&self.registry, content.size, None)?;
                    let copy = scratch::numbered(area, mode)?;
                    if copy.fill(&written, &|_| Ok(()))? != content {
                        return Err(Error::io("read", &path, Errno::EIO).into());
                    }
                    copy
                }
            };
            scratch.publish(staging.checksum(), name, content.size, mode)
        })
    }

    /// Ends the stream, and leaves nothing of it.
    pub fn abort(&self) {
        self.end_locked(&mut self.under_way.lock());
    }

    fn end_locked(&self, under_way: &mut Option<Written>) {
        let file = under_way.take().and_then(|written| written.file);
        let area = file.map(|(scratch, _room)| scratch.area().clone());
        if let Some(area) = area {
            self.registry.areas.leave(&area);
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let under_way = self.under_way.clone();
        self.registry.sweeper.give(move || {
            let written = under_way.lock().take();
            drop(written);
            Progress::Done
        });
    }
}

fn tell(mut reply: Reply<()>) -> Tell {
    Box::new(move || reply.send(Ok(())))
}
