//! Whether anything in a tree has changed, without asking it for what.
//!
//! A subvolume's `ctransid` rises at once with each change of its metadata, and with data when that is on its way to disk;
//! what is in memory only doesn't move it (docs/kernel.md). But room for such data is reserved, for all of the filesystem
//! together: `bytes_may_use` until writing begins, and `bytes_reserved` until it is done. If both are 0 there is none, and
//! `ctransid` tells all. Only a file that isn't copied on write (`chattr +C`, preallocated) can be on its way for a moment
//! that neither shows.

use std::fs;

use super::{Btrfs, tree};
use crate::backend::{Tree, TreeState};
use crate::sys::btrfs::subvol::{self, SubvolInfo};
use crate::{Context, Result};

impl Btrfs {
    pub(super) fn state_of(&self, tree: &Tree) -> Result<Option<TreeState>> {
        // In this order: what is written in between is seen by the one or the other.
        if !self.is_quiet() {
            return Ok(None);
        }
        let info = info(tree)?;
        // What is changed in subvolumes inside of it leaves it alone.
        if !self.is_quiet() || !self.descendants(info.id)?.is_empty() {
            return Ok(None);
        }
        Ok(Some(TreeState { tree: info.id, change: info.ctransid }))
    }

    /// A snapshot has written out what was in memory of its source, and begins with its `ctransid`; what is changed later is of
    /// a later transaction.
    pub(super) fn state_then(&self, tree: &Tree, fork: &Tree) -> Result<TreeState> {
        Ok(TreeState { tree: info(tree)?.id, change: info(fork)?.ctransid })
    }

    /// Whether no data is on its way to the disk. Where data has no room of its own (mixed block groups) nobody can tell.
    fn is_quiet(&self) -> bool {
        let data = self.sysfs().join("allocation/data");
        ["bytes_may_use", "bytes_reserved"]
            .iter()
            .all(|name| fs::read_to_string(data.join(name)).is_ok_and(|bytes| bytes.trim() == "0"))
    }
}

fn info(tree: &Tree) -> Result<SubvolInfo> {
    let root = tree::open_tree(tree)?;
    subvol::get_subvol_info(&root).context(|| format!("BTRFS_IOC_GET_SUBVOL_INFO {}", tree.root().display()))
}
