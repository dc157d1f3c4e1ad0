//! What the quota tree says: the mode, and each group's numbers, limit and members.

use std::ops::RangeInclusive;

use nix::errno::Errno;

use super::search::{Key, Search};
use super::{BtrfsFd, raw};

/// The flags of the quota status item; `None` if quotas are off.
pub(super) fn quota_status(any: &BtrfsFd) -> nix::Result<Option<u64>> {
    let key = Key::new(0, raw::QGROUP_STATUS, 0);
    let mut search = Search::new(any, raw::QUOTA_TREE, key, key);
    match search.next_item() {
        // version, generation, flags
        Ok(item) => item.map(|item| item.le64(16)).transpose(),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// A quota group and what it is charged, in bytes, as of the last commit (`struct btrfs_qgroup_info_item`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QgroupInfo {
    pub id: u64,
    pub referenced: u64,
    pub exclusive: u64,
}

/// The quota groups with ids in `ids`, in order.
pub fn qgroups(any: &BtrfsFd, ids: RangeInclusive<u64>) -> nix::Result<Vec<QgroupInfo>> {
    let (from, to) = (Key::new(0, raw::QGROUP_INFO, *ids.start()), Key::new(0, raw::QGROUP_INFO, *ids.end()));
    let mut search = Search::new(any, raw::QUOTA_TREE, from, to);
    let mut groups = Vec::new();
    while let Some(item) = search.next_item()? {
        // generation, rfer, rfer_cmpr, excl, excl_cmpr
        groups.push(QgroupInfo { id: item.key.offset, referenced: item.le64(8)?, exclusive: item.le64(24)? });
    }
    Ok(groups)
}

/// Whether quota group `id` has any limit (`struct btrfs_qgroup_limit_item`), as of the last commit.
pub fn is_limited(any: &BtrfsFd, id: u64) -> nix::Result<bool> {
    Ok(limit(any, id)?.is_some())
}

/// The lower of the limits of quota group `id`, in bytes (`struct btrfs_qgroup_limit_item`); `None` without any.
pub fn limit(any: &BtrfsFd, id: u64) -> nix::Result<Option<u64>> {
    let key = Key::new(0, raw::QGROUP_LIMIT, id);
    let mut search = Search::new(any, raw::QUOTA_TREE, key, key);
    let Some(item) = search.next_item()? else { return Ok(None) };
    // flags, max_rfer, max_excl
    let flags = item.le64(0)?;
    let referenced = (flags & raw::LIMIT_MAX_RFER != 0).then(|| item.le64(8)).transpose()?;
    let exclusive = (flags & raw::LIMIT_MAX_EXCL != 0).then(|| item.le64(16)).transpose()?;
    let other = (flags & !(raw::LIMIT_MAX_RFER | raw::LIMIT_MAX_EXCL) != 0).then_some(u64::MAX);
    Ok([referenced, exclusive, other].into_iter().flatten().min())
}

/// For each group with its id in `ids`: the groups it is a member of, and its members.
pub fn qgroup_relations(any: &BtrfsFd, ids: RangeInclusive<u64>) -> nix::Result<Vec<(u64, u64)>> {
    let (from, to) =
        (Key::new(*ids.start(), raw::QGROUP_RELATION, 0), Key::new(*ids.end(), raw::QGROUP_RELATION, u64::MAX));
    let mut search = Search::new(any, raw::QUOTA_TREE, from, to);
    let mut relations = Vec::new();
    while let Some(item) = search.next_item()? {
        if item.key.kind == raw::QGROUP_RELATION {
            relations.push((item.key.objectid, item.key.offset));
        }
    }
    Ok(relations)
}
