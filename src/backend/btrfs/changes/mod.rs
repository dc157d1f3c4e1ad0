//! The change feed of Btrfs: SEND between the parent and a temporary snapshot.
//!
//! ```text
//! snapshot the tree into scratch      one commit; writes out this subvolume's dirty data, so that all is seen
//! ctransid not above the clone's?     nothing was touched: done
//! SEND parent -> snapshot             names of all that may differ, for the price of the changed blocks
//! compare those names in both         what differs in fact: reading a file moves its access time, and SEND tells it
//! destroy the snapshot                always, whatever happened
//! ```
//!
//! SEND takes two inodes of one number and generation for one inode. That holds where both trees come from one, which
//! is asked of the birth times of their roots: snapshots keep them. Where it doesn't hold, and where SEND gives up,
//! parent and snapshot are walked.
//!
//! Of subvolumes nested in the tree a snapshot has empty directories, and SEND knows nothing. They are found by
//! searching, and what is in them is read where it is.

use std::collections::BTreeMap;
use std::io::{self, BufReader, PipeReader};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use rustix::fs::{AtFlags, StatxFlags, statx};

use super::Btrfs;
use super::tree::{self, Inner};
use crate::backend::changes::{
    Changes, Comparer, Comparison, FeedMethod, Found, Grafts, Inode, Plan, Side, listed, walk,
};
use crate::backend::{Backend, QuotaMode, Tree};
use crate::sys::btrfs::search::{self, Name};
use crate::sys::btrfs::send::{self, Stream};
use crate::sys::btrfs::subvol::{self, SubvolInfo};
use crate::sys::btrfs::{BtrfsFd, Create, PLACEHOLDER_INODE, SUBVOLUME_INODE};
use crate::{Context, Kind, Result};
use namespace::Namespace;
use sizes::Sizes;

mod namespace;
mod sizes;

/// How long full quotas may take to forget the temporary snapshot.
const PATIENCE: Duration = Duration::from_secs(10);

/// A subvolume that is compared.
#[derive(Debug)]
struct Subvolume {
    root: PathBuf,
    fd: BtrfsFd,
    info: SubvolInfo,
}

impl Subvolume {
    fn open(tree: &Tree) -> Result<Self> {
        let (root, fd) = (tree.root(), tree::open_tree(tree)?);
        let info =
            subvol::get_subvol_info(&fd).context(|| format!("BTRFS_IOC_GET_SUBVOL_INFO {}", root.display()))?;
        Ok(Self { root, fd, info })
    }

    /// When its root directory was made: snapshots keep it.
    fn born(&self) -> Result<(i64, u32)> {
        let stat = statx(self.fd.as_fd(), c"", AtFlags::EMPTY_PATH, StatxFlags::BTIME)
            .context(|| format!("statx {}", self.root.display()))?;
        Ok((stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec))
    }

    fn side<'a>(&self) -> Result<Side<'a>> {
        let root = self.fd.as_fd().try_clone_to_owned().context(|| format!("dup {}", self.root.display()))?;
        Ok(Side::new(root, &self.root))
    }
}

/// A snapshot for the time of a comparison.
#[derive(Debug)]
struct Temporary<'b> {
    btrfs: &'b Btrfs,
    root: PathBuf,
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        self.btrfs.undo(&self.root);
        // To full quotas what two subvolumes share is neither's own, until the cleaner is done with one.
        if matches!(self.btrfs.mode(), Ok(QuotaMode::Full))
            && let Err(error) = self.btrfs.wait_for_cleaner(PATIENCE)
        {
            tracing::warn!(%error, "sizes are too small until the kernel has cleaned up");
        }
    }
}

impl Btrfs {
    pub(super) fn changes_of(&self, wanted: &Comparison<'_>) -> Result<Changes> {
        let tree = Subvolume::open(wanted.tree)?;
        let parent = wanted.parent.map(Subvolume::open).transpose()?;
        let read_only = subvol::is_read_only(&tree.fd);
        if read_only.context(|| format!("BTRFS_IOC_SUBVOL_GETFLAGS {}", tree.root.display()))? {
            return self.compare(parent.as_ref(), &tree, &tree, wanted.sizes);
        }
        let Some(scratch) = wanted.scratch else { return walk(wanted) };
        let temporary = match self.snapshot(&tree, scratch) {
            // Whoever looks for what fills the disk is better served by an answer of several moments than by none.
            Err(error) if error.kind() == Kind::NoSpace => {
                tracing::warn!(%error, "no room for a snapshot: what is written meanwhile may be missed");
                return walk(wanted);
            }
            made => made?,
        };
        let snapshot = Subvolume::open(scratch)?;
        let changes = if parent.as_ref().is_some_and(|parent| is_unchanged(parent, &tree, &snapshot)) {
            Ok(Changes { list: Vec::new(), method: FeedMethod::Unchanged })
        } else {
            self.compare(parent.as_ref(), &tree, &snapshot, wanted.sizes)
        };
        // What is open isn't cleaned up.
        drop(snapshot);
        drop(temporary);
        changes
    }

    /// In no quota group, so that it neither counts nor is limited.
    fn snapshot(&self, tree: &Subvolume, scratch: &Tree) -> Result<Temporary<'_>> {
        let root = scratch.root();
        let place = tree::open_place(scratch.place())?;
        match subvol::snap_create(&tree.fd, &place, tree::name_of(&root), &Create { read_only: true, group: None }) {
            Ok(()) => Ok(Temporary { btrfs: self, root }),
            Err(Errno::ETXTBSY) => Err(super::destroy::active_swapfile(&tree.fd, &tree.root, Kind::Unsupported)),
            Err(e) => Err(e).context(|| format!("snapshot {} as {}", tree.root.display(), root.display())),
        }
    }

    /// Compare `parent` with `snapshot`, which was just taken of `live`, or is the same.
    fn compare(
        &self,
        parent: Option<&Subvolume>,
        live: &Subvolume,
        snapshot: &Subvolume,
        sizes: bool,
    ) -> Result<Changes> {
        let nested = self.nested_below(live.info.id, snapshot.info.id)?;
        let ids: BTreeMap<_, _> = nested.iter().map(|inner| (inner.path.clone(), inner.id)).collect();
        let open = |id| subvol::open_directory(&self.fd, id, SUBVOLUME_INODE).map(OwnedFd::from);
        let new = snapshot.side()?;
        let device = new.root()?.id.device;
        let new = new.with_grafts(Grafts { placeholder: PLACEHOLDER_INODE, ids: &ids, open: &open });
        let old = parent.map(Subvolume::side).transpose()?;

        let comparer = Comparer::new(old.as_ref(), &new);
        let plan = parent.map(|parent| Ok((parent, plan(parent, snapshot, &nested)?))).transpose()?;
        let (found, method) = match plan {
            Some((parent, Some(plan))) => {
                let names = |inode: Inode| match inode {
                    Inode::Old(id) => self.names_of(parent, id.inode),
                    Inode::New(id) if id.device == device => self.names_of(snapshot, id.inode),
                    // In a nested subvolume, all of which is looked at.
                    Inode::New(_) => Ok(Vec::new()),
                };
                (comparer.planned(plan, &names)?, FeedMethod::Send)
            }
            _ => (comparer.everything()?, FeedMethod::Walk),
        };
        if sizes && !nested.is_empty() {
            // The snapshot wrote out the tree's own data; what isn't written out has no size yet.
            self.sync_to_count();
        }
        let mut counted = Sizes::new(self, parent.map(|parent| &parent.info), &live.info, snapshot.info.id);
        let mut size = |found: &Found| {
            let nested = new.graft_above(&found.path).map(|(id, _)| id);
            counted.of(nested, found.facts.id.inode)
        };
        listed(found, method, sizes, &mut size)
    }

    /// The directories and names of an inode.
    fn names_of(&self, subvolume: &Subvolume, inode: u64) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let id = subvolume.info.id;
        let path = |Name { directory, name }| {
            Ok((search::directory_path(&self.fd, id, directory)?.into_os_string().into_vec(), name.into_vec()))
        };
        search::names(&self.fd, id, inode)
            .and_then(|names| names.into_iter().map(path).collect::<nix::Result<_>>())
            .context(|| format!("BTRFS_IOC_TREE_SEARCH_V2 {}", subvolume.root.display()))
    }
}

/// Whether no inode of `tree`, or of `parent`, was touched since the one was made a snapshot of the other. `snapshot`
/// was taken of `tree`: until its data was written back `tree` itself couldn't tell.
fn is_unchanged(parent: &Subvolume, tree: &Subvolume, snapshot: &Subvolume) -> bool {
    let made = tree.info.otransid;
    tree.info.parent_uuid == Some(parent.info.uuid) && parent.info.ctransid <= made && snapshot.info.ctransid <= made
}

/// All that may differ between two snapshots; `None` where SEND can't tell.
fn plan(parent: &Subvolume, snapshot: &Subvolume, nested: &[Inner]) -> Result<Option<Plan>> {
    if parent.born()? != snapshot.born()? {
        tracing::debug!("{} doesn't descend from {}", snapshot.root.display(), parent.root.display());
        return Ok(None);
    }
    let planned = names_sent(parent, snapshot).and_then(|mut names| {
        // What is nested deeper is below these.
        nested.iter().filter(|inner| inner.outermost).try_for_each(|inner| names.make(&inner.path))?;
        Ok(names.into_plan())
    });
    // The walk finds the same, and says if something is broken.
    Ok(planned.inspect_err(|error| tracing::warn!(%error, "every file has to be compared")).ok())
}

/// What becomes of the parent's names in the snapshot.
fn names_sent(parent: &Subvolume, snapshot: &Subvolume) -> Result<Namespace> {
    let call = || format!("BTRFS_IOC_SEND {}", snapshot.root.display());
    let (reader, writer) = io::pipe().context(|| "pipe")?;
    thread::scope(|scope| {
        let sender = scope.spawn(move || send::send(&snapshot.fd, parent.info.id, writer.as_fd()));
        // Closes the pipe, so that the sender ends in any case.
        let names = read_names(reader);
        match sender.join().unwrap_or_else(|panic| resume_unwind(panic)) {
            // It gave up because we did.
            Ok(()) | Err(Errno::EPIPE) => names.context(call),
            Err(errno) => Err(errno).context(call),
        }
    })
}

fn read_names(pipe: PipeReader) -> Result<Namespace> {
    let mut stream = Stream::open(BufReader::with_capacity(64 << 10, pipe)).context(|| "read the stream")?;
    let mut names = Namespace::new();
    while let Some(command) = stream.next_command().context(|| "read the stream")? {
        names.apply(&command)?;
    }
    Ok(names)
}
