//! A store's directories on a filesystem with reflinks, without a store.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use reflinkd::backend::reflink::Reflink;
use reflinkd::backend::{Access, Backend, GroupId, Leftover, Tree, TreeSize, Want};

use crate::support::{GIB, LoopFs, QuotaSetup};

const PREFIX: u16 = 0x7e57;
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) backend: Reflink,
    next: AtomicU32,
    pub(crate) fs: LoopFs,
}

impl World {
    pub(crate) fn xfs() -> Self {
        Self::on(LoopFs::xfs(4 * GIB))
    }

    pub(crate) fn btrfs() -> Self {
        Self::on(LoopFs::btrfs(4 * GIB, QuotaSetup::None))
    }

    pub(crate) fn on(fs: LoopFs) -> Self {
        Reflink::make(fs.path()).expect("make the trash");
        fs::create_dir(fs.path().join("snapshots")).expect("mkdir");
        Self { backend: Self::open(fs.path()), next: AtomicU32::new(1), fs }
    }

    fn open(root: &Path) -> Reflink {
        Reflink::open(root, PREFIX).expect("open the reflink backend")
    }

    /// A second backend, as another process would open it.
    pub(crate) fn reopened(&self) -> Reflink {
        Self::open(self.fs.path())
    }

    /// Mount the filesystem again: after [`LoopFs::shut_down`] with what was on disk then.
    pub(crate) fn remounted(self) -> Self {
        let Self { backend, next, fs } = self;
        drop(backend);
        fs.remount("rw");
        Self { backend: Self::open(fs.path()), next, fs }
    }

    pub(crate) fn trash(&self) -> PathBuf {
        self.fs.path().join("trash")
    }

    /// A tree that isn't made yet, in a new place, with a new group.
    pub(crate) fn tree(&self, name: &str) -> Tree {
        let place = self.fs.path().join("snapshots").join(name);
        fs::create_dir(&place).unwrap_or_else(|e| panic!("create {}: {e}", place.display()));
        Tree::new(place, Some(GroupId(self.next.fetch_add(1, Ordering::Relaxed))))
    }

    pub(crate) fn created(&self, name: &str) -> Tree {
        let tree = self.tree(name);
        self.backend.create(&tree, None).expect("create a tree");
        tree
    }

    /// A read-only tree with what `fill` put in it.
    pub(crate) fn image(&self, name: &str, fill: impl FnOnce(&Path)) -> Tree {
        let work = self.created(&format!("{name}.work"));
        fill(&work.root());
        let image = self.cloned(&work, name, Access::ReadOnly);
        self.backend.destroy(&work).expect("destroy");
        image
    }

    pub(crate) fn container(&self, image: &Tree, name: &str) -> Tree {
        self.cloned(image, name, Access::Writable)
    }

    pub(crate) fn cloned(&self, from: &Tree, name: &str, access: Access) -> Tree {
        let tree = self.tree(name);
        self.backend.clone_tree(from, &tree, access, None).unwrap_or_else(|e| panic!("clone {name}: {e}"));
        tree
    }

    pub(crate) fn size(&self, tree: &Tree) -> TreeSize {
        self.backend.measure(&[tree], Want { sync: true, apparent: true }).expect("measure").sizes[0]
    }

    pub(crate) fn leftovers(&self) -> Vec<Leftover> {
        self.backend.leftovers(&BTreeSet::new()).expect("leftovers")
    }

    pub(crate) fn reclaim(&self) -> u64 {
        self.backend.reclaim(&BTreeSet::new(), PATIENCE).expect("reclaim")
    }

    pub(crate) fn used(&self) -> u64 {
        self.backend.sync().expect("sync");
        self.backend.space().expect("space").used
    }
}

/// Names in a directory; none if there is none.
pub(crate) fn entries(path: &Path) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(path) else { return BTreeSet::new() };
    entries.map(|e| e.expect("read a directory").file_name().to_string_lossy().into_owned()).collect()
}
