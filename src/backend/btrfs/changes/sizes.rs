//! What files take on disk that the tree they were cloned from doesn't.

use std::collections::{HashMap, HashSet};

use nix::errno::Errno;

use crate::backend::btrfs::Btrfs;
use crate::sys::btrfs::SUBVOLUME_INODE;
use crate::sys::btrfs::search::{self, Change};
use crate::sys::btrfs::subvol::{self, SubvolInfo};
use crate::{Context, Result};

/// Counts the extents and inline data that are newer than the parent, each once however many files share it. What was
/// reflinked from elsewhere is older and doesn't count.
#[derive(Debug)]
pub(super) struct Sizes<'a> {
    btrfs: &'a Btrfs,
    /// Subvolume that the tree is read from.
    tree: u64,
    /// The first transaction after the parent was made; 0 without a parent.
    first: u64,
    /// When the tree was made.
    born: u64,
    /// The first transaction that counts in each nested subvolume.
    nested: HashMap<u64, u64>,
    counted: HashSet<u64>,
}

impl<'a> Sizes<'a> {
    /// Of the files of `live` as they are in `tree`, which was taken of it.
    pub(super) fn new(btrfs: &'a Btrfs, parent: Option<&SubvolInfo>, live: &SubvolInfo, tree: u64) -> Self {
        let first = parent.map_or(0, |parent| parent.otransid + 1);
        Self { btrfs, tree, first, born: live.otransid, nested: HashMap::new(), counted: HashSet::new() }
    }

    /// What an inode of the tree takes, or one of subvolume `nested` in it. 0 if that is gone.
    pub(super) fn of(&mut self, nested: Option<u64>, inode: u64) -> Result<u64> {
        let first = nested.map_or(Ok(Some(self.first)), |id| self.first_in(id))?;
        let Some(first) = first else { return Ok(0) };
        let mut size = 0;
        let id = nested.unwrap_or(self.tree);
        let searched = search::extents(&self.btrfs.fd, id, inode, first, |change| match change {
            Change::Extent { generation, address, bytes, .. }
                if generation >= first && self.counted.insert(address) =>
            {
                size += bytes;
            }
            Change::Inline { generation, bytes, .. } if generation >= first => size += bytes,
            _ => {}
        });
        match searched {
            Ok(()) | Err(Errno::ENOENT) => Ok(size),
            Err(e) => Err(e).context(|| self.btrfs.call("BTRFS_IOC_TREE_SEARCH_V2")),
        }
    }

    /// What was made elsewhere and moved into the tree is the tree's own, all of it. A snapshot that was made in it may
    /// share older extents with it.
    fn first_in(&mut self, id: u64) -> Result<Option<u64>> {
        if let Some(first) = self.nested.get(&id) {
            return Ok(Some(*first));
        }
        let Ok(root) = subvol::open_directory(&self.btrfs.fd, id, SUBVOLUME_INODE) else { return Ok(None) };
        let info = subvol::get_subvol_info(&root).context(|| self.btrfs.call("BTRFS_IOC_GET_SUBVOL_INFO"))?;
        let first = if info.otransid < self.born { 0 } else { self.first };
        self.nested.insert(id, first);
        Ok(Some(first))
    }
}
