//! A backend of plain directories, for tests of what stands above the trait and as an oracle of what
//! stands beside it: slow, small, and right by being obvious.
//!
//! A clone is a full copy ([`super::clone`]); what a tree holds of its own is found by comparing every 4 KiB block
//! with what was there when the tree was made ([`survey`]). Meant to stand on tmpfs (`/dev/shm`), but any
//! filesystem with xattrs and `RENAME_EXCHANGE` will do.
//!
//! What has to outlive the process is kept in the place, outside the tree:
//!
//! ```text
//! PLACE/fs                 the tree
//! PLACE/fs.new             a tree being made, or one on its way out: never a tree that anyone was promised
//! PLACE/memory.INO.json    the record of the tree whose root directory has inode INO: read-only or not, and
//!                          the block hashes at its making
//! ```
//!
//! The record goes by inode so that [`Backend::replace`] exchanges trees and records in one step. It is the
//! hashes rather than the path of the origin, because an origin may change or go while its clones live.
//!
//! It must never be used for a store that matters: nothing enforces read-only, a clone of a tree that
//! somebody writes to is not of one moment, groups are ignored, and limits are refused.

mod survey;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rangemap::RangeSet;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::clone::{Content, Source, clone_tree};
use super::remove::remove_tree;
use super::{
    Access, Backend, CloneCost, GroupId, Leftover, Measured, Nested, Own, QuotaMode, Quotas, SizeMethod, Space, Tree,
    TreeSize, Want,
};
use crate::{Context, Error, Kind, Result};
use survey::Survey;

/// Trees as plain directories. See the module's head.
#[derive(Debug)]
pub struct Memory {
    root: PathBuf,
}

/// What `memory.INO.json` holds.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Record {
    read_only: bool,
    /// The tree that `origin` is of, by its root; `None` for one made empty.
    base: Option<String>,
    /// Its files, as those inodes of this tree that were made of them.
    origin: Survey,
}

impl Memory {
    /// The backend for places on the filesystem of `root`, an existing directory.
    ///
    /// # Errors
    /// `NotFound` if there is no such path, `Invalid` if it is no directory.
    pub fn new(root: &Path) -> Result<Self> {
        let root = root.canonicalize().context(|| format!("open {}", root.display()))?;
        if !root.is_dir() {
            return Err(Error::new(Kind::Invalid, format!("{} is not a directory", root.display())));
        }
        Ok(Self { root })
    }

    /// The record of `tree`.
    fn record(tree: &Tree) -> Result<Record> {
        let root = tree.root();
        let find = || record_path(&root)?.ok_or_else(|| missing(&root));
        let (path, text) = loop {
            let path = find()?;
            match fs::read(&path) {
                // Another tree has taken its place meanwhile.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound && find()? != path => {}
                text => break (path.clone(), text.context(|| format!("read {}", path.display()))?),
            }
        };
        serde_json::from_slice(&text).map_err(|e| Error::new(Kind::Damaged, format!("parse {}: {e}", path.display())))
    }

    /// Copy `from` to `to`'s spare and give it its record. Nothing is left of it on failure.
    fn prepare(&self, from: &Tree, to: &Tree, access: Access, kin: Kin) -> Result<()> {
        if !self.exists(from)? {
            return Err(missing(&from.root()));
        }
        let spare = to.spare();
        drop_tree(&spare)?;
        let make = || {
            let cloned = clone_tree(&from.root(), &spare, Source::Live, Content::Copy, None)?;
            let now = survey::survey(&spare)?;
            let (base, origin) = match kin {
                Kin::Child => (Some(survey::identity(&from.root())?), now),
                Kin::Fork => {
                    let Record { base, origin, .. } = Self::record(from)?;
                    (base, origin.carried_over(&survey::survey(&from.root())?, &cloned, &now))
                }
            };
            write_record(&spare, &Record { read_only: access == Access::ReadOnly, base, origin })
        };
        let made = make();
        if made.is_err() {
            // The first error is the one to report; settle() finds what this leaves.
            let _ = drop_tree(&spare);
        }
        made
    }

    /// Copy `from` to `to`, whole and durable.
    fn make(&self, from: &Tree, to: &Tree, access: Access, kin: Kin) -> Result<()> {
        self.prepare(from, to, access, kin)?;
        publish(&to.spare(), &to.root()).inspect_err(|_| drop(drop_tree(&to.spare())))?;
        self.sync()
    }
}

/// What a clone's own data is told by.
#[derive(Debug, Clone, Copy)]
enum Kin {
    /// What it was when it was made.
    Child,
    /// What the tree it was cloned from is told by.
    Fork,
}

impl Backend for Memory {
    fn create(&self, tree: &Tree, limit: Option<u64>) -> Result<()> {
        let (root, spare) = (tree.root(), tree.spare());
        refuse_limit(&root, limit)?;
        refuse_present(&root)?;
        drop_tree(&spare)?;
        let make = || -> Result<()> {
            fs::DirBuilder::new()
                .mode(0o755)
                .create(&spare)
                .context(|| format!("create directory {}", spare.display()))?;
            // Neither the umask nor a default ACL or set-group-ID bit around it decides the root's mode.
            std::os::unix::fs::lchown(&spare, Some(0), Some(0)).context(|| format!("chown {}", spare.display()))?;
            fs::set_permissions(&spare, fs::Permissions::from_mode(0o755))
                .context(|| format!("chmod {}", spare.display()))?;
            write_record(&spare, &Record { read_only: false, base: None, origin: Survey::default() })?;
            publish(&spare, &root)
        };
        make().inspect_err(|_| drop(drop_tree(&spare)))
    }

    fn clone_tree(&self, from: &Tree, to: &Tree, access: Access, limit: Option<u64>) -> Result<()> {
        let root = to.root();
        refuse_limit(&root, limit)?;
        refuse_present(&root)?;
        self.make(from, to, access, Kin::Child)
    }

    fn fork(&self, from: &Tree, to: &Tree, access: Access, limit: Option<u64>) -> Result<()> {
        refuse_limit(&to.root(), limit)?;
        refuse_present(&to.root())?;
        self.make(from, to, access, Kin::Fork)
    }

    fn roll_back(
        &self,
        from: &Tree,
        tree: &Tree,
        limit: Option<u64>,
        kept: &Tree,
        ready: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let old = record_path(&tree.root())?.ok_or_else(|| missing(&tree.root()))?;
        self.fork(from, kept, Access::Writable, limit)?;
        let new = record_path(&kept.root())?.ok_or_else(|| missing(&kept.root()))?;
        // Both places know both trees until the trees have changed places.
        let beside = |path: &Path, place: &Path| place.join(path.file_name().unwrap_or_default());
        let known = |path: &Path, place: &Path| {
            let copy = beside(path, place);
            fs::copy(path, &copy).context(|| format!("copy {} to {}", path.display(), copy.display()))
        };
        known(&old, kept.place())
            .and_then(|_| known(&new, tree.place()))
            .and_then(|_| ready())
            .and_then(|()| {
                renameat_with(CWD, kept.root(), CWD, tree.root(), RenameFlags::EXCHANGE)
                    .context(|| format!("exchange {} and {}", kept.root().display(), tree.root().display()))
            })
            .inspect_err(|_| drop(self.destroy(kept).and_then(|()| remove_file(&beside(&new, tree.place())))))?;
        self.sync()?;
        remove_file(&old)?;
        remove_file(&new)
    }

    fn seal(&self, tree: &Tree) -> Result<(SizeMethod, u64)> {
        let measured = self.measure_for_good(tree)?;
        drop_tree(&tree.spare())?;
        let record = Self::record(tree)?;
        write_record(&tree.root(), &Record { read_only: true, ..record })?;
        self.sync().map(|()| measured)
    }

    fn set_read_only(&self, tree: &Tree, read_only: bool) -> Result<()> {
        let record = Self::record(tree)?;
        write_record(&tree.root(), &Record { read_only, ..record })
    }

    fn replace(&self, from: &Tree, fresh: &Tree, limit: Option<u64>) -> Result<()> {
        let (root, spare) = (fresh.root(), fresh.spare());
        refuse_limit(&root, limit)?;
        if !self.exists(fresh)? {
            return Err(missing(&root));
        }
        self.prepare(from, fresh, Access::Writable, Kin::Child)?;
        renameat_with(CWD, &spare, CWD, &root, RenameFlags::EXCHANGE)
            .context(|| format!("exchange {} and {}", spare.display(), root.display()))
            .inspect_err(|_| drop(drop_tree(&spare)))?;
        self.sync()?;
        drop_tree(&spare)
    }

    fn settle(&self, place: &Path) -> Result<Option<GroupId>> {
        let tree = Tree::new(place, None);
        drop_tree(&tree.spare())?;
        drop_records(place, record_path(&tree.root())?.as_deref())?;
        Ok(None)
    }

    fn destroy(&self, tree: &Tree) -> Result<()> {
        let (root, spare) = (tree.root(), tree.spare());
        drop_tree(&spare)?;
        // Moved aside first, so that a crash half-way leaves no half tree at `fs`.
        match renameat_with(CWD, &root, CWD, &spare, RenameFlags::NOREPLACE) {
            Ok(()) => drop_tree(&spare)?,
            Err(Errno::NOENT) => {}
            Err(e) => return Err(e).context(|| format!("rename {} to {}", root.display(), spare.display())),
        }
        drop_records(tree.place(), None)
    }

    fn exists(&self, tree: &Tree) -> Result<bool> {
        Ok(record_path(&tree.root())?.is_some())
    }

    fn is_read_only(&self, tree: &Tree) -> Result<bool> {
        Ok(Self::record(tree)?.read_only)
    }

    fn nested(&self, tree: &Tree) -> Result<Vec<Nested>> {
        if self.exists(tree)? { Ok(Vec::new()) } else { Err(missing(&tree.root())) }
    }

    fn measure(&self, trees: &[&Tree], want: Want) -> Result<Measured> {
        let measure = |tree: &&Tree| -> Result<TreeSize> {
            let origin = Self::record(tree)?.origin;
            let changed = survey::survey(&tree.root())?.changes_since(&origin);
            Ok(TreeSize { charged: changed.blocks, apparent: want.apparent.then_some(changed.lengths) })
        };
        Ok(Measured { method: SizeMethod::Blocks, sizes: trees.iter().map(measure).collect::<Result<_>>()? })
    }

    /// Copies share nothing, so nothing has an address.
    fn own(&self, tree: &Tree, parent: Option<&Tree>) -> Result<Own> {
        let (record, now) = (Self::record(tree)?, survey::survey(&tree.root())?);
        let changed = match parent {
            None => now.changes_since(&Survey::default()),
            Some(parent) if record.base == Some(survey::identity(&parent.root())?) => {
                now.changes_since(&record.origin)
            }
            Some(parent) => now.beyond(&survey::survey(&parent.root())?),
        };
        Ok(Own { blocks: RangeSet::new(), elsewhere: changed.blocks, apparent: changed.lengths })
    }

    fn overhead(&self, _trees: &[&Tree]) -> Result<u64> {
        Ok(0)
    }

    fn clone_cost(&self) -> CloneCost {
        CloneCost::PerFile
    }

    fn space(&self) -> Result<Space> {
        let fs = rustix::fs::statvfs(&self.root).context(|| format!("statvfs {}", self.root.display()))?;
        let bytes = |blocks: u64| blocks.saturating_mul(fs.f_frsize);
        Ok(Space {
            total: bytes(fs.f_blocks),
            used: bytes(fs.f_blocks.saturating_sub(fs.f_bfree)),
            available: bytes(fs.f_bavail),
        })
    }

    fn sync(&self) -> Result<()> {
        let root = fs::File::open(&self.root).context(|| format!("open {}", self.root.display()))?;
        rustix::fs::syncfs(&root).context(|| format!("syncfs {}", self.root.display()))
    }

    fn leftovers(&self, _live: &BTreeSet<GroupId>) -> Result<Vec<Leftover>> {
        Ok(Vec::new())
    }

    fn reclaim(&self, _live: &BTreeSet<GroupId>, _patience: Duration) -> Result<u64> {
        Ok(0)
    }

    fn trim(&self) -> Result<u64> {
        Ok(0)
    }

    fn highest_group(&self) -> Result<Option<GroupId>> {
        Ok(None)
    }

    fn instance(&self) -> Result<String> {
        let boot = "/proc/sys/kernel/random/boot_id";
        let boot_id = fs::read_to_string(boot).context(|| format!("read {boot}"))?;
        let root = fs::metadata(&self.root).context(|| format!("stat {}", self.root.display()))?;
        Ok(format!("memory:{}:{:x}:{}", boot_id.trim(), root.dev(), root.ino()))
    }

    fn quotas(&self) -> Option<&dyn Quotas> {
        None
    }

    fn no_limits(&self) -> Result<Error> {
        Ok(Error::new(Kind::Unsupported, format!("plain directories at {} have no quotas", self.root.display())))
    }

    fn quota_mode(&self) -> Result<QuotaMode> {
        Ok(QuotaMode::None)
    }

    fn set_quota_mode(&self, mode: QuotaMode) -> Result<()> {
        match mode {
            QuotaMode::None => Ok(()),
            QuotaMode::Simple | QuotaMode::Full | QuotaMode::Inconsistent | QuotaMode::Project => {
                Err(self.no_limits()?)
            }
        }
    }
}

fn missing(root: &Path) -> Error {
    Error::new(Kind::NotFound, format!("there is no tree at {}", root.display()))
}

fn refuse_limit(root: &Path, limit: Option<u64>) -> Result<()> {
    match limit {
        None => Ok(()),
        Some(bytes) => Err(Error::new(
            Kind::Unsupported,
            format!("limit {} to {bytes} bytes: plain directories have no quotas", root.display()),
        )),
    }
}

/// An early answer; [`publish`] gives the one that counts.
fn refuse_present(root: &Path) -> Result<()> {
    match record_path(root)? {
        None => Ok(()),
        Some(_) => Err(Error::new(Kind::Exists, format!("there is a tree at {} already", root.display()))),
    }
}

/// Make a finished spare the tree, unless there is one.
fn publish(spare: &Path, root: &Path) -> Result<()> {
    renameat_with(CWD, spare, CWD, root, RenameFlags::NOREPLACE)
        .context(|| format!("rename {} to {}", spare.display(), root.display()))
}

/// Where the record of the tree at `root` is, or would be; `None` if there is no directory.
fn record_path(root: &Path) -> Result<Option<PathBuf>> {
    match fs::symlink_metadata(root) {
        Ok(facts) if facts.is_dir() => Ok(Some(root.with_file_name(format!("memory.{}.json", facts.ino())))),
        Ok(_) => Err(Error::new(Kind::Damaged, format!("{} is not a directory", root.display()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).context(|| format!("stat {}", root.display())),
    }
}

fn write_record(root: &Path, record: &Record) -> Result<()> {
    let path = record_path(root)?.ok_or_else(|| missing(root))?;
    let text = serde_json::to_vec(record)
        .map_err(|e| Error::new(Kind::System, format!("serialise {}: {e}", path.display())))?;
    fs::write(&path, text).context(|| format!("write {}", path.display()))
}

/// Remove a tree and its record, as far as there are any.
fn drop_tree(root: &Path) -> Result<()> {
    let Some(record) = record_path(root)? else { return Ok(()) };
    remove_tree(root)?;
    remove_file(&record)
}

/// Remove all records in `place` but `keep`; a crash in [`drop_tree`] leaves one without a tree.
fn drop_records(place: &Path, keep: Option<&Path>) -> Result<()> {
    let entries = match fs::read_dir(place) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.context(|| format!("read {}", place.display()))?,
    };
    for entry in entries {
        let entry = entry.context(|| format!("read {}", place.display()))?;
        let name = entry.file_name();
        let is_record = name.to_str().is_some_and(|n| n.starts_with("memory.") && n.ends_with(".json"));
        if is_record && Some(entry.path().as_path()) != keep {
            remove_file(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).context(|| format!("remove {}", path.display())),
        _ => Ok(()),
    }
}
