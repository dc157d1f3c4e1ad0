//! Trees that clients know by keys of their own, and what such a client said when it began.
//!
//! ```text
//! let held = store.hold(reserved)?;               // the key's, without a tree or with one that is to go
//! let mut draft = store.begin(New { content: Content::Work, .. })?;
//! ... unpack, seal ...
//! draft.set_content(Content::Keyed(..));          // with the same key
//! store.confirm(&draft)?;                         // the one durable step
//! let (record, held) = store.publish_over(draft, held)?;
//! backend.destroy(held); store.finish_removal(held)?;
//! ```

use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use super::index::State;
use super::record::{Content, Owner, Record};
use super::{Draft, Held, Store, files, open_place};
use crate::{Context, Result};

impl Store {
    /// [`Store::publish`] a draft in the place of the tree that has its key, which is on its way out from then on.
    pub fn publish_over(&self, draft: Draft, replaced: Held) -> Result<(Record, Held)> {
        self.index().change(|change| {
            change.put_nameless(&replaced.record, State::Removing)?;
            change.put(&draft.record, State::Ready)
        })?;
        Ok((draft.record, Held { state: State::Removing, ..replaced }))
    }

    /// Say of a tree that only we may touch that it is nobody's once we are gone: before another one of its key is durable.
    pub fn disown(&self, held: &Held) -> Result<()> {
        let nobodys = Record { content: Content::Work, ..held.record.clone() };
        nobodys.write(&open_place(&held.place)?, &held.place)
    }

    /// Write another record for a tree that only we may touch. Durable on return.
    ///
    /// # Errors
    /// `Exists` if a new key or name is taken.
    pub fn amend(&self, held: &mut Held, record: Record) -> Result<()> {
        held.record = self.write(held, record)?;
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
        match std::fs::DirBuilder::new().mode(0o700).create(&directory) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(e).context(|| format!("mkdir {}", directory.display()));
            }
            _ => {}
        }
        files::sync(&self.root)?;
        files::replace(&path, |file| file.write_all(bytes))
    }

    fn door_path(&self, owner: &Owner) -> PathBuf {
        self.root.join(DIRECTORY).join(format!("{}.json", owner.as_str().replace('/', "-")))
    }
}

/// Below ROOT.
const DIRECTORY: &str = "doors";
