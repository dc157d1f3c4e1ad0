//! How large trees are.

use std::collections::{BTreeSet, HashMap};

use super::{Btrfs, tree};
use crate::backend::{Backend, GroupId, Measured, Own, QuotaMode, SizeMethod, Tree, TreeSize, Want};
use crate::sys::btrfs::search::{self, Change};
use crate::sys::btrfs::subvol::{self, SubvolInfo};
use crate::sys::btrfs::{BtrfsFd, SUBVOLUME_INODE, quota_tree};
use crate::{Context, Result};

impl Btrfs {
    pub(super) fn measure_trees(&self, trees: &[&Tree], want: Want) -> Result<Measured> {
        if want.sync {
            self.sync_to_count();
        }
        let (method, charges) = match self.mode()? {
            QuotaMode::Simple => (SizeMethod::SimpleQuota, self.simple_charges(trees)?),
            QuotaMode::Full => (SizeMethod::Qgroup, self.exclusive_bytes(trees)?),
            QuotaMode::None | QuotaMode::Inconsistent | QuotaMode::Project => (SizeMethod::Extents, None),
        };
        let count = |tree: &&Tree| self.count(tree);
        let Some(charges) = charges else {
            let sizes = trees.iter().map(|tree| {
                let counts = count(tree)?;
                Ok(TreeSize { charged: counts.charged(), apparent: want.apparent.then_some(counts.apparent) })
            });
            return Ok(Measured { method: SizeMethod::Extents, sizes: sizes.collect::<Result<_>>()? });
        };
        let sizes = trees.iter().zip(charges).map(|(tree, charged)| {
            let apparent = if want.apparent { Some(count(tree)?.apparent) } else { None };
            Ok(TreeSize { charged, apparent })
        });
        Ok(Measured { method, sizes: sizes.collect::<Result<_>>()? })
    }

    /// What each tree's group is charged, beyond the root block that an untouched clone has. Members that are
    /// destroyed count too: what they wrote may live on in a clone of the same group.
    ///
    /// `None` if one of them has no group on this filesystem: it was made while these quotas were off, so that
    /// nobody is charged for what is in it, and only counting tells the truth.
    fn simple_charges(&self, trees: &[&Tree]) -> Result<Option<Vec<u64>>> {
        let groups: Option<Vec<u64>> = trees.iter().map(|tree| Some(self.qgroup(tree.group()?))).collect();
        let Some(groups) = groups else { return Ok(None) };
        let charges = self.charges(&groups, |info| info.referenced)?;
        let own = |group| charges.get(group).map(|bytes| bytes.saturating_sub(self.nodesize));
        Ok(groups.iter().map(own).collect())
    }

    /// What only this tree refers to, beyond its root block; subvolumes in it included.
    /// `None` if one of them has no group.
    fn exclusive_bytes(&self, trees: &[&Tree]) -> Result<Option<Vec<u64>>> {
        let mut families = Vec::with_capacity(trees.len());
        for tree in trees {
            let id = info(&tree::open_tree(tree)?, tree)?.id;
            let nested = self.descendants(id)?.into_iter().map(|d| d.child.id);
            families.push(std::iter::once(id).chain(nested).collect::<Vec<_>>());
        }
        let all: Vec<u64> = families.iter().flatten().copied().collect();
        let charges = self.charges(&all, |info| info.exclusive)?;
        let sum = |family: &Vec<u64>| {
            let bytes = family.iter().map(|id| charges.get(id)).sum::<Option<u64>>()?;
            Some(bytes.saturating_sub(self.nodesize))
        };
        Ok(families.iter().map(sum).collect())
    }

    /// One number of each quota group, by one search from the lowest to the highest.
    fn charges(&self, groups: &[u64], number: fn(&quota_tree::QgroupInfo) -> u64) -> Result<HashMap<u64, u64>> {
        let (Some(first), Some(last)) = (groups.iter().min(), groups.iter().max()) else {
            return Ok(HashMap::new());
        };
        Ok(self.qgroup_infos(*first..=*last)?.iter().map(|info| (info.id, number(info))).collect())
    }

    /// Count what was written into a tree since it was cloned, or ever if it is no clone.
    fn count(&self, tree: &Tree) -> Result<Count> {
        let born = info(&tree::open_tree(tree)?, tree)?;
        let since = if born.parent_uuid.is_some() { Since::Clone(born) } else { Since::Ever };
        self.count_since(tree, &born, since)
    }

    /// Count what was written into a tree, and into the subvolumes in it, since an ancestor of it was made. A relative of
    /// it may share what is counted.
    fn count_since(&self, tree: &Tree, born: &SubvolInfo, since: Since) -> Result<Count> {
        let mut count = Count::new(since);
        self.count_in(born.id, &mut count, tree)?;
        for descendant in self.descendants(born.id)? {
            let id = descendant.child.id;
            let Ok(root) = subvol::open_directory(&self.fd, id, SUBVOLUME_INODE) else { continue };
            // What was made elsewhere before the clone and moved in is the tree's own, all of it. What was made
            // in it may share older extents with it, which are what it was cloned with.
            let elsewhere = info(&root, tree)?.otransid < born.otransid;
            count.since = if elsewhere { Since::Ever } else { since };
            self.count_in(id, &mut count, tree)?;
        }
        Ok(count)
    }

    pub(super) fn own_of(&self, tree: &Tree, parent: Option<&Tree>) -> Result<Own> {
        let born = info(&tree::open_tree(tree)?, tree)?;
        let since = Since::of(parent.map(|parent| info(&tree::open_tree(parent)?, parent)).transpose()?);
        let Count { extents, inline, apparent, .. } = self.count_since(tree, &born, since)?;
        let blocks = extents.into_iter().map(|(address, bytes)| address..address + bytes).collect();
        Ok(Own { blocks, elsewhere: inline, apparent })
    }

    pub(super) fn charged_to(&self, groups: &BTreeSet<GroupId>) -> Result<Option<u64>> {
        if self.mode()? != QuotaMode::Simple {
            return Ok(None);
        }
        let ours = self.groups()?.into_iter().filter(|(id, _)| groups.contains(id));
        Ok(Some(ours.map(|(_, info)| info.referenced).sum()))
    }

    fn count_in(&self, id: u64, count: &mut Count, tree: &Tree) -> Result<()> {
        match search::changes(&self.fd, id, count.since.transid(), |change| count.add(&change)) {
            // A nested subvolume that was removed while we looked.
            Err(nix::errno::Errno::ENOENT) => Ok(()),
            other => other.context(|| format!("BTRFS_IOC_TREE_SEARCH_V2 {}", tree.root().display())),
        }
    }
}

pub(super) fn info(root: &BtrfsFd, tree: &Tree) -> Result<SubvolInfo> {
    subvol::get_subvol_info(root).context(|| format!("BTRFS_IOC_GET_SUBVOL_INFO {}", tree.root().display()))
}

/// From when on what is written counts.
#[derive(Debug, Clone, Copy)]
pub(super) enum Since {
    Ever,
    Clone(SubvolInfo),
}

impl Since {
    /// Since a parent was made, if there is one.
    pub(super) fn of(parent: Option<SubvolInfo>) -> Self {
        parent.map_or(Self::Ever, Self::Clone)
    }

    /// The first transaction that counts: a clone holds all of the one that made it.
    pub(super) fn transid(self) -> u64 {
        match self {
            Self::Ever => 0,
            Self::Clone(info) => info.otransid + 1,
        }
    }

    /// Whether an inode was made or changed. Reading moves the access time, and with it the transaction, but not the change time.
    pub(super) fn is_changed(self, transid: u64, ctime: (u64, u32)) -> bool {
        match self {
            Self::Ever => true,
            Self::Clone(info) => transid >= self.transid() && ctime >= info.otime,
        }
    }
}

/// Sums over the changes of a tree.
#[derive(Debug)]
pub(super) struct Count {
    since: Since,
    /// Bytes of extents by their addresses: files share them by reflinks, subvolumes by snapshots.
    extents: HashMap<u64, u64>,
    /// Bytes among the metadata.
    inline: u64,
    apparent: u64,
    /// The regular file whose items are coming, unless it is counted already: number and size.
    file: Option<(u64, u64)>,
}

impl Count {
    pub(super) fn new(since: Since) -> Self {
        Self { since, extents: HashMap::new(), inline: 0, apparent: 0, file: None }
    }

    pub(super) fn charged(&self) -> u64 {
        self.inline + self.extents.values().sum::<u64>()
    }

    pub(super) fn add(&mut self, change: &Change) {
        let first = self.since.transid();
        match *change {
            Change::Inode { inode, transid, size, links, mode, ctime } => {
                self.file = None;
                if mode & libc::S_IFMT != libc::S_IFREG || links == 0 {
                    return;
                }
                if self.since.is_changed(transid, ctime) {
                    self.apparent += size;
                } else {
                    self.file = Some((inode, size));
                }
            }
            Change::Extent { inode, generation, address, bytes } if generation >= first => {
                self.extents.insert(address, bytes);
                self.written(inode);
            }
            Change::Inline { inode, generation, bytes } if generation >= first => {
                self.inline += bytes;
                self.written(inode);
            }
            Change::Extent { .. } | Change::Inline { .. } | Change::Named { .. } => {}
        }
    }

    /// Data of a file is new, whatever its times say: a clock may have been set back.
    fn written(&mut self, inode: u64) {
        if let Some((_, size)) = self.file.take_if(|(file, _)| *file == inode) {
            self.apparent += size;
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use uuid::Uuid;

    use super::*;

    pub(crate) const CLONE: SubvolInfo = SubvolInfo {
        id: 300,
        uuid: Uuid::from_u128(2),
        parent_uuid: Some(Uuid::from_u128(1)),
        ctransid: 9,
        otransid: 10,
        otime: (1000, 5),
    };

    pub(crate) fn file(inode: u64, transid: u64, ctime: (u64, u32)) -> Change {
        Change::Inode { inode, transid, size: 100, links: 1, mode: libc::S_IFREG | 0o644, ctime }
    }

    pub(crate) fn extent(inode: u64, generation: u64, address: u64) -> Change {
        Change::Extent { inode, generation, address, bytes: 4096 }
    }

    fn count(since: Since, changes: &[Change]) -> (u64, u64) {
        let mut count = Count::new(since);
        changes.iter().for_each(|change| count.add(change));
        (count.charged(), count.apparent)
    }

    #[test]
    fn what_the_clone_was_made_with_is_not_counted() {
        let old = [file(257, 10, (1000, 5)), extent(257, 10, 1 << 20)];
        assert_eq!(count(Since::Clone(CLONE), &old), (0, 0));
        assert_eq!(count(Since::Ever, &old), (4096, 100));
    }

    #[test]
    fn one_new_extent_makes_a_whole_file_apparent() {
        let changed = [file(257, 11, (1000, 6)), extent(257, 10, 1 << 20), extent(257, 11, 2 << 20)];
        assert_eq!(count(Since::Clone(CLONE), &changed), (4096, 100));
    }

    #[test]
    fn an_access_time_alone_is_no_change() {
        assert_eq!(count(Since::Clone(CLONE), &[file(257, 12, (999, 0)), extent(257, 9, 1 << 20)]), (0, 0));
    }

    #[test]
    fn data_written_under_a_clock_set_back_counts() {
        let back = [file(257, 12, (1, 0)), extent(257, 12, 1 << 20), extent(257, 12, 2 << 20)];
        assert_eq!(count(Since::Clone(CLONE), &back), (8192, 100));
    }

    #[test]
    fn a_shared_extent_counts_once() {
        let shared =
            [file(257, 11, (2000, 0)), extent(257, 11, 1 << 20), file(258, 11, (2000, 0)), extent(258, 11, 1 << 20)];
        assert_eq!(count(Since::Clone(CLONE), &shared), (4096, 200));
    }

    #[test]
    fn unlinked_files_and_directories_have_no_apparent_size() {
        let unlinked =
            Change::Inode { inode: 257, transid: 11, size: 7, links: 0, mode: libc::S_IFREG, ctime: (2000, 0) };
        let directory =
            Change::Inode { inode: 258, transid: 11, size: 7, links: 1, mode: libc::S_IFDIR, ctime: (2000, 0) };
        assert_eq!(count(Since::Clone(CLONE), &[unlinked, extent(257, 11, 1 << 20), directory]), (4096, 0));
    }
}
