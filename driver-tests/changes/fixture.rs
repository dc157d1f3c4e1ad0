//! A filesystem with a backend on it, a layer, and containers of it.

use std::cell::Cell;
use std::fs;
use std::path::Path;

use reflinkd::backend::btrfs::Btrfs;
use reflinkd::backend::changes::{Changes, Comparison, FeedMethod, walk};
use reflinkd::backend::memory::Memory;
use reflinkd::backend::reflink::Reflink;
use reflinkd::backend::{Access, Backend, GroupId, Tree};

use crate::model::{Line, assert_same_lines, expected, lines};
use crate::support::{GIB, LoopFs, QuotaSetup};

const PREFIX: u16 = 0xc4a6;

/// The backend goes before the filesystem below it.
#[derive(Debug)]
pub(crate) struct Fixture {
    pub(crate) backend: Box<dyn Backend>,
    next: Cell<u32>,
    fs: LoopFs,
}

impl Fixture {
    pub(crate) fn btrfs(quota: QuotaSetup) -> Self {
        let fs = LoopFs::btrfs(8 * GIB, quota);
        Self { backend: Box::new(Btrfs::open(fs.path(), PREFIX).expect("open btrfs")), next: Cell::new(1), fs }
    }

    pub(crate) fn btrfs_zstd() -> Self {
        let fs = LoopFs::btrfs_zstd(8 * GIB, QuotaSetup::None);
        Self { backend: Box::new(Btrfs::open(fs.path(), PREFIX).expect("open btrfs")), next: Cell::new(1), fs }
    }

    /// Plain directories whose files share their blocks.
    pub(crate) fn reflink(fs: LoopFs) -> Self {
        Reflink::make(fs.path()).expect("make the trash");
        Self { backend: Box::new(Reflink::open(fs.path(), PREFIX).expect("open reflink")), next: Cell::new(1), fs }
    }

    pub(crate) fn xfs() -> Self {
        Self::reflink(LoopFs::xfs(8 * GIB))
    }

    pub(crate) fn reflink_on_btrfs() -> Self {
        Self::reflink(LoopFs::btrfs(8 * GIB, QuotaSetup::None))
    }

    /// Plain directories.
    pub(crate) fn memory() -> Self {
        let fs = LoopFs::tmpfs(GIB);
        Self { backend: Box::new(Memory::new(fs.path()).expect("open memory")), next: Cell::new(1), fs }
    }

    pub(crate) fn fs(&self) -> &LoopFs {
        &self.fs
    }

    /// A tree, not made yet, in a new place of its own.
    pub(crate) fn tree(&self) -> Tree {
        let number = self.next.replace(self.next.get() + 1);
        let place = self.fs.path().join(number.to_string());
        fs::create_dir(&place).expect("make a place");
        Tree::new(place, Some(GroupId(number)))
    }

    /// A committed layer, and a tree for writing in it cloned from that.
    pub(crate) fn pair(&self, fill: impl FnOnce(&Path)) -> (Tree, Tree) {
        let (work, layer) = (self.tree(), self.tree());
        self.backend.create(&work, None).expect("create");
        fill(&work.root());
        self.backend.clone_tree(&work, &layer, Access::ReadOnly, None).expect("commit");
        self.backend.destroy(&work).expect("destroy");
        let container = self.container(&layer);
        (layer, container)
    }

    pub(crate) fn container(&self, layer: &Tree) -> Tree {
        let container = self.tree();
        self.backend.clone_tree(layer, &container, Access::Writable, None).expect("clone");
        container
    }

    pub(crate) fn forked(&self, from: &Tree, access: Access) -> Tree {
        let fork = self.tree();
        self.backend.fork(from, &fork, access, None).expect("fork");
        fork
    }

    /// What the backend says; it leaves nothing behind.
    pub(crate) fn feed(&self, parent: Option<&Tree>, tree: &Tree, sizes: bool) -> Changes {
        let scratch = self.tree();
        let wanted = Comparison { parent, tree, scratch: Some(&scratch), sizes };
        let changes = self.backend.changes(&wanted).expect("changes");
        let left = fs::read_dir(scratch.place()).expect("read the place").count();
        assert_eq!(left, 0, "the scratch place is empty again");
        fs::remove_dir(scratch.place()).expect("remove the place");
        changes
    }

    /// What the backend says is what walking says and what the trees' pictures say.
    #[track_caller]
    pub(crate) fn agreed(&self, about: &str, parent: &Tree, tree: &Tree) -> (Vec<Line>, FeedMethod) {
        let changes = self.feed(Some(parent), tree, false);
        let found = lines(&changes);
        let wanted = Comparison { parent: Some(parent), tree, scratch: None, sizes: false };
        let walked = lines(&walk(&wanted).expect("walk"));
        assert_same_lines(&format!("{about}: {} against walking", changes.method), &found, &walked);
        assert_same_lines(about, &found, &expected(&parent.root(), &tree.root()));
        (found, changes.method)
    }
}
