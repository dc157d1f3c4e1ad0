//! Trees that clients know by keys of their own, and what such a client said when it began.
//!
//! ```text
//! let held = store.hold(reserved)?;               // the key's, without a tree or with one that is to go
//! let mut draft = store.begin(New { content: Content::Work, .. })?;
//! ... unpack, seal ...
//! draft.set_content(Content::Keyed(..));          // with the same key
//! draft.set_instead_of(&held);
//! store.confirm(&draft)?;                         // the one durable step
//! let (record, held) = store.publish_over(draft, held)?;
//! backend.destroy(held); store.finish_removal(held)?;
//! ```

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use super::index::State;
use super::record::{Owner, Record};
use super::{Draft, Held, Store, files, open_place};
use crate::sys::durable;
use crate::{Context, Error, Kind, Result};

/// A note in a key's place that a stream into it has begun.
///
/// A client whose connection broke off sends in another request what he hasn't sent yet, which may look whole: it must not be
/// taken for all of it, by our successor neither. The note isn't durable, as a power cut ends the client, too.
#[derive(Debug)]
#[must_use]
pub struct Streaming(PathBuf);

impl Held {
    /// # Errors
    /// `BadInput` if an earlier stream broke off.
    pub fn begin_stream(&self) -> Result<Streaming> {
        let note = stream_note(&self.place);
        match durable::create_new(&note) {
            Ok(_) => Ok(Streaming(note)),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                let why = "an earlier stream into it broke off, and what comes now may be the rest of that";
                Err(Error::new(Kind::BadInput, why).with_hint("remove it, make it anew and send all of it"))
            }
            Err(e) => Err(e).context(|| format!("create {}", note.display())),
        }
    }
}

impl Streaming {
    /// All was read that was sent: who sends again sends all of it again.
    pub fn ended(self) -> Result<()> {
        files::remove(&self.0)
    }
}

/// Goes with the place.
pub(super) fn stream_note(place: &Path) -> PathBuf {
    place.join("streaming")
}

impl Store {
    /// [`Store::publish`] a draft in the place of the tree that has its key, as [`Draft::set_instead_of`] said before it was
    /// durable. That one is on its way out from then on.
    pub fn publish_over(&self, draft: Draft, replaced: Held) -> Result<(Record, Held)> {
        self.following(|change| {
            change.put_nameless(&replaced.record, State::Removing)?;
            change.put(&draft.record, State::Ready)
        })?;
        Ok((draft.record, Held { state: State::Removing, ..replaced }))
    }

    /// Say of a tree that only we may touch that it is being sealed: should we die before [`Store::amend`] says that it is,
    /// whoever comes next undoes it. Durable with the sealing.
    pub fn begin_sealing(&self, held: &mut Held) -> Result<()> {
        let marked = Record { replacing: true, ..held.record.clone() };
        let directory = open_place(&held.place)?;
        self.reserving(|change| change.set_state(held.record.uuid, State::Replacing))?;
        // By its row it is found when only that says so.
        marked.write(&directory, &held.place)?;
        held.state = State::Replacing;
        Ok(())
    }

    /// Write another record for a tree that only we may touch. Durable on return.
    ///
    /// # Errors
    /// `Exists` if a new key or name is taken.
    pub fn amend(&self, held: &mut Held, record: Record) -> Result<()> {
        held.record = self.write(held, record)?;
        held.state = State::Ready;
        Ok(())
    }

    /// [`Store::amend`], which becomes durable with the next commit of the filesystem.
    pub fn amend_soon(&self, held: &mut Held, record: Record) -> Result<()> {
        self.changing(held, |change, directory| {
            change.put(&record, State::Ready)?;
            record.write(directory, &held.place)
        })?;
        held.record = record;
        Ok(())
    }

    /// What was kept for the clients of this owner by [`Store::set_door`].
    pub fn door(&self, owner: &Owner) -> Result<Option<Vec<u8>>> {
        let path = self.door_path(owner);
        match std::fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            read => read.map(Some).context(|| format!("read {}", path.display())),
        }
    }

    /// Keep something for the clients of this owner. Durable on return. One caller at a time.
    pub fn set_door(&self, owner: &Owner, bytes: &[u8]) -> Result<()> {
        let path = self.door_path(owner);
        let directory = self.root.join(DIRECTORY);
        // What a client said may be nobody else's business.
        match durable::mkdir(&directory, 0o700) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(e).context(|| format!("mkdir {}", directory.display()));
            }
            _ => {}
        }
        files::sync(&self.root)?;
        files::replace(&path, |file| file.write_all(bytes))
    }

    /// Let a group pass to the trees, whose names it must know: root of another user namespace has to reach its own by
    /// path. Listing what is there is still root's.
    pub fn let_through(&self, group: u32) -> Result<()> {
        for directory in [&self.root, &self.root.join("snapshots")] {
            let what = || directory.display();
            let mode = std::fs::metadata(directory).context(|| format!("stat {}", what()))?.permissions().mode();
            if mode & 0o001 == 0 {
                chown(directory, None, Some(group)).context(|| format!("chgrp {}", what()))?;
                durable::chmod(directory, mode & 0o7707 | 0o010).context(|| format!("chmod {}", what()))?;
            }
        }
        Ok(())
    }

    fn door_path(&self, owner: &Owner) -> PathBuf {
        self.root.join(DIRECTORY).join(format!("{}.json", owner.as_str().replace('/', "-")))
    }
}

/// Below ROOT.
const DIRECTORY: &str = "doors";
