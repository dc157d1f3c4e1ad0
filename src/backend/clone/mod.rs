//! A faithful clone of a directory tree, entry by entry, for filesystems that share blocks between files but have no
//! snapshots of trees.
//!
//! Kept are types, modes, owners, all xattrs (ACLs and capabilities among them), access and modification times to the
//! ns, device numbers, hard links within the tree, holes, and the inode flags +i +a +d +A +S where the filesystem
//! has them. Not kept is what only a snapshot could: change and birth times, inode numbers, preallocation, extent size
//! hints, and +i and +a of the root itself, which could then not be moved into its place.
//!
//! # How
//!
//! Two threads take directories from one [`queue`]. Who takes a directory makes *all* its entries, subdirectories
//! among them, and then gives it its own owner, mode, xattrs, times and flags, which nothing disturbs afterwards: no
//! second pass upwards. A directory that waits is a number, opened again by its path when its turn comes, so that
//! descriptors are bounded whatever the shape of the tree. Only flags that would forbid further names of an inode wait
//! for the end ([`links`]).
//!
//! # A source that is being changed
//!
//! The source may be the tree of a running container. Then the clone is not of one moment, but never leaves the tree:
//! no symlink is followed and no mount crossed, and facts are those of the inode that was opened. What vanishes between
//! being listed and being opened is left out, and so is a directory that became something else.
//!
//! The clone itself must be the caller's alone until this returns: it is not guarded against others.

mod finish;
mod links;
mod queue;
mod worker;

use std::os::fd::{AsFd, OwnedFd};
use std::panic::resume_unwind;
use std::path::Path;
use std::thread::{self, ScopedJoinHandle};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, fchmod, fchown, mkdirat, openat};

use crate::copy::attributes::disinherit;
use crate::copy::facts::{device_of, facts};
use crate::copy::open;
use crate::sys::reflink;
use crate::{Context, Result};
use links::Links;
use queue::{Made, Queue, WORKERS};
use worker::Worker;

/// Permissions of a directory until it is done: the ones that most directories have, so that most need no chmod.
const FRESH_DIRECTORY: Mode = Mode::from_raw_mode(0o755);
const OPEN_DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// How file content gets into the clone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// FICLONE: shares every block. A file that can't be shared is an error, never copied.
    Reflink,
    /// Read and write, holes kept.
    Copy,
}

/// Whether somebody may be writing to the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Nobody: it is a committed layer.
    Still,
    /// A container may run in it. Takes a tenth more time: what a file is is found out before it is opened, so that no
    /// device that takes a file's place is ever opened.
    Live,
}

/// Names made, by what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// The root among them.
    pub directories: u64,
    /// Regular files whose blocks are shared.
    pub cloned: u64,
    /// Regular files that were written anew.
    pub copied: u64,
    /// Regular files with nothing in them to clone or copy.
    pub empty: u64,
    /// Further names of an inode that counts above or below.
    pub links: u64,
    pub symlinks: u64,
    /// Devices, FIFOs and sockets.
    pub nodes: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        let Self { directories, cloned, copied, empty, links, symlinks, nodes } = other;
        self.directories += directories;
        self.cloned += cloned;
        self.copied += copied;
        self.empty += empty;
        self.links += links;
        self.symlinks += symlinks;
        self.nodes += nodes;
    }
}

/// A change time: seconds and ns.
pub type Ctime = (i64, u32);

/// The inode of the source that one of the clone was made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    pub inode: u64,
    /// When all had been taken from it that the clone has: if somebody changed it before that, even while it was read,
    /// it is later than it was before that change.
    pub ctime: Ctime,
}

/// One name in the clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The number of the directory it is in; the root is 0.
    pub directory: u32,
    /// Empty for the root.
    pub name: Box<[u8]>,
    /// Of the clone.
    pub inode: u64,
    /// Of the clone's inode, after the last thing done to it.
    pub ctime: Ctime,
    pub kind: FileType,
    /// A directory's own number, greater than that of the directory it is in. They count up from 0, but for directories
    /// that vanished meanwhile.
    pub child: Option<u32>,
    /// What its inode has, in blocks of 512 bytes: of a regular file those that it shares.
    pub blocks: u64,
    /// `None` if it is on another filesystem than the source's root (a subvolume), or gone from its name by now.
    pub origin: Option<Origin>,
}

/// What was made.
#[derive(Debug, Clone)]
pub struct Cloned {
    pub counts: Counts,
    pub root: Entry,
    /// All but the root, in no order.
    pub entries: Vec<Entry>,
}

impl Entry {
    fn new((directory, name): (u32, Box<[u8]>), kind: FileType, made: Made, child: Option<u32>) -> Self {
        let Made { inode, ctime, blocks, origin } = made;
        Self { directory, name, inode, ctime, kind, child, blocks, origin }
    }
}

/// Clone the directory `from` to `to`, which must not exist. Nothing is durable by this alone.
///
/// `project` is set as the project id of the clone's root, to be inherited, before anything is made in it
/// (`FS_IOC_FSSETXATTR`). On failure what was made so far stays, for the caller to remove.
///
/// # Errors
/// They name the entry below `from`: `Unsupported` for an active swapfile and, with [`Content::Reflink`], for a file that
/// can't share its blocks; `InUse` where something is mounted inside; `NoSpace` for ENOSPC and EDQUOT.
pub fn clone_tree(from: &Path, to: &Path, state: Source, content: Content, project: Option<u32>) -> Result<Cloned> {
    (|| {
        let source =
            openat(CWD, from, OPEN_DIRECTORY | OFlags::NOATIME, Mode::empty()).context(|| "open the source")?;
        mkdirat(CWD, to, Mode::RWXU).context(|| "mkdir")?;
        let clone = openat(CWD, to, OPEN_DIRECTORY, Mode::empty()).context(|| "open the clone")?;
        let me = (rustix::process::geteuid(), rustix::process::getegid());
        bare(&clone, me).context(|| "prepare the root")?;
        if let Some(project) = project {
            reflink::set_project(&clone, project).context(|| format!("set the project {project}"))?;
        }
        let on_xfs = reflink::is_xfs(&source).context(|| "statfs the source")?;
        let device = facts(&source, c"", AtFlags::EMPTY_PATH).map(|facts| device_of(&facts));
        let device = device.context(|| "stat the source")?;
        let (queue, links) = (Queue::new(), Links::default());
        let descriptors = match state {
            Source::Still => None,
            Source::Live => Some(open::descriptors()?),
        };
        let shared = Shared { source, clone, content, descriptors, me, on_xfs, device, queue, links };
        let parts = work(&shared)?;
        finish::finish(shared, parts)
    })()
    .context(|| format!("clone {} to {}", from.display(), to.display()))
}

/// Take from a fresh directory what it inherited from the one it is in.
fn bare(directory: impl AsFd, (uid, gid): (Uid, Gid)) -> rustix::io::Result<()> {
    fchown(&directory, Some(uid), Some(gid))?;
    disinherit(&directory)?;
    fchmod(&directory, FRESH_DIRECTORY)
}

/// What both threads work on.
#[derive(Debug)]
struct Shared {
    source: OwnedFd,
    clone: OwnedFd,
    content: Content,
    /// `/proc/self/fd`, if the source is live.
    descriptors: Option<OwnedFd>,
    /// Whom new inodes belong to.
    me: (Uid, Gid),
    /// The source.
    on_xfs: bool,
    /// That of the source's root.
    device: (u32, u32),
    queue: Queue,
    links: Links,
}

/// Make everything, on threads of their own. An error that one meets stops the other.
fn work(shared: &Shared) -> Result<Vec<(Counts, Vec<Entry>)>> {
    thread::scope(|scope| {
        let start = |number| {
            let worker = Worker::new(shared, number);
            let thread = thread::Builder::new().name("clone".into()).spawn_scoped(scope, || worker.run());
            thread.context(|| "start a thread").inspect_err(|_| shared.queue.stop())
        };
        let threads: Vec<_> = (0..WORKERS).map(start).collect();
        let join = |thread: ScopedJoinHandle<'_, _>| thread.join().unwrap_or_else(|panic| resume_unwind(panic));
        threads.into_iter().map(|thread| thread.and_then(join)).collect()
    })
}
