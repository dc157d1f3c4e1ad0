//! What a tree holds of its own at this moment, while it is written to, without a commit.
//!
//! The tree's data is written out, so that its extents are in its tree; then one search finds what is newer than its parent. The
//! search sees inodes, names, attributes and extents as soon as they are made. What it doesn't see before the next commit are the
//! inodes of before whose own item alone was changed: times, owners, permissions, counts of links.

use std::collections::{BTreeSet, HashSet};

use super::measure::{Count, Since, info};
use super::{Btrfs, tree};
use crate::backend::{OwnNow, Tree, TreeState};
use crate::sys::btrfs::search::{self, Change};
use crate::sys::btrfs::subvol;
use crate::{Context, Result};

impl Btrfs {
    pub(super) fn own_now_of(&self, tree: &Tree, parent: Option<&Tree>) -> Result<Option<OwnNow>> {
        let call = || format!("BTRFS_IOC_TREE_SEARCH_V2 {}", tree.root().display());
        if !self.write_out(tree)? {
            return Ok(None);
        }
        let born = info(&tree::open_tree(tree)?, tree)?;
        if !self.descendants(born.id)?.is_empty() {
            return Ok(None);
        }
        // Written by a commit that is as good as over: what is changed from now on is of a later transaction.
        let is_settled = search::committed_ctransid(&self.fd, born.id).context(call)? == Some(born.ctransid);
        let since = Since::of(parent.map(|parent| info(&tree::open_tree(parent)?, parent)).transpose()?);
        let mut found = Found::new(since, search::orphans(&self.fd, Some(born.id)).context(call)?);
        search::changes(&self.fd, born.id, since.transid(), |change| found.add(&change)).context(call)?;
        Ok(Some(OwnNow {
            bytes: found.count.charged(),
            inodes: found.inodes.len() as u64,
            state: is_settled.then_some(TreeState { tree: born.id, change: born.ctransid }),
        }))
    }

    /// Write out the tree's data alone; whether that can be done here.
    pub(super) fn write_out(&self, tree: &Tree) -> Result<bool> {
        let written = subvol::write_out(&tree::open_tree(tree)?, &tree::open_place(tree.place())?);
        if let Err(error) = written {
            tracing::debug!(%error, "cannot write out {} alone", tree.root().display());
        }
        Ok(written.is_ok())
    }
}

/// What is newer than a tree's parent.
#[derive(Debug)]
struct Found {
    since: Since,
    /// Inodes without a name, which count as deleted.
    unlinked: BTreeSet<u64>,
    count: Count,
    inodes: HashSet<u64>,
}

impl Found {
    fn new(since: Since, unlinked: BTreeSet<u64>) -> Self {
        Self { since, unlinked, count: Count::new(since), inodes: HashSet::new() }
    }

    fn add(&mut self, change: &Change) {
        let first = self.since.transid();
        let (inode, is_new) = match *change {
            Change::Inode { inode, transid, ctime, .. } => (inode, self.since.is_changed(transid, ctime)),
            Change::Extent { inode, generation, .. } | Change::Inline { inode, generation, .. } => {
                (inode, generation >= first)
            }
            Change::Named { inode, transid } => (inode, transid >= first),
        };
        if self.unlinked.contains(&inode) {
            return;
        }
        if is_new {
            self.inodes.insert(inode);
        }
        self.count.add(change);
    }
}

#[cfg(test)]
mod tests {
    use super::super::measure::tests::{CLONE, extent, file};
    use super::*;

    fn found(since: Since, changes: &[Change]) -> (u64, usize) {
        let mut found = Found::new(since, BTreeSet::from([300]));
        changes.iter().for_each(|change| found.add(change));
        (found.count.charged(), found.inodes.len())
    }

    #[test]
    fn an_inode_counts_once_whatever_was_done_to_it() {
        let all = [file(257, 11, (2000, 0)), Change::Named { inode: 257, transid: 12 }, extent(257, 11, 1 << 20)];
        assert_eq!(found(Since::Clone(CLONE), &all), (4096, 1));
        for change in all {
            assert_eq!(found(Since::Clone(CLONE), &[change]).1, 1, "{change:?}");
        }
    }

    #[test]
    fn what_the_parent_has_is_not_counted() {
        let old = [file(257, 10, (999, 0)), Change::Named { inode: 257, transid: 9 }, extent(257, 9, 1 << 20)];
        assert_eq!(found(Since::Clone(CLONE), &old), (0, 0));
        assert_eq!(found(Since::Ever, &old), (4096, 1));
    }

    #[test]
    fn what_has_no_name_is_not_counted() {
        assert_eq!(found(Since::Clone(CLONE), &[file(300, 11, (2000, 0)), extent(300, 11, 1 << 20)]), (0, 0));
    }
}
