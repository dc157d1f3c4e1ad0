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
use std::os::fd::OwnedFd;
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
use crate::backend::{Own, Tree, TreeSize};
use crate::sys::fiemap::{self, Extent, Place};
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
        let baseline = manifest.map_or(Ok(Baseline::Unknown), |manifest| self.baseline(&manifest.head))?;
        let own = self.beyond(root, manifest, &baseline)?;
        Ok(own.map(|own| TreeSize { charged: own.bytes(), apparent: Some(own.apparent) }))
    }

    /// What a tree holds beyond `parent`, or all. Where its manifest speaks of another tree every file of both is looked at,
    /// and one counts as changed if it has something of its own.
    pub(super) fn own(&mut self, tree: &Tree, parent: Option<&Tree>) -> Result<Own> {
        let root = tree.root();
        let manifest = place::manifest(tree)?;
        let (manifest, baseline) = match parent {
            None => (None, Baseline::Nothing),
            Some(parent) => {
                let id = place::head(parent)?.id;
                let speaks_of_it = manifest.head.base.as_ref().is_some_and(|base| base.id == id);
                let base = self.base(id, parent)?.ok_or_else(|| place::missing(&parent.root()))?;
                (Some(manifest).filter(|_| speaks_of_it), Baseline::Base(base))
            }
        };
        self.beyond(&root, manifest.as_ref(), &baseline)?.ok_or_else(|| place::missing(&root))
    }

    fn beyond(&self, root: &Path, manifest: Option<&Manifest>, baseline: &Baseline) -> Result<Option<Own>> {
        let call = || format!("measure {}", root.display());
        let tree = match openat(CWD, root, OPEN_DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            tree => tree.context(call)?,
        };
        let facts = fstat(&tree).context(call)?;
        let sync = self.sync;
        let visit = |file: walk::Found<'_>| touched(file, facts.st_dev, manifest, sync);
        let touched = walk::regular_files(&tree, visit).context(call)?;
        let path = |identity: (u64, u64)| {
            let manifest = manifest.filter(|_| identity.0 == facts.st_dev)?;
            manifest.find(identity.1).map(|name| manifest.path(name))
        };
        let own = sum(&touched, baseline, manifest.is_some(), path).context(call)?;
        let now = fs::symlink_metadata(root).map(|now| (now.dev(), now.ino()));
        Ok((now.ok() == Some((facts.st_dev, facts.st_ino))).then_some(own))
    }

    fn baseline(&mut self, head: &Head) -> Result<Baseline> {
        let Some(base) = &head.base else { return Ok(Baseline::Nothing) };
        if !base.read_only {
            return Ok(Baseline::Unknown);
        }
        let known = self.base(base.id, &Tree::new(self.backend.root.join(&base.place), None))?;
        Ok(known.map_or(Baseline::Unknown, Baseline::Base))
    }

    /// The tree that others were cloned from, if it is still there.
    fn base(&mut self, id: Uuid, tree: &Tree) -> Result<Option<Rc<Base>>> {
        if let Some(known) = self.bases.get(&id) {
            return Ok(Some(Rc::clone(known)));
        }
        let path = tree.root();
        let root = match openat(CWD, &path, OPEN_DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            root => root.context(|| format!("open {}", path.display()))?,
        };
        match place::read(&path, Head::read) {
            Ok(now) if now.id == id => {}
            Ok(_) => return Ok(None),
            Err(e) if e.kind() == Kind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        }
        let found = Rc::new(Base::new(root, path));
        self.bases.insert(id, Rc::clone(&found));
        Ok(Some(found))
    }
}

/// What there is to know of a file; `None` if it is untouched, or gone.
fn touched(found: walk::Found<'_>, device: u64, manifest: Option<&Manifest>, sync: bool) -> Result<Option<Touched>> {
    let call = |call: &str| format!("{call} {}", found.shown());
    let facts = match statx(found.directory, found.name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS) {
        Err(Errno::NOENT) => return Ok(None),
        facts => facts.context(|| call("statx"))?,
    };
    let identity = (makedev(facts.stx_dev_major, facts.stx_dev_minor), facts.stx_ino);
    let ctime = nanoseconds((facts.stx_ctime.tv_sec, facts.stx_ctime.tv_nsec));
    let then = manifest.filter(|_| identity.0 == device).and_then(|manifest| manifest.find(identity.1));
    if then.is_some_and(|then| then.kind.is_file() && then.is_untouched(ctime)) {
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

/// What files of a tree take on disk that its base doesn't, one after the other: what several share, the first has.
#[derive(Debug)]
pub(super) struct Sizes<'a> {
    root: &'a OwnedFd,
    manifest: &'a Manifest,
    baseline: Baseline,
    sum: Sum,
}

impl<'a> Sizes<'a> {
    pub(super) fn new(backend: &Reflink, root: &'a OwnedFd, manifest: &'a Manifest, base: &Tree) -> Result<Self> {
        let id = place::head(base)?.id;
        let found = Meter::new(backend, true).base(id, base)?;
        let baseline = found.map_or(Baseline::Unknown, Baseline::Base);
        Ok(Self { root, manifest, baseline, sum: Sum::default() })
    }

    /// Of the file at `path`; 0 if it is gone.
    pub(super) fn of(&mut self, path: &[u8]) -> Result<u64> {
        let call = || format!("measure /{}", path.escape_ascii());
        let Some(file) = blocks::open_beneath(self.root, path).context(call)? else { return Ok(0) };
        let facts = fstat(&file).context(call)?;
        let extents = fiemap::extents(&file, true).context(call)?;
        let touched = Touched { identity: (facts.st_dev, facts.st_ino), length: 0, extents };
        let path = || self.manifest.find(facts.st_ino).map(|name| self.manifest.path(name));
        Ok(self.sum.add(&touched, &self.baseline, path)?.bytes)
    }
}

/// Add up files; `path` tells where the base has, or had, the file with this identity. Unless `touched` are known to have
/// been touched, they are those that have something of their own.
fn sum(
    touched: &[Touched],
    baseline: &Baseline,
    known: bool,
    path: impl Fn((u64, u64)) -> Option<Vec<u8>>,
) -> Result<Own> {
    let (mut sum, mut apparent, mut seen) = (Sum::default(), 0, HashSet::new());
    for file in touched.iter().filter(|file| seen.insert(file.identity)) {
        let added = sum.add(file, baseline, || path(file.identity))?;
        if known || added.any || matches!(baseline, Baseline::Nothing) {
            apparent += file.length;
        }
    }
    Ok(Own { blocks: sum.blocks, elsewhere: sum.elsewhere, apparent })
}

/// What several files have of their own, together.
#[derive(Debug, Default)]
struct Sum {
    blocks: Blocks,
    encoded: Blocks,
    elsewhere: u64,
}

/// What one more file adds to that.
#[derive(Debug, Clone, Copy)]
struct Added {
    bytes: u64,
    /// Whether it has anything of its own, be it with others before it.
    any: bool,
}

impl Sum {
    fn add(&mut self, file: &Touched, baseline: &Baseline, path: impl Fn() -> Option<Vec<u8>>) -> Result<Added> {
        let mut added = Added { bytes: 0, any: false };
        let mut same_file = None;
        for extent in &file.extents {
            let Some(span) = blocks::span(extent) else {
                self.elsewhere += extent.length;
                added = Added { bytes: added.bytes + extent.length, any: true };
                continue;
            };
            let parts = match baseline {
                _ if !extent.shared => vec![span],
                Baseline::Nothing => vec![span],
                Baseline::Unknown => continue,
                Baseline::Base(base) => {
                    let same = match &mut same_file {
                        Some(same) => same,
                        none => none.insert(path().map_or_else(|| Ok(Blocks::new()), |path| base.file(&path))?),
                    };
                    let mut others = Vec::new();
                    for part in same.gaps(&span) {
                        others.extend(base.all()?.gaps(&part));
                    }
                    others
                }
            };
            added.any |= !parts.is_empty();
            for part in parts {
                let encoded = matches!(extent.place, Place::EncodedAt(_));
                let counted = if encoded { &mut self.encoded } else { &mut self.blocks };
                let new: u64 =
                    counted.gaps(&part).map(|gap| if encoded { extent.length } else { gap.end - gap.start }).sum();
                counted.insert(part);
                added.bytes += new;
                self.elsewhere += if encoded { new } else { 0 };
            }
        }
        Ok(added)
    }
}
