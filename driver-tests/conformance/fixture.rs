//! A filesystem with a backend on it, and what its setup promises.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use reflinkd::backend::btrfs::Btrfs;
use reflinkd::backend::memory::Memory;
use reflinkd::backend::reflink::Reflink;
use reflinkd::backend::{Backend, GroupId, QuotaMode, SizeMethod, Tree, TreeSize, Want};
use reflinkd::sys::xfs::XfsFd;
use reflinkd::sys::xfs::quota::ProjectQuotas;
use reflinkd::sys::xfs::space::free_preallocated;
use reflinkd::{Error, Kind, Result};

use crate::support::{GIB, KIB, LoopFs, QuotaSetup, kernel_since};

/// Upper half of the ids of this store's groups: Btrfs level-1 qgroups `1/(PREFIX << 32 | group)`.
const PREFIX: u16 = 0x7e57;
/// Long enough for a busy machine; cases never wait it out unless they fail.
const PATIENCE: Duration = Duration::from_secs(60);

/// A backend on a filesystem in a quota mode.
// Each of the two test binaries makes some of them.
#[allow(dead_code)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Setup {
    Memory,
    Simple,
    Full,
    None,
    Inconsistent,
    /// As None and Simple, compressing what is written.
    Zstd,
    ZstdSimple,
    /// Reflink trees on XFS mounted without quotas.
    Xfs,
    /// Reflink trees on XFS mounted with project quotas, which hosts seldom have.
    XfsPrjquota,
    /// Reflink trees on Btrfs without quotas.
    ReflinkOnBtrfs,
}

impl Setup {
    pub(crate) fn make(self) -> Fixture {
        let size = 8 * GIB;
        let fs = match self {
            Self::Memory => LoopFs::tmpfs(size),
            Self::Simple => LoopFs::btrfs(size, QuotaSetup::Simple),
            Self::Full => LoopFs::btrfs(size, QuotaSetup::Full),
            Self::None => LoopFs::btrfs(size, QuotaSetup::None),
            Self::Inconsistent => LoopFs::btrfs(size, QuotaSetup::Inconsistent),
            Self::Zstd => LoopFs::btrfs_zstd(size, QuotaSetup::None),
            Self::ZstdSimple => LoopFs::btrfs_zstd(size, QuotaSetup::Simple),
            Self::Xfs => LoopFs::xfs(size),
            Self::XfsPrjquota => LoopFs::xfs_mounted(size, "prjquota"),
            Self::ReflinkOnBtrfs => LoopFs::btrfs(size, QuotaSetup::None),
        };
        if self.is_reflink() {
            assert!(Reflink::probe(fs.path()).expect("probe"), "this filesystem shares blocks between files");
            Reflink::make(fs.path()).expect("make the trash");
        }
        Fixture { backend: self.open(fs.path()), setup: self, next: AtomicU32::new(1), fs }
    }

    fn open(self, root: &Path) -> Box<dyn Backend> {
        match self {
            Self::Memory => Box::new(Memory::new(root).expect("open the memory backend")),
            Self::Xfs | Self::XfsPrjquota | Self::ReflinkOnBtrfs => {
                Box::new(Reflink::open(root, PREFIX).expect("open the reflink backend"))
            }
            Self::Simple | Self::Full | Self::None | Self::Inconsistent | Self::Zstd | Self::ZstdSimple => {
                Box::new(Btrfs::open(root, PREFIX).expect("open the btrfs backend"))
            }
        }
    }

    /// Whether trees are subvolumes, which can be nested, and can refuse writes.
    pub(crate) fn is_btrfs(self) -> bool {
        matches!(self, Self::Full | Self::None | Self::Inconsistent | Self::Zstd) || self.counts_simply()
    }

    /// Whether simple quotas count.
    pub(crate) fn counts_simply(self) -> bool {
        matches!(self, Self::Simple | Self::ZstdSimple)
    }

    /// Whether subvolumes can be made inside of trees.
    pub(crate) fn on_btrfs(self) -> bool {
        self.is_btrfs() || self == Self::ReflinkOnBtrfs
    }

    /// Whether trees are directories whose files share blocks, with a manifest beside each.
    pub(crate) fn is_reflink(self) -> bool {
        matches!(self, Self::Xfs | Self::XfsPrjquota | Self::ReflinkOnBtrfs)
    }

    pub(crate) fn mode(self) -> QuotaMode {
        match self {
            Self::Memory | Self::None | Self::Zstd | Self::Xfs | Self::ReflinkOnBtrfs => QuotaMode::None,
            Self::Simple | Self::ZstdSimple => QuotaMode::Simple,
            Self::Full => QuotaMode::Full,
            Self::Inconsistent => QuotaMode::Inconsistent,
            Self::XfsPrjquota => QuotaMode::Project,
        }
    }

    pub(crate) fn method(self) -> SizeMethod {
        match self {
            Self::Memory => SizeMethod::Blocks,
            Self::Simple | Self::ZstdSimple => SizeMethod::SimpleQuota,
            Self::Full => SizeMethod::Qgroup,
            Self::XfsPrjquota => SizeMethod::ProjectQuota,
            Self::None | Self::Inconsistent | Self::Zstd | Self::Xfs | Self::ReflinkOnBtrfs => SizeMethod::Extents,
        }
    }

    /// Whether limits are held.
    pub(crate) fn limits(self) -> bool {
        matches!(self, Self::Full | Self::XfsPrjquota) || self.counts_simply()
    }

    /// What a writer is told at a limit.
    pub(crate) fn refusal(self) -> i32 {
        if self == Self::XfsPrjquota { libc::ENOSPC } else { libc::EDQUOT }
    }

    /// What a clone is charged for so many bytes of its own, so many of what it was cloned from overwritten, and so many of
    /// that removed. Project quotas count all blocks of a tree, whoever else has them.
    pub(crate) fn charge(self, own: u64, overwritten: u64, removed: u64) -> u64 {
        if self == Self::XfsPrjquota { own.saturating_sub(removed) } else { own + overwritten }
    }

    /// Whether a tree's [`GroupId`] is known from the filesystem alone. Full qgroups charge each subvolume by itself.
    pub(crate) fn by_group(self) -> bool {
        self.counts_simply() || self.is_reflink()
    }

    /// Whether blocks that several files of a tree share are charged once.
    pub(crate) fn shares_blocks(self) -> bool {
        !matches!(self, Self::Memory | Self::XfsPrjquota)
    }

    /// Whether room that is allocated and not written to is charged.
    pub(crate) fn counts_room(self) -> bool {
        self != Self::Memory
    }

    /// Most bytes that may be charged above the blocks written.
    pub(crate) fn overhead(self) -> u64 {
        match self {
            // Directories; and where the kernel frees it only after a while, what is preallocated for changes of two files.
            Self::XfsPrjquota if kernel_since(5, 11) => 16 * KIB,
            Self::XfsPrjquota => (16 + 2 * 128) * KIB,
            Self::Memory | Self::Xfs | Self::ReflinkOnBtrfs => 0,
            _ => 128 * KIB,
        }
    }
}

/// The backend goes before the filesystem below it.
#[derive(Debug)]
pub(crate) struct Fixture {
    pub(crate) backend: Box<dyn Backend>,
    pub(crate) setup: Setup,
    next: AtomicU32,
    fs: LoopFs,
}

impl Fixture {
    pub(crate) fn fs(&self) -> &LoopFs {
        &self.fs
    }

    /// A second backend on the same filesystem, as another process would open it.
    pub(crate) fn reopened(&self) -> Box<dyn Backend> {
        self.setup.open(self.fs.path())
    }

    /// A tree, not made yet, in a new place of this name, charged to a group of its own.
    pub(crate) fn tree(&self, name: &str) -> Tree {
        let place = self.place(name);
        Tree::new(place, Some(self.group()))
    }

    /// A new place.
    pub(crate) fn place(&self, name: &str) -> PathBuf {
        let place = self.fs.path().join(name);
        fs::create_dir(&place).unwrap_or_else(|e| panic!("create {}: {e}", place.display()));
        place
    }

    /// The next group of the sequence.
    pub(crate) fn group(&self) -> GroupId {
        GroupId(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// An empty tree.
    pub(crate) fn created(&self, name: &str) -> Tree {
        let tree = self.tree(name);
        self.backend.create(&tree, None).expect("create a tree");
        tree
    }

    /// An empty tree that `fill` put something in, committed read-only as `name` as a layer is.
    pub(crate) fn image(&self, name: &str, fill: impl FnOnce(&Path)) -> Tree {
        let work = self.created(&format!("{name}.work"));
        fill(&work.root());
        let image = Tree::new(self.place(name), work.group());
        self.backend.clone_tree(&work, &image, reflinkd::backend::Access::ReadOnly, None).expect("commit an image");
        self.backend.destroy(&work).expect("destroy the tree an image was made in");
        image
    }

    /// A writable clone.
    pub(crate) fn container(&self, image: &Tree, name: &str) -> Tree {
        let tree = self.tree(name);
        self.backend.clone_tree(image, &tree, reflinkd::backend::Access::Writable, None).expect("clone an image");
        tree
    }

    /// Put another tree at `fs.new` of a place, as a crash leaves it that comes in the middle of a replacement.
    pub(crate) fn put_spare(&self, from: &Tree, place: &Tree) {
        fs::rename(from.root(), place.spare()).expect("put a tree at fs.new");
        for name in entries(from.place()).iter().filter(|name| name.starts_with("manifest.")) {
            fs::rename(from.place().join(name), place.place().join(name)).expect("and its manifest beside it");
        }
    }

    /// What the trees are charged after a commit, with apparent sizes.
    pub(crate) fn sizes(&self, trees: &[&Tree]) -> Vec<TreeSize> {
        let measured = self.backend.measure(trees, Want { sync: true, apparent: true }).expect("measure");
        assert_eq!(measured.sizes.len(), trees.len(), "one size for each tree");
        measured.sizes
    }

    pub(crate) fn charged(&self, tree: &Tree) -> u64 {
        self.sizes(&[tree])[0].charged
    }

    /// Wait until what was destroyed is gone and its groups are dropped.
    pub(crate) fn reclaim(&self, live: &[&Tree]) -> BTreeSet<GroupId> {
        let live: BTreeSet<GroupId> = live.iter().filter_map(|tree| tree.group()).collect();
        self.backend.reclaim(&live, PATIENCE).expect("reclaim");
        live
    }

    /// The level-1 qgroups that the kernel knows, as sysfs shows them, or the projects that hold something or have a limit.
    /// Empty without quotas.
    pub(crate) fn kernel_groups(&self) -> BTreeSet<String> {
        if self.setup == Setup::XfsPrjquota {
            return self.projects();
        }
        if !self.setup.is_btrfs() {
            return BTreeSet::new();
        }
        let Ok(entries) = fs::read_dir(self.fs.qgroups_dir()) else { return BTreeSet::new() };
        let names = entries.map(|e| e.expect("read sysfs").file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("1_")).collect()
    }

    fn projects(&self) -> BTreeSet<String> {
        let open = || XfsFd::open(self.fs.path()).expect("open the filesystem");
        // Before that, what has just been removed counts.
        free_preallocated(&open()).expect("free what is preallocated");
        let quotas = ProjectQuotas::open(open()).expect("open the quotas");
        let mut next = 1;
        let mut found = BTreeSet::new();
        while let Some((project, _)) = quotas.next(next).expect("the next project") {
            found.insert(format!("{project:#x}"));
            next = project + 1;
        }
        found
    }

    /// Run what must fail, and see that it left neither a tree nor a group, and named the place.
    #[track_caller]
    pub(crate) fn refused(&self, kind: Kind, place: &Path, act: impl FnOnce() -> Result<()>) -> Error {
        let look = || (entries(place), self.kernel_groups(), self.backend.highest_group().expect("highest group"));
        let before = look();
        let error = act().expect_err("this must fail");
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains("/mnt"), "the message names a path: {error}");
        assert_eq!(look(), before, "a failure leaves nothing: {error}");
        error
    }
}

/// Names in a directory.
pub(crate) fn entries(path: &Path) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(path) else { return BTreeSet::new() };
    entries.map(|e| e.expect("read a directory").file_name().to_string_lossy().into_owned()).collect()
}
