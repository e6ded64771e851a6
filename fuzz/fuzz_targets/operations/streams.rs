//! Streams, which stay open while other things happen.

use std::sync::Arc;

use codex_files::error::Error;
use codex_files::manifest::waiting::Origin;
use codex_files::registry::admission::Answer;
use codex_files::registry::stage_stream::{self, End, Purpose, Stream};
use codex_files::registry::{Attachment, Outcome, remove};

use crate::asked::{Asked, Meets};
use crate::calls::{answered, ask, replying, until_answered};
use crate::op;
use crate::open::Open;
use crate::tenant::Tenant;
use crate::world::World;

impl World {
    pub fn open_stream(
        &mut self,
        t: usize,
        slot: u8,
        name: &op::Name,
        keep: op::Keep,
        renews: bool,
    ) {
        self.tenants[t].end_stream(slot);
        let name = name.to_bytes();
        let owner = self.tenants[t].owner_of(keep);
        let keep = keep.into_keep(owner.as_ref());
        let request = self.request(&name, &keep, owner);
        let purpose = if renews {
            Purpose::Renew
        } else {
            Purpose::Stage
        };
        let staging_dir = self.staging_dir.clone();
        let tenant = &mut self.tenants[t];
        let stream = stage_stream::open(&tenant.registry, request, purpose);
        *tenant.stream(slot) = Some(Open {
            stream: Arc::new(stream),
            purpose,
            name,
            keep,
            staging_dir,
            content: Vec::new(),
            has_file: false,
            is_shaken: false,
        });
    }

    pub fn write_stream(&mut self, t: usize, slot: u8, source: u8, pieces: u8) {
        let content = self.source(source).content.clone();
        let Some(open) = self.tenants[t].stream(slot) else {
            return;
        };
        let (stream, purpose) = (open.stream.clone(), open.purpose);
        let wanted = open.content.len() as u64 + content.len() as u64;
        let victims = match purpose {
            Purpose::Stage => self.tenants[t].model.victims(content.len() as u64, None),
            Purpose::Renew => Some(Vec::new()),
        };
        let result = self.watched(t, |tenant| {
            let result = write(&stream, &content, pieces);
            if let (Ok(()), Some(victims)) = (&result, &victims) {
                tenant.model.make_room(victims);
                if let Some(open) = tenant.stream(slot) {
                    let before = open.reserved();
                    open.content.extend(&content);
                    open.has_file = purpose == Purpose::Stage;
                    let more = open.reserved() - before;
                    tenant.model.reserved += more;
                }
            }
            result
        });
        match (result, victims) {
            (Ok(()), Some(_)) => {}
            (Err(Error::OverBudget { size, .. }), None) => {
                assert_eq!(size, wanted);
                assert!(matches!(write(&stream, b"x", 1), Err(Error::Stopped)));
                drop(stream);
                self.tenants[t].end_stream(slot);
            }
            (result, victims) => panic!("{result:?}, and these may go: {victims:?}"),
        }
    }

    pub fn commit_stream(&mut self, t: usize, slot: u8) {
        let Some(open) = self.tenants[t].stream(slot) else {
            return;
        };
        let stream = open.stream.clone();
        let budget = if open.is_shaken && open.purpose == Purpose::Stage {
            Meets::PerhapsReserved
        } else {
            Meets::Reserved
        };
        let only_renews = open.purpose == Purpose::Renew;
        let asked = Asked::of(
            open.content.clone(),
            open.name.clone(),
            open.keep,
            false,
            &open.staging_dir,
            budget,
        );
        if only_renews && self.tenants[t].has_to_copy(&asked) {
            assert!(matches!(commit(&stream), Ok(None)));
        } else {
            let staged = || commit(&stream).map(|staged| staged.expect("it is known"));
            self.stage(t, asked, |_| staged());
        }
        drop(stream);
        self.tenants[t].end_stream(slot);
    }

    /// Ends a stream as a caller does, or drops it, as the system does if the caller is killed.
    pub fn abort_stream(&mut self, t: usize, slot: u8, by_caller: bool) {
        if by_caller && let Some(open) = self.tenants[t].stream(slot) {
            open.stream.abort();
        }
        self.tenants[t].end_stream(slot);
    }
}

impl Tenant {
    /// A stream has ended, or is dropped now.
    fn end_stream(&mut self, slot: u8) {
        let Some(open) = self.stream(slot).take() else {
            return;
        };
        self.model.reserved -= open.reserved();
        let owner = open.keep.owner;
        drop(open);
        // The cleanup thread has removed what there was of it before it does anything else.
        ask(|reply| remove::unstage(&self.registry, b"not staged", reply));
        if let Some(owner) = owner {
            self.disown_if_ended(owner);
        }
    }
}

fn write(stream: &Stream, content: &[u8], pieces: u8) -> Result<(), Error> {
    let length = content.len().div_ceil(usize::from(pieces % 4) + 1);
    let pieces: Vec<&[u8]> = content.chunks(length.max(1)).collect();
    let (reply, hashed) = replying();
    if stream.write(&pieces, Box::new(content.to_vec()), || reply)? {
        answered(&hashed).expect("it is hashed");
    }
    Ok(())
}

/// `None` if it was only to be renewed, and is not known.
fn commit(stream: &Stream) -> Result<Option<(Attachment, Origin)>, Error> {
    let mut is_new = false;
    let staged = until_answered(|make_waiter| {
        loop {
            let (reply, hashed) = replying();
            match stream.commit(&|_owner| make_waiter(), || reply) {
                Ok(End::Answer(answer)) => return answer,
                Ok(End::NotHashed) => answered(&hashed).expect("it is hashed"),
                Ok(End::New) => {
                    is_new = true;
                    return Answer::Now(Outcome::Failed(Error::Stopped));
                }
                Err(error) => return Answer::Now(Outcome::Failed(error)),
            }
        }
    });
    if is_new { Ok(None) } else { staged.map(Some) }
}
