//! The engine: orders steps across index and filesystem. The only place that does.
//!
//! A verb reads like its specification: look things up, reserve, do the one durable step, publish. What a verb
//! leaves half done by dying is named by the store and cleared by the next verb that writes (`tidy`);
//! verbs that only read never remove anything.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::backend::{Backend, GroupId, Tree};
use crate::store::{Content, Draft, Held, New, NewGroup, Owner, Record, Stage, State, Store};
use crate::{Error, Kind, Result};

pub mod bundle;
pub mod census;
pub mod check;
pub mod commit;
pub mod container;
pub mod containerd;
pub mod cp;
pub mod delta;
pub mod destroy;
pub mod diff;
pub mod docker;
pub mod duplicate;
pub mod export;
pub mod gc;
pub mod home;
pub mod image;
pub mod info;
pub mod keep;
pub mod keyed;
pub mod layers;
pub mod load;
pub mod open;
pub mod pool;
pub mod pull;
pub mod push;
pub mod quota;
pub mod room;
pub mod save;
pub mod settings;
pub mod snapshot;
pub mod tend;
pub mod usage;

mod fetch;
mod names;
mod spares;
mod view;

pub use settings::Settings;

/// A store and the filesystem it lies on.
#[derive(Debug)]
pub struct Engine {
    settings: Settings,
    store: Store,
    backend: Box<dyn Backend>,
    pool: Option<pool::Pool>,
    /// The store, held so that nobody upgrades or destroys it meanwhile.
    lock: Option<File>,
    cancelled: Arc<AtomicBool>,
    /// Whether a tree was removed that may still have to be cleaned up.
    removed: AtomicBool,
    diff_sizes: keyed::Counted<u64>,
    usages: containerd::Usages,
    claims: containerd::Claims,
}

impl Engine {
    /// The directory of the store.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.store.root()
    }

    /// Set by a signal handler: verbs that take long stop, undo and answer [`Kind::Interrupted`].
    #[must_use]
    pub fn cancellation(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.cancelled)
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    fn tree(&self, record: &Record) -> Tree {
        tree_at(self.store.place(record.uuid), record)
    }

    fn parent_tree(&self, record: &Record) -> Result<Option<Tree>> {
        let Some(parent) = record.parent else { return Ok(None) };
        match self.store.get(parent)? {
            Some(parent) => Ok(Some(self.tree(&parent))),
            None => Err(Error::new(Kind::Damaged, format!("its image layer {parent} is missing"))),
        }
    }

    /// Finish or undo what dead processes left. Before each verb that writes; costs a look at the index if there is
    /// nothing. What can't be cleared now (a tree in use) is logged, and tried again next time.
    fn tidy(&self) -> Result<Vec<Record>> {
        self.store.rejoin(&|| self.backend.instance(), &|| highest_group(&*self.backend))?;
        let mut tidied = Vec::new();
        for held in self.store.debris()? {
            let record = held.record().clone();
            match self.tidy_one(held) {
                Ok(()) => tidied.push(record),
                Err(e) => tracing::warn!("cannot clear up what a dead process left at {}: {e}", record.uuid),
            }
        }
        Ok(tidied)
    }

    fn tidy_one(&self, held: Held) -> Result<()> {
        match held.state() {
            State::Replacing => return self.settle(held, false),
            State::Ready if held.record().container().is_some() && held.record().has_tree() => {
                return self.store.take_back_with(&held, |record| self.limit_again(record));
            }
            State::Ready => return self.store.take_back(&held),
            State::Making | State::Removing => {}
        }
        self.destroy_tree(held.record())?;
        self.store.finish_removal(held)
    }

    /// Destroy the tree of a record, or take away the mount that a read-only container has instead.
    fn destroy_tree(&self, record: &Record) -> Result<()> {
        let tree = self.tree(record);
        if record.is_view() {
            view::take_away(tree.place())?;
        } else {
            self.removed.store(true, Ordering::Relaxed);
        }
        self.backend.destroy(&tree)
    }

    /// Whichever tree stayed when one was replaced: write down which group it is charged to. It is the fresh one, with its limit,
    /// if that is known, or the group is another one than before.
    fn settle(&self, held: Held, fresh: bool) -> Result<()> {
        let group = self.backend.settle(held.place())?.map(|group| group.0);
        // That it is sealed is written down, or hasn't been.
        if held.record().keyed().is_some_and(|keyed| keyed.stage == Stage::Active) {
            self.backend.set_read_only(&self.tree(held.record()), false)?;
        }
        if !fresh {
            self.limit_again(&Record { group, ..held.record().clone() })?;
        }
        let fresh = fresh || group.is_some() && group != held.record().group;
        self.store.settle(held, group, fresh).map(|_| ())
    }

    /// Undo a draft whose tree is not to be. What can't be undone now is debris and left to [`Engine::tidy`]: the user
    /// has to hear of the failure that led here, not of this one.
    fn discard(&self, draft: Draft) {
        let uuid = draft.record().uuid;
        if let Err(e) = self.destroy_tree(draft.record()).and_then(|()| self.store.abandon(draft)) {
            tracing::warn!("cannot clear up {uuid}: {e}");
        }
    }

    /// Do something with a place that a temporary tree may be put in, or none where nothing can be written. It is cleared
    /// whatever happens, and holds the parent of `record` fast meanwhile.
    fn with_scratch<T>(&self, record: &Record, work: impl FnOnce(Option<&Tree>) -> Result<T>) -> Result<T> {
        let new = New { owner: Owner::cli(), parent: record.parent, group: NewGroup::None, content: Content::Work };
        match self.store.begin(new) {
            Ok(draft) => {
                let done = work(Some(&tree_at(draft.place().to_path_buf(), draft.record())));
                self.discard(draft);
                done
            }
            // What fills a full disk has to be found all the same.
            Err(e) if matches!(e.kind(), Kind::NoSpace | Kind::Denied) => {
                tracing::warn!("nothing can be written, so what is written meanwhile may be missed: {e}");
                work(None)
            }
            Err(e) => Err(e),
        }
    }
}

/// The highest number of a group that the filesystem knows of.
fn highest_group(backend: &dyn Backend) -> Result<Option<u32>> {
    Ok(backend.highest_group()?.map(|group| group.0))
}

fn tree_at(place: PathBuf, record: &Record) -> Tree {
    Tree::new(place, record.group.map(GroupId))
}
