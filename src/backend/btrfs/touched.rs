//! What nobody should have done: writing into a tree that is as it stays, making subvolumes where none belong.

use std::path::PathBuf;

use super::{Btrfs, tree};
use crate::backend::{Charge, QuotaMode, Tree};
use crate::sys::btrfs::search::{self, Change};
use crate::sys::btrfs::{SUBVOLUME_INODE, quota_tree, subvol};
use crate::{Context, Result};

/// Names that are looked for: enough to say what happened.
const MOST: usize = 64;

impl Btrfs {
    /// A snapshot is made by one transaction, and each later change of an inode in it has a later one. Taking snapshots of it,
    /// balancing and changing its flags touch none.
    pub(super) fn touched_in(&self, tree: &Tree) -> Result<Vec<PathBuf>> {
        let root = tree::open_tree(tree)?;
        let call = || format!("BTRFS_IOC_GET_SUBVOL_INFO {}", tree.root().display());
        let info = subvol::get_subvol_info(&root).context(call)?;
        if info.ctransid <= info.otransid {
            return Ok(Vec::new());
        }
        let find = || -> nix::Result<_> {
            let mut inodes = Vec::new();
            search::changes(&self.fd, info.id, info.otransid + 1, |change| {
                if let Change::Inode { inode, transid, links, .. } = change
                    // One without a name was deleted before, and is cleaned up when the snapshot is first used.
                    && transid > info.otransid
                    && links > 0
                {
                    inodes.push(inode);
                }
            })?;
            let mut found = Vec::new();
            for inode in inodes.into_iter().take(MOST) {
                if inode == SUBVOLUME_INODE {
                    found.push(PathBuf::new());
                    continue;
                }
                for name in search::names(&self.fd, info.id, inode)? {
                    found.push(search::directory_path(&self.fd, info.id, name.directory)?.join(name.name));
                }
            }
            Ok(found)
        };
        find().context(|| self.call("BTRFS_IOC_TREE_SEARCH_V2"))
    }

    pub(super) fn charge_of(&self, tree: &Tree) -> Result<Option<Charge>> {
        if self.mode()? != QuotaMode::Simple {
            return Ok(None);
        }
        let group = self.group_of(tree)?;
        let limit = match group {
            Some(group) => {
                quota_tree::limit(&self.fd, self.qgroup(group)).context(|| self.call("BTRFS_IOC_TREE_SEARCH_V2"))?
            }
            None => None,
        };
        Ok(Some(Charge { group, limit }))
    }

    /// Subvolumes that are directly in ROOT's own, and not at `snapshots/<place>/fs` or `fs.new`.
    pub(super) fn subvolumes_outside(&self) -> Result<Vec<PathBuf>> {
        let call = || self.call("BTRFS_IOC_TREE_SEARCH_V2");
        let id = subvol::get_subvol_info(&self.fd).context(|| self.call("BTRFS_IOC_GET_SUBVOL_INFO"))?.id;
        // ROOT may be a plain directory of a subvolume that holds other things.
        let mut above = PathBuf::new();
        let inode = rustix::fs::fstat(&self.fd).context(|| self.call("stat"))?.st_ino;
        if inode != SUBVOLUME_INODE {
            above = search::directory_path(&self.fd, id, inode).context(call)?;
        }
        let mut outside = Vec::new();
        for child in search::children(&self.fd, id).context(call)? {
            let directory = match search::directory_path(&self.fd, id, child.directory) {
                // Removed while we looked.
                Err(nix::errno::Errno::ENOENT) => continue,
                directory => directory.context(call)?,
            };
            let path = directory.join(&child.name);
            let Ok(below) = path.strip_prefix(&above) else { continue };
            let parts: Vec<_> = below.iter().collect();
            let is_tree = matches!(parts[..], [snapshots, _, tree]
                if snapshots == "snapshots" && (tree == "fs" || tree == "fs.new"));
            if !is_tree {
                outside.push(below.to_path_buf());
            }
        }
        outside.sort();
        Ok(outside)
    }
}
