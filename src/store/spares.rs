//! Spare clones: trees made ahead, and how one becomes a container.
//!
//! ```text
//! let draft = store.begin(New { content: Content::Spare, parent, .. })?;   // made like any other tree
//! backend.clone_tree(..., draft.place())
//! store.publish(draft)?;
//!
//! let draft = store.claim_spare(parent, owner, content)?;   // lock, row "making": names reserved
//! store.confirm(&draft)?;                                    // the record; the one durable step
//! let record = store.publish(draft)?;                        // row "ready", lock released
//! ```
//!
//! Nothing is renamed or moved: what a tree is, its record says (docs/decisions/007). Whoever dies before the record is
//! written leaves a spare, after it a container, and until the end of the boot a row "making" that says neither is
//! settled, so that the next who writes removes it as he removes any other that was never acknowledged.

use uuid::Uuid;

use super::files::{self, Lock};
use super::record::{Content, Owner, Record};
use super::{Draft, Held, State, Store, exists, open_place, places};
use crate::Result;

impl Store {
    /// Take a spare clone of `parent` to make it what `content` says. `None` if there is none, or others are at all of
    /// them.
    ///
    /// # Errors
    /// `Exists` if key or name are taken; the spare stays one.
    pub fn claim_spare(&self, parent: Uuid, owner: &Owner, content: &Content) -> Result<Option<Draft>> {
        let spares = self.index().spares_of(parent)?;
        for uuid in spares {
            let Some(spare) = self.take_spare(uuid)? else { continue };
            if !spare.place.join("fs").exists() {
                // Somebody deleted its tree by hand.
                self.finish_removal(spare)?;
                continue;
            }
            let Held { record, place, _lock: lock, .. } = spare;
            let record =
                Record { owner: owner.clone(), created: jiff::Timestamp::now(), content: content.clone(), ..record };
            let directory = open_place(&place)?;
            // Not with the record in one transaction: if that was rolled back with the record written, a container that
            // nobody knows would turn up with the next index, perhaps under a name given to another one meanwhile.
            self.reserving(|change| change.put(&record, State::Making))?;
            return Ok(Some(Draft { record, place, directory, changed: true, claimed: true, _lock: lock }));
        }
        Ok(None)
    }

    /// Write the record of a draft whose tree is whole. Durable on return, with the place and the tree's name in it.
    pub fn confirm(&self, draft: &Draft) -> Result<()> {
        self.rewrite(draft)?;
        if !draft.claimed {
            files::sync(&self.root.join("snapshots"))?;
        }
        self.sync_place(&draft.directory, &draft.place)
    }

    /// Take a spare away from everyone else, to remove it. `None` if it is one no more, or somebody is claiming it.
    pub fn begin_dropping(&self, uuid: Uuid) -> Result<Option<Held>> {
        let Some(spare) = self.take_spare(uuid)? else { return Ok(None) };
        self.removing(|change| change.set_state(uuid, State::Removing))?;
        Ok(Some(spare))
    }

    /// The trees that have fewer spares than `wanted` although writable containers are based on them.
    pub fn short_of_spares(&self, wanted: usize) -> Result<Vec<Uuid>> {
        self.index().short_of_spares(wanted)
    }

    /// Lock a whole spare. Whoever waits for the lock may find a container at the place: so nobody waits.
    fn take_spare(&self, uuid: Uuid) -> Result<Option<Held>> {
        let Some(lock) = places::lock(&self.root, uuid, Lock::TryExclusive)? else { return Ok(None) };
        let place = self.place(uuid);
        if !exists(&place)? {
            self.forget_missing(uuid)?;
            return Ok(None);
        }
        Ok(match self.index().get(uuid)? {
            Some((record, State::Ready)) if record.content == Content::Spare => {
                Some(Held { record, state: State::Ready, place, _lock: lock })
            }
            _ => None,
        })
    }
}
