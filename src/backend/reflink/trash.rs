//! Removing trees: out of their places at once, apart later.
//!
//! ```text
//! ROOT/trash/<uuid>.fs           a removed tree
//! ROOT/trash/<uuid>.manifest     its manifest, which comes after it and goes after it
//! ```
//!
//! A rename into the trash needs no room but for a longer directory, and on a full disk there may be none even for that
//! (XFS answers ENOSPC). Then the tree is taken apart in its place, under the name that nobody takes for a tree: that
//! takes its time, but gives room.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use uuid::Uuid;

use super::manifest::{Head, Manifest};
use super::measure::Meter;
use super::{Reflink, place};
use crate::backend::{Backend, Leftover, Tree, remove};
use crate::sys::durable;
use crate::{Context, Error, Kind, Result};

/// How long to wait between two looks at another process's work.
const POLL: Duration = Duration::from_millis(20);

/// Make the trash of a store at `root`.
pub(super) fn make(root: &Path) -> Result<()> {
    let trash = path(root);
    match durable::mkdir(&trash, 0o700) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e).context(|| format!("mkdir {}", trash.display())),
        _ => Ok(()),
    }
}

pub(super) fn path(root: &Path) -> PathBuf {
    root.join("trash")
}

/// What of a tree that has left its root can't be removed: it is gone all the same, and whoever clears its place tries again.
pub(super) fn leave(removed: Result<()>) {
    if let Err(error) = removed {
        tracing::warn!(%error, "cannot clear away what is left of a removed tree");
    }
}

fn manifest_of(trashed: &Path) -> PathBuf {
    trashed.with_extension("manifest")
}

impl Reflink {
    /// Remove the tree at `root`; nothing there is fine.
    pub(super) fn discard(&self, root: &Path) -> Result<()> {
        let Some(manifest) = place::manifest_path(root)? else { return Ok(()) };
        place::unlock(root)?;
        let trashed = path(&self.root).join(format!("{}.fs", Uuid::new_v4()));
        let moved = match durable::rename_new(root, &trashed) {
            // Somebody tidied up too much.
            Err(Errno::NOENT) if !path(&self.root).exists() => {
                make(&self.root)?;
                durable::rename_new(root, &trashed)
            }
            moved => moved,
        };
        match moved {
            Ok(()) => {}
            Err(Errno::NOENT) if !root.exists() => return Ok(()),
            Err(Errno::NOSPC | Errno::DQUOT) => return self.take_apart(root),
            Err(Errno::BUSY) => {
                return Err(Error::new(Kind::InUse, format!("something is mounted on {}", root.display()))
                    .with_hint(format!("umount {}", root.display())));
            }
            Err(e) => return Err(e).context(|| format!("rename {} to {}", root.display(), trashed.display())),
        }
        let moved = match durable::rename_new(&manifest, &manifest_of(&trashed)) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::NOSPC | Errno::DQUOT) => self.forget(&manifest),
            Err(e) => Err(e).context(|| format!("rename {} into the trash", manifest.display())),
        };
        leave(moved);
        Ok(())
    }

    /// Remove the tree at `root` here and now: what was never whole, or what there is no room to move.
    pub(super) fn take_apart(&self, root: &Path) -> Result<()> {
        let Some(manifest) = place::manifest_path(root)? else { return Ok(()) };
        place::unlock(root)?;
        let spare = Tree::new(root.parent().unwrap_or(root), None).spare();
        let removed = || remove::remove_tree(&spare).and_then(|_| self.forget(&manifest));
        if root == spare {
            return removed();
        }
        match durable::rename_new(root, &spare) {
            Ok(()) => {
                leave(removed());
                Ok(())
            }
            // Btrfs has room for removals only. Without its manifest nobody takes what a crash leaves for a tree.
            Err(Errno::NOSPC | Errno::DQUOT) => {
                self.forget(&manifest)?;
                remove::remove_tree(root).map(drop)
            }
            Err(e) => Err(e).context(|| format!("rename {} to {}", root.display(), spare.display())),
        }
    }

    /// Remove the manifest of a tree that is gone, the last thing that tells of its limit.
    fn forget(&self, manifest: &Path) -> Result<()> {
        self.drop_limit(manifest);
        place::remove(manifest)
    }

    /// Remove what crashes left in a place: a tree at [`Tree::spare`], and manifests without a tree.
    pub(super) fn clear(&self, tree: &Tree) -> Result<()> {
        self.discard(&tree.spare())?;
        place::remove(&Manifest::aside(tree.place()))?;
        let keep = place::manifest_path(&tree.root())?;
        let group = |manifest: &Path| Head::read(manifest).ok().and_then(|head| head.group);
        for manifest in place::manifests(tree.place())?.iter().filter(|manifest| Some(*manifest) != keep.as_ref()) {
            match keep.as_deref().and_then(group) {
                // The tree has taken the group over from what was there before, with its limit.
                Some(kept) if group(manifest) == Some(kept) => place::remove(manifest)?,
                _ => self.forget(manifest)?,
            }
        }
        Ok(())
    }

    /// One for each tree in the trash, with what comes back with it.
    pub(super) fn trashed_trees(&self) -> Result<Vec<Leftover>> {
        let mut meter = Meter::new(self, false);
        let mut leftovers = Vec::new();
        let trashed = self.trashed("fs")?;
        let (cloned, forked) = if trashed.is_empty() { Default::default() } else { self.relatives()? };
        for trashed in trashed {
            let path = manifest_of(&trashed);
            let manifest = match Manifest::read(&path) {
                Ok(manifest) => Some(manifest),
                Err(e) if e.kind() == Kind::NotFound => None,
                // It comes back all the same.
                Err(e) if e.kind() == Kind::Damaged => {
                    tracing::warn!("{e}");
                    None
                }
                Err(e) => return Err(e),
            };
            // What a clone has of it stays: the layer that was unpacked in it, a snapshot of it.
            let alone = manifest.as_ref().filter(|Manifest { head, .. }| {
                let base = head.base.as_ref().map(|base| base.id);
                !cloned.contains(&head.id) && !base.is_some_and(|base| forked.contains(&base))
            });
            let Some(size) = meter.measure(&trashed, alone)? else { continue };
            let overhead = manifest.map_or(Ok(0), |manifest| place::overhead(&path, &manifest.head))?;
            let name = trashed.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            leftovers.push(Leftover { kind: "tree", name, charged: size.charged + overhead });
        }
        Ok(leftovers)
    }

    /// The trees that those which are not removed were cloned from, there or not; and those that forks are compared with.
    fn relatives(&self) -> Result<(HashSet<Uuid>, HashSet<Uuid>)> {
        let (mut cloned, mut forked) = (HashSet::new(), HashSet::new());
        let trash = path(&self.root);
        for manifest in self.all_manifests()?.iter().filter(|manifest| !manifest.starts_with(&trash)) {
            match Head::read(manifest) {
                Ok(head) => {
                    let known = if head.fork { &mut forked } else { &mut cloned };
                    known.extend(head.base.map(|base| base.id));
                }
                Err(e) if matches!(e.kind(), Kind::NotFound | Kind::Damaged) => {}
                Err(e) => return Err(e),
            }
        }
        Ok((cloned, forked))
    }

    /// Take trees in the trash apart until it is empty or `patience` is over; how many. One process at a time: others wait
    /// for it.
    pub(super) fn empty_trash(&self, patience: Duration) -> Result<u64> {
        let start = Instant::now();
        let left = || patience.checked_sub(start.elapsed()).filter(|left| !left.is_zero());
        let mut removed = 0;
        if let Some(_lock) = self.lock_trash(left)? {
            for trashed in self.trashed("fs")? {
                match remove::remove_tree(&trashed).and_then(|_| self.forget(&manifest_of(&trashed))) {
                    Ok(()) => removed += 1,
                    // It stays among the leftovers, and doesn't keep the others.
                    Err(error) => tracing::warn!(%error, "cannot take a removed tree apart"),
                }
                if left().is_none() {
                    break;
                }
            }
            for manifest in self.trashed_manifests()? {
                if !manifest.with_extension("fs").exists() {
                    self.forget(&manifest)?;
                }
            }
        }
        if removed > 0 {
            self.sync_to_count();
            self.free_preallocated()?;
        }
        Ok(removed)
    }

    /// Lock the trash against others that take it apart. `None` if they did so for too long.
    fn lock_trash(&self, left: impl Fn() -> Option<Duration>) -> Result<Option<File>> {
        let trash = path(&self.root);
        let call = || format!("lock {}", trash.display());
        let directory = match File::open(&trash) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            directory => directory.context(call)?,
        };
        loop {
            match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(directory)),
                Err(Errno::WOULDBLOCK) => match left() {
                    Some(left) => std::thread::sleep(POLL.min(left)),
                    None => return Ok(None),
                },
                Err(e) => return Err(e).context(call),
            }
        }
    }

    pub(super) fn trashed_manifests(&self) -> Result<Vec<PathBuf>> {
        self.trashed("manifest")
    }

    /// What is in the trash with this ending.
    fn trashed(&self, ending: &str) -> Result<Vec<PathBuf>> {
        let trash = path(&self.root);
        let entries = match fs::read_dir(&trash) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.context(|| format!("read {}", trash.display()))?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.context(|| format!("read {}", trash.display()))?.path();
            if path.extension().is_some_and(|extension| extension == ending) {
                found.push(path);
            }
        }
        Ok(found)
    }
}
