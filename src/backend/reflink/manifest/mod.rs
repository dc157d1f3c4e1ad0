//! What a tree was when it was made: a file beside it, `manifest.<ino>`, that is never changed.
//!
//! It is what tells later which files were touched: an inode with another change time than the one written down here
//! was changed, whatever the file's other times, its length and the clock say; one that isn't written down is new. It goes by the root's
//! inode so that a tree and its manifest change places in one rename.
//!
//! # Format
//!
//! All numbers are little endian.
//!
//! ```text
//! head    8  "reflinkt"
//!         4  number of the format: 1
//!         4  n, the bytes up to the checksum
//!         n  16  identity of this tree, random
//!             4  flags: 1 read-only, 2 there is a group, 4 there is a base, 8 the base was read-only, 16 a fork
//!             4  group
//!             8  names below
//!             8  bytes that it took by itself when it was made: inodes and directories
//!             8  bytes of blocks that all its inodes had then, shared or not
//!            16  identity of the base
//!             .  place of the base, relative to ROOT where it is below it
//!         4  CRC-32C of all the above
//! body    a zstd frame with a checksum, of one list for each directory. The root's comes first, then those of the
//!         directories in the order in which lists name them:
//!         4  names in this directory; for each:
//!             1  type, as in `d_type` of readdir(3)
//!             1  n, the bytes of the name
//!             8  inode, less that of the name before (the first: less 0)
//!             8  change time in ns since 1970, less that of the name before (the first: less 0)
//!             n  name
//! ```
//!
//! Differences wrap around, and are small: that is what makes it compress.
//!
//! # Forks
//!
//! A fork is told by what its source is told by: it has the names of its source's manifest, with its own inodes in the place
//! of those that its source has there.
//!
//! ```text
//! source's manifest       source                          fork's manifest
//! etc/passwd 30 at t1     30 at t1 is as it was           etc/passwd 71 at t5, as which it was made: untouched
//! etc/hosts  31 at t1     31 at t3, now named etc/h       etc/hosts  72 at NEVER: touched, and compared with etc/hosts
//! bin/true   32 at t1     removed                         bin/true   no inode (0) at NEVER
//!                         33, new                         none
//! ```

mod codec;

use codec::Fault;
pub(super) use codec::nanoseconds;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use uuid::Uuid;

use crate::backend::GroupId;
use crate::backend::changes::{Remembered, join};
use crate::backend::clone::{Cloned, Entry};
use crate::sys::durable;
use crate::{Context, Result};

/// What is known of a tree without reading the names in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    /// Tells this tree from one that was in its place before or will be after.
    pub(super) id: Uuid,
    pub(super) group: Option<GroupId>,
    pub(super) read_only: bool,
    /// The tree it is compared with: it was cloned from that, or is a fork of one that was.
    pub(super) base: Option<Base>,
    /// Whether it may share what it has beyond its base with other trees of the same base.
    pub(super) fork: bool,
    /// Names below the root.
    pub(super) entries: u64,
    /// Bytes that it took by itself: inodes and directories.
    pub(super) metadata: u64,
    /// Bytes of blocks that all its inodes had, shared or not: what XFS's project quotas count of an untouched tree.
    pub(super) blocks: u64,
}

/// Where a tree was cloned from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Base {
    /// Relative to ROOT where it is below it.
    pub(super) place: PathBuf,
    pub(super) id: Uuid,
    /// Then it is still what it was, if it is there.
    pub(super) read_only: bool,
}

/// All of a manifest.
#[derive(Debug)]
pub(super) struct Manifest {
    pub(super) head: Head,
    pub(super) names: Vec<Name>,
    /// By directory, the root first: its own name, if it isn't the root.
    directories: Vec<Option<usize>>,
    /// One name of each inode.
    by_inode: HashMap<u64, usize>,
}

/// A name in a tree when it was made.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Name {
    /// The number of the directory it is in; the root is 0.
    pub(super) directory: usize,
    pub(super) name: Box<[u8]>,
    pub(super) inode: u64,
    /// ns since 1970.
    ctime: i64,
    pub(super) kind: FileType,
}

/// A change time that no inode has: of what was touched, or is gone.
const NEVER: i64 = i64::MIN;
/// The number of no inode.
const GONE: u64 = 0;

impl Name {
    /// Whether the inode that had this name is what it was, if that is its change time now, in ns since 1970.
    pub(super) fn is_untouched(&self, ctime: i64) -> bool {
        self.ctime != NEVER && self.ctime == ctime
    }
}

impl Head {
    /// Read only the head of the manifest at `path`.
    ///
    /// # Errors
    /// `NotFound` if there is no such file, `Damaged` if it isn't what was written.
    pub(super) fn read(path: &Path) -> Result<Self> {
        codec::read_head(&mut open(path)?).map_err(|fault| fault.at(path))
    }
}

impl Manifest {
    /// Write the manifest of a new tree, which has `head.entries` names. Not durable by itself.
    pub(super) fn write(path: &Path, head: &Head, entries: &[Entry]) -> Result<()> {
        write(path, head, &codec::body(entries))
    }

    /// Write this manifest. Not durable by itself.
    pub(super) fn save(&self, path: &Path) -> Result<()> {
        write(path, &self.head, &codec::body_of(&self.names, self.directories.len()))
    }

    /// Write the manifest at `from` to `to`, for a tree charged to `group`. Not durable by itself.
    pub(super) fn copy(from: &Path, to: &Path, group: Option<GroupId>) -> Result<()> {
        let mut source = open(from)?;
        let head = Head { group, ..codec::read_head(&mut source).map_err(|fault| fault.at(from))? };
        let call = || format!("copy {} to {}", from.display(), to.display());
        let mut file = File::create(to).context(call)?;
        file.write_all(&codec::head(&head)).context(call)?;
        io::copy(&mut source, &mut file).map(drop).context(call)
    }

    /// Where one is written that is to replace another in this place. It isn't a manifest's name.
    pub(super) fn aside(place: &Path) -> PathBuf {
        place.join("manifest.new")
    }

    /// Give the manifest at `path` another head. Durable on return.
    pub(super) fn reword(path: &Path, head: &Head) -> Result<()> {
        let aside = Self::aside(path.parent().unwrap_or(path));
        let call = || format!("write {}", path.display());
        let mut source = open(path)?;
        codec::read_head(&mut source).map_err(|fault| fault.at(path))?;
        let mut file = File::create(&aside).context(call)?;
        file.write_all(&codec::head(head)).context(call)?;
        io::copy(&mut source, &mut file).context(call)?;
        durable::fsync(&file, &aside).context(call)?;
        durable::rename(&aside, path).context(call)
    }

    /// The manifest of a fork of this manifest's tree; see the module's head. `head` is the fork's, but for the number of
    /// names.
    pub(super) fn forked(&self, head: Head, cloned: &Cloned) -> Self {
        let origin =
            |entry: &Entry| entry.origin.map(|origin| (origin.inode, (entry.inode, entry.ctime, origin.ctime)));
        let became: HashMap<_, _> = cloned.entries.iter().filter_map(origin).collect();
        let name = |then: &Name| {
            let (inode, ctime) = match became.get(&then.inode) {
                None => (GONE, NEVER),
                Some((inode, ctime, seen)) if then.is_untouched(nanoseconds(*seen)) => (*inode, nanoseconds(*ctime)),
                Some((inode, ..)) => (*inode, NEVER),
            };
            Name { directory: then.directory, name: then.name.clone(), inode, ctime, kind: then.kind }
        };
        Self::new(Head { entries: self.head.entries, ..head }, self.names.iter().map(name).collect())
    }

    fn new(head: Head, names: Vec<Name>) -> Self {
        let directory = |(at, name): (usize, &Name)| (name.kind == FileType::Directory).then_some(Some(at));
        let directories = std::iter::once(None).chain(names.iter().enumerate().filter_map(directory)).collect();
        let there = names.iter().enumerate().filter(|(_, name)| name.inode != GONE);
        let by_inode = there.map(|(at, name)| (name.inode, at)).collect();
        Self { head, names, directories, by_inode }
    }

    /// Read the manifest at `path`.
    ///
    /// # Errors
    /// `NotFound` if there is no such file, `Damaged` if it isn't what was written.
    pub(super) fn read(path: &Path) -> Result<Self> {
        Self::parse(open(path)?).map_err(|fault| fault.at(path))
    }

    fn parse(mut file: impl BufRead) -> Result<Self, Fault> {
        let head = codec::read_head(&mut file)?;
        let names = codec::names(&codec::decompress(file)?, head.entries)?;
        Ok(Self::new(head, names))
    }

    /// What has, or had, the inode of this number by what is written down; any of its names, if it had several.
    pub(super) fn find(&self, inode: u64) -> Option<&Name> {
        self.by_inode.get(&inode).map(|&at| &self.names[at])
    }

    /// The paths of all directories, with their numbers: the root's is empty and 0.
    pub(super) fn directories(&self, remembered: &Remembered) -> Result<HashMap<Vec<u8>, usize>> {
        let mut paths: Vec<Vec<u8>> = Vec::with_capacity(self.directories.len());
        for at in &self.directories {
            let path = at.map(|at| &self.names[at]).map(|name| join(&paths[name.directory], &name.name));
            let path = path.unwrap_or_default();
            remembered.add(&path)?;
            paths.push(path);
        }
        Ok(paths.into_iter().zip(0..).collect())
    }

    /// The names that go with one inode, of each that has several.
    pub(super) fn linked(&self) -> impl Iterator<Item = Vec<&Name>> {
        let mut names: HashMap<u64, Vec<&Name>> = HashMap::new();
        for name in self.names.iter().filter(|name| name.inode != GONE) {
            names.entry(name.inode).or_default().push(name);
        }
        names.into_values().filter(|names| names.len() > 1)
    }

    /// The path of the directory that a name is in.
    pub(super) fn directory(&self, name: &Name) -> Vec<u8> {
        self.directories[name.directory].map(|at| self.path(&self.names[at])).unwrap_or_default()
    }

    /// The path of a name below the root: names with single slashes between them.
    pub(super) fn path(&self, name: &Name) -> Vec<u8> {
        let above = |name: &&Name| self.directories[name.directory].map(|at| &self.names[at]);
        let mut names: Vec<&[u8]> = std::iter::successors(Some(name), above).map(|name| &*name.name).collect();
        names.reverse();
        names.join(&b'/')
    }
}

fn write(path: &Path, head: &Head, body: &[u8]) -> Result<()> {
    let call = || format!("write {}", path.display());
    let mut file = File::create(path).context(call)?;
    file.write_all(&codec::head(head)).context(call)?;
    codec::compress(body, &mut file).context(call)
}

fn open(path: &Path) -> Result<BufReader<File>> {
    File::open(path).map(BufReader::new).context(|| format!("read {}", path.display()))
}

#[cfg(test)]
mod tests;
