//! The names of what is staged: whoever stages known content under another name finds it there too.

use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::stat::Mode;

use super::room::reserve;
use super::{Ask, Registry, Reservation, StagedFile, Staging};
use crate::disk::area::{Area, PublishError};
use crate::disk::link;
use crate::disk::removing;
use crate::disk::staged_file::staged_mode;
use crate::error::{Error, Result};
use crate::name::Want;

/// The name and the mode of what is put in place under a ticket. A file that was lost is found again by
/// its first name.
pub(super) fn first_name<'a>(staging: &'a Staging, ask: &'a Ask<'_>) -> (&'a [u8], Mode) {
    let lost = staging.replaces();
    let lost = lost.filter(|lost| lost.own_area().is_some());
    let asked = ask.want.name.as_deref().unwrap_or_default();
    let name = lost.map_or(asked, |lost| &lost.name);
    (name, mode(staging, ask.want.executable))
}

/// The mode of what is put in place under a ticket. What could be executed before still can.
pub(super) fn mode(staging: &Staging, executable: bool) -> Mode {
    let could_be = staging.replaces().is_some_and(|lost| lost.is_executable());
    staged_mode(executable || could_be)
}

/// A file that has what it is to have, and the room that its names take beyond what is counted.
pub(super) type Complete = (Arc<StagedFile>, Option<Reservation>);

/// Gives a known file, for which the ticket is out because it was not found as it was asked for, what
/// it lacks; `None` if it is lost.
pub(super) fn complete(
    registry: &Registry,
    staging: &Staging,
    ask: &Ask<'_>,
) -> Result<Option<Complete>> {
    let Some(known) = staging.replaces() else {
        return Ok(None);
    };
    let Some(file) = first(known, ask)? else {
        return Ok(None);
    };
    let mut room = None;
    match give_all(registry, staging, &file, ask, &mut room) {
        Ok(()) => {
            if !Arc::ptr_eq(known, &file) {
                removing::give_way(known, &file);
            }
            Ok(Some((file, room)))
        }
        // It has gone since, or was changed so that only reading it has shown it.
        Err(PublishError::AreaLost | PublishError::Failed(Error::ChecksumMismatch { .. })) => {
            Ok(None)
        }
        Err(PublishError::Failed(error)) => Err(error),
    }
}

/// A known file under its first name. One that cannot be put back at its caller's destination goes on
/// under a name that it has in the registry's own directory, if that is where it is asked for.
fn first(known: &Arc<StagedFile>, ask: &Ask<'_>) -> Result<Option<Arc<StagedFile>>> {
    if link::first_name(known) {
        return Ok(Some(known.clone()));
    }
    let Some(asked) = ask.want.name.as_deref() else {
        return Ok(None);
    };
    let mut others = known.others();
    others.retain(|other| known.own_area().is_none() && other.is_intact());
    // The one that is asked for comes first.
    others.sort_by_key(|other| *other.name != *asked);
    let first = others.into_iter().next();
    if let Some(first) = first.as_ref().filter(|_| known.is_executable()) {
        link::make_executable(first)?;
    }
    Ok(first)
}

/// Gives a file that has just been put in place what it lacks.
pub(super) fn complete_new(
    registry: &Registry,
    staging: &Staging,
    file: &Arc<StagedFile>,
    ask: &Ask<'_>,
    room: &mut Option<Reservation>,
) -> Result<()> {
    give_all(registry, staging, file, ask, room).map_err(|error| match error {
        PublishError::Failed(error) => error,
        PublishError::AreaLost => Error::io("link", &file.path, Errno::ENOENT),
    })
}

/// Gives a file what is asked for, and what those who wait want as well. A failure for one of these is not
/// the caller's: whoever does not find what it wanted asks again.
fn give_all(
    registry: &Registry,
    staging: &Staging,
    file: &Arc<StagedFile>,
    ask: &Ask<'_>,
    room: &mut Option<Reservation>,
) -> Result<(), PublishError> {
    // Earlier callers know a file that was lost by names that it had.
    let lost = staging.replaces().filter(|lost| !Arc::ptr_eq(lost, file));
    let known: Vec<_> = lost.map_or_else(Vec::new, |lost| {
        let mut known = lost.others();
        known.push(lost.clone());
        known.retain(|before| before.own_area().is_some() && !Arc::ptr_eq(before, file));
        known
    });
    for copy in known.iter().filter(|copy| copy.is_intact()) {
        file.add(copy.clone());
    }
    give(registry, file, &ask.want, ask, room)?;
    for want in staging.wanted() {
        let _ = give(registry, file, &want, ask, room);
    }
    for before in known {
        let want = Want::named(&before.name, false);
        let _ = give(registry, file, &want, ask, room);
    }
    Ok(())
}

/// Gives a file that is there under its first name what it lacks of what is wanted.
fn give(
    registry: &Registry,
    file: &Arc<StagedFile>,
    want: &Want<'_>,
    ask: &Ask<'_>,
    room: &mut Option<Reservation>,
) -> Result<(), PublishError> {
    if !file.is_executable_as(want) {
        link::make_executable(file)?;
    }
    let Some(name) = want.name.as_deref().filter(|_| !file.has_too(want)) else {
        return Ok(());
    };
    let linked = in_area(registry, file, ask, |area| {
        link::hard_link(file, area, name)
    });
    let other = match linked {
        Err(PublishError::Failed(error))
            if link::is_unsupported(&error) && (ask.may_take_long || file.is_small()) =>
        {
            make_room(registry, file, name, room)?;
            in_area(registry, file, ask, |area| {
                link::copy(file, area, name, &registry.stopping)
            })?
        }
        linked => linked?,
    };
    file.add(Arc::new(other));
    Ok(())
}

/// Works in the area that a name of a file goes to.
fn in_area<T>(
    registry: &Registry,
    file: &StagedFile,
    ask: &Ask<'_>,
    mut work: impl FnMut(&Arc<Area>) -> Result<T, PublishError>,
) -> Result<T, PublishError> {
    match file.own_area() {
        Some(area) => work(area),
        None => Ok(registry.areas.with_area(ask.staging_dir, work)?),
    }
}

/// Makes room for a copy of a file under another name. That of an earlier one which was lost is counted
/// still.
fn make_room(
    registry: &Registry,
    file: &Arc<StagedFile>,
    name: &[u8],
    room: &mut Option<Reservation>,
) -> Result<()> {
    let before = file.named(Some(name));
    if let Some(lost) = before.filter(|before| file.is_copied_as(before)) {
        removing::clear_away(&lost);
    } else {
        let more = reserve(registry, file.bytes(), None)?;
        match room {
            Some(room) => room.add(more),
            None => *room = Some(more),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::disk::staging_dir::StagingDir;
    use crate::manifest::Admission;
    use crate::manifest::budget::Budget;
    use crate::registry::admission::{Admitted, Answer, admit};
    use crate::registry::keeper::{self, Options};
    use crate::registry::{
        MakeWaiter, Observer, Outcome, Report, Request, Waiter, Why, stage_data,
    };
    use crate::retention::{Retention, Ttl};

    struct Deaf;

    impl Observer for Deaf {
        fn removed(&self, _why: Why, _report: Report) {}
        fn stopped(&self) {}
    }

    #[test]
    fn p21_whoever_is_at_work_gives_those_who_wait_their_names() {
        let dir = tempfile::tempdir().expect("a directory");
        let registry = keeper::start(Options {
            cleanup_interval: Duration::from_secs(60),
            orphan_grace: Duration::from_secs(60),
            recognise_unchanged: true,
            budget: Budget::default(),
            observer: Arc::new(Deaf),
        });
        let registry = registry.expect("a registry");
        let request = |name: &str| Request {
            name: name.as_bytes().into(),
            keep: Retention {
                persist: false,
                ttl: Ttl::Infinity,
            }
            .into(),
            owner: None,
            staging_dir: StagingDir {
                path: dir.path().to_owned(),
                is_default: false,
            },
        };
        let stage = |name: &str, make_waiter: MakeWaiter<'_>| {
            let kept = || unreachable!("it is small");
            stage_data::stage_data(&registry, b"content", kept, &request(name), make_waiter)
        };
        let Answer::Now(Outcome::Staged { attachment, .. }) = stage("first", &|| unreachable!())
        else {
            panic!("it is staged");
        };
        let file = attachment.file;
        // Somebody is at work, and others come to wait for that.
        let (keep, lost) = (request("first").keep, Some(&file));
        let at_work = registry
            .manifest
            .admit(&file.checksum, keep, lost, || unreachable!());
        let Ok(Admission::Lead(staging)) = at_work else {
            panic!("nobody was at work");
        };
        let (answers, answered) = mpsc::channel();
        let make_waiter = || {
            let answers = answers.clone();
            Waiter::new(move |outcome| drop(answers.send(outcome)))
        };
        for name in ["second", "third", "first", "second"] {
            assert!(matches!(stage(name, &make_waiter), Answer::ByWaiter));
        }
        let request = request("fourth");
        let completed = complete(&registry, &staging, &request.ask(false));
        let completed = completed.expect("nothing fails");
        assert!(completed.is_some_and(|(completed, _)| Arc::ptr_eq(&completed, &file)));
        for name in ["first", "second", "third", "fourth"] {
            let named = file.named(Some(name.as_bytes()));
            assert!(named.is_some_and(|named| named.is_intact()), "{name}");
        }
        assert!(staging.commit(&file, crate::time::Now::read()).is_ok());
        for _ in 0..4 {
            let outcome = answered.recv_timeout(Duration::from_secs(60));
            assert!(matches!(outcome, Ok(Outcome::Staged { .. })), "{outcome:?}");
        }
        let known = admit(
            &registry,
            &file.checksum,
            &request.ask(false),
            || unreachable!(),
        );
        assert!(matches!(known, Ok(Admitted::Known(_))));
    }
}
