//! What nobody waits for: removed trees are emptied, and spare clones made.
//!
//! Commands leave both to a process of its own, where clones and removals cost more than a moment. Nothing depends on
//! it: without it creates clone as ever, and `gc` empties what was removed. What it leaves when it is killed is what any
//! verb leaves that dies, named by `gc` and cleared by the next verb that writes.
//!
//! It must not keep anybody from having the store for himself (destroy, upgrade, unmounting a pool). It stops
//! between two steps when it is asked to; as a step may take seconds, the program that runs it ends itself if it is asked
//! in the middle of one ([`StopRequests`]).

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use uuid::Uuid;

use super::{Engine, tree_at};
use crate::Result;
use crate::backend::{Access, Tree};
use crate::store::{self, Content, New, NewGroup, Owner};

/// What [`Engine::tend`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tended {
    /// Spares made, and spares dropped because there were more than wanted.
    pub made: usize,
    pub dropped: usize,
    /// Removed trees that were emptied.
    pub emptied: u64,
}

/// Whether somebody wants the store for himself; can be asked from another thread than the one that tends.
#[derive(Debug, Clone)]
pub struct StopRequests {
    root: PathBuf,
}

impl StopRequests {
    /// What can't be told counts as a request: then the store is going, and so should we.
    #[must_use]
    pub fn is_made(&self) -> bool {
        store::is_asked_to_stop(&self.root).unwrap_or(true)
    }
}

impl Engine {
    /// Make the spares that are missing and empty what was removed, until there is nothing to do. Returns at once if
    /// somebody else is about to.
    pub fn tend(&self) -> Result<Tended> {
        let mut tended = Tended::default();
        let Some(_tending) = self.store.begin_tending()? else { return Ok(tended) };
        let mut failed = HashSet::new();
        while !self.is_cancelled() && !self.stop_requests().is_made() {
            self.tidy()?;
            tended.dropped += self.drop_surplus()?;
            self.collect_layers()?;
            if let Some(layer) = self.missing_spare(&failed)? {
                match self.make_spare(layer) {
                    Ok(()) => tended.made += 1,
                    // Nobody asked for it; the next tender tries again.
                    Err(e) => {
                        tracing::warn!("cannot make a spare clone of {layer}: {e}");
                        failed.insert(layer);
                    }
                }
                continue;
            }
            let emptied = self.reclaim()?;
            tended.emptied += emptied;
            if emptied == 0 {
                break;
            }
        }
        Ok(tended)
    }

    #[must_use]
    pub fn stop_requests(&self) -> StopRequests {
        StopRequests { root: self.root().to_path_buf() }
    }

    /// Whether what was done leaves work for somebody who tends the store, and nobody is about to begin with it; and so much
    /// that a process is worth it.
    pub fn needs_tending(&self) -> Result<bool> {
        Ok(self.keeps_spares() && self.has_work()?)
    }

    /// Whether this is done without being asked for.
    #[must_use]
    pub fn tends(&self) -> bool {
        self.settings.tend
    }

    /// The same for somebody who is there anyway: he drops the groups of removed trees, too.
    pub fn has_work(&self) -> Result<bool> {
        if !self.settings.tend {
            return Ok(false);
        }
        Ok((self.removed.load(Ordering::Relaxed) || self.missing_spare(&HashSet::new())?.is_some())
            && !self.store.is_tender_waiting()?)
    }

    /// A layer with writable containers and too few spares, other than those for which it `failed`; none while space is
    /// short.
    fn missing_spare(&self, failed: &HashSet<Uuid>) -> Result<Option<Uuid>> {
        if !self.keeps_spares() {
            return Ok(None);
        }
        let short = self.store.short_of_spares(self.settings.spares)?;
        let missing = short.into_iter().find(|layer| !failed.contains(layer));
        Ok(if missing.is_some() && self.is_space_short()? { None } else { missing })
    }

    fn make_spare(&self, layer: Uuid) -> Result<()> {
        let from = Tree::new(self.store.place(layer), None);
        let draft = self.store.begin(New {
            owner: Owner::cli(),
            parent: Some(layer),
            group: NewGroup::Fresh,
            content: Content::Spare,
        })?;
        let tree = tree_at(draft.place().to_path_buf(), draft.record());
        match self.backend.clone_tree(&from, &tree, Access::Writable, None) {
            Ok(()) => self.store.publish(draft).map(drop),
            Err(e) => {
                self.discard(draft);
                Err(e)
            }
        }
    }

    /// Drop the spares of each layer beyond those wanted.
    fn drop_surplus(&self) -> Result<usize> {
        let mut kept: HashMap<Option<Uuid>, usize> = HashMap::new();
        let dropped = self.drop_spares(|spare| {
            let kept = kept.entry(spare.parent).or_default();
            *kept += 1;
            *kept > self.settings.spares
        })?;
        Ok(dropped.len())
    }
}
