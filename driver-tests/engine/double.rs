//! The in-memory double with what a filesystem adds on which clones cost something: it counts and limits, has no room
//! when told so, and can stop in the middle of a clone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reflinkd::backend::changes::{Changes, Comparison};
use reflinkd::backend::memory::Memory;
use reflinkd::backend::{
    Access, Backend, CloneCost, GroupId, Guarantee, Inherited, Leftover, Measured, Nested, Own, QuotaMode, Quotas,
    SizeMethod, Space, Tree, Want,
};
use reflinkd::{Error, Kind, Result};

/// What each tree takes besides its data.
pub(crate) const OVERHEAD: u64 = 1000;

/// What a test sees and decides. Shared by all engines of a world.
#[derive(Debug, Default)]
pub(crate) struct Controls {
    /// Clones made.
    pub(crate) clones: AtomicUsize,
    /// The limit last set on the tree in each place.
    pub(crate) limits: Mutex<BTreeMap<PathBuf, Option<u64>>>,
    pub(crate) refuses_limits: AtomicBool,
    /// What a clone has from its origin is charged there.
    pub(crate) charges_origin: AtomicBool,
    /// There is room for this many places, and no clone into another one.
    pub(crate) room: Mutex<Option<usize>>,
    /// Clones, and rollbacks before their exchange, wait while this is set.
    pub(crate) paused: AtomicBool,
    /// Those that wait.
    pub(crate) waiting: AtomicUsize,
    /// The step at which the process dies, by a panic.
    pub(crate) dies_at: Mutex<Option<Step>>,
    /// Reclaims that had something to do.
    pub(crate) reclaimed: AtomicUsize,
    removed: AtomicUsize,
}

/// Between which of a verb's steps a process may die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Everything is reserved, and there is no tree yet.
    Fork,
    Forked,
    /// A rollback has its fork, and nobody knows of it.
    Announce,
    Exchange,
    Exchanged,
    /// A commit has its work tree.
    Changes,
    /// It has the layer's recipe, too.
    Own,
    Destroy,
}

#[derive(Debug)]
pub(crate) struct Double {
    inner: Memory,
    root: PathBuf,
    controls: Arc<Controls>,
}

impl Double {
    pub(crate) fn new(inner: Memory, root: PathBuf, controls: Arc<Controls>) -> Self {
        Self { inner, root, controls }
    }

    fn places(&self) -> usize {
        std::fs::read_dir(self.root.join("snapshots")).expect("read").count()
    }

    fn pause(&self) {
        let controls = &self.controls;
        controls.waiting.fetch_add(1, Ordering::SeqCst);
        while controls.paused.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        controls.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    fn reached(&self, step: Step) {
        let dies = self.controls.dies_at.lock().expect("lock").take_if(|dies| *dies == step);
        assert!(dies.is_none(), "dies at {step:?}, as the test says");
    }
}

impl Backend for Double {
    fn create(&self, tree: &Tree, limit: Option<u64>) -> Result<()> {
        self.inner.create(tree, limit)
    }

    fn clone_tree(&self, from: &Tree, to: &Tree, access: Access, limit: Option<u64>) -> Result<()> {
        let controls = &self.controls;
        self.pause();
        if controls.room.lock().expect("lock").is_some_and(|room| self.places() > room) {
            return Err(Error::new(Kind::NoSpace, "no room for another tree"));
        }
        controls.clones.fetch_add(1, Ordering::SeqCst);
        self.inner.clone_tree(from, to, access, None)?;
        if limit.is_some() { self.set_limit(to, limit) } else { Ok(()) }
    }

    fn seal(&self, tree: &Tree) -> Result<(SizeMethod, u64)> {
        self.inner.seal(tree)
    }

    fn set_read_only(&self, tree: &Tree, read_only: bool) -> Result<()> {
        self.inner.set_read_only(tree, read_only)
    }

    fn replace(&self, from: &Tree, fresh: &Tree, limit: Option<u64>) -> Result<()> {
        self.inner.replace(from, fresh, None)?;
        if limit.is_some() { self.set_limit(fresh, limit) } else { Ok(()) }
    }

    fn fork(&self, from: &Tree, to: &Tree, access: Access, limit: Option<u64>) -> Result<()> {
        self.reached(Step::Fork);
        self.inner.fork(from, to, access, None)?;
        self.reached(Step::Forked);
        if limit.is_some() { self.set_limit(to, limit) } else { Ok(()) }
    }

    fn roll_back(
        &self,
        from: &Tree,
        tree: &Tree,
        limit: Option<u64>,
        kept: &Tree,
        ready: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        self.reached(Step::Fork);
        self.inner.roll_back(from, tree, None, kept, &mut || {
            self.reached(Step::Announce);
            ready()?;
            self.pause();
            self.reached(Step::Exchange);
            Ok(())
        })?;
        self.reached(Step::Exchanged);
        if limit.is_some() { self.set_limit(tree, limit) } else { Ok(()) }
    }

    fn changes(&self, wanted: &Comparison<'_>) -> Result<Changes> {
        self.reached(Step::Changes);
        self.inner.changes(wanted)
    }

    fn own(&self, tree: &Tree, parent: Option<&Tree>) -> Result<Own> {
        self.reached(Step::Own);
        self.inner.own(tree, parent)
    }

    fn settle(&self, place: &std::path::Path) -> Result<Option<GroupId>> {
        self.inner.settle(place)
    }

    fn destroy(&self, tree: &Tree) -> Result<()> {
        self.reached(Step::Destroy);
        self.controls.removed.fetch_add(1, Ordering::SeqCst);
        self.inner.destroy(tree)
    }

    fn exists(&self, tree: &Tree) -> Result<bool> {
        self.inner.exists(tree)
    }

    fn is_read_only(&self, tree: &Tree) -> Result<bool> {
        self.inner.is_read_only(tree)
    }

    fn nested(&self, tree: &Tree) -> Result<Vec<Nested>> {
        self.inner.nested(tree)
    }

    fn measure(&self, trees: &[&Tree], want: Want) -> Result<Measured> {
        self.inner.measure(trees, want)
    }

    fn overhead(&self, trees: &[&Tree]) -> Result<u64> {
        for tree in trees {
            if !self.exists(tree)? {
                return Err(Error::new(Kind::NotFound, format!("there is no tree in {}", tree.place().display())));
            }
        }
        Ok(OVERHEAD * trees.len() as u64)
    }

    fn clone_cost(&self) -> CloneCost {
        self.inner.clone_cost()
    }

    fn space(&self) -> Result<Space> {
        self.inner.space()
    }

    fn sync(&self) -> Result<()> {
        self.inner.sync()
    }

    fn leftovers(&self, live: &BTreeSet<GroupId>) -> Result<Vec<Leftover>> {
        self.inner.leftovers(live)
    }

    fn reclaim(&self, live: &BTreeSet<GroupId>, patience: Duration) -> Result<u64> {
        let removed = self.controls.removed.swap(0, Ordering::SeqCst) as u64;
        self.controls.reclaimed.fetch_add(usize::from(removed > 0), Ordering::SeqCst);
        Ok(removed + self.inner.reclaim(live, patience)?)
    }

    fn trim(&self) -> Result<u64> {
        self.inner.trim()
    }

    fn highest_group(&self) -> Result<Option<GroupId>> {
        self.inner.highest_group()
    }

    fn instance(&self) -> Result<String> {
        self.inner.instance()
    }

    fn quotas(&self) -> Option<&dyn Quotas> {
        Some(self)
    }

    fn no_limits(&self) -> Result<Error> {
        self.inner.no_limits()
    }

    fn quota_mode(&self) -> Result<QuotaMode> {
        Ok(QuotaMode::Project)
    }

    fn set_quota_mode(&self, mode: QuotaMode) -> Result<()> {
        self.inner.set_quota_mode(mode)
    }
}

impl Quotas for Double {
    fn set_limit(&self, tree: &Tree, limit: Option<u64>) -> Result<()> {
        if self.controls.refuses_limits.load(Ordering::SeqCst) {
            return Err(Error::new(Kind::System, "limits are refused for this test"));
        }
        self.controls.limits.lock().expect("lock").insert(tree.place().to_path_buf(), limit);
        Ok(())
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::Holds
    }

    fn inherited(&self) -> Inherited {
        if self.controls.charges_origin.load(Ordering::SeqCst) { Inherited::Origin } else { Inherited::Both }
    }
}
