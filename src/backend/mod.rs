//! Trees, what they charge, and limits: what a filesystem must be able to do to hold a store.
//!
//! A *tree* is the directory tree of one layer or container. It lives at `<place>/fs`, where *place* is a
//! plain directory that nobody else uses; the caller makes and removes the place, the backend only what is
//! at `fs` (and `fs.new`, see [`Backend::replace`]). A tree starts empty ([`Backend::create`]) or as a
//! clone of another ([`Backend::clone_tree`]), and ends with [`Backend::destroy`].
//!
//! # A load and a container, from the backend's side
//!
//! ```text
//! create(work, charge g1)                     an empty writable tree, charged to group 1
//! ... unpack the base layer into work ...
//! clone_tree(work -> base, ReadOnly, g1)      durable with its data when it returns; a clone of the
//! destroy(work)                               tree, so that no open descriptor can change it later; or seal(work)
//!
//! clone_tree(base -> web1, Writable, g2 limited to 10 GB)
//! measure([web1])                             what web1 wrote itself, never what base holds
//! destroy(web1)                               returns at once, the space comes back later
//! reclaim({g1})                               waits for that, and drops group 2
//! ```
//!
//! # Relatives of a container
//!
//! ```text
//! fork(web1 -> kept, ReadOnly, g2)            a snapshot of web1, a layer committed of it (ReadOnly), or a container cloned
//!                                             from it (Writable): compared with base from now on, as web1 is
//! own(web1, base), own(kept, base)            where what each has beyond base lies: what both have is in both answers
//! roll_back(kept -> web1, was)                web1 is as kept is, by one atomic exchange; what it was is the tree `was` now
//! ```
//!
//! # Charges
//!
//! What is written into a tree is *charged*. A backend that can keep charges apart in the filesystem does
//! so by a [`GroupId`] that the caller took from its own sequence and never uses twice; clones of a tree that
//! get the same group are charged together (a layer and the tree it was unpacked in). A limit is on the
//! group: it counts what the tree's writers add, never what the tree was cloned from. Where the filesystem
//! keeps no charges the numbers are counted from the tree's own extents; [`Measured::method`] says which.
//!
//! # Abilities
//!
//! What not every filesystem can do is a trait of its own, handed out as an `Option`: [`Backend::quotas`].
//! What a clone costs is a fact, [`Backend::clone_cost`]: where it grows with the files of the tree, the engine keeps
//! clones made ahead. There is no question "which filesystem are you?".

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use rangemap::RangeSet;

use self::changes::{Changes, Comparison};
use crate::{Error, Kind, Result};

pub mod btrfs;
pub mod changes;
pub mod clone;
pub mod memory;
pub mod reflink;
pub mod remove;

/// Where a tree's writes are charged: a number of the store's own sequence, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct GroupId(pub u32);

/// A tree: `<place>/fs`, and the group it is charged to.
///
/// `group` is `None` for a tree made while the filesystem kept no charges by group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    place: PathBuf,
    group: Option<GroupId>,
}

impl Tree {
    /// The tree in `place`, an absolute path.
    pub fn new(place: impl Into<PathBuf>, group: Option<GroupId>) -> Self {
        Self { place: place.into(), group }
    }

    /// The plain directory around the tree.
    #[must_use]
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// The root directory of the tree itself.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.place.join("fs")
    }

    /// Where [`Backend::replace`] puts the new tree before both change places, and the old one after.
    #[must_use]
    pub fn spare(&self) -> PathBuf {
        self.place.join("fs.new")
    }

    /// Where its writes are charged.
    #[must_use]
    pub fn group(&self) -> Option<GroupId> {
        self.group
    }
}

/// What a tree holds of its own, by where it lies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Own {
    /// Addresses on the filesystem, in bytes: equal ones in two trees are the same block.
    pub blocks: RangeSet<u64>,
    /// Bytes without an address of their own, or whose address says nothing of their length: file data among the metadata,
    /// compressed extents. Nobody can tell whether they are shared; each tree counts them.
    pub elsewhere: u64,
    /// Lengths of the regular files made or changed since the clone, hard links counted once.
    pub apparent: u64,
}

impl Own {
    /// All of it, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.elsewhere + self.blocks.iter().map(|range| range.end - range.start).sum::<u64>()
    }
}

/// The answer of [`Backend::own_now`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnNow {
    /// As [`Own::bytes`], without what was deleted and is still open.
    pub bytes: u64,
    /// Those that were made or changed, directories too. A change of attributes alone may count only from the next commit on.
    pub inodes: u64,
    /// For as long as the tree has this state the answer stays as it is; `None` if nobody can tell for how long it does.
    pub state: Option<TreeState>,
}

/// The answer of [`Backend::state`], to be compared with another one of the same tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeState {
    tree: u64,
    change: u64,
}

/// Whether a clone can be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// A container's tree, or one that a layer is unpacked in.
    Writable,
    /// A committed layer.
    ReadOnly,
}

/// How bytes were counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SizeMethod {
    /// Btrfs simple quotas: what was allocated, charged to who first wrote it. Data and metadata.
    SimpleQuota,
    /// Btrfs full qgroups: bytes that only this tree refers to. Data and metadata.
    Qgroup,
    /// Counted from the tree's own extents and inline data; without metadata.
    Extents,
    /// XFS project quotas: what the tree has allocated, less what it had when it was cloned. Deleting what it was cloned
    /// with makes the number smaller, and overwriting it adds nothing.
    ProjectQuota,
    /// Counted by comparing every block with the tree it was cloned from.
    Blocks,
}

impl fmt::Display for SizeMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SimpleQuota => "simple-quota",
            Self::Qgroup => "qgroup",
            Self::Extents => "extents",
            Self::ProjectQuota => "project-quota",
            Self::Blocks => "blocks",
        })
    }
}

/// What one tree holds of its own, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TreeSize {
    /// On disk: 0 for a clone that nobody touched.
    pub charged: u64,
    /// Lengths of the regular files made or changed since the clone, hard links counted once.
    /// `None` unless [`Want::apparent`].
    pub apparent: Option<u64>,
}

/// What [`Backend::measure`] is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// Commit the filesystem first. Without it the numbers are those of the last commit.
    pub sync: bool,
    /// Count [`TreeSize::apparent`] too.
    pub apparent: bool,
}

/// The answer of [`Backend::measure`]; `sizes` in the order of the trees asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measured {
    pub method: SizeMethod,
    pub sizes: Vec<TreeSize>,
}

/// The filesystem's own account, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    pub total: u64,
    pub used: u64,
    /// What an unprivileged writer could still write.
    pub available: u64,
}

/// A removed tree that is not cleaned up yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// What is left: `group` or `tree`.
    pub kind: &'static str,
    /// The number of the group, or what the backend calls the tree.
    pub name: String,
    /// Bytes that come back with it.
    pub charged: u64,
}

/// A subvolume that somebody made inside a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nested {
    /// Path below the tree's root.
    pub path: PathBuf,
}

/// Where a new tree is charged and how much its writers may add.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Charge {
    /// Ignored where the filesystem keeps no charges by group.
    pub group: Option<GroupId>,
    /// In bytes. A backend whose `quotas()` is `None` refuses it with [`crate::Kind::Unsupported`].
    pub limit: Option<u64>,
}

/// How far a limit can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guarantee {
    /// Everything written below the tree's root counts.
    Holds,
    /// A subvolume made inside the tree isn't counted (full qgroups).
    EscapedByNestedSubvolumes,
    /// Deleting what the tree was cloned with makes room for more, and overwriting it is free (project quotas).
    CountsTheClone,
}

/// Whose limit counts what a fork has of its origin's own data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inherited {
    /// Both: each counts what its tree has (project quotas).
    Both,
    /// The origin's, as long as anybody has it, also after the origin is gone (simple quotas).
    Origin,
    /// Nobody's while both have it (full qgroups).
    Nobody,
}

/// What [`Backend::clone_tree`] costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloneCost {
    /// A metadata operation, whatever is in the tree.
    Constant,
    /// A few calls for each file.
    PerFile,
}

/// A filesystem that can hold trees.
///
/// Implementations are usable from many threads and processes at once, as long as each place is used by one
/// caller at a time. All errors name the path they are about.
pub trait Backend: Send + Sync + fmt::Debug {
    /// Make an empty writable tree (root directory 0755, root:root). Not durable by itself.
    fn create(&self, tree: &Tree, limit: Option<u64>) -> Result<()>;

    /// Make `to` a clone of `from`: same content, owners, times to the ns, xattrs; no data is copied. When it returns the clone, with the data `from` holds and the place around it, is durable.
    /// On failure nothing is left at `to`, its group neither.
    ///
    /// # Errors
    /// `NotFound` if `from` has no tree; `Exists` if `to` has one; `NoSpace`; `Unsupported` for a limit that
    /// can't be held; `Unsupported` naming the file for an active swapfile.
    fn clone_tree(&self, from: &Tree, to: &Tree, access: Access, limit: Option<u64>) -> Result<()>;

    /// Make a tree read-only where it is: a clone of it from now on is of one that nobody changes. What it holds of its own by
    /// then, to be kept ([`Backend::measure_for_good`]). It is durable with its data once its place is synced. Where clones are
    /// constant, whoever has it open goes on in what it was; elsewhere its caller knows that
    /// nobody has. After a crash it is sealed or not, and [`Backend::settle`] removes what is left beside it.
    ///
    /// # Errors
    /// As [`Backend::clone_tree`]; then the tree is as it was.
    fn seal(&self, tree: &Tree) -> Result<(SizeMethod, u64)>;

    /// Put a fresh writable clone of `from` in the place of `tree`'s tree by one atomic exchange; the path
    /// never vanishes, and it is durable on return. `fresh` is `tree` with the group for its new writes.
    /// The old tree is destroyed. After a crash either tree is at `fs`, and [`Backend::settle`] removes the other.
    fn replace(&self, from: &Tree, fresh: &Tree, limit: Option<u64>) -> Result<()>;

    /// Make `to` a clone of `from`, as [`Backend::clone_tree`] does, but compared with what `from` is compared with (its
    /// image's layer) rather than with `from`. For snapshots, clones and commits of containers.
    fn fork(&self, from: &Tree, to: &Tree, access: Access, limit: Option<u64>) -> Result<()>;

    /// Put a writable fork of `from` in the place of `tree`'s tree by one atomic exchange; the path never vanishes, and it is
    /// durable on return. The old tree, writable still and with all subvolumes made inside it, is `kept`'s then, an empty
    /// place before. All three are of one container: `tree` and `kept` have one group, which `limit` is on.
    ///
    /// `ready` is called before the exchange, when `kept` is a whole fork of `from`: from then on somebody has to know of it, or
    /// who dies after the exchange loses the old tree. After a crash `tree` is there, old or new, and `kept` is nothing, a
    /// fork of `from`, or the old tree.
    /// Both places have to be settled then, and the limit set again: a backend that counts whole trees lifts it while there are
    /// two.
    ///
    /// # Errors
    /// As [`Backend::clone_tree`], and those of `ready`; then `tree` is as it was, and nothing is left at `kept`. If it can't be
    /// made durable, the trees may have changed places.
    fn roll_back(
        &self,
        from: &Tree,
        tree: &Tree,
        limit: Option<u64>,
        kept: &Tree,
        ready: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()>;

    /// Finish or undo what a crash left in `place`: drops a tree at [`Tree::spare`], and says which group the
    /// tree at `fs` is charged to (`None` where charges are not by group, there is no tree, or it is one that was kept when
    /// another took its place, which may be charged to nobody).
    fn settle(&self, place: &Path) -> Result<Option<GroupId>>;

    /// Remove the tree with all subvolumes made inside it, and one that a crash left at [`Tree::spare`]. Succeeds if there
    /// is none. Returns at once; the space
    /// comes back when the filesystem has cleaned up. Works on a full filesystem.
    fn destroy(&self, tree: &Tree) -> Result<()>;

    /// Whether there is a tree.
    fn exists(&self, tree: &Tree) -> Result<bool>;

    /// Whether the tree refuses writes.
    fn is_read_only(&self, tree: &Tree) -> Result<bool>;

    /// Subvolumes made inside the tree, parents before their children.
    fn nested(&self, tree: &Tree) -> Result<Vec<Nested>>;

    /// What each tree holds of its own. One commit (if asked for) and one search for any number of trees.
    fn measure(&self, trees: &[&Tree], want: Want) -> Result<Measured>;

    /// What a tree holds of its own after a commit, and by which method: for a number that is kept. It may take its time where
    /// [`Backend::measure`] has an inexact number at once.
    fn measure_for_good(&self, tree: &Tree) -> Result<(SizeMethod, u64)> {
        let measured = self.measure(&[tree], Want { sync: true, apparent: false })?;
        Ok((measured.method, measured.sizes.first().map_or(0, |size| size.charged)))
    }

    /// Where what a tree holds beyond `parent` lies on the filesystem, as of the last commit: to tell what several relatives
    /// hold together from what each holds alone. `parent` is the read-only tree that it was cloned from, directly or through
    /// others; `None` for one that began empty. Costs what was changed, where the filesystem can tell that, and the
    /// tree's files elsewhere.
    fn own(&self, tree: &Tree, parent: Option<&Tree>) -> Result<Own>;

    /// What a tree holds beyond `parent` at this moment, somebody writing to it, data in memory included: at once and without a
    /// commit. `parent` is as for [`Backend::own`]. `None` where the filesystem can't tell, and for a tree with subvolumes inside.
    fn own_now(&self, _tree: &Tree, _parent: Option<&Tree>) -> Result<Option<OwnNow>> {
        Ok(None)
    }

    /// What trees charged to these groups take on disk together, each byte once, destroyed ones included that are not cleaned
    /// up yet. `None` where the filesystem doesn't keep that.
    fn charged(&self, _groups: &BTreeSet<GroupId>) -> Result<Option<u64>> {
        Ok(None)
    }

    /// What a tree holds that the one it was cloned from doesn't, from scratch that is empty again when this returns. See
    /// [`changes`]. Where the filesystem can't name what was touched, both are walked.
    ///
    /// # Errors
    /// `NotFound` if there is no such tree; `Unsupported` naming the file for an active swapfile; `InUse` for a mount in
    /// the tree.
    fn changes(&self, wanted: &Comparison<'_>) -> Result<Changes> {
        changes::walk(wanted)
    }

    /// Numbers that stay the same for as long as nothing in a tree changes: neither names nor attributes nor data, in memory or
    /// on disk. At once. `None` where that can't be told, or not at this moment.
    fn state(&self, _tree: &Tree) -> Result<Option<TreeState>> {
        Ok(None)
    }

    /// The state of a tree when `fork`, which is read-only, was made of it.
    fn state_of_fork(&self, _tree: &Tree, _fork: &Tree) -> Result<Option<TreeState>> {
        Ok(None)
    }

    /// Names of what was made in a tree since it was cloned, written to disk or not: at once, without a commit. In no order,
    /// and without what was moved to its name. `None` where the filesystem can't tell.
    fn made(&self, _tree: &Tree) -> Result<Option<Vec<PathBuf>>> {
        Ok(None)
    }

    /// Names of what was changed in a read-only tree since it was made, as nothing ever should be; a few of them. `None` where
    /// nobody can tell.
    fn touched(&self, _tree: &Tree) -> Result<Option<Vec<PathBuf>>> {
        Ok(None)
    }

    /// Let a tree refuse writes, or take them, by its mark alone: to undo a [`Backend::seal`], or what somebody else did. Not to
    /// seal one: what is in memory of it is not made durable, and where the mark is the filesystem's, whoever has it open goes on
    /// writing.
    fn set_read_only(&self, tree: &Tree, read_only: bool) -> Result<()>;

    /// Which group a tree is charged to, and the limit on that. `None` where charges aren't by group.
    fn charge(&self, _tree: &Tree) -> Result<Option<Charge>> {
        Ok(None)
    }

    /// Trees that are in none of the places below ROOT's directory `snapshots`, nor in such a tree; by their paths below
    /// ROOT.
    fn foreign_trees(&self) -> Result<Vec<PathBuf>> {
        Ok(Vec::new())
    }

    /// Whether removed trees wait for somebody to clean them up, and with them what they are charged.
    fn is_cleaning(&self) -> Result<bool> {
        Ok(false)
    }

    /// Bytes that these trees take besides what [`Backend::measure`] and a layer's size count: inodes and directories
    /// of their own. 0 where clones share them. Costs a file read per tree.
    fn overhead(&self, trees: &[&Tree]) -> Result<u64>;

    /// What a clone costs here.
    fn clone_cost(&self) -> CloneCost;

    /// The filesystem's own account, as of its last commit.
    fn space(&self) -> Result<Space>;

    /// Commit the filesystem: everything done so far is durable, and charges are exact.
    fn sync(&self) -> Result<()>;

    /// [`Backend::sync`] for who counts: what finds no room to be written to isn't there to be counted, and whoever wrote it is
    /// told so. What fills a disk, or is on one that breaks, has to be found all the same.
    fn sync_to_count(&self) {
        match self.sync() {
            Err(error) if error.kind() == Kind::NoSpace => tracing::debug!(%error, "counting what could be written"),
            Err(error) => tracing::warn!("numbers are those of the filesystem's last commit: {error}"),
            Ok(()) => {}
        }
    }

    /// Removed trees that still take space: groups of this store that are charged and not in `live`, as of the last
    /// commit, or trees moved out of their places by [`Backend::destroy`].
    fn leftovers(&self, live: &BTreeSet<GroupId>) -> Result<Vec<Leftover>>;

    /// Wait until removed trees are cleaned up (at most `patience`), or clean them up where nobody else does; drop the
    /// groups not in `live` that nothing charges to any more. How many groups were dropped, or trees taken apart.
    fn reclaim(&self, live: &BTreeSet<GroupId>, patience: std::time::Duration) -> Result<u64>;

    /// Give freed blocks back to the device below (FITRIM): bytes, 0 where it takes none. A look at all that is free.
    fn trim(&self) -> Result<u64>;

    /// The highest group this filesystem knows of this store: where a lost sequence goes on.
    fn highest_group(&self) -> Result<Option<GroupId>>;

    /// Names this mount of this filesystem on this boot: when it changes, an index of it may be behind.
    fn instance(&self) -> Result<String>;

    /// Limits, where the filesystem holds them now.
    fn quotas(&self) -> Option<&dyn Quotas>;

    /// Why [`Backend::quotas`] is `None`, and the way out: an error of kind `Unsupported` for whoever asks for a limit.
    fn no_limits(&self) -> Result<Error>;

    /// The quota mode, for `info` and `quota status`.
    fn quota_mode(&self) -> Result<QuotaMode>;

    /// Whether quotas are switched while the filesystem is mounted, rather than by how it is mounted.
    fn switches_quotas(&self) -> bool {
        false
    }

    /// Switch quotas. `Unsupported` where the filesystem or kernel has no such mode.
    fn set_quota_mode(&self, mode: QuotaMode) -> Result<()>;
}

/// What the filesystem counts and limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum QuotaMode {
    /// No quotas.
    None,
    /// Btrfs simple quotas (6.7 and later).
    Simple,
    /// Btrfs full qgroups, consistent.
    Full,
    /// Btrfs full qgroups whose numbers the kernel itself calls wrong: never trusted.
    Inconsistent,
    /// XFS project quotas, by mount option.
    Project,
}

impl fmt::Display for QuotaMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Simple => "simple",
            Self::Full => "full",
            Self::Inconsistent => "full, inconsistent",
            Self::Project => "project",
        })
    }
}

/// Limits on what a tree's writers may add.
pub trait Quotas {
    /// Set or lift the limit of a tree, live. Bytes.
    fn set_limit(&self, tree: &Tree, limit: Option<u64>) -> Result<()>;

    /// How far a limit can be trusted in the present mode.
    fn guarantee(&self) -> Guarantee;

    /// What a fork has from the tree it was made of, and whose limit counts it.
    fn inherited(&self) -> Inherited;
}
