//! Relatives: trees made of a container or of its snapshots, which share its own data.
//!
//! ```text
//! let mut held = store.hold(web1)?;                    // nobody removes or exchanges it meanwhile
//! let draft = store.begin_fork(&mut held, fork)?;      // as `begin`; and web1 is written down as related
//! backend.fork(..., draft.place())                     // the one durable step, of both records
//! store.publish(draft)?;
//! ```
//!
//! A snapshot, and a layer committed of a container, are charged where the container is: they have its group. A clone
//! is charged by itself, and names the groups that what it has in common with the container was charged to: as long as
//! anybody names a group, it isn't a leftover.

use uuid::Uuid;

use super::index::State;
use super::record::{Content, Owner, Record};
use super::{Draft, Held, NewGroup, Store, open_place};
use crate::{Error, Kind, Result};

/// What a fork's record begins with; the rest is its source's.
#[derive(Debug, Clone)]
pub struct NewFork {
    pub owner: Owner,
    /// Whether it gets a charge group of its own, or its source's.
    pub own_group: bool,
    pub content: Content,
}

impl Store {
    /// [`Store::begin`] a tree that is to be a fork of one that only we may touch.
    ///
    /// # Errors
    /// Those of [`Store::begin`]; `InUse` if the source is being replaced.
    pub fn begin_fork(&self, source: &mut Held, new: NewFork) -> Result<Draft> {
        if source.state != State::Ready {
            return Err(Error::new(
                Kind::InUse,
                "a process died while replacing it, and what it left can't be cleared",
            ));
        }
        let related = Record { related: true, ..source.record.clone() };
        let (group, inherits) = if new.own_group {
            (NewGroup::Fresh, source.record.groups().collect())
        } else {
            (NewGroup::Same(source.record.group), source.record.inherits.clone())
        };
        let record = Record {
            uuid: Uuid::new_v4(),
            owner: new.owner,
            parent: source.record.parent,
            group: None,
            created: jiff::Timestamp::now(),
            replacing: false,
            related: true,
            inherits,
            instead_of: None,
            content: new.content,
        };
        let is_first = !source.record.related;
        if is_first {
            self.announce_change(source)?;
        }
        let begun = self.begin_record(record, group, |change| {
            if is_first {
                change.put(&related, State::Ready)?;
                related.write(&open_place(&source.place)?, &source.place)?;
                change.set_changing(related.uuid, false)?;
            }
            Ok(())
        });
        if begun.is_ok() {
            source.record = related;
        } else if is_first && let Err(e) = self.take_back(source) {
            tracing::warn!("cannot take back what was to be changed of {}: {e}", source.record.uuid);
        }
        begun
    }

    /// The snapshots of a container, oldest first.
    pub fn snapshots_of(&self, owner: &Owner, container: Uuid) -> Result<Vec<Record>> {
        self.index().snapshots_of(owner, container)
    }
}
