//! Which group a new tree is charged to, and how it gets there.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::Path;

use nix::errno::Errno;

use super::{Btrfs, tree};
use crate::backend::{GroupId, Leftover, QuotaMode, Tree};
use crate::sys::btrfs::qgroup::{self, LimitOn};
use crate::sys::btrfs::quota_tree::{self, QgroupInfo};
use crate::sys::btrfs::subvol;
use crate::{Context, Error, Kind, Result};

/// `BTRFS_QGROUP_LEVEL_SHIFT`.
const LEVEL_SHIFT: u32 = 48;

/// How often to make a tree anew when its group or the quota mode vanishes under it.
const ATTEMPTS: usize = 10;

/// What a new tree is to be born with.
struct Birth {
    /// The level-1 group that it has to be a member of afterwards.
    group: Option<u64>,
    /// Whether that group was made for it.
    made: bool,
    /// Whether limits are on the subvolume's own group, which exists only afterwards.
    limit_own: bool,
}

impl Btrfs {
    /// The quota group of `id`.
    pub(super) fn qgroup(&self, id: GroupId) -> u64 {
        1 << LEVEL_SHIFT | u64::from(self.group_prefix) << 32 | u64::from(id.0)
    }

    /// All quota groups that are this store's.
    pub(super) fn our_qgroups(&self) -> RangeInclusive<u64> {
        self.qgroup(GroupId(0))..=self.qgroup(GroupId(u32::MAX))
    }

    /// This store's groups and what they are charged, in order.
    pub(super) fn groups(&self) -> Result<Vec<(GroupId, QgroupInfo)>> {
        let infos = self.qgroup_infos(self.our_qgroups())?;
        // The lower half of a quota group's number is the id.
        Ok(infos.into_iter().map(|info| (GroupId(info.id as u32), info)).collect())
    }

    /// Quota groups by their numbers; none if quotas are off.
    pub(super) fn qgroup_infos(&self, ids: RangeInclusive<u64>) -> Result<Vec<QgroupInfo>> {
        match quota_tree::qgroups(&self.fd, ids) {
            Err(Errno::ENOENT) => Ok(Vec::new()),
            other => other.context(|| self.call("BTRFS_IOC_TREE_SEARCH_V2")),
        }
    }

    /// Members and groups of quota groups by their numbers; none if quotas are off.
    pub(super) fn qgroup_relations(&self, ids: RangeInclusive<u64>) -> Result<Vec<(u64, u64)>> {
        match quota_tree::qgroup_relations(&self.fd, ids) {
            Err(Errno::ENOENT) => Ok(Vec::new()),
            other => other.context(|| self.call("BTRFS_IOC_TREE_SEARCH_V2")),
        }
    }

    /// Which of our groups the tree is a member of.
    pub(super) fn group_of(&self, tree: &Tree) -> Result<Option<GroupId>> {
        let root = tree.root();
        let Some(fd) = tree::open_subvolume(&root)? else { return Ok(None) };
        let call = || format!("BTRFS_IOC_GET_SUBVOL_INFO {}", root.display());
        let id = subvol::get_subvol_info(&fd).context(call)?.id;
        let ours = self.our_qgroups();
        let groups = self.qgroup_relations(id..=id)?;
        Ok(groups.into_iter().find(|(_, group)| ours.contains(group)).map(|(_, group)| GroupId(group as u32)))
    }

    pub(super) fn leftover_groups(&self, live: &BTreeSet<GroupId>) -> Result<Vec<Leftover>> {
        let groups = self.groups()?.into_iter().filter(|(id, _)| !live.contains(id));
        let leftover = |(group, info): (GroupId, QgroupInfo)| Leftover {
            kind: "group",
            name: group.0.to_string(),
            charged: info.referenced,
        };
        Ok(groups.map(leftover).collect())
    }

    /// Make the subvolume at `at` by `make`, charged to the group of `tree` and limited.
    ///
    /// A clean-up in another process may take the group of a tree for a leftover as long as the tree isn't there
    /// yet, and older kernels then make the tree outside of any group. So its membership is proven afterwards:
    /// a limit that doesn't hold must not go unnoticed.
    pub(super) fn born(
        &self,
        tree: &Tree,
        at: &Path,
        limit: Option<u64>,
        make: impl Fn(Option<u64>) -> Result<()>,
    ) -> Result<()> {
        for _ in 0..ATTEMPTS {
            let Some(birth) = self.birth(tree, limit)? else { continue };
            if let Err(error) = make(birth.group) {
                if self.vanished(&birth)? && error.kind() == Kind::NotFound {
                    continue;
                }
                self.unmake(&birth);
                return Err(error);
            }
            if birth.limit_own {
                return self.limit_own(at, limit).inspect_err(|_| self.undo(at));
            }
            if self.is_member(at, &birth)? {
                return Ok(());
            }
            self.destroy_subvolume(at)?;
        }
        let message = format!("{}: its quota group is removed as often as it is made", at.display());
        Err(Error::new(Kind::InUse, message).with_hint("let the other reflinkd process finish, then try again"))
    }

    /// Prepare group and limit for a new tree; `None` if the quota mode changed meanwhile.
    fn birth(&self, tree: &Tree, limit: Option<u64>) -> Result<Option<Birth>> {
        let plain = Birth { group: None, made: false, limit_own: false };
        match (self.mode()?, tree.group()) {
            (QuotaMode::Simple, Some(id)) => self.simple_birth(self.qgroup(id), limit),
            (QuotaMode::Full, _) => Ok(Some(Birth { limit_own: true, ..plain })),
            _ if limit.is_none() => Ok(Some(plain)),
            (QuotaMode::Simple, None) => {
                Err(Error::new(Kind::Invalid, "a limit needs a group that the tree is charged to"))
            }
            (mode @ (QuotaMode::None | QuotaMode::Inconsistent | QuotaMode::Project), _) => Err(self.refusal(mode)),
        }
    }

    fn simple_birth(&self, group: u64, limit: Option<u64>) -> Result<Option<Birth>> {
        let made = match qgroup::create(&self.fd, group) {
            Ok(()) => true,
            // A layer and the tree it was unpacked in share one.
            Err(Errno::EEXIST) => false,
            Err(Errno::ENOTCONN) => return Ok(None),
            Err(e) => return Err(e).context(|| self.call("BTRFS_IOC_QGROUP_CREATE")),
        };
        let birth = Birth { group: Some(group), made, limit_own: false };
        let limited = limit.map_or(Ok(()), |_| qgroup::limit(&self.fd, group, LimitOn::Referenced, limit));
        match limited {
            Ok(()) => Ok(Some(birth)),
            Err(Errno::ENOENT | Errno::ENOTCONN) => Ok(None),
            Err(e) => {
                self.unmake(&birth);
                Err(e).context(|| self.call("BTRFS_IOC_QGROUP_LIMIT"))
            }
        }
    }

    /// Full quotas: limit a new subvolume. It was born with the limit of what it was cloned from, whatever the
    /// ioctl was told; and since its group didn't exist before, the limit needs a commit of its own.
    fn limit_own(&self, at: &Path, limit: Option<u64>) -> Result<()> {
        let call = || format!("limit {}", at.display());
        let Some(fd) = tree::open_subvolume(at)? else { return Ok(()) };
        let id = subvol::get_subvol_info(&fd).context(call)?.id;
        if limit.is_none() && !quota_tree::is_limited(&self.fd, id).context(call)? {
            return Ok(());
        }
        qgroup::limit(&self.fd, id, LimitOn::Exclusive, limit).context(call)?;
        self.commit()
    }

    /// Whether the group a tree was to be born into is gone.
    fn vanished(&self, birth: &Birth) -> Result<bool> {
        Ok(match birth.group {
            Some(group) => self.qgroup_infos(group..=group)?.is_empty(),
            None => false,
        })
    }

    fn is_member(&self, at: &Path, birth: &Birth) -> Result<bool> {
        let Some(group) = birth.group else { return Ok(true) };
        let Some(fd) = tree::open_subvolume(at)? else { return Ok(false) };
        let call = || format!("BTRFS_IOC_GET_SUBVOL_INFO {}", at.display());
        let id = subvol::get_subvol_info(&fd).context(call)?.id;
        Ok(self.qgroup_relations(id..=id)?.contains(&(id, group)))
    }

    /// Remove the group of a tree that didn't come to be, if it was made for it.
    fn unmake(&self, birth: &Birth) {
        if let (Some(group), true) = (birth.group, birth.made)
            && let Err(error) = qgroup::remove(&self.fd, group)
        {
            tracing::warn!(%error, group, "cannot remove the quota group of a tree that failed");
        }
    }
}
