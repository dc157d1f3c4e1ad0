//! Blocks on disk, and those that a tree's base has.

use std::cell::OnceCell;
use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rangemap::RangeSet;
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use super::walk::{self, OPEN_DIRECTORY};
use crate::sys::fiemap::{self, Extent, Place};
use crate::sys::rooted;
use crate::{Context, Result};

/// Addresses on the filesystem, in bytes. A compressed extent is among them by its first byte alone: how far it goes
/// can't be asked.
pub(super) type Blocks = RangeSet<u64>;

/// The addresses of an extent; none for one that has no place of its own.
pub(super) fn span(extent: &Extent) -> Option<Range<u64>> {
    match extent.place {
        Place::At(start) => Some(start..start + extent.length),
        Place::EncodedAt(start) => Some(start..start + 1),
        Place::Nowhere => None,
    }
}

/// Open the regular file `name` to ask for its extents. `None` if it vanished or is something else.
pub(super) fn open_file(
    directory: &impl std::os::fd::AsFd,
    name: impl rustix::path::Arg,
) -> rustix::io::Result<Option<File>> {
    match openat(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT) => Ok(None),
        found => rooted::regular(found?, OFlags::NOATIME),
    }
}

/// Open the regular file at `path` below a directory, likewise.
pub(super) fn open_beneath(root: &OwnedFd, path: &[u8]) -> rustix::io::Result<Option<File>> {
    let slash = path.iter().rposition(|&byte| byte == b'/');
    let (directory, name) = slash.map_or((&b""[..], path), |at| (&path[..at], &path[at + 1..]));
    match rooted::beneath(root, directory, OPEN_DIRECTORY) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        directory => open_file(&directory?, name),
    }
}

/// A tree that others were cloned from, and that is still as it was then.
#[derive(Debug)]
pub(super) struct Base {
    root: OwnedFd,
    path: PathBuf,
    /// Those of all its files; it takes a look at each of them, so it is done when it is needed.
    all: OnceCell<Blocks>,
}

impl Base {
    pub(super) fn new(root: OwnedFd, path: PathBuf) -> Self {
        Self { root, path, all: OnceCell::new() }
    }

    /// The blocks of the file at `path` below its root; none if there is no such file.
    pub(super) fn file(&self, path: &[u8]) -> Result<Blocks> {
        let call = || format!("read /{} of {}", String::from_utf8_lossy(path), self.path.display());
        let Some(file) = open_beneath(&self.root, path).context(call)? else { return Ok(Blocks::new()) };
        Ok(fiemap::extents(&file, false).context(call)?.iter().filter_map(span).collect())
    }

    /// The blocks of all its files.
    pub(super) fn all(&self) -> Result<&Blocks> {
        if let Some(all) = self.all.get() {
            return Ok(all);
        }
        let extents = walk::regular_files(&self.root, |found| {
            let call = || format!("FIEMAP {}", found.shown());
            let file = open_file(&found.directory, found.name).context(call)?;
            file.map(|file| fiemap::extents(&file, false)).transpose().context(call)
        });
        let extents = extents.context(|| format!("read {}", self.path.display()))?;
        Ok(self.all.get_or_init(|| extents.iter().flatten().filter_map(span).collect()))
    }
}
