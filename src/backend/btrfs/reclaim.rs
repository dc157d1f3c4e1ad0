//! What is left of removed trees, and giving it back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::Btrfs;
use crate::backend::{Backend, GroupId, QuotaMode};
use crate::sys::btrfs::space::BlockGroups;
use crate::sys::btrfs::{qgroup, search, space};
use crate::{Context, Result};

/// How long to wait between two looks at the cleaner.
const POLL: Duration = Duration::from_millis(20);

impl Btrfs {
    pub(super) fn reclaim_groups(&self, live: &BTreeSet<GroupId>, patience: Duration) -> Result<u64> {
        self.wait_for_cleaner(patience)?;
        // The cleaner's last steps reach the charges with the next commit.
        self.sync_to_count();
        let groups = match self.mode()? {
            QuotaMode::Simple => self.drop_groups(live)?,
            QuotaMode::Full => self.drop_stale_subvolume_groups()?,
            QuotaMode::None | QuotaMode::Inconsistent | QuotaMode::Project => 0,
        };
        self.free_empty_block_groups()?;
        Ok(groups)
    }

    /// Give a new, grown filesystem metadata room of the size that the kernel picks for it.
    ///
    /// mkfs makes a block group of 8 MiB, and the kernel reserves most of that: once data has taken all the rest of
    /// the disk, not even an emptied filesystem could make a directory.
    pub fn make_room_for_metadata(&self) -> Result<()> {
        space::balance(&self.fd, BlockGroups::Metadata).context(|| self.call("BTRFS_IOC_BALANCE_V2"))
    }

    /// After the disk was full with data, its block groups are empty but still data's: metadata finds no room, and not
    /// even a directory can be made. The kernel gives empty ones back by itself, but late.
    fn free_empty_block_groups(&self) -> Result<()> {
        let info = space::space_info(&self.fd).context(|| self.call("BTRFS_IOC_SPACE_INFO"))?;
        let unallocated_for_all = self.space()?.available.saturating_sub(info.unused_data);
        if unallocated_for_all > info.unused_data {
            return Ok(());
        }
        match space::balance(&self.fd, BlockGroups::EmptyData) {
            Ok(()) => Ok(()),
            // Somebody else's balance does as well, and where there is no room for one nothing is lost.
            Err(error @ (Errno::EINPROGRESS | Errno::EROFS | Errno::ENOSPC | Errno::ECANCELED)) => {
                tracing::debug!(%error, "no balance of empty block groups");
                Ok(())
            }
            Err(e) => Err(e).context(|| self.call("BTRFS_IOC_BALANCE_V2")),
        }
    }

    /// Wait until the subvolumes deleted by now are cleaned up, at most `patience`. Those that a process holds
    /// open are not.
    pub(super) fn wait_for_cleaner(&self, patience: Duration) -> Result<()> {
        let orphans = || search::orphans(&self.fd, None).context(|| self.call("BTRFS_IOC_TREE_SEARCH_V2"));
        let start = Instant::now();
        let deleted = orphans()?;
        if deleted.is_empty() {
            return Ok(());
        }
        // Wakes the transaction thread, which wakes the cleaner; left alone it would do so every 30 s.
        space::sync(&self.fd).context(|| self.call("BTRFS_IOC_SYNC"))?;
        while !orphans()?.is_disjoint(&deleted) {
            let Some(left) = patience.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) else { break };
            std::thread::sleep(POLL.min(left));
        }
        Ok(())
    }

    /// Drop dead members that nothing is charged to, then the groups that are not live and have no member left.
    /// A dead member that is still charged holds data that lives on in a clone of another group: it stays.
    fn drop_groups(&self, live: &BTreeSet<GroupId>) -> Result<u64> {
        let mut members: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for (group, member) in self.qgroup_relations(self.our_qgroups())? {
            // Groups of a higher level that somebody put ours into are none of our members.
            if member < group {
                members.entry(group).or_default().push(member);
            }
        }
        let mut dropped = 0;
        for (id, info) in self.groups()? {
            let mut left = 0_usize;
            for member in members.remove(&info.id).unwrap_or_default() {
                left += usize::from(!self.drop_member(member)?);
            }
            if left == 0 && !live.contains(&id) && self.remove_group(info.id)? {
                dropped += 1;
            }
        }
        Ok(dropped)
    }

    /// Drop a subvolume's group if the subvolume is gone and nothing is charged to it; whether it is dropped. The kernel
    /// takes it out of ours by the same transaction: taken out first, nobody would know whose it is if we died then.
    fn drop_member(&self, member: u64) -> Result<bool> {
        if self.is_charged(member)? || self.has_subvolume(member)? {
            return Ok(false);
        }
        Ok(self.remove_group(member)? || self.qgroup_infos(member..=member)?.is_empty())
    }

    /// Whether anything was charged to a group as of the last commit.
    fn is_charged(&self, id: u64) -> Result<bool> {
        Ok(self.qgroup_infos(id..=id)?.iter().any(|info| info.referenced > 0))
    }

    fn has_subvolume(&self, id: u64) -> Result<bool> {
        search::has_root(&self.fd, id).context(|| self.call("BTRFS_IOC_TREE_SEARCH_V2"))
    }

    /// Remove a quota group; `false` if the kernel still needs it, or has removed it.
    fn remove_group(&self, id: u64) -> Result<bool> {
        match qgroup::remove(&self.fd, id) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT | Errno::EBUSY) => Ok(false),
            Err(e) => Err(e).context(|| self.call("BTRFS_IOC_QGROUP_CREATE")),
        }
    }

    /// Full quotas of kernels before 6.10 keep the level-0 group of each subvolume that ever was. Only those of
    /// subvolumes that this process destroyed are known to be ours.
    fn drop_stale_subvolume_groups(&self) -> Result<u64> {
        let destroyed = self.destroyed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let mut dropped = 0;
        for id in destroyed {
            // One that goes before its numbers do makes the kernel call all of them wrong.
            if self.is_charged(id)? || self.has_subvolume(id)? {
                continue;
            }
            dropped += u64::from(self.remove_group(id)?);
            self.destroyed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&id);
        }
        Ok(dropped)
    }
}
