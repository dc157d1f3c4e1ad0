//! Making trees: empty, as clones, in the place of others.
//!
//! A tree is made at [`Tree::spare`], made durable with its manifest, and only then renamed to its root: what is at a
//! root is whole.

use std::collections::HashSet;
use std::fs::File;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use uuid::Uuid;

use super::manifest::{Base, Head, Manifest, nanoseconds};
use super::{Reflink, place};
use crate::backend::clone::{Cloned, Content, Counts, Entry, Source, clone_tree};
use crate::backend::{Access, Backend, Tree};
use crate::sys::durable;
use crate::sys::reflink;
use crate::{Context, Error, Kind, Result};

/// Longer than a tick of the coarse clock (CONFIG_HZ=100): no clock that runs is behind for longer.
const MOST_TICKS: u32 = 20;

impl Reflink {
    pub(super) fn create_tree(&self, tree: &Tree, limit: Option<u64>) -> Result<()> {
        let (root, spare) = (tree.root(), tree.spare());
        self.check_limit(tree, limit)?;
        refuse_present(&root)?;
        self.clear(tree)?;
        let make = || -> Result<()> {
            durable::mkdir(&spare, 0o777).context(|| format!("mkdir {}", spare.display()))?;
            // Neither the umask nor what is inherited from the place decides these.
            std::os::unix::fs::chown(&spare, Some(0), Some(0)).context(|| format!("chown {}", spare.display()))?;
            durable::chmod(&spare, 0o755).context(|| format!("chmod {}", spare.display()))?;
            if let Some(project) = self.project(tree.group()) {
                let directory = File::open(&spare).context(|| format!("open {}", spare.display()))?;
                reflink::set_project(&directory, project)
                    .context(|| format!("FS_IOC_FSSETXATTR {}", spare.display()))?;
            }
            let head = Head {
                id: Uuid::new_v4(),
                group: tree.group(),
                read_only: false,
                base: None,
                fork: false,
                entries: 0,
                metadata: self.inode_bytes,
                blocks: 0,
            };
            write_manifest(&spare, &head, &[])?;
            self.limit_new(&spare, &head, limit)?;
            publish(tree)
        };
        make().inspect_err(|_| self.undo(&spare))
    }

    pub(super) fn clone_into(
        &self,
        from: &Tree,
        to: &Tree,
        access: Access,
        limit: Option<u64>,
        kin: Kin,
    ) -> Result<()> {
        self.check_limit(to, limit)?;
        refuse_present(&to.root())?;
        self.prepare(from, to, access, limit, kin)?;
        publish(to).inspect_err(|_| self.undo(&to.spare()))?;
        commit(to)
    }

    pub(super) fn seal_tree(&self, tree: &Tree) -> Result<()> {
        self.clear(tree)?;
        let head = place::head(tree)?;
        if head.read_only {
            return Ok(());
        }
        self.sync()?;
        let path = place::manifest_path(&tree.root())?.ok_or_else(|| place::missing(&tree.root()))?;
        Manifest::reword(&path, &Head { read_only: true, ..head })?;
        commit(tree)
    }

    pub(super) fn mark(&self, tree: &Tree, read_only: bool) -> Result<()> {
        let head = place::head(tree)?;
        if head.read_only == read_only {
            return Ok(());
        }
        let path = place::manifest_path(&tree.root())?.ok_or_else(|| place::missing(&tree.root()))?;
        Manifest::reword(&path, &Head { read_only, ..head })
    }

    pub(super) fn replace_tree(&self, from: &Tree, fresh: &Tree, limit: Option<u64>) -> Result<()> {
        let (root, spare) = (fresh.root(), fresh.spare());
        self.check_limit(fresh, limit)?;
        if !self.exists(fresh)? {
            return Err(place::missing(&root));
        }
        self.prepare(from, fresh, Access::Writable, limit, Kin::Child)?;
        // What its users locked can't be renamed either.
        place::unlock(&root).inspect_err(|_| self.undo(&spare))?;
        durable::exchange(&spare, &root)
            .context(|| format!("exchange {} with {}", spare.display(), root.display()))
            .inspect_err(|_| self.undo(&spare))?;
        commit(fresh).inspect_err(|_| match durable::exchange(&spare, &root) {
            Ok(()) => self.undo(&spare),
            Err(error) => tracing::warn!(%error, "cannot undo an exchange that may not be durable"),
        })?;
        if let Err(error) = self.discard(&spare) {
            // Whoever settles the place tries again.
            tracing::warn!(%error, "cannot clear away a tree that was replaced");
        }
        Ok(())
    }

    /// Make a clone, or a fork, of `from` at the spare of `to`, whole and durable. Nothing is left of it on failure.
    pub(super) fn prepare(&self, from: &Tree, to: &Tree, access: Access, limit: Option<u64>, kin: Kin) -> Result<()> {
        let origin = place::head(from)?;
        let spare = to.spare();
        self.clear(to)?;
        let source = if kin == Kin::Child { None } else { Some(place::manifest(from)?) };
        let make = || {
            // Nobody writes into a layer: it shares its group with the tree it was unpacked in, whose size it would falsify.
            let project = self.project(to.group()).filter(|_| access == Access::Writable);
            let state = if origin.read_only { Source::Still } else { Source::Live };
            let cloned = clone_tree(&from.root(), &spare, state, Content::Reflink, project)?;
            let (directories, blocks) = blocks(&cloned);
            let head = Head {
                id: Uuid::new_v4(),
                group: to.group().filter(|_| kin != Kin::Successor),
                read_only: access == Access::ReadOnly,
                base: Some(Base { place: self.named(from.place()), id: origin.id, read_only: origin.read_only }),
                fork: kin != Kin::Child,
                entries: cloned.entries.len() as u64,
                metadata: inodes(&cloned.counts) * self.inode_bytes + directories,
                blocks,
            };
            let head = match &source {
                None => write_manifest(&spare, &head, &cloned.entries).map(|()| head)?,
                Some(source) => {
                    let path = place::manifest_path(&spare)?.ok_or_else(|| place::missing(&spare))?;
                    let Head { base, blocks, .. } = source.head.clone();
                    let manifest = source.forked(Head { base, blocks, ..head }, &cloned);
                    manifest.save(&path).map(|()| manifest.head)?
                }
            };
            self.limit_new(&spare, &head, limit)?;
            self.sync()?;
            outlast(&cloned);
            Ok(())
        };
        make().inspect_err(|_| self.undo(&spare))
    }
}

/// What a clone is compared with, and charged to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kin {
    /// With the tree that it is made of.
    Child,
    /// With what that is compared with.
    Fork,
    /// As a fork, to take the place of the tree whose group it gets. It is charged to that, but has yet to be written down.
    Successor,
}

impl Reflink {
    /// Clear away what a failed step made; the failure itself is what the caller has to hear of.
    pub(super) fn undo(&self, spare: &Path) {
        if let Err(error) = self.take_apart(spare) {
            tracing::warn!(%error, path = %spare.display(), "cannot clear away a tree that failed");
        }
    }
}

fn inodes(counts: &Counts) -> u64 {
    let Counts { directories, cloned, copied, empty, links: _, symlinks, nodes } = counts;
    directories + cloned + copied + empty + symlinks + nodes
}

/// Bytes of a clone's blocks: those of directories, and all.
fn blocks(cloned: &Cloned) -> (u64, u64) {
    let (mut directories, mut others, mut seen) = (cloned.root.blocks, 0, HashSet::new());
    for entry in cloned.entries.iter().filter(|entry| entry.blocks > 0 && seen.insert(entry.inode)) {
        *(if entry.kind.is_dir() { &mut directories } else { &mut others }) += entry.blocks;
    }
    (directories * 512, (directories + others) * 512)
}

fn write_manifest(root: &Path, head: &Head, entries: &[Entry]) -> Result<()> {
    let path = place::manifest_path(root)?.ok_or_else(|| place::missing(root))?;
    Manifest::write(&path, head, entries)
}

/// An early answer; [`publish`] gives the one that counts.
pub(super) fn refuse_present(root: &Path) -> Result<()> {
    match place::manifest_path(root)? {
        None => Ok(()),
        Some(_) => Err(present(root)),
    }
}

fn present(root: &Path) -> Error {
    Error::new(Kind::Exists, format!("there is a tree at {} already", root.display()))
}

/// Make the finished spare the tree, unless there is one.
pub(super) fn publish(tree: &Tree) -> Result<()> {
    let (spare, root) = (tree.spare(), tree.root());
    match durable::rename_new(&spare, &root) {
        Err(Errno::EXIST) => Err(present(&root)),
        renamed => renamed.context(|| format!("rename {} to {}", spare.display(), root.display())),
    }
}

/// Make durable that a tree is where it is. XFS says yes to that even after it has shut down because of an I/O error, but
/// not when it is asked about a file.
pub(super) fn commit(tree: &Tree) -> Result<()> {
    let root = tree.root();
    let manifest = place::manifest_path(&root)?.ok_or_else(|| place::missing(&root))?;
    let sync = |path: &Path| {
        File::open(path)
            .and_then(|file| Ok(durable::fsync(file, path)?))
            .context(|| format!("fsync {}", path.display()))
    };
    sync(tree.place())?;
    sync(&manifest)
}

/// Wait until the clock that files get their change times from is past all of those in a clone: then whatever is
/// changed later has another one.
fn outlast(cloned: &Cloned) {
    let newest = cloned.entries.iter().map(|entry| nanoseconds(entry.ctime)).max();
    for _ in 0..MOST_TICKS {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
        if newest < Some(nanoseconds((now.tv_sec, now.tv_nsec as u32))) {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
}
