//! Rolling back: a fork takes the place of a container's tree, which is kept in another place.
//!
//! ```text
//! 1  TREE/fs old   TREE/manifest.<old>
//! 2  a fork is made at KEPT/fs, whole and durable, with its KEPT/manifest.<new>
//! 3  both places get the other tree's manifest as well: whatever is at a root, its manifest is beside it
//! 4  TREE/fs and KEPT/fs change places; both directories are on disk in one transaction
//! 5  each place loses the manifest of the tree that isn't there any more
//! ```
//!
//! After a crash before 4 is on disk there is the old tree and nothing or a fork at KEPT, after it both are done:
//! [`Backend::settle`] does 5.
//!
//! The two trees have one group, and its project is that of the tree at TREE alone: what is kept leaves it. The manifests at
//! KEPT name no group, so that nobody lifts the container's limit when what is kept is destroyed.

use std::fs::{File, FileTimes};
use std::io;
use std::path::Path;

use super::manifest::{Head, Manifest};
use super::quota::Suspended;
use super::tree::{self, Kin};
use super::{Reflink, place};
use crate::backend::{Access, Backend, Tree};
use crate::sys::durable;
use crate::{Context, Result};

/// The times of a root directory. That it gets another parent directory is a change of it to XFS.
#[derive(Debug)]
struct Times {
    root: File,
    times: FileTimes,
}

impl Times {
    fn of(root: &Path) -> Result<Self> {
        let of = || -> io::Result<Self> {
            let root = File::open(root)?;
            let now = root.metadata()?;
            Ok(Self { root, times: FileTimes::new().set_accessed(now.accessed()?).set_modified(now.modified()?) })
        };
        of().context(|| format!("stat {}", root.display()))
    }

    /// If it can't be done, the root seems to have been touched.
    fn put_back(&self) {
        if let Err(error) = self.root.set_times(self.times) {
            tracing::warn!(%error, "cannot set the times of a root that was moved");
        }
    }
}

impl Reflink {
    pub(super) fn roll_back_tree(
        &self,
        from: &Tree,
        tree: &Tree,
        limit: Option<u64>,
        kept: &Tree,
        ready: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        self.check_limit(tree, limit)?;
        place::head(tree)?;
        tree::refuse_present(&kept.root())?;
        let suspended = self.suspend_limit(tree.group())?;
        self.prepare(from, kept, Access::Writable, None, Kin::Successor)
            .and_then(|()| tree::publish(kept).inspect_err(|_| self.undo(&kept.spare())))
            .and_then(|()| self.exchange(tree, kept, limit, ready).inspect_err(|_| self.undo_successor(tree, kept)))
            .and_then(|()| self.make_durable(tree, kept))
            .inspect_err(|_| suspended.iter().for_each(Suspended::resume))?;
        let tidied = self.leave_project(&kept.root()).and_then(|()| self.clear(tree)).and_then(|()| self.clear(kept));
        if let Err(error) = tidied {
            // It is done all the same, and whoever settles the places tries again.
            tracing::warn!(%error, path = %kept.place().display(), "cannot tidy up after rolling back");
        }
        Ok(())
    }

    fn exchange(
        &self,
        tree: &Tree,
        kept: &Tree,
        limit: Option<u64>,
        ready: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let (root, aside) = (tree.root(), kept.root());
        let manifest = |root: &Path| place::manifest_path(root)?.ok_or_else(|| place::missing(root));
        let (old, new) = (manifest(&root)?, manifest(&aside)?);
        let beside = |manifest: &Path, place: &Path| place.join(manifest.file_name().unwrap_or_default());
        Manifest::copy(&old, &beside(&old, kept.place()), None)?;
        let successors = beside(&new, tree.place());
        Manifest::copy(&new, &successors, tree.group())?;
        self.limit_new(&aside, &Head::read(&successors)?, limit)?;
        self.sync()?;
        // What its users locked can't be renamed either.
        place::unlock(&root)?;
        let times = [Times::of(&root)?, Times::of(&aside)?];
        ready()?;
        durable::exchange(&aside, &root)
            .context(|| format!("exchange {} with {}", aside.display(), root.display()))?;
        times.iter().for_each(Times::put_back);
        Ok(())
    }

    /// Make an exchange durable, or undo it.
    fn make_durable(&self, tree: &Tree, kept: &Tree) -> Result<()> {
        self.sync().and_then(|()| tree::commit(tree)).inspect_err(|_| {
            match durable::exchange(&kept.root(), &tree.root()) {
                Ok(()) => self.undo_successor(tree, kept),
                Err(error) => tracing::warn!(%error, "cannot undo an exchange that may not be durable"),
            }
        })
    }

    /// Clear away a successor that didn't get its place.
    fn undo_successor(&self, tree: &Tree, kept: &Tree) {
        self.undo(&kept.root());
        if let Err(error) = self.clear(kept).and_then(|()| self.clear(tree)) {
            tracing::warn!(%error, path = %kept.place().display(), "cannot clear away a tree that failed");
        }
    }
}
