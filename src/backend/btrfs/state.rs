//! Whether anything in a tree has changed, without asking it for what.
//!
//! A subvolume's `ctransid` rises at once with each change of its metadata, and with data when that is on its way to disk;
//! what is in memory only doesn't move it (docs/kernel.md). But room for such data is reserved, for all of the filesystem
//! together: `bytes_may_use` until writing begins, and `bytes_reserved` until it is done. If both are 0 there is none, and
//! `ctransid` tells all. Only a file that isn't copied on write (`chattr +C`, preallocated) can be on its way for a moment
//! that neither shows. If they aren't, somebody's data is on its way: the tree's own is written out, which tells the same of the
//! moment when that began.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::{Btrfs, measure, tree};
use crate::Result;
use crate::backend::{Tree, TreeState};
use crate::sys::btrfs::subvol::SubvolInfo;

impl Btrfs {
    pub(super) fn state_of(&self, tree: &Tree) -> Result<Option<TreeState>> {
        // In this order: what is written in between is seen by the one or the other.
        let was_quiet = self.is_quiet();
        let mut info = info_of(tree)?;
        if !was_quiet || !self.is_quiet() {
            if !self.write_out(tree)? {
                return Ok(None);
            }
            info = info_of(tree)?;
        }
        // What is changed in subvolumes inside of it leaves it alone.
        if !self.descendants(info.id)?.is_empty() {
            return Ok(None);
        }
        Ok(Some(TreeState { tree: info.id, change: info.ctransid }))
    }

    /// A snapshot has written out what was in memory of its source, and begins with its `ctransid`; what is changed later is of
    /// a later transaction.
    pub(super) fn state_then(&self, tree: &Tree, fork: &Tree) -> Result<TreeState> {
        Ok(TreeState { tree: info_of(tree)?.id, change: info_of(fork)?.ctransid })
    }

    /// Whether no data is on its way to the disk. Where data has no room of its own (mixed block groups) nobody can tell.
    fn is_quiet(&self) -> bool {
        let on_their_way = self.on_their_way.get_or_init(|| {
            let data = self.sysfs().join("allocation/data");
            ["bytes_may_use", "bytes_reserved"].iter().map(|name| File::open(data.join(name))).collect()
        });
        on_their_way.as_ref().is_ok_and(|files| files.iter().all(is_zero))
    }
}

/// Whether a file of sysfs says 0 now; it is written anew for each read at its beginning.
fn is_zero(file: &File) -> bool {
    let mut text = [0; 32];
    file.read_at(&mut text, 0).is_ok_and(|length| text[..length].trim_ascii() == b"0")
}

fn info_of(tree: &Tree) -> Result<SubvolInfo> {
    measure::info(&tree::open_tree(tree)?, tree)
}
