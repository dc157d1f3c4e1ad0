//! Trees as plain directories on a filesystem that shares blocks between files (FICLONE): XFS first.
//!
//! ```text
//! PLACE/fs                the tree
//! PLACE/fs.new            a tree being made, or an old one just exchanged: never one that anyone was promised
//! PLACE/manifest.<ino>    what the tree whose root has inode <ino> was when it was made
//! ROOT/trash/fs.<ino>     a removed tree on its way out, its manifest beside it
//! ```
//!
//! Nothing enforces read-only: it is remembered.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, IFlags, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::{
    Access, Backend, CloneCost, GroupId, Leftover, Measured, Nested, QuotaMode, Quotas, Reclaimed, SizeMethod, Space,
    Tree, TreeSize, Want, copy,
};
use crate::{Context, Error, Kind, Result};

/// Trees below one directory. See the module's head.
#[derive(Debug)]
pub struct Reflink {
    root: PathBuf,
    group_prefix: u16,
}

/// What a tree was when it was made.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Manifest {
    group: Option<GroupId>,
    read_only: bool,
    /// Inode numbers of its regular files, and their change times in ns.
    files: BTreeMap<u64, i128>,
}

impl Reflink {
    /// The backend for places below `root`, an existing directory that [`Reflink::make`] has prepared.
    ///
    /// `group_prefix` sets this store's groups apart from those of other stores on the filesystem.
    ///
    /// # Errors
    /// `NotFound` if there is no such path, `Invalid` if it is no directory.
    pub fn open(root: &Path, group_prefix: u16) -> Result<Self> {
        let root = root.canonicalize().context(|| format!("open {}", root.display()))?;
        if !root.is_dir() {
            return Err(Error::new(Kind::Invalid, format!("{} is not a directory", root.display())));
        }
        Ok(Self { root, group_prefix })
    }

    /// Prepare the directory `root` for a store: `ROOT/trash`, 0700.
    pub fn make(root: &Path) -> Result<()> {
        let trash = root.join("trash");
        match fs::DirBuilder::new().mode(0o700).create(&trash) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                Err(e).context(|| format!("mkdir {}", trash.display()))
            }
            _ => Ok(()),
        }
    }

    /// Whether files in `directory` can be cloned: tried with two temporary files of one block.
    pub fn probe(directory: &Path) -> Result<bool> {
        let call = || format!("FICLONE in {}", directory.display());
        let mut from = tempfile::tempfile_in(directory).context(call)?;
        let to = tempfile::tempfile_in(directory).context(call)?;
        from.write_all(&[1; 4096]).context(call)?;
        match rustix::fs::ioctl_ficlone(&to, &from) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS | Errno::INVAL | Errno::XDEV) => Ok(false),
            Err(e) => Err(e).context(call),
        }
    }

    fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    fn prepare(&self, from: &Tree, to: &Tree, access: Access) -> Result<()> {
        if !self.exists(from)? {
            return Err(missing(&from.root()));
        }
        let spare = to.spare();
        self.discard(&spare)?;
        let make = || {
            copy::copy_tree(&from.root(), &spare)?;
            let files = files(&spare)?.into_iter().map(|(inode, facts)| (inode, changed(&facts))).collect();
            let manifest = Manifest { group: to.group(), read_only: access == Access::ReadOnly, files };
            write_manifest(&spare, &manifest)?;
            self.sync()
        };
        make().inspect_err(|_| self.undo(&spare))
    }

    /// Move the tree at `root` into the trash, if there is one.
    fn discard(&self, root: &Path) -> Result<()> {
        let Some(manifest) = manifest_path(root)? else { return Ok(()) };
        unlock(root)?;
        let inode = fs::symlink_metadata(root).context(|| format!("stat {}", root.display()))?.ino();
        rename(root, &self.trash().join(format!("fs.{inode}")))?;
        match rename(&manifest, &self.trash().join(format!("manifest.{inode}"))) {
            Err(e) if e.kind() == Kind::NotFound => Ok(()),
            moved => moved,
        }
    }

    fn undo(&self, root: &Path) {
        if let Err(error) = self.discard(root) {
            tracing::warn!(%error, path = %root.display(), "cannot clear away a tree that failed");
        }
    }

    /// Make the finished spare of `tree` its tree, unless there is one.
    fn publish(&self, tree: &Tree) -> Result<()> {
        let (spare, root) = (tree.spare(), tree.root());
        renameat_with(CWD, &spare, CWD, &root, RenameFlags::NOREPLACE)
            .context(|| format!("rename {} to {}", spare.display(), root.display()))
            .inspect_err(|_| self.undo(&spare))
    }

    fn trashed(&self) -> Result<Vec<PathBuf>> {
        let trash = self.trash();
        let mut found = Vec::new();
        for entry in fs::read_dir(&trash).context(|| format!("read {}", trash.display()))? {
            let entry = entry.context(|| format!("read {}", trash.display()))?;
            if entry.file_name().to_string_lossy().starts_with("fs.") {
                found.push(entry.path());
            }
        }
        Ok(found)
    }
}

impl Backend for Reflink {
    fn create(&self, tree: &Tree, limit: Option<u64>) -> Result<()> {
        let (root, spare) = (tree.root(), tree.spare());
        refuse_limit(&root, limit)?;
        refuse_present(&root)?;
        self.discard(&spare)?;
        let make = || -> Result<()> {
            fs::create_dir(&spare).context(|| format!("mkdir {}", spare.display()))?;
            std::os::unix::fs::lchown(&spare, Some(0), Some(0)).context(|| format!("chown {}", spare.display()))?;
            fs::set_permissions(&spare, fs::Permissions::from_mode(0o755))
                .context(|| format!("chmod {}", spare.display()))?;
            write_manifest(&spare, &Manifest { group: tree.group(), read_only: false, files: BTreeMap::new() })
        };
        make().inspect_err(|_| self.undo(&spare))?;
        self.publish(tree)
    }

    fn clone_tree(&self, from: &Tree, to: &Tree, access: Access, limit: Option<u64>) -> Result<()> {
        refuse_limit(&to.root(), limit)?;
        refuse_present(&to.root())?;
        self.prepare(from, to, access)?;
        self.publish(to)?;
        fsync(to.place())
    }

    fn replace(&self, from: &Tree, fresh: &Tree, limit: Option<u64>) -> Result<()> {
        let (root, spare) = (fresh.root(), fresh.spare());
        refuse_limit(&root, limit)?;
        if !self.exists(fresh)? {
            return Err(missing(&root));
        }
        self.prepare(from, fresh, Access::Writable)?;
        unlock(&root)?;
        renameat_with(CWD, &spare, CWD, &root, RenameFlags::EXCHANGE)
            .context(|| format!("exchange {} and {}", spare.display(), root.display()))
            .inspect_err(|_| self.undo(&spare))?;
        fsync(fresh.place())?;
        self.discard(&spare)
    }

    fn settle(&self, place: &Path) -> Result<Option<GroupId>> {
        let tree = Tree::new(place, None);
        self.discard(&tree.spare())?;
        match manifest_path(&tree.root())? {
            Some(path) => Ok(read_manifest(&path)?.group),
            None => Ok(None),
        }
    }

    fn destroy(&self, tree: &Tree) -> Result<()> {
        self.discard(&tree.spare())?;
        self.discard(&tree.root())
    }

    fn exists(&self, tree: &Tree) -> Result<bool> {
        Ok(manifest_path(&tree.root())?.is_some())
    }

    fn is_read_only(&self, tree: &Tree) -> Result<bool> {
        Ok(manifest(tree)?.read_only)
    }

    fn nested(&self, tree: &Tree) -> Result<Vec<Nested>> {
        if self.exists(tree)? { Ok(Vec::new()) } else { Err(missing(&tree.root())) }
    }

    fn measure(&self, trees: &[&Tree], want: Want) -> Result<Measured> {
        if want.sync {
            self.sync()?;
        }
        let measure = |tree: &&Tree| -> Result<TreeSize> {
            let made = manifest(tree)?.files;
            let (mut charged, mut apparent) = (0, 0);
            for (inode, facts) in files(&tree.root())? {
                if made.get(&inode) != Some(&changed(&facts)) {
                    charged += facts.blocks() * 512;
                    apparent += facts.len();
                }
            }
            Ok(TreeSize { charged, apparent: want.apparent.then_some(apparent) })
        };
        Ok(Measured { method: SizeMethod::Extents, sizes: trees.iter().map(measure).collect::<Result<_>>()? })
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
        let root = File::open(&self.root).context(|| format!("open {}", self.root.display()))?;
        rustix::fs::syncfs(&root).context(|| format!("syncfs {}", self.root.display()))
    }

    fn leftovers(&self, _live: &BTreeSet<GroupId>) -> Result<Vec<Leftover>> {
        let leftover = |path: PathBuf| -> Result<Leftover> {
            let charged = files(&path)?.iter().map(|(_, facts)| facts.blocks() * 512).sum();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Ok(Leftover { kind: "tree", name, charged })
        };
        self.trashed()?.into_iter().map(leftover).collect()
    }

    fn reclaim(&self, _live: &BTreeSet<GroupId>, _patience: Duration) -> Result<Reclaimed> {
        let mut removed = 0;
        for path in self.trashed()? {
            let manifest = manifest_path(&path)?;
            fs::remove_dir_all(&path).context(|| format!("remove {}", path.display()))?;
            if let Some(manifest) = manifest {
                let _ = fs::remove_file(manifest);
            }
            removed += 1;
        }
        self.sync()?;
        Ok(Reclaimed { removed, trimmed: 0 })
    }

    fn highest_group(&self) -> Result<Option<GroupId>> {
        let mut highest = None;
        let snapshots = self.root.join("snapshots");
        let Ok(places) = fs::read_dir(&snapshots) else { return Ok(None) };
        for place in places {
            let place = place.context(|| format!("read {}", snapshots.display()))?.path();
            let tree = Tree::new(place, None);
            if self.exists(&tree)? {
                highest = highest.max(manifest(&tree)?.group);
            }
        }
        Ok(highest)
    }

    fn instance(&self) -> Result<String> {
        let boot = "/proc/sys/kernel/random/boot_id";
        let boot_id = fs::read_to_string(boot).context(|| format!("read {boot}"))?;
        let mount = crate::sys::mount::mount_id(&self.root).unwrap_or_default();
        Ok(format!("reflink:{}:{mount}:{}", boot_id.trim(), self.group_prefix))
    }

    fn quotas(&self) -> Option<&dyn Quotas> {
        None
    }

    fn quota_mode(&self) -> Result<QuotaMode> {
        Ok(QuotaMode::None)
    }

    fn set_quota_mode(&self, mode: QuotaMode) -> Result<()> {
        match mode {
            QuotaMode::None => Ok(()),
            QuotaMode::Simple | QuotaMode::Full | QuotaMode::Inconsistent | QuotaMode::Project => Err(Error::new(
                Kind::Unsupported,
                format!("quotas of {} are switched by mount options", self.root.display()),
            )),
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
            format!("limit {} to {bytes} bytes: the filesystem counts nothing", root.display()),
        )
        .with_hint("mount XFS with -o prjquota")),
    }
}

/// An early answer; [`Reflink::publish`] gives the one that counts.
fn refuse_present(root: &Path) -> Result<()> {
    match manifest_path(root)? {
        None => Ok(()),
        Some(_) => Err(Error::new(Kind::Exists, format!("there is a tree at {} already", root.display()))),
    }
}

/// Where the manifest of the tree at `root` is, or would be; `None` if there is no directory.
fn manifest_path(root: &Path) -> Result<Option<PathBuf>> {
    match fs::symlink_metadata(root) {
        Ok(facts) if facts.is_dir() => Ok(Some(root.with_file_name(format!("manifest.{}", facts.ino())))),
        Ok(_) => Err(Error::new(Kind::Damaged, format!("{} is not a directory", root.display()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).context(|| format!("stat {}", root.display())),
    }
}

fn manifest(tree: &Tree) -> Result<Manifest> {
    let root = tree.root();
    read_manifest(&manifest_path(&root)?.ok_or_else(|| missing(&root))?)
}

fn read_manifest(path: &Path) -> Result<Manifest> {
    let text = fs::read(path).context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).map_err(|e| Error::new(Kind::Damaged, format!("parse {}: {e}", path.display())))
}

fn write_manifest(root: &Path, manifest: &Manifest) -> Result<()> {
    let path = manifest_path(root)?.ok_or_else(|| missing(root))?;
    let text = serde_json::to_vec(manifest)
        .map_err(|e| Error::new(Kind::System, format!("serialise {}: {e}", path.display())))?;
    fs::write(&path, text).context(|| format!("write {}", path.display()))
}

fn changed(facts: &fs::Metadata) -> i128 {
    i128::from(facts.ctime()) * 1_000_000_000 + i128::from(facts.ctime_nsec())
}

/// The regular files below `root`, hard links once.
fn files(root: &Path) -> Result<Vec<(u64, fs::Metadata)>> {
    let (mut found, mut seen, mut pending) = (Vec::new(), HashSet::new(), vec![root.to_path_buf()]);
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).context(|| format!("read {}", directory.display()))? {
            let entry = entry.context(|| format!("read {}", directory.display()))?;
            let facts = entry.metadata().context(|| format!("stat {}", entry.path().display()))?;
            if facts.is_dir() {
                pending.push(entry.path());
            } else if facts.is_file() && seen.insert(facts.ino()) {
                found.push((facts.ino(), facts));
            }
        }
    }
    Ok(found)
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).context(|| format!("rename {} to {}", from.display(), to.display()))
}

fn fsync(directory: &Path) -> Result<()> {
    File::open(directory).and_then(|d| d.sync_all()).context(|| format!("fsync {}", directory.display()))
}

/// Clear `+i` and `+a` of the root of a tree, which would keep it from being renamed.
fn unlock(root: &Path) -> Result<()> {
    let call = || format!("clear the immutable flag of {}", root.display());
    let directory = File::open(root).context(call)?;
    let locks = IFlags::IMMUTABLE | IFlags::APPEND;
    match rustix::fs::ioctl_getflags(&directory) {
        Ok(flags) if flags.intersects(locks) => rustix::fs::ioctl_setflags(&directory, flags - locks).context(call),
        Ok(_) | Err(Errno::NOTTY | Errno::OPNOTSUPP) => Ok(()),
        Err(e) => Err(e).context(call),
    }
}
