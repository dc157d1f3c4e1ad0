//! Trees as plain directories, on any filesystem on which files can share their blocks (FICLONE): XFS first.
//!
//! ```text
//! PLACE/fs                the tree, a plain directory
//! PLACE/fs.new            a tree being made, or an old one just exchanged: never one that anyone was promised
//! PLACE/manifest.<ino>    what the tree whose root has inode <ino> is compared with ([`manifest`])
//! ROOT/trash/             removed trees on their way out ([`trash`])
//! ```
//!
//! | | |
//! |---|---|
//! | clone | every file by FICLONE ([`clone`](super::clone)): a few calls for each; durable by one syncfs before the rename that publishes it |
//! | seal | what is written down of the tree says so |
//! | fork | a clone whose manifest speaks of what its source's speaks of ([`manifest`]) |
//! | rolling back | a fork, and one exchange between two places ([`rollback`]) |
//! | changes | one walk of the tree against its manifest ([`changes`]) |
//! | size | the blocks of touched files that the base doesn't have ([`measure`]) |
//! | overhead | inodes and directories, which clones don't share |
//! | removal | a rename; taken apart by [`Backend::reclaim`] |
//! | size and limit with project quotas | what XFS counts ([`quota`]) |
//!
//! Relies on what `docs/kernel.md` has observed: any change of an inode gives it another change time; FICLONE takes the
//! source's dirty data along; FIEMAP tells which blocks are shared.
//!
//! Nothing on these filesystems enforces read-only: it is written down, and the engine hands such trees out for reading
//! only. Who writes into one as root falsifies the sizes of its clones. A clone of a tree that somebody writes to
//! meanwhile is not of one moment. Subvolumes made inside of a tree (on Btrfs) are cloned and removed like the
//! directories that they look like.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::changes::{Changes, Comparison};
use super::{
    Access, Backend, CloneCost, GroupId, Leftover, Measured, Nested, Own, QuotaMode, Quotas, SizeMethod, Space, Tree,
    TreeSize, Want,
};
use crate::sys::btrfs::BtrfsFd;
use crate::sys::durable;
use crate::sys::trim;
use crate::sys::xfs::{self, XfsFd};
use crate::{Context, Error, Kind, Result};
use manifest::Head;
use measure::Meter;
use quota::Projects;
use tree::Kin;

mod blocks;
mod changes;
mod instance;
mod manifest;
mod measure;
mod place;
mod quota;
mod rollback;
mod touched;
mod trash;
mod tree;
mod walk;

/// What Btrfs keeps of an inode with one name besides data: the inode, a reference, two directory items, an extent,
/// with the room that its nodes leave. Seen with 11,400 names, of which a tenth had their data inline, which clones don't
/// share: 600 bytes each.
const BTRFS_INODE_BYTES: u64 = 600;

/// Trees below one directory. See the module's head.
#[derive(Debug)]
pub struct Reflink {
    /// As it was opened: places begin with it.
    root: PathBuf,
    directory: OwnedFd,
    /// The same, if it is on XFS.
    xfs: Option<XfsFd>,
    /// Where the filesystem has projects.
    projects: Option<Projects>,
    /// What an inode takes on disk; an estimate but on XFS.
    inode_bytes: u64,
}

impl Reflink {
    /// The backend for places below `root`, an existing directory that [`Reflink::make`] has prepared.
    ///
    /// `group_prefix` sets this store's groups apart from those of other stores on the filesystem.
    ///
    /// # Errors
    /// `NotFound` if there is no such directory.
    pub fn open(root: &Path, group_prefix: u16) -> Result<Self> {
        let call = || format!("open {}", root.display());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(root, flags, Mode::empty()).context(call)?;
        let xfs = proven(XfsFd::prove(directory.try_clone().context(call)?)).context(call)?;
        let inode_bytes = match &xfs {
            Some(xfs) => {
                let geometry = xfs::geometry::geometry(xfs);
                geometry.context(|| format!("XFS_IOC_FSGEOMETRY {}", root.display()))?.inode_size.into()
            }
            None if proven(BtrfsFd::prove(directory.try_clone().context(call)?)).context(call)?.is_some() => {
                BTRFS_INODE_BYTES
            }
            // Nobody knows what it takes there.
            None => 0,
        };
        let projects = xfs.as_ref().map(|xfs| Projects::open(xfs, group_prefix)).transpose();
        let projects = projects.context(|| format!("find out about the projects of {}", root.display()))?;
        Ok(Self { root: root.to_path_buf(), directory, xfs, projects, inode_bytes })
    }

    /// Prepare the directory `root` for a store: `ROOT/trash`, 0700.
    pub fn make(root: &Path) -> Result<()> {
        trash::make(root)
    }

    /// Whether files in `directory` can share their blocks: tried with two of one block, without a name.
    pub fn probe(directory: &Path) -> Result<bool> {
        let call = || format!("FICLONE in {}", directory.display());
        let mut from = tempfile::tempfile_in(directory).context(call)?;
        let to = tempfile::tempfile_in(directory).context(call)?;
        from.write_all(&[1; 4096]).context(call)?;
        match rustix::fs::ioctl_ficlone(&to, &from) {
            Ok(()) => Ok(true),
            // "Inappropriate" and "invalid" are what filesystems say that don't know the call.
            Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS | Errno::INVAL) => Ok(false),
            Err(e) => Err(e).context(call),
        }
    }

    /// For messages about the filesystem itself.
    fn call(&self, call: &str) -> String {
        format!("{call} {}", self.root.display())
    }

    /// Give back what XFS has allocated ahead of writers, and wait for what it does in the background.
    fn free_preallocated(&self) -> Result<()> {
        let Some(xfs) = &self.xfs else { return Ok(()) };
        xfs::space::free_preallocated(xfs).context(|| self.call("XFS_IOC_FREE_EOFBLOCKS"))
    }

    /// How a manifest names a place.
    fn named(&self, place: &Path) -> PathBuf {
        place.strip_prefix(&self.root).unwrap_or(place).to_path_buf()
    }

    /// The manifests of all trees: those in places, which are directories in ROOT or in one of its directories, and
    /// those in the trash.
    fn all_manifests(&self) -> Result<Vec<PathBuf>> {
        let mut found = self.trashed_manifests()?;
        for outer in directories(&self.root)? {
            found.extend(place::manifests(&outer)?);
            for inner in directories(&outer)? {
                found.extend(place::manifests(&inner)?);
            }
        }
        Ok(found)
    }
}

impl Backend for Reflink {
    fn create(&self, tree: &Tree, limit: Option<u64>) -> Result<()> {
        self.create_tree(tree, limit)
    }

    fn clone_tree(&self, from: &Tree, to: &Tree, access: Access, limit: Option<u64>) -> Result<()> {
        self.clone_into(from, to, access, limit, Kin::Child)
    }

    fn seal(&self, tree: &Tree) -> Result<(SizeMethod, u64)> {
        let measured = self.measure_for_good(tree)?;
        self.seal_tree(tree).map(|()| measured)
    }

    fn set_read_only(&self, tree: &Tree, read_only: bool) -> Result<()> {
        self.mark(tree, read_only)
    }

    fn replace(&self, from: &Tree, fresh: &Tree, limit: Option<u64>) -> Result<()> {
        self.replace_tree(from, fresh, limit)
    }

    fn fork(&self, from: &Tree, to: &Tree, access: Access, limit: Option<u64>) -> Result<()> {
        self.clone_into(from, to, access, limit, Kin::Fork)
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

    fn own(&self, tree: &Tree, parent: Option<&Tree>) -> Result<Own> {
        Meter::new(self, false).own(tree, parent)
    }

    fn settle(&self, place: &Path) -> Result<Option<GroupId>> {
        let tree = Tree::new(place, None);
        self.clear(&tree)?;
        match place::head(&tree) {
            Ok(head) => {
                if head.group.is_none() {
                    self.leave_project(&tree.root())?;
                }
                Ok(head.group)
            }
            Err(e) if e.kind() == Kind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn destroy(&self, tree: &Tree) -> Result<()> {
        self.discard(&tree.root())?;
        trash::leave(self.clear(tree));
        Ok(())
    }

    fn exists(&self, tree: &Tree) -> Result<bool> {
        Ok(place::manifest_path(&tree.root())?.is_some())
    }

    fn is_read_only(&self, tree: &Tree) -> Result<bool> {
        Ok(place::head(tree)?.read_only)
    }

    fn nested(&self, tree: &Tree) -> Result<Vec<Nested>> {
        if self.exists(tree)? { Ok(Vec::new()) } else { Err(place::missing(&tree.root())) }
    }

    fn measure(&self, trees: &[&Tree], want: Want) -> Result<Measured> {
        if want.sync {
            self.sync_to_count();
        }
        let by_project = self.quota_state()?.accounted;
        if by_project && want.sync {
            // What is allocated ahead of writers is charged, too.
            self.free_preallocated()?;
        }
        let mut meter = Meter::new(self, want.sync);
        let mut count = |tree: &Tree| -> Result<TreeSize> {
            let root = tree.root();
            meter.measure(&root, Some(&place::manifest(tree)?))?.ok_or_else(|| place::missing(&root))
        };
        let mut measure = |tree: &&Tree| -> Result<TreeSize> {
            let charged = if by_project { self.project_size(tree)? } else { None };
            Ok(match charged {
                Some(size) if !want.apparent => size,
                Some(size) => TreeSize { apparent: count(tree)?.apparent, ..size },
                None => {
                    let size = count(tree)?;
                    TreeSize { apparent: size.apparent.filter(|_| want.apparent), ..size }
                }
            })
        };
        let method = if by_project { SizeMethod::ProjectQuota } else { SizeMethod::Extents };
        Ok(Measured { method, sizes: trees.iter().map(&mut measure).collect::<Result<_>>()? })
    }

    /// From the tree's extents in any mode: what a layer deletes or overwrites isn't for it to be paid back.
    fn measure_for_good(&self, tree: &Tree) -> Result<(SizeMethod, u64)> {
        self.sync()?;
        let root = tree.root();
        let size = Meter::new(self, true).measure(&root, Some(&place::manifest(tree)?))?;
        Ok((SizeMethod::Extents, size.ok_or_else(|| place::missing(&root))?.charged))
    }

    fn changes(&self, wanted: &Comparison<'_>) -> Result<Changes> {
        self.changes_of(wanted)
    }

    fn touched(&self, tree: &Tree) -> Result<Option<Vec<PathBuf>>> {
        self.touched_in(tree)
    }

    /// As of when each tree was made: inodes at the filesystem's size of one (an estimate on Btrfs), blocks of
    /// directories, and the manifest. Left out are the maps of files in many pieces, long xattrs and symlinks, and what the
    /// filesystem needs to count references to shared blocks.
    fn overhead(&self, trees: &[&Tree]) -> Result<u64> {
        let overhead = |path: &Path| Head::read(path).and_then(|head| place::overhead(path, &head));
        trees.iter().map(|tree| place::read(&tree.root(), overhead)).sum()
    }

    fn clone_cost(&self) -> CloneCost {
        CloneCost::PerFile
    }

    fn space(&self) -> Result<Space> {
        let fs = rustix::fs::fstatvfs(&self.directory).context(|| self.call("statfs"))?;
        let bytes = |blocks: u64| blocks.saturating_mul(fs.f_frsize);
        Ok(Space {
            total: bytes(fs.f_blocks),
            used: bytes(fs.f_blocks.saturating_sub(fs.f_bfree)),
            available: bytes(fs.f_bavail),
        })
    }

    fn sync(&self) -> Result<()> {
        durable::syncfs(&self.directory, &self.root).context(|| self.call("syncfs"))
    }

    fn leftovers(&self, _live: &BTreeSet<GroupId>) -> Result<Vec<Leftover>> {
        self.trashed_trees()
    }

    fn reclaim(&self, _live: &BTreeSet<GroupId>, patience: Duration) -> Result<u64> {
        self.empty_trash(patience)
    }

    fn trim(&self) -> Result<u64> {
        self.free_preallocated()?;
        trim::fitrim(&self.directory).context(|| self.call("FITRIM"))
    }

    fn highest_group(&self) -> Result<Option<GroupId>> {
        let mut highest = None;
        for manifest in self.all_manifests()? {
            match Head::read(&manifest) {
                Ok(head) => highest = highest.max(head.group),
                Err(e) if e.kind() == Kind::NotFound => {}
                // Its record has its group, too; nobody must be kept from opening the store by it.
                Err(e) if e.kind() == Kind::Damaged => tracing::warn!("{e}"),
                Err(e) => return Err(e),
            }
        }
        Ok(highest)
    }

    fn instance(&self) -> Result<String> {
        instance::instance(&self.directory, &self.root)
    }

    fn quotas(&self) -> Option<&dyn Quotas> {
        match self.quota_state() {
            Ok(state) if state.enforced => Some(self),
            _ => None,
        }
    }

    fn no_limits(&self) -> Result<Error> {
        self.why_no_limits()
    }

    fn quota_mode(&self) -> Result<QuotaMode> {
        self.mode()
    }

    fn set_quota_mode(&self, mode: QuotaMode) -> Result<()> {
        self.switch_quotas(mode)
    }
}

/// The directories in a directory, trees and trash left out: what is in those is none of ours.
fn directories(path: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(path).context(|| format!("read {}", path.display()))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.context(|| format!("read {}", path.display()))?;
        let ours = ["fs", "fs.new", "trash"].iter().all(|not| entry.file_name() != *not);
        if ours && entry.file_type().context(|| format!("read {}", path.display()))?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// `None` for what is proven to be something else (ENOTTY).
fn proven<T>(proof: std::io::Result<T>) -> std::io::Result<Option<T>> {
    match proof {
        Ok(fd) => Ok(Some(fd)),
        Err(e) if e.raw_os_error() == Some(libc::ENOTTY) => Ok(None),
        Err(e) => Err(e),
    }
}
