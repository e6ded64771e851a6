//! Staging, and what must come of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use codex_files::bytes::Bytes;
use codex_files::error::Error;
use codex_files::manifest::waiting::Origin;
use codex_files::name::check_name;
use codex_files::registry::admission::Answer;
use codex_files::registry::owner::Owner;
use codex_files::registry::stage_at::{self, StageAt};
use codex_files::registry::stage_data;
use codex_files::registry::stage_file::{self, Miss, StageFile};
use codex_files::registry::{Attachment, Outcome, Request};
use codex_files::retention::{self, Ttl};

use crate::asked::{Asked, Meets, hex_digest};
use crate::calls::until_answered;
use crate::op;
use crate::tenant::Tenant;
use crate::world::World;

/// Above this size a copier copies a file before it knows its digest.
const INLINE_LIMIT: usize = 256 * 1024;

impl op::Keep {
    pub fn into_keep(self, owner: Option<&Arc<Owner>>) -> retention::Keep {
        retention::Keep {
            owner: owner.map(|owner| owner.id()),
            ..self.life.into_keep()
        }
    }
}

impl op::Life {
    fn into_keep(self) -> retention::Keep {
        retention::Keep {
            persist: self == Self::Persistent,
            ttl: match self {
                Self::Owners => None,
                Self::Expired => Some(Ttl::Millis(0)),
                Self::Hour => Some(Ttl::Millis(3_600_000)),
                Self::Day => Some(Ttl::Millis(86_400_000)),
                Self::Endless | Self::Persistent => Some(Ttl::Infinity),
            },
            owner: None,
        }
    }
}

impl op::Name {
    pub fn to_bytes(&self) -> Vec<u8> {
        const USUAL: [&[u8]; 4] = [b"name", b"another", b".staging", b"copy"];
        let mut name = match self {
            Self::Usual(number) => USUAL[usize::from(*number) % USUAL.len()].to_vec(),
            Self::Odd(name) => name.clone(),
        };
        // Others are refused before.
        name.truncate(255);
        if check_name(&name).is_err() {
            name = b".staging-0".to_vec();
        }
        name
    }
}

impl Tenant {
    pub fn owner_of(&mut self, keep: op::Keep) -> Option<Arc<Owner>> {
        let without = keep.life == op::Life::Owners;
        let number = keep.owner.or(without.then_some(0))?;
        Some(self.owner(number))
    }
}

impl World {
    pub fn request(
        &self,
        name: &[u8],
        keep: &retention::Keep,
        owner: Option<Arc<Owner>>,
    ) -> Request {
        Request {
            name: name.into(),
            keep: *keep,
            owner,
            staging_dir: self.staging_dir.clone(),
        }
    }

    pub fn file_request(
        &self,
        source: u8,
        name: &[u8],
        keep: &retention::Keep,
        owner: Option<Arc<Owner>>,
    ) -> StageFile {
        StageFile {
            source: self.source(source).path.clone(),
            to: self.request(name, keep, owner),
        }
    }

    pub fn stage_file(
        &mut self,
        t: usize,
        source: u8,
        name: &op::Name,
        keep: op::Keep,
        glanced: bool,
    ) {
        let name = name.to_bytes();
        let owner = self.tenants[t].owner_of(keep);
        let keep = keep.into_keep(owner.as_ref());
        let request = self.file_request(source, &name, &keep, owner);
        let source = self.source(source).clone();
        let budget = if source.content.len() > INLINE_LIMIT {
            Meets::Unknown
        } else {
            Meets::Known
        };
        let asked = Asked::of(
            source.content,
            name,
            keep,
            source.executable,
            &self.staging_dir,
            budget,
        );
        self.stage(t, asked, |tenant| {
            let registry = &tenant.registry;
            until_answered(|waiter| {
                let mut miss = Miss::Unseen;
                if glanced {
                    let to = &request.to;
                    match stage_file::refresh(registry, &request.source, &to.name, to.keep) {
                        Ok(known) => return Answer::Now(Outcome::known(known)),
                        Err(shown) => miss = shown,
                    }
                }
                stage_file::stage_file(registry, &request, miss, waiter)
            })
        });
    }

    pub fn stage_data(&mut self, t: usize, source: u8, name: &op::Name, keep: op::Keep) {
        let name = name.to_bytes();
        let owner = self.tenants[t].owner_of(keep);
        let keep = keep.into_keep(owner.as_ref());
        let request = self.request(&name, &keep, owner);
        let content = self.source(source).content.clone();
        let asked = Asked::of(
            content.clone(),
            name,
            keep,
            false,
            &self.staging_dir,
            Meets::Known,
        );
        self.stage(t, asked, |tenant| {
            let registry = &tenant.registry;
            until_answered(|waiter| {
                match stage_data::refresh(registry, &content, &request.name, request.keep) {
                    Some(known) => Answer::Now(Outcome::known(known)),
                    None => {
                        let kept = || -> Box<dyn Bytes> { Box::new(content.clone()) };
                        stage_data::stage_data(registry, &content, kept, &request, waiter)
                    }
                }
            })
        });
    }

    pub fn stage_at(&mut self, t: usize, source: u8, by: &op::Key, life: op::Life, claims: u8) {
        let number = source % 4;
        let source = self.source(source).clone();
        let content = source.content;
        let (key, destination) = match by {
            op::Key::Name(name) => (vec![b'k', name % 4], format!("places/{}/copy", name % 4)),
            op::Key::Claim => (hex_digest(&content), format!("claim {number}")),
            op::Key::FalseClaim => (hex_digest(b"another"), "false claim".into()),
        };
        // Without an owner there is always a time to live.
        let keep = match life {
            op::Life::Owners => op::Life::Expired,
            life => life,
        };
        let destination = self.root.join(format!("of {t}")).join(destination);
        let request = StageAt {
            checksum: key.as_slice().into(),
            name: b"name".as_slice().into(),
            keep: keep.into_keep(),
            size: content.len() as u64 + u64::from(claims),
            source: source.path,
            destination: destination.clone(),
            staging_dir: self.staging_dir.clone(),
        };
        let asked = Asked {
            key,
            content,
            size: request.size,
            name: b"name".to_vec(),
            executable: source.executable,
            keep: request.keep,
            staging_dir: self.staging_dir.path.clone(),
            destination: Some(destination),
            budget: Meets::Known,
        };
        self.stage(t, asked, |tenant| {
            if let Some(known) =
                stage_at::refresh(&tenant.registry, &request.checksum, request.keep)
            {
                return Ok((known, Origin::Known));
            }
            until_answered(|waiter| stage_at::stage_at(&tenant.registry, &request, waiter))
        });
    }

    /// Stages, and compares what comes of it with what must.
    pub fn stage(
        &mut self,
        t: usize,
        asked: Asked,
        stage: impl FnOnce(&mut Tenant) -> Result<(Attachment, Origin), Error>,
    ) {
        let destination = asked.destination.as_ref();
        let was_there = destination.is_some_and(|path| path.exists());
        if let Some(known) = self.tenants[t].model.known.get_mut(&asked.key) {
            known.look_at_first();
        }
        let result = self.watched(t, stage);
        if matches!(result, Err(Error::ChecksumMismatch { .. })) {
            assert_eq!(destination.is_some_and(|path| path.exists()), was_there);
        }
        if !self.tenants[t].staged(&asked, result) {
            return;
        }
        let names = &self.tenants[t].model.known[&asked.key].names;
        let paths: BTreeSet<_> = names.iter().map(|named| named.path.clone()).collect();
        // What is in the place where a file is to be staged gives way to it, be it another key's.
        self.foreign.retain(|path, _| !paths.contains(path));
        for (key, known) in &mut self.tenants[t].model.known {
            for named in &mut known.names {
                named.harmed |= *key != asked.key && paths.contains(&named.path);
            }
        }
    }

    /// Does what may write, and looks at whether the bytes that are there pass the budget meanwhile.
    pub fn watched<T>(&mut self, t: usize, write: impl FnOnce(&mut Tenant) -> T) -> T {
        let others = self.bytes_of_others(t);
        let tenant = &mut self.tenants[t];
        tenant.log.told().most_bytes = 0;
        let result = write(tenant);
        tenant.log.look();
        let most = u128::from(tenant.log.told().most_bytes.saturating_sub(others));
        let ceiling = tenant.model.check_budget();
        assert!(most <= ceiling, "{most} bytes were there, of {ceiling}");
        result
    }
}
