//! Trees as Btrfs subvolumes: a clone is a snapshot, a charge is a quota group.
//!
//! Relies on what `docs/kernel.md` has observed: SNAP_CREATE commits, so that a clone is durable with its place
//! when it returns; SNAP_DESTROY works in place on read-only subvolumes; with simple quotas a subvolume made
//! inside another joins its groups.
//!
//! | quota mode | charge | limit | size |
//! |---|---|---|---|
//! | simple | a level-1 group for each [`GroupId`], given at birth | `max_rfer` of that group | what the group is charged |
//! | full | the subvolume's own group | `max_excl` of that | its exclusive bytes |
//! | none, inconsistent | - | refused | extents written since the clone |
//!
//! The level-1 group of [`GroupId`] 7 in a store of prefix 3 is `1/12884901895`: level 1, then 16 bits of prefix,
//! then 32 of the id. Groups of other prefixes and levels are never touched. Full quotas get no level-1 group:
//! a snapshot born into one makes the kernel declare its own numbers inconsistent.
//!
//! Never walks a tree: what is nested, written or left over is found by searching the filesystem's own trees.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use crate::backend::changes::{Changes, Comparison};
use crate::backend::{
    Access, Backend, Charge, CloneCost, GroupId, Leftover, Measured, Nested, Own, OwnNow, QuotaMode, Quotas,
    SizeMethod, Space, Tree, TreeState, Want,
};
use crate::sys::btrfs::{self, BtrfsFd, search, space};
use crate::sys::durable;
use crate::sys::trim;
use crate::{Context, Error, Kind, Result};

mod changes;
mod destroy;
pub mod format;
mod group;
mod measure;
mod now;
mod quota;
mod reclaim;
pub mod root;
mod state;
mod touched;
mod tree;

/// A mounted Btrfs filesystem.
#[derive(Debug)]
pub struct Btrfs {
    /// The directory that was opened: names the filesystem in messages.
    root: PathBuf,
    /// Any descriptor on the filesystem. Keeps it mounted as long as this lives.
    fd: BtrfsFd,
    fsid: uuid::Uuid,
    /// Bytes of a metadata block: what the root of an untouched clone takes.
    nodesize: u64,
    group_prefix: u16,
    /// Subvolumes destroyed by this process under full quotas, whose level-0 groups older kernels leave behind.
    destroyed: Mutex<BTreeSet<u64>>,
    /// Files of sysfs that say how much data is on its way to the disk, from when they are first asked.
    on_their_way: OnceLock<io::Result<Vec<File>>>,
}

impl Btrfs {
    /// The filesystem that directory `root` is on; all places lie on it.
    ///
    /// `group_prefix` sets this store's quota groups apart from those of other stores on the filesystem.
    ///
    /// # Errors
    /// `Unsupported` if `root` isn't on Btrfs; `Denied` without CAP_SYS_ADMIN.
    pub fn open(root: &Path, group_prefix: u16) -> Result<Self> {
        let fd = BtrfsFd::open(root).map_err(|e| not_btrfs(root, &e))?;
        let info = space::fs_info(&fd).context(|| format!("BTRFS_IOC_FS_INFO {}", root.display()))?;
        let btrfs = Self {
            root: root.to_owned(),
            fd,
            fsid: uuid::Uuid::from_bytes(info.fsid),
            nodesize: info.nodesize.into(),
            group_prefix,
            destroyed: Mutex::default(),
            on_their_way: OnceLock::new(),
        };
        // Proves the right to search trees, on which everything here depends.
        btrfs.mode()?;
        Ok(btrfs)
    }

    /// The filesystem's UUID.
    #[must_use]
    pub fn fsid(&self) -> uuid::Uuid {
        self.fsid
    }

    /// Directory of this filesystem in sysfs, made anew with each mount.
    fn sysfs(&self) -> PathBuf {
        Path::new("/sys/fs/btrfs").join(self.fsid.to_string())
    }

    /// For messages about the filesystem itself.
    fn call(&self, call: &str) -> String {
        format!("{call} {}", self.root.display())
    }
}

fn not_btrfs(path: &Path, error: &std::io::Error) -> Error {
    if error.raw_os_error() == Some(libc::ENOTTY) {
        Error::new(Kind::Unsupported, format!("{} is not on Btrfs", path.display()))
    } else {
        Error::system(format!("open {}", path.display()), error)
    }
}

impl Backend for Btrfs {
    fn create(&self, tree: &Tree, limit: Option<u64>) -> Result<()> {
        self.create_tree(tree, limit)
    }

    fn clone_tree(&self, from: &Tree, to: &Tree, access: Access, limit: Option<u64>) -> Result<()> {
        self.clone_into(from, to, &to.root(), access, limit)
    }

    fn seal(&self, tree: &Tree) -> Result<(SizeMethod, u64)> {
        self.seal_tree(tree)
    }

    fn replace(&self, from: &Tree, fresh: &Tree, limit: Option<u64>) -> Result<()> {
        self.replace_tree(from, fresh, limit)
    }

    /// A snapshot of a snapshot is compared with anything it descends from.
    fn fork(&self, from: &Tree, to: &Tree, access: Access, limit: Option<u64>) -> Result<()> {
        self.clone_into(from, to, &to.root(), access, limit)
    }

    fn roll_back(
        &self,
        from: &Tree,
        tree: &Tree,
        limit: Option<u64>,
        kept: &Tree,
        ready: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        self.roll_back_tree(from, tree, limit, kept, ready)
    }

    fn settle(&self, place: &Path) -> Result<Option<GroupId>> {
        let tree = Tree::new(place, None);
        self.destroy_subvolume(&tree.spare())?;
        self.group_of(&tree)
    }

    fn destroy(&self, tree: &Tree) -> Result<()> {
        self.destroy_subvolume(&tree.spare())?;
        self.destroy_subvolume(&tree.root())
    }

    fn exists(&self, tree: &Tree) -> Result<bool> {
        Ok(tree::open_subvolume(&tree.root())?.is_some())
    }

    fn is_read_only(&self, tree: &Tree) -> Result<bool> {
        let root = tree::open_tree(tree)?;
        btrfs::subvol::is_read_only(&root).context(|| format!("BTRFS_IOC_SUBVOL_GETFLAGS {}", tree.root().display()))
    }

    fn nested(&self, tree: &Tree) -> Result<Vec<Nested>> {
        self.nested_in(&tree::open_tree(tree)?, &tree.root())
    }

    fn measure(&self, trees: &[&Tree], want: Want) -> Result<Measured> {
        self.measure_trees(trees, want)
    }

    fn own(&self, tree: &Tree, parent: Option<&Tree>) -> Result<Own> {
        self.own_of(tree, parent)
    }

    fn own_now(&self, tree: &Tree, parent: Option<&Tree>) -> Result<Option<OwnNow>> {
        self.own_now_of(tree, parent)
    }

    fn charged(&self, groups: &BTreeSet<GroupId>) -> Result<Option<u64>> {
        self.charged_to(groups)
    }

    fn changes(&self, wanted: &Comparison<'_>) -> Result<Changes> {
        self.changes_of(wanted)
    }

    fn state(&self, tree: &Tree) -> Result<Option<TreeState>> {
        self.state_of(tree)
    }

    fn state_of_fork(&self, tree: &Tree, fork: &Tree) -> Result<Option<TreeState>> {
        self.state_then(tree, fork).map(Some)
    }

    fn made(&self, tree: &Tree) -> Result<Option<Vec<PathBuf>>> {
        self.made_in(tree).map(Some)
    }

    fn touched(&self, tree: &Tree) -> Result<Option<Vec<PathBuf>>> {
        self.touched_in(tree).map(Some)
    }

    /// By the flag alone: of a tree that was made read-only all is on disk, and nobody can have it open for writing.
    fn set_read_only(&self, tree: &Tree, read_only: bool) -> Result<()> {
        let root = tree::open_tree(tree)?;
        btrfs::subvol::set_read_only(&root, read_only)
            .context(|| format!("BTRFS_IOC_SUBVOL_SETFLAGS {}", tree.root().display()))?;
        self.commit()
    }

    fn charge(&self, tree: &Tree) -> Result<Option<Charge>> {
        self.charge_of(tree)
    }

    fn foreign_trees(&self) -> Result<Vec<PathBuf>> {
        self.subvolumes_outside()
    }

    fn is_cleaning(&self) -> Result<bool> {
        Ok(!search::orphans(&self.fd, None).context(|| self.call("BTRFS_IOC_TREE_SEARCH_V2"))?.is_empty())
    }

    fn overhead(&self, _trees: &[&Tree]) -> Result<u64> {
        Ok(0)
    }

    fn clone_cost(&self) -> CloneCost {
        CloneCost::Constant
    }

    /// `total` and `available` are statfs(2)'s. `used` counts each block once, as quotas do, however many copies
    /// the metadata's profile keeps, and leaves out the kernel's global reserve, which moves by itself: so it is
    /// comparable with charges, and less than what statfs calls used.
    fn space(&self) -> Result<Space> {
        let fs = rustix::fs::fstatvfs(&self.fd).context(|| self.call("statfs"))?;
        let used = space::space_info(&self.fd).context(|| self.call("BTRFS_IOC_SPACE_INFO"))?.used;
        Ok(Space { total: fs.f_blocks * fs.f_frsize, used, available: fs.f_bavail * fs.f_frsize })
    }

    fn sync(&self) -> Result<()> {
        durable::syncfs(self.fd.as_fd(), &self.root).context(|| self.call("syncfs"))
    }

    fn leftovers(&self, live: &BTreeSet<GroupId>) -> Result<Vec<Leftover>> {
        self.leftover_groups(live)
    }

    fn reclaim(&self, live: &BTreeSet<GroupId>, patience: Duration) -> Result<u64> {
        self.reclaim_groups(live, patience)
    }

    fn trim(&self) -> Result<u64> {
        trim::fitrim(&self.fd).context(|| self.call("FITRIM"))
    }

    fn highest_group(&self) -> Result<Option<GroupId>> {
        Ok(self.groups()?.last().map(|(id, _)| *id))
    }

    fn instance(&self) -> Result<String> {
        use std::os::unix::fs::MetadataExt;

        const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
        let boot = std::fs::read_to_string(BOOT_ID).context(|| format!("read {BOOT_ID}"))?;
        let sysfs = self.sysfs();
        let mount = std::fs::metadata(&sysfs).context(|| format!("stat {}", sysfs.display()))?.ino();
        Ok(format!("{}/{mount}", boot.trim()))
    }

    fn quotas(&self) -> Option<&dyn Quotas> {
        match self.mode() {
            Ok(QuotaMode::Simple | QuotaMode::Full) => Some(self),
            Ok(QuotaMode::None | QuotaMode::Inconsistent | QuotaMode::Project) | Err(_) => None,
        }
    }

    fn no_limits(&self) -> Result<Error> {
        Ok(self.refusal(self.mode()?))
    }

    fn quota_mode(&self) -> Result<QuotaMode> {
        self.mode()
    }

    fn switches_quotas(&self) -> bool {
        true
    }

    fn set_quota_mode(&self, mode: QuotaMode) -> Result<()> {
        self.switch_quotas(mode)
    }
}

/// A subvolume inside a tree, at any depth.
#[derive(Debug)]
struct Descendant {
    /// The subvolume it is directly in.
    parent: u64,
    child: search::Child,
}

impl Btrfs {
    /// Subvolumes inside subvolume `id` at any depth, parents before their children.
    fn descendants(&self, id: u64) -> Result<Vec<Descendant>> {
        let mut found: Vec<Descendant> = Vec::new();
        let mut parent = id;
        for next in 0.. {
            let children = search::children(&self.fd, parent).context(|| self.call("BTRFS_IOC_TREE_SEARCH_V2"))?;
            found.extend(children.into_iter().map(|child| Descendant { parent, child }));
            let Some(descendant) = found.get(next) else { break };
            parent = descendant.child.id;
        }
        Ok(found)
    }
}
