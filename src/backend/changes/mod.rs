//! Change feeds: what a tree holds that the tree it was cloned from does not.
//!
//! The answer is what is needed to make a layer of it: which names are new, which entries have other content or
//! metadata, which names are gone. It is sorted by path, component by component, so that a directory comes before
//! what is in it.
//!
//! # What counts
//!
//! Two entries at one path are compared by what a layer can carry: type, permissions, owner, time of modification to
//! the ns, size, device number, link target, all xattrs, and every byte of content. Not by inode number, times of
//! access and change, flags, the label of SELinux, or whether zeros are a hole. How a tree got there doesn't matter: what was deleted and made
//! again just as it was has not changed.
//!
//! ```text
//! echo x >> etc/passwd            Modified /etc/passwd
//! echo x > etc/new                Added /etc/new, and Touched /etc: its time of modification is another one
//! rm -r usr/share/doc             Deleted /usr/share/doc: all below it is gone without saying; Touched /usr/share
//! mv var/lib/a var/lib/b          Deleted /var/lib/a, Added /var/lib/b and everything below it
//! rm bin; ln -s usr/bin bin       Replaced /bin (a directory was there): all below the old one is gone without saying
//! rm -r d; mkdir d; echo > d/f    compared by names: Deleted what d had, Added or Modified /d/f, Modified or Touched /d
//! ln a b                          Added /b, Linked /a: as it was, but a layer has to carry both of them
//! ln a b; chmod 600 a             Added /b, Modified /a: all names of an inode that has changed
//! rm b (a, b and c were one)      Deleted /b, and nothing of the others
//! rm b; ln a b                    Modified /b if it was another file before, even one with the same content: among
//!                                 names that are in both trees, it now goes with another one than it did
//! touch -d @0 f; cat f            nothing, if that was its time before
//! ```
//!
//! The root itself is the empty path: Touched or Modified like any directory.
//!
//! Subvolumes that were made inside the tree are part of it: each is a directory with what is in it, as it is when it
//! is read. Snapshots stop at them, so a change in one while the feed is read may be seen or not.
//!
//! # A tree that is written to
//!
//! A feed that takes a snapshot tells of one moment between its call and its return, and of all that was written before
//! the call, in the page cache or not, but for files that are being overwritten at that moment (docs/kernel.md): these may be
//! older. One that walks ([`FeedMethod::Manifest`], and [`FeedMethod::Walk`] without a snapshot) tells of each entry as it
//! was when it came by; what vanishes meanwhile counts as gone.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Tree;
use crate::{Error, Kind, Result};

mod compare;
mod entry;
mod links;
mod side;
mod walk;

pub(super) use compare::{Comparer, Directory, Found, Look, Plan};
pub(super) use links::Inode;
pub(super) use side::{Grafts, Side, join};
pub(super) use walk::listed;
pub use walk::walk;

/// Most bytes of paths in an answer, or on the way to one: four million names of 128 bytes.
const MOST_PATHS: u64 = 512 << 20;

/// What of paths is remembered: as many as there are changes, and each as long as whoever writes the tree likes.
#[derive(Debug, Default)]
pub(super) struct Remembered(AtomicU64);

impl Remembered {
    /// One more path.
    ///
    /// # Errors
    /// `Unsupported` if they are too much together.
    pub(super) fn add(&self, path: &[u8]) -> Result<()> {
        let length = path.len() as u64;
        if self.0.fetch_add(length, Ordering::Relaxed).saturating_add(length) <= MOST_PATHS {
            return Ok(());
        }
        let why = format!("the paths that are compared are longer than {} MiB together", MOST_PATHS >> 20);
        let begins = path[..path.len().min(64)].escape_ascii();
        Err(Error::new(Kind::Unsupported, why).with_hint(format!("the longest may be below /{begins}")))
    }
}

/// What a feed is asked.
#[derive(Debug, Clone, Copy)]
pub struct Comparison<'a> {
    /// The tree that `tree` was cloned from, directly or through other clones, and which nobody writes to. `None` for a
    /// tree that began empty: all that is in it is added.
    pub parent: Option<&'a Tree>,
    pub tree: &'a Tree,
    /// A place without a tree that the feed may put a temporary one in. When it returns there is none. `None` where
    /// nothing can be written (a full disk, a read-only filesystem): the trees are compared as they are.
    pub scratch: Option<&'a Tree>,
    /// Find [`Change::size`] too.
    pub sizes: bool,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// Sorted by path.
    pub list: Vec<Change>,
    pub method: FeedMethod,
}

/// One entry that is not as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Below the tree's root; the root itself is the empty path.
    pub path: PathBuf,
    pub what: What,
    /// What the entry is now; for [`What::Deleted`] what it was.
    pub kind: EntryKind,
    /// Bytes that the entry's content takes on disk and the parent's doesn't: an inode's at the first of its names that
    /// changed, none at the others. 0 for what is no regular file. `None` unless [`Comparison::sizes`].
    pub size: Option<u64>,
}

/// How an entry is not as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// The parent has no such name.
    Added,
    /// The same type with other content or metadata, or a name that goes with other names of one inode than before.
    Modified,
    /// A directory of which nothing but the time of modification is another one: names in it came or went, as a rule.
    Touched,
    /// Another type. What was there is gone with all below it; what is below it now is added.
    Replaced { was: EntryKind },
    /// As it was, but another name of its inode is to be made: a layer has to carry all of them together. Who unpacks it
    /// can't link to a file that only a lower layer has.
    Linked,
    /// Gone with all below it, which is not listed.
    Deleted,
}

/// A type of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EntryKind {
    Directory,
    File,
    Symlink,
    Fifo,
    Socket,
    CharacterDevice,
    BlockDevice,
}

/// How changes were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedMethod {
    /// The filesystem knows that nothing was touched.
    Unchanged,
    /// The filesystem named what was touched: Btrfs's SEND.
    Send,
    /// The tree was walked and held to what was written down of it when it was made.
    Manifest,
    /// Both trees were walked.
    Walk,
}

impl What {
    /// Whether a layer has to make the entry because of what became of it.
    pub(super) fn is_made(self) -> bool {
        matches!(self, Self::Added | Self::Modified | Self::Replaced { .. })
    }
}

impl fmt::Display for FeedMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unchanged => "unchanged",
            Self::Send => "send",
            Self::Manifest => "manifest",
            Self::Walk => "walk",
        })
    }
}
