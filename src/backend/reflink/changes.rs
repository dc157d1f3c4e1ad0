//! The change feed: one walk of the tree against its manifest.
//!
//! ```text
//! each entry whose path, inode and change time are in the manifest     untouched; of a directory, what is said of itself
//! another, or one that isn't in it                                     may differ
//! a name in the manifest that wasn't met, in a directory that was      gone
//! compare those names in both trees                                    what differs in fact: who sets a mode and sets it
//!                                                                      back has changed nothing
//! ```
//!
//! The parent is not looked at but for those names, nor is any file opened. A directory that was renamed is there under a path
//! at which the manifest has nothing, or something else: that and all below it is compared.
//!
//! Of an inode with several names the comparison wants to know all. Those in the tree were met by the walk. Those in the
//! parent are the ones that have one inode in the manifest: if one of them is untouched, so are all that are left; and
//! of an inode that was touched, or is gone, each name may differ.
//!
//! Where the manifest doesn't speak of the parent, both trees are walked.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Statx, StatxAttributes, StatxFlags, makedev, openat, statx};
use rustix::io::Errno;

use super::manifest::{Manifest, Name, nanoseconds};
use super::measure::Sizes;
use super::walk::{self, OPEN_DIRECTORY};
use super::{Reflink, place};
use crate::backend::Tree;
use crate::backend::changes::{
    self, Changes, Comparer, Comparison, FeedMethod, Found, Inode, Look, Plan, Remembered, Side, join, listed,
};
use crate::sys::rooted;
use crate::{Context, Error, Kind, Result};

const EVERYTHING: Look = Look { content: true, below: true };
/// A directory's attributes; what is in it the walk comes by.
const ITSELF: Look = Look { content: false, below: false };

/// Directory and name, of each name of an inode.
pub(super) type Names = Vec<(Vec<u8>, Vec<u8>)>;
/// Device and inode.
pub(super) type Identity = (u64, u64);

impl Reflink {
    pub(super) fn changes_of(&self, wanted: &Comparison<'_>) -> Result<Changes> {
        let Some(parent) = wanted.parent else { return changes::walk(wanted) };
        let root = wanted.tree.root();
        let tree = match openat(CWD, &root, OPEN_DIRECTORY, Mode::empty()) {
            // It says why.
            Err(_) => return changes::walk(wanted),
            Ok(tree) => tree,
        };
        let Some(manifest) = speaking_of(&tree, wanted.tree, parent)? else { return changes::walk(wanted) };
        let base = openat(CWD, parent.root(), OPEN_DIRECTORY, Mode::empty());
        let base = base.context(|| format!("open {}", parent.root().display()))?;
        let side = |root: &OwnedFd, of: &Tree| -> Result<Side<'_>> {
            Ok(Side::new(root.try_clone().context(|| format!("dup {}", of.root().display()))?, &of.root()))
        };
        let (old, new) = (side(&base, parent)?, side(&tree, wanted.tree)?);
        let (plan, links) = Walk::new(&manifest, &root, &tree)?.plan(&tree)?;
        let old_links = OnceCell::new();
        let names = |inode: Inode| {
            let (links, id) = match inode {
                Inode::New(id) => (&links, id),
                Inode::Old(id) => match old_links.get() {
                    Some(links) => (links, id),
                    None => {
                        let found = links_in(&base, &manifest);
                        let found = found.context(|| format!("read {}", parent.root().display()))?;
                        (old_links.get_or_init(|| found), id)
                    }
                },
            };
            Ok(links.get(&(id.device, id.inode)).cloned().unwrap_or_default())
        };
        let found = Comparer::new(Some(&old), &new).planned(plan, &names)?;
        if !wanted.sizes {
            return listed(found, FeedMethod::Manifest, false, &mut |_| Ok(0));
        }
        let mut sizes = Sizes::new(self, &tree, &manifest, parent)?;
        let mut size = |found: &Found| sizes.of(&found.path);
        listed(found, FeedMethod::Manifest, true, &mut size)
    }
}

/// The manifest of an open tree, if that tells what becomes of `parent` in it.
fn speaking_of(root: &OwnedFd, tree: &Tree, parent: &Tree) -> Result<Option<Manifest>> {
    let facts = rustix::fs::fstat(root).context(|| format!("stat {}", tree.root().display()))?;
    let manifest = match Manifest::read(&place::manifest_of(&tree.root(), facts.st_ino)) {
        Ok(manifest) => manifest,
        Err(e) if e.kind() == Kind::NotFound => return Ok(None),
        Err(e) if e.kind() == Kind::Damaged => {
            tracing::warn!(error = %e, "every file has to be compared");
            return Ok(None);
        }
        Err(e) => return Err(e),
    };
    let parents = match place::head(parent) {
        Ok(head) => head,
        Err(e) if matches!(e.kind(), Kind::NotFound | Kind::Damaged) => return Ok(None),
        Err(e) => return Err(e),
    };
    let speaks = manifest.head.base.as_ref().is_some_and(|base| base.read_only && base.id == parents.id);
    Ok(Some(manifest).filter(|_| speaks && parents.read_only))
}

/// What the walk goes by, and what it has met of it.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    manifest: &'a Manifest,
    /// For messages.
    root: &'a Path,
    device: u64,
    /// The directories of the manifest, by their paths.
    directories: HashMap<Vec<u8>, usize>,
    /// By directory and name: where in the manifest that is.
    names: HashMap<(usize, &'a [u8]), usize>,
    /// Names that the tree still has, whatever is there now.
    met: Vec<AtomicBool>,
    /// Directories of the manifest that are directories still.
    entered: Vec<AtomicBool>,
    remembered: Remembered,
}

/// An entry that has to be remembered.
#[derive(Debug)]
struct Met {
    directory: Vec<u8>,
    name: Vec<u8>,
    look: Option<Look>,
    /// If it has further names.
    linked: Option<Identity>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(manifest: &'a Manifest, root: &'a Path, tree: &OwnedFd) -> Result<Self> {
        let device = rustix::fs::fstat(tree).context(|| "stat the root")?.st_dev;
        let flags = |count| (0..count).map(|_| AtomicBool::new(false)).collect();
        let remembered = Remembered::default();
        let directories = manifest.directories(&remembered)?;
        let names = manifest.names.iter().zip(0..).map(|(name, at)| ((name.directory, &*name.name), at)).collect();
        let (met, entered): (Vec<_>, Vec<_>) = (flags(manifest.names.len()), flags(directories.len()));
        entered[0].store(true, Relaxed);
        Ok(Self { manifest, root, device, directories, names, met, entered, remembered })
    }

    /// All that may differ, and the names of each inode of the tree that has several.
    pub(super) fn plan(self, tree: &OwnedFd) -> Result<(Plan, HashMap<Identity, Names>)> {
        let mut plan = Plan::new();
        plan.entry(Vec::new()).or_default().itself = true;
        let mut links: HashMap<Identity, Names> = HashMap::new();
        let met = walk::entries(tree, |found| self.visit(found));
        for Met { directory, name, look, linked } in met.context(|| format!("walk {}", self.root.display()))? {
            if let Some(identity) = linked {
                links.entry(identity).or_default().push((directory.clone(), name.clone()));
            }
            if let Some(look) = look {
                plan.entry(directory).or_default().names.insert(name, look);
            }
        }
        let paths: HashMap<usize, &Vec<u8>> = self.directories.iter().map(|(path, number)| (*number, path)).collect();
        for (name, met) in self.manifest.names.iter().zip(&self.met) {
            if self.entered[name.directory].load(Relaxed) && !met.load(Relaxed) {
                let directory = plan.entry(paths[&name.directory].clone()).or_default();
                directory.names.insert(name.name.to_vec(), EVERYTHING);
            }
        }
        Ok((plan, links))
    }

    fn visit(&self, found: walk::Found<'_>) -> Result<Option<Met>> {
        let wanted = StatxFlags::TYPE | StatxFlags::INO | StatxFlags::CTIME | StatxFlags::NLINK;
        let facts = match statx(found.directory, found.name, AtFlags::SYMLINK_NOFOLLOW, wanted) {
            Err(Errno::NOENT) => return Ok(None),
            facts => facts.context(|| format!("statx {}", found.shown()))?,
        };
        let name = found.name.to_bytes();
        let directory = self.directories.get(found.path).copied();
        let at = directory.and_then(|directory| self.names.get(&(directory, name)).copied());
        let kind = FileType::from_raw_mode(facts.stx_mode.into());
        if kind == FileType::Directory && facts.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            let at = format!("{}{}", self.root.display(), found.shown());
            return Err(Error::new(Kind::InUse, format!("something is mounted on {at}, and hides what is there"))
                .with_hint(format!("umount {at}")));
        }
        let look = match at {
            // In a directory that is new, or isn't where it was, which is compared with all that is in it.
            None if directory.is_none() => None,
            None => Some(EVERYTHING),
            Some(at) => self.look(&found, at, &facts),
        };
        let identity = (makedev(facts.stx_dev_major, facts.stx_dev_minor), facts.stx_ino);
        let linked = (kind != FileType::Directory && facts.stx_nlink > 1).then_some(identity);
        if look.is_none() && linked.is_none() {
            return Ok(None);
        }
        self.remembered.add(found.path)?;
        Ok(Some(Met { directory: found.path.to_vec(), name: name.to_vec(), look, linked }))
    }

    /// What may differ at a name that the manifest has.
    fn look(&self, found: &walk::Found<'_>, at: usize, facts: &Statx) -> Option<Look> {
        self.met[at].store(true, Relaxed);
        let then = &self.manifest.names[at];
        let kind = FileType::from_raw_mode(facts.stx_mode.into());
        let directory = kind == FileType::Directory && then.kind == FileType::Directory;
        if directory && let Some(number) = self.directories.get(&join(found.path, found.name.to_bytes())) {
            self.entered[*number].store(true, Relaxed);
        }
        let ctime = nanoseconds((facts.stx_ctime.tv_sec, facts.stx_ctime.tv_nsec));
        let here = makedev(facts.stx_dev_major, facts.stx_dev_minor) == self.device;
        let untouched = here && then.inode == facts.stx_ino && then.kind == kind && then.is_untouched(ctime);
        (!untouched).then_some(if directory { ITSELF } else { EVERYTHING })
    }
}

/// The names of each inode of the parent that has several, by what the manifest says goes together.
fn links_in(base: &OwnedFd, manifest: &Manifest) -> Result<HashMap<Identity, Names>> {
    let mut links = HashMap::new();
    for together in manifest.linked() {
        let split = |name: &Name| (manifest.directory(name), name.name.to_vec());
        let names: Names = together.into_iter().map(split).collect();
        let Some((directory, name)) = names.first() else { continue };
        let call = || format!("stat /{}", join(directory, name).escape_ascii());
        let facts = rooted::beneath(base.as_fd(), directory, OPEN_DIRECTORY)
            .and_then(|opened| statx(&opened, &**name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::INO));
        let facts = match facts {
            // Somebody has meddled with the parent, and what he removed is compared as such.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            facts => facts.context(call)?,
        };
        links.insert((makedev(facts.stx_dev_major, facts.stx_dev_minor), facts.stx_ino), names);
    }
    Ok(links)
}
