//! Records beside the trees, and the index made from them. Knows no filesystem and no image format.
//!
//! ```text
//! ROOT/store.json            schema number, identity, prefix of the charge groups; written last by `init`
//! ROOT/snapshots/<uuid>/     a place: the record in its attribute `trusted.reflinkd`, the tree at `fs`
//! ROOT/snapshots/<uuid>/recipe  of a layer: what its tar has besides its files; see `layer::recipe`
//! ROOT/trash/                the backend's, if it needs one: removed trees
//! ROOT/images/<uuid>.json    one image: ID, top layer, names
//! ROOT/images/lock           held exclusively while images change, shared while a container of one is begun
//! ROOT/images/load.lock      held shared by each running load, so that nobody collects its layers
//! ROOT/doors/<owner>.json    what the client of a front door said when it began
//! ROOT/blobs/sha256/<hex>    manifests, indexes and configurations, by digest
//! ROOT/index.db              SQLite; see `index`
//! ROOT/index.current         there while the index is as good as the records, with the mount that it was made under;
//!                            removing it (which works on a full disk) makes the next one who opens rebuild the index
//! ROOT/index.lock            held while the index is rebuilt
//! ROOT/index.turn            held while the index is used; see `turn`
//! ROOT/tend.*                who works in the background; see `tending`
//! ROOT/places.lock           has a byte for each place, locked by whoever works on it; see `places`
//! ROOT/backup-schema-<n>/    what an upgrade changed, as it was; see `upgrade`
//! ```
//!
//! # Making and removing a tree
//!
//! ```text
//! let draft = store.begin(new)?;       // place, lock on it, row "making" (names reserved), record
//! backend.clone_tree(..., draft.place())  // the one durable step
//! let record = store.publish(draft)?;  // row "ready", lock released
//!
//! let removal = store.begin_removal(uuid)?;  // lock, no children, row "removing"
//! backend.destroy(removal.place())
//! store.finish_removal(removal)?;      // place and row gone
//! ```
//!
//! A maker that dies in between leaves a row that is not "ready" and a lock that nobody holds:
//! [`Store::debris`] finds those in O(unsettled). After a reboot, or when the index is lost, it is made anew
//! from the records: a record with a tree is ready, one without was never acknowledged or is half removed, and one
//! that says so is being replaced.
//!
//! Who changes the record of a tree that is ready writes it within the change of its row, and says before that it is being
//! changed: should he die when only the record is written, the next verb writes it as the row has it. After a reboot what is
//! on disk counts. Who changes a limit, too, which two steps are needed for, lets the record say before that it is being replaced:
//! whoever comes next sets the limit that it has.
//!
//! A tree that takes another's place under its key says so in its record. Once that and its tree are there, the other is
//! nobody's, whatever its own record says: so there is one of them after any crash.
//!
//! Nothing with both a record and a tree is ever taken for debris by its looks alone. If damage gave two trees one
//! name, both stay ([`index::Change::adopt`]).
//!
//! # Locking
//!
//! Whoever works in a store holds the flock on ROOT shared; upgrading and destroying it hold it exclusively.
//! A place belongs to whoever holds its byte of `places.lock`. Locks are taken in this order and never the other way:
//! ROOT, `load.lock`, a layer's place, `images/lock`, the place of a container that nobody knows yet, the index's
//! transaction. Nobody waits for a place inside a transaction.

// A draft, or a tree that is held, is consumed by the step that ends it: its lock goes then, and it can't be used again.
#![allow(clippy::needless_pass_by_value)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use uuid::Uuid;

use crate::sys::durable;
use crate::{Context, Error, Kind, Result};

mod change;
mod debris;
mod files;
mod identity;
mod images;
mod index;
mod keyed;
pub mod mend;
mod places;
mod record;
mod relatives;
mod scan;
mod spares;
pub mod survey;
mod tending;
#[cfg(test)]
mod tests;
mod turn;
mod unshared;
mod upgrade;

pub use debris::Stray;
pub use files::Lock;
pub use identity::{Identity, SCHEMA};
pub use images::{Image, ImageIndex, ImagesGuard, LayerBlob};
pub use index::State;
pub use keyed::Streaming;
pub use record::{
    Container, Content, Init, InitEntry, Keyed, Layer, Owner, Record, Reused, Snapshot, SnapshotOrigin, Stage,
    TreeKind,
};
pub use relatives::NewFork;
pub use tending::{Tending, ask_to_stop, is_asked_to_stop};
pub use upgrade::upgrade;

use index::{Change, Index};
use places::PlaceLock;

/// How long to wait for another process to be done with a whole tree: it looks at it, or writes its record.
const PATIENCE: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(5);

/// Lock a whole store: shared to work in it, exclusively to upgrade or destroy it. `None` only for a try.
///
/// # Errors
/// `NotFound` if there is no such directory, or it was removed while we waited.
pub fn lock_root(root: &Path, how: Lock) -> Result<Option<File>> {
    files::lock_directory(root, how)
}

/// The records of one ROOT.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    identity: Identity,
    index: Mutex<Index>,
}

/// What a new tree's record begins with; the store adds identity, time and group.
#[derive(Debug, Clone)]
pub struct New {
    pub owner: Owner,
    pub parent: Option<Uuid>,
    /// A group number of its own, or a given one (a layer shares its work tree's), or none.
    pub group: NewGroup,
    pub content: Content,
}

/// Where a new tree is to be charged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewGroup {
    None,
    Fresh,
    Same(Option<u32>),
}

/// A tree being made. Dropped without [`Store::publish`] or [`Store::abandon`] it is debris.
#[derive(Debug)]
#[must_use]
pub struct Draft {
    record: Record,
    place: PathBuf,
    /// The place, open before there is a tree in it.
    directory: File,
    /// Whether its row has an older record.
    changed: bool,
    /// Whether it was a spare, and has its tree.
    claimed: bool,
    _lock: PlaceLock,
}

impl Draft {
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    #[must_use]
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// Whether it has its tree from the beginning, being made of a spare.
    #[must_use]
    pub fn is_claimed(&self) -> bool {
        self.claimed
    }

    /// Let it take the place of a tree with its key, once it is whole: see [`Store::publish_over`].
    pub fn set_instead_of(&mut self, replaced: &Held) {
        self.record.instead_of = Some(replaced.record.uuid);
        self.changed = true;
    }

    /// The layer's facts, once they are known; [`Store::publish`] writes them.
    pub fn set_content(&mut self, content: Content) {
        self.record.content = content;
        self.changed = true;
    }
}

/// A tree that only we may touch: being removed, replaced or changed.
#[derive(Debug)]
#[must_use]
pub struct Held {
    record: Record,
    state: State,
    place: PathBuf,
    _lock: PlaceLock,
}

impl Held {
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    #[must_use]
    pub fn place(&self) -> &Path {
        &self.place
    }
}

impl Store {
    /// Open the store at `root` (its `store.json` must be there).
    ///
    /// `instance` names this mount on this boot; when it isn't the one the index was made under, the index is
    /// made anew from the records. `highest_group` gives the highest group number the filesystem knows of.
    pub fn open(
        root: &Path,
        identity: Identity,
        instance: &str,
        highest_group: &dyn Fn() -> Result<Option<u32>>,
    ) -> Result<Self> {
        let index = scan::open_index(root, instance, highest_group)?;
        Ok(Self { root: root.to_path_buf(), identity, index: Mutex::new(index) })
    }

    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The directory of one tree.
    #[must_use]
    pub fn place(&self, uuid: Uuid) -> PathBuf {
        self.root.join("snapshots").join(uuid.to_string())
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // A panic elsewhere can't leave the index half changed: its transactions roll back.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserve the names of a new tree and make its place.
    ///
    /// # Errors
    /// `Exists` if key or name are taken (by a tree that is whole, or still being made); `NotFound` if the
    /// parent is gone or going.
    pub fn begin(&self, new: New) -> Result<Draft> {
        let record = Record {
            uuid: Uuid::new_v4(),
            owner: new.owner,
            parent: new.parent,
            group: None,
            created: jiff::Timestamp::now(),
            replacing: false,
            related: false,
            inherits: Vec::new(),
            instead_of: None,
            content: new.content,
        };
        self.begin_record(record, new.group, |_| Ok(()))
    }

    /// Make the place of a record, and its row, in one change with `more`.
    fn begin_record(
        &self,
        mut record: Record,
        group: NewGroup,
        more: impl FnOnce(&Change<'_>) -> Result<()>,
    ) -> Result<Draft> {
        let uuid = record.uuid;
        let place = self.place(uuid);
        // Locked before it is there: a place that nobody works on is a stray.
        let lock = places::lock(&self.root, uuid, Lock::TryExclusive)?
            .ok_or_else(|| Error::new(Kind::InUse, format!("{uuid} is locked before it is made")))?;
        durable::mkdir(&place, 0o777).context(|| format!("mkdir {}", place.display()))?;
        let begun = open_place(&place).and_then(|directory| {
            self.reserving(|change| {
                if let Some(parent) = record.parent
                    && !change.get(parent)?.is_some_and(|(_, state)| state == State::Ready)
                {
                    return Err(Error::new(Kind::NotFound, format!("its parent {parent} is gone")));
                }
                record.group = match group {
                    NewGroup::None => None,
                    NewGroup::Same(group) => group,
                    NewGroup::Fresh => Some(take_group(change)?),
                };
                change.put(&record, State::Making)?;
                more(change)?;
                // Before the row is committed: whoever makes the index anew must find the one or the other.
                record.write(&directory, &place)
            })?;
            Ok(directory)
        });
        match begun {
            Ok(directory) => Ok(Draft { record, place, directory, changed: false, claimed: false, _lock: lock }),
            Err(e) => {
                // The row goes last: it is what a place is found by if we die here.
                let _ = remove_place(&place);
                let _ = self.index().change(|change| change.delete(uuid));
                Err(e)
            }
        }
    }

    /// The tree is whole and durable: show it to everyone.
    pub fn publish(&self, draft: Draft) -> Result<Record> {
        self.show(&draft)?;
        Ok(draft.record)
    }

    /// [`Store::publish`] a draft that only we may touch still.
    pub fn publish_held(&self, draft: Draft) -> Result<Held> {
        self.show(&draft)?;
        Ok(Held { record: draft.record, state: State::Ready, place: draft.place, _lock: draft._lock })
    }

    /// [`Store::publish`] a draft whose names may have become another's meanwhile; gives it back if they have.
    pub fn publish_or_yield(&self, draft: Draft) -> Result<Result<Record, Draft>> {
        match self.show(&draft) {
            Ok(()) => Ok(Ok(draft.record)),
            Err(e) if e.kind() == Kind::Exists => Ok(Err(draft)),
            Err(e) => Err(e),
        }
    }

    fn show(&self, draft: &Draft) -> Result<()> {
        let steps = |change: &Change<'_>| {
            if draft.changed {
                change.put(&draft.record, State::Ready)
            } else {
                change.put_state(&draft.record, State::Ready)
            }
        };
        if draft.record.has_tree() || draft.record.is_view() || draft.record.is_without_tree() {
            self.following(steps)
        } else {
            // By its record alone a key that is only reserved isn't there.
            self.index().change(steps)
        }
    }

    /// Write the record of a draft again, after [`Draft::set_content`] and before the durable step.
    pub fn rewrite(&self, draft: &Draft) -> Result<()> {
        draft.record.write(&draft.directory, &draft.place)
    }

    /// The tree is not to be; it has been destroyed.
    pub fn abandon(&self, draft: Draft) -> Result<()> {
        self.forget(draft.record.uuid, &draft.place)
    }

    /// Take a whole tree away from everyone else, to remove it.
    ///
    /// # Errors
    /// `NotFound` if it is gone; `InUse` if another tree was cloned from it.
    pub fn begin_removal(&self, uuid: Uuid) -> Result<Held> {
        self.begin_removal_of(self.hold(uuid)?)
    }

    /// [`Store::begin_removal`] of a tree that only we may touch already.
    pub fn begin_removal_of(&self, held: Held) -> Result<Held> {
        let uuid = held.record.uuid;
        let begun = self.removing(|change| {
            if change.has_children(uuid)? {
                return Err(Error::new(Kind::InUse, "other trees are based on it"));
            }
            change.set_state(uuid, State::Removing)
        });
        begun.map(|()| held)
    }

    /// The tree is destroyed: forget it. Works on a full filesystem.
    pub fn finish_removal(&self, held: Held) -> Result<()> {
        self.forget(held.record.uuid, &held.place)
    }

    /// The tree could not be removed: show it to everyone again, as it was.
    pub fn keep(&self, held: Held) -> Result<()> {
        self.removing(|change| change.set_state(held.record.uuid, held.state))
    }

    /// Take a whole tree away from everyone else, to replace it by a fresh one that is charged to a new group: that of
    /// the record given back. The record beside the tree says from now on that the group has to be asked for; it is
    /// made durable by the making of the fresh tree.
    pub fn begin_replacement(&self, uuid: Uuid) -> Result<Held> {
        self.begin_replacement_of(self.hold(uuid)?)
    }

    /// [`Store::begin_replacement`] of a tree that only we may touch already. [`Store::amend`] ends it, too.
    pub fn begin_replacement_of(&self, mut held: Held) -> Result<Held> {
        let uuid = held.record.uuid;
        let marked = Record { replacing: true, ..held.record.clone() };
        let directory = open_place(&held.place)?;
        let group = self.reserving(|change| {
            change.set_state(uuid, State::Replacing)?;
            take_group(change)
        })?;
        // By its row it is found when only that says so.
        marked.write(&directory, &held.place)?;
        held.record.group = Some(group);
        held.state = State::Replacing;
        Ok(held)
    }

    /// The tree at the place is settled and charged to `group`: write that down and show it to everyone. A fresh one has
    /// nothing from the container that the other was a clone of.
    pub fn settle(&self, held: Held, group: Option<u32>, fresh: bool) -> Result<Record> {
        let mut record = held.record.clone();
        record.group = group;
        record.replacing = false;
        if fresh {
            record.inherits.clear();
            if let Content::Container(container) = &mut record.content {
                container.inherited = 0;
            }
        }
        self.write(&held, record)
    }

    /// A tree that is whole (or about to be replaced by another).
    pub fn get(&self, uuid: Uuid) -> Result<Option<Record>> {
        Ok(self.index().get(uuid)?.filter(|(_, state)| state.is_live()).map(|(record, _)| record))
    }

    /// The whole tree with this key, in whatever state.
    pub fn by_key(&self, owner: &Owner, kind: TreeKind, key: &str) -> Result<Option<(Record, State)>> {
        self.index().by_key(owner, kind.as_str(), key)
    }

    /// The container with this name.
    pub fn by_name(&self, owner: &Owner, name: &str) -> Result<Option<Record>> {
        let found = self.index().by_name(owner, name)?;
        Ok(found.filter(|(_, state)| state.is_live()).map(|(record, _)| record))
    }

    /// Trees whose key begins with `prefix`; two at most, so that a caller can tell one from several.
    pub fn by_key_prefix(&self, owner: &Owner, kind: TreeKind, prefix: &str) -> Result<Vec<Record>> {
        self.index().by_key_prefix(owner, kind.as_str(), prefix)
    }

    /// All whole trees of a kind, oldest first.
    pub fn list(&self, kind: TreeKind) -> Result<Vec<Record>> {
        self.index().list(Some(kind.as_str()))
    }

    /// All trees of a kind that are there or being made, oldest first.
    pub fn list_begun(&self, kind: TreeKind) -> Result<Vec<Record>> {
        self.index().list_begun(kind.as_str())
    }

    /// All group numbers that records name, of trees in any state.
    pub fn groups(&self) -> Result<Vec<u32>> {
        self.index().groups()
    }

    /// Lock a tree that is there. Others lock it for a moment to look at it or to write its record: that is waited for.
    pub fn hold(&self, uuid: Uuid) -> Result<Held> {
        let place = self.place(uuid);
        let start = std::time::Instant::now();
        let lock = loop {
            if let Some(lock) = places::lock(&self.root, uuid, Lock::TryExclusive)? {
                break lock;
            }
            let whole = self.index().get(uuid)?.is_some_and(|(_, state)| state.is_live());
            if !whole || start.elapsed() > PATIENCE {
                return Err(Error::new(Kind::InUse, "another reflinkd is working on it"));
            }
            std::thread::sleep(POLL);
        };
        if !exists(&place)? {
            self.forget_missing(uuid)?;
            return Err(Error::new(Kind::NotFound, "it is gone"));
        }
        match self.index().get(uuid)? {
            Some((record, state)) => Ok(Held { record, state, place, _lock: lock }),
            None => Err(Error::new(Kind::NotFound, "it is gone")),
        }
    }

    /// A row whose place somebody has deleted by hand.
    fn forget_missing(&self, uuid: Uuid) -> Result<()> {
        self.removing(|change| change.delete(uuid))
    }

    fn forget(&self, uuid: Uuid, place: &Path) -> Result<()> {
        remove_place(place)?;
        self.removing(|change| change.delete(uuid))
    }
}

fn take_group(change: &Change<'_>) -> Result<u32> {
    let group: u32 = change.fact("next_group")?.unwrap_or(1);
    let next = group.checked_add(1).ok_or_else(|| Error::new(Kind::Unsupported, "all group numbers are used up"))?;
    change.set_fact("next_group", &next)?;
    Ok(group)
}

/// Where the recipe of a layer's tar is, in the layer's place. Layers of older versions have none.
#[must_use]
pub fn recipe(place: &Path) -> PathBuf {
    place.join("recipe")
}

/// Remove the directory of a tree that is gone, with its recipe, its notes and the record's spill file. Succeeds if it is gone
/// already.
fn remove_place(place: &Path) -> Result<()> {
    match durable::rmdir(place) {
        Ok(()) => return Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(_) => {}
    }
    let recipe = recipe(place);
    files::remove(&files::aside(&recipe))?;
    files::remove(&recipe)?;
    files::remove(&keyed::stream_note(place))?;
    // Last: without it nobody knows whose place it is.
    record::remove_spill(place)?;
    match durable::rmdir(place) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).context(|| format!("rmdir {}", place.display())),
        _ => Ok(()),
    }
}

fn open_place(place: &Path) -> Result<File> {
    File::open(place).context(|| format!("open {}", place.display()))
}

/// Whether there is a place. Opening it to see would wait for whoever makes a snapshot in it.
fn exists(place: &Path) -> Result<bool> {
    place.try_exists().context(|| format!("stat {}", place.display()))
}
