//! How much a tree holds of its own: the blocks of the files that were touched since it was made, without those that
//! the tree it was cloned from has as well.
//!
//! A file whose inode and change time are in the manifest is untouched, and isn't even opened. Of any other, blocks that
//! no other file has are the tree's own. Those that another file has, too, may be
//!
//! - the base's: looked up in the same file of the base, then in all its files (somebody copied within the tree). As a
//!   read-only base is still what it was, this is exact;
//! - shared within the tree (`cp --reflink`) or with a clone that was made of it later: its own, and counted once.
//!
//! If the base is gone, or could be written to, nobody can tell these apart any more, and shared blocks don't count.
//!
//! What is compressed (Btrfs) counts by its length in the file, data among the metadata by its own. Preallocated room
//! counts, also what XFS allocates ahead for a file that is being appended to, until that is closed. Files without a
//! name that a process has open aren't seen.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, CWD, Mode, StatxFlags, fstat, makedev, openat, statx};
use rustix::io::Errno;
use uuid::Uuid;

use super::blocks::{self, Base, Blocks};
use super::manifest::{Head, Manifest, nanoseconds};
use super::walk::{self, OPEN_DIRECTORY};
use super::{Reflink, place};
use crate::backend::{Tree, TreeSize};
use crate::sys::fiemap::{self, Extent};
use crate::{Context, Kind, Result};

/// Measures any number of trees. What it learns of a base serves all that were cloned from it.
#[derive(Debug)]
pub(super) struct Meter<'a> {
    backend: &'a Reflink,
    /// Write a file's dirty data before asking where it is.
    sync: bool,
    bases: HashMap<Uuid, Rc<Base>>,
}

/// A file that isn't as it was when its tree was made.
#[derive(Debug)]
struct Touched {
    /// Device and inode: a subvolume inside of a tree has inode numbers of its own.
    identity: (u64, u64),
    length: u64,
    extents: Vec<Extent>,
}

/// What a tree has in common with others without its being the tree's own.
#[derive(Debug)]
enum Baseline {
    /// It was made empty.
    Nothing,
    /// What is in the tree it was cloned from.
    Base(Rc<Base>),
    /// That is gone, or may have changed.
    Unknown,
}

impl<'a> Meter<'a> {
    pub(super) fn new(backend: &'a Reflink, sync: bool) -> Self {
        Self { backend, sync, bases: HashMap::new() }
    }

    /// What the tree at `root` holds of its own: without its manifest, what no other file has. `None` if it isn't there,
    /// or was moved away meanwhile.
    pub(super) fn measure(&mut self, root: &Path, manifest: Option<&Manifest>) -> Result<Option<TreeSize>> {
        let call = || format!("measure {}", root.display());
        let tree = match openat(CWD, root, OPEN_DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            tree => tree.context(call)?,
        };
        let facts = fstat(&tree).context(call)?;
        let visit = |file: walk::File<'_>| touched(file, facts.st_dev, manifest, self.sync);
        let touched = walk::regular_files(&tree, visit).context(call)?;
        let path = |identity: (u64, u64)| {
            let manifest = manifest.filter(|_| identity.0 == facts.st_dev)?;
            manifest.find(identity.1).map(|name| manifest.path(name))
        };
        let baseline = manifest.map_or(Ok(Baseline::Unknown), |manifest| self.baseline(&manifest.head))?;
        let size = sum(&touched, &baseline, path).context(call)?;
        let now = fs::symlink_metadata(root).map(|now| (now.dev(), now.ino()));
        Ok((now.ok() == Some((facts.st_dev, facts.st_ino))).then_some(size))
    }

    fn baseline(&mut self, head: &Head) -> Result<Baseline> {
        let Some(base) = &head.base else { return Ok(Baseline::Nothing) };
        if !base.read_only {
            return Ok(Baseline::Unknown);
        }
        if let Some(known) = self.bases.get(&base.id) {
            return Ok(Baseline::Base(Rc::clone(known)));
        }
        let path = Tree::new(self.backend.root.join(&base.place), None).root();
        let root = match openat(CWD, &path, OPEN_DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(Baseline::Unknown),
            root => root.context(|| format!("open {}", path.display()))?,
        };
        match place::read(&path, Head::read) {
            Ok(now) if now.id == base.id => {}
            Ok(_) => return Ok(Baseline::Unknown),
            Err(e) if e.kind() == Kind::NotFound => return Ok(Baseline::Unknown),
            Err(e) => return Err(e),
        }
        let found = Rc::new(Base::new(root, path));
        self.bases.insert(base.id, Rc::clone(&found));
        Ok(Baseline::Base(found))
    }
}

/// What there is to know of a file; `None` if it is untouched, or gone.
fn touched(found: walk::File<'_>, device: u64, manifest: Option<&Manifest>, sync: bool) -> Result<Option<Touched>> {
    let call = |call: &str| format!("{call} {}", found.shown());
    let facts = match statx(found.directory, found.name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS) {
        Err(Errno::NOENT) => return Ok(None),
        facts => facts.context(|| call("statx"))?,
    };
    let identity = (makedev(facts.stx_dev_major, facts.stx_dev_minor), facts.stx_ino);
    let ctime = nanoseconds((facts.stx_ctime.tv_sec, facts.stx_ctime.tv_nsec));
    let then = manifest.filter(|_| identity.0 == device).and_then(|manifest| manifest.find(identity.1));
    if then.is_some_and(|then| then.kind.is_file() && then.ctime == ctime) {
        return Ok(None);
    }
    let mut extents = Vec::new();
    if facts.stx_blocks > 0 {
        let file = blocks::open_file(&found.directory, found.name).context(|| call("open"))?;
        let Some(file) = file else { return Ok(None) };
        extents = fiemap::extents(&file, sync).context(|| call("FIEMAP"))?;
    }
    Ok(Some(Touched { identity, length: facts.stx_size, extents }))
}

/// Add up files; `path` tells where the base has, or had, the file with this identity.
fn sum(touched: &[Touched], baseline: &Baseline, path: impl Fn((u64, u64)) -> Option<Vec<u8>>) -> Result<TreeSize> {
    let (mut charged, mut apparent) = (0, 0);
    let (mut own, mut seen) = (Blocks::new(), HashSet::new());
    for file in touched.iter().filter(|file| seen.insert(file.identity)) {
        apparent += file.length;
        let mut same_file = None;
        for extent in &file.extents {
            let Some(span) = blocks::span(extent) else {
                charged += extent.length;
                continue;
            };
            let parts = match baseline {
                _ if !extent.shared => vec![span],
                Baseline::Nothing => vec![span],
                Baseline::Unknown => continue,
                Baseline::Base(base) => {
                    let same = match &mut same_file {
                        Some(same) => same,
                        none => none
                            .insert(path(file.identity).map_or_else(|| Ok(Blocks::new()), |path| base.file(&path))?),
                    };
                    let mut others = Vec::new();
                    for part in same.gaps(&span) {
                        others.extend(base.all()?.gaps(&part));
                    }
                    others
                }
            };
            for part in parts {
                charged += own.gaps(&part).map(|new| blocks::bytes(extent, &new)).sum::<u64>();
                own.insert(part);
            }
        }
    }
    Ok(TreeSize { charged, apparent: Some(apparent) })
}
