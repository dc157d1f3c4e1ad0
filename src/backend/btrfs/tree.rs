//! Making trees: empty, as clones, in the place of others; and what is nested in them.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use rustix::fs::Mode;

use super::{Btrfs, Descendant};
use crate::backend::{Access, Backend, Nested, QuotaMode, SizeMethod, Tree, Want};
use crate::sys::btrfs::{BtrfsFd, Create, search, subvol};
use crate::sys::durable;
use crate::sys::selinux;
use crate::{Context, Error, Kind, Result};

/// Open the subvolume at `path`; `None` if there is nothing, or no directory around it.
///
/// # Errors
/// `Damaged` if something else is there: it isn't ours, and stays untouched.
pub(super) fn open_subvolume(path: &Path) -> Result<Option<BtrfsFd>> {
    let foreign = || Error::new(Kind::Damaged, format!("{} is not a subvolume", path.display()));
    let place = path.parent().unwrap_or(path);
    match BtrfsFd::open(place).and_then(|place| place.open_at(name_of(path))) {
        Ok(fd) if fd.is_subvolume().context(|| format!("stat {}", path.display()))? => Ok(Some(fd)),
        Ok(_) => Err(foreign()),
        Err(e) => match e.raw_os_error() {
            Some(libc::ENOENT) => Ok(None),
            // A file, a symlink, another filesystem.
            Some(libc::ENOTDIR | libc::ELOOP | libc::ENOTTY) => Err(foreign()),
            // What is mounted there isn't the tree, and must not be taken for it.
            Some(libc::EXDEV) => Err(Error::new(Kind::InUse, format!("something is mounted on {}", path.display()))
                .with_hint(format!("umount {}", path.display()))),
            _ => Err(Error::system(format!("open {}", path.display()), &e)),
        },
    }
}

/// Open a tree that has to be there.
pub(super) fn open_tree(tree: &Tree) -> Result<BtrfsFd> {
    let root = tree.root();
    open_subvolume(&root)?.ok_or_else(|| Error::new(Kind::NotFound, format!("no tree at {}", root.display())))
}

/// Open the directory around a tree.
pub(super) fn open_place(place: &Path) -> Result<BtrfsFd> {
    BtrfsFd::open(place).map_err(|e| super::not_btrfs(place, &e))
}

/// The last component of a tree's path, which [`Tree`] made.
pub(super) fn name_of(path: &Path) -> &std::ffi::OsStr {
    path.file_name().unwrap_or_default()
}

impl Btrfs {
    pub(super) fn create_tree(&self, tree: &Tree, limit: Option<u64>) -> Result<()> {
        let root = tree.root();
        let place = open_place(tree.place())?;
        self.born(tree, &root, limit, |group| {
            subvol::subvol_create(&place, name_of(&root), &Create { read_only: false, group })
                .context(|| format!("create subvolume {}", root.display()))
        })?;
        let finish = || {
            let fd = open_tree(tree)?;
            // The kernel applies the umask and the caller's fsuid.
            rustix::fs::fchown(fd.as_fd(), Some(rustix::fs::Uid::ROOT), Some(rustix::fs::Gid::ROOT))
                .context(|| format!("chown {}", root.display()))?;
            selinux::inherit(&root).context(|| format!("label {}", root.display()))?;
            rustix::fs::fchmod(fd.as_fd(), Mode::from_raw_mode(0o755)).context(|| format!("chmod {}", root.display()))
        };
        finish().inspect_err(|_| self.undo(&root))
    }

    /// Make a clone of `from` at `at`, which is the root or the spare of `to`.
    pub(super) fn clone_into(
        &self,
        from: &Tree,
        to: &Tree,
        at: &Path,
        access: Access,
        limit: Option<u64>,
    ) -> Result<()> {
        let source = open_tree(from)?;
        self.refuse_nested(&source, &from.root())?;
        let place = open_place(to.place())?;
        let read_only = access == Access::ReadOnly;
        self.born(to, at, limit, |group| {
            subvol::snap_create(&source, &place, name_of(at), &Create { read_only, group }).or_else(|errno| {
                if errno == Errno::ETXTBSY {
                    return Err(super::destroy::active_swapfile(&source, &from.root(), Kind::Unsupported));
                }
                Err(errno).context(|| format!("snapshot {} as {}", from.root().display(), at.display()))
            })
        })?;
        // Somebody may have made a subvolume since the first look; then the clone has an empty directory for it.
        self.refuse_nested(&source, &from.root()).inspect_err(|_| self.undo(at))
    }

    pub(super) fn replace_tree(&self, from: &Tree, fresh: &Tree, limit: Option<u64>) -> Result<()> {
        let old = open_tree(fresh)?;
        self.destroy_subvolume(&fresh.spare())?;
        self.clone_into(from, fresh, &fresh.spare(), Access::Writable, limit)?;
        self.exchange_with_spare(fresh, &old)?;
        let place = open_place(fresh.place())?;
        let durable = durable::fsync(&place, fresh.place());
        durable.context(|| format!("fsync {}", fresh.place().display())).inspect_err(|_| {
            let (root, spare) = (fresh.root(), fresh.spare());
            match durable::exchange_at((&place, name_of(&spare)), (&place, name_of(&root)), &root) {
                Ok(()) => self.undo(&spare),
                Err(error) => tracing::warn!(%error, "cannot undo an exchange that may not be durable"),
            }
        })?;
        // It is replaced, whatever becomes of the old one: whoever settles the place tries again.
        self.undo(&fresh.spare());
        Ok(())
    }

    /// By a snapshot, and not by the flag: whoever has the tree open would go on writing to it, and what is in memory of it
    /// wouldn't be on disk (docs/kernel.md).
    pub(super) fn seal_tree(&self, tree: &Tree) -> Result<(SizeMethod, u64)> {
        let old = open_tree(tree)?;
        self.destroy_subvolume(&tree.spare())?;
        // What a snapshot shares with the tree is nobody's own to full qgroups. The others are exact by the commit of the
        // snapshot, and need none of their own; without quotas it is the tree that tells what was written since it was made.
        let before = match self.mode()? {
            QuotaMode::Full => Some(self.measure_for_good(tree)?),
            QuotaMode::None | QuotaMode::Simple | QuotaMode::Inconsistent | QuotaMode::Project => None,
        };
        self.clone_into(tree, tree, &tree.spare(), Access::ReadOnly, None)?;
        let measured = || match before {
            Some(measured) => Ok(measured),
            None => {
                let measured = self.measure_trees(&[tree], Want { sync: false, apparent: false })?;
                let charged = measured.sizes.first().map_or(0, |size| size.charged);
                // The snapshot's root block is charged to the same group, and the tree's own goes.
                let twice = if measured.method == SizeMethod::SimpleQuota { self.nodesize } else { 0 };
                Ok((measured.method, charged.saturating_sub(twice)))
            }
        };
        let measured = measured().inspect_err(|_| self.undo(&tree.spare()))?;
        self.exchange_with_spare(tree, &old)?;
        self.destroy_subvolume(&tree.spare())?;
        Ok(measured)
    }

    /// Put the clone at the spare in the place of the tree.
    fn exchange_with_spare(&self, tree: &Tree, old: &BtrfsFd) -> Result<()> {
        let (root, spare, place) = (tree.root(), tree.spare(), open_place(tree.place())?);
        // What its users locked can't be renamed either.
        super::destroy::unlock(old, &root).inspect_err(|_| self.undo(&spare))?;
        durable::exchange_at((&place, name_of(&spare)), (&place, name_of(&root)), &root)
            .context(|| format!("exchange {} with {}", spare.display(), root.display()))
            .inspect_err(|_| self.undo(&spare))
    }

    /// The fork is made where the old tree is to be kept, and both change places.
    pub(super) fn roll_back_tree(
        &self,
        from: &Tree,
        tree: &Tree,
        limit: Option<u64>,
        kept: &Tree,
        ready: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let (root, aside) = (tree.root(), kept.root());
        let old = open_tree(tree)?;
        let (place, beside) = (open_place(tree.place())?, open_place(kept.place())?);
        self.clone_into(from, kept, &aside, Access::Writable, limit)?;
        let exchange = || {
            durable::exchange_at((&beside, name_of(&aside)), (&place, name_of(&root)), &root)
                .context(|| format!("exchange {} with {}", aside.display(), root.display()))
        };
        // What its users locked can't be renamed.
        super::destroy::unlock(&old, &root)
            .and_then(|_| ready())
            .and_then(|()| exchange())
            .inspect_err(|_| self.undo(&aside))?;
        // One commit has both names or neither.
        let durable = [(&place, tree), (&beside, kept)].into_iter().try_for_each(|(place, tree)| {
            durable::fsync(place, tree.place()).context(|| format!("fsync {}", tree.place().display()))
        });
        durable.inspect_err(|_| match exchange() {
            Ok(()) => self.undo(&aside),
            Err(error) => tracing::warn!(%error, "cannot undo an exchange that may not be durable"),
        })
    }

    pub(super) fn made_in(&self, tree: &Tree) -> Result<Vec<PathBuf>> {
        let root = open_tree(tree)?;
        let info = subvol::get_subvol_info(&root)
            .context(|| format!("BTRFS_IOC_GET_SUBVOL_INFO {}", tree.root().display()))?;
        let find = || -> nix::Result<_> {
            let mut found = Vec::new();
            for inode in search::made(&self.fd, info.id, info.otransid + 1)? {
                for name in search::names(&self.fd, info.id, inode)? {
                    found.push(search::directory_path(&self.fd, info.id, name.directory)?.join(name.name));
                }
            }
            Ok(found)
        };
        find().context(|| self.call("BTRFS_IOC_TREE_SEARCH_V2"))
    }

    /// Clear away what a failed step made, whose failure the caller has to hear of, or what has served.
    pub(super) fn undo(&self, path: &Path) {
        if let Err(error) = self.destroy_subvolume(path) {
            tracing::warn!(%error, path = %path.display(), "cannot clear away a tree that nobody needs");
        }
    }

    fn refuse_nested(&self, source: &BtrfsFd, root: &Path) -> Result<()> {
        let nested = self.nested_in(source, root)?;
        if nested.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = nested.iter().take(5).map(|n| n.path.display().to_string()).collect();
        let more = if nested.len() > names.len() { ", ..." } else { "" };
        let message = format!("{} holds subvolumes of its own: {}{more}", root.display(), names.join(", "));
        Err(Error::new(Kind::Unsupported, message).with_hint(
            "a snapshot would have empty directories in their place: remove them or make them directories",
        ))
    }

    /// Subvolumes inside the tree of root directory `tree`, parents before their children.
    pub(super) fn nested_in(&self, tree: &BtrfsFd, path: &Path) -> Result<Vec<Nested>> {
        let call = || format!("BTRFS_IOC_GET_SUBVOL_INFO {}", path.display());
        let id = subvol::get_subvol_info(tree).context(call)?.id;
        let nested = self.nested_below(id, id)?.into_iter();
        Ok(nested.map(|inner| Nested { path: PathBuf::from(OsString::from_vec(inner.path)) }).collect())
    }

    /// Subvolumes inside subvolume `id`, parents before their children, by the paths that they have in `snapshot`:
    /// itself, or a snapshot of it.
    pub(super) fn nested_below(&self, id: u64, snapshot: u64) -> Result<Vec<Inner>> {
        let mut paths = HashMap::from([(id, PathBuf::new())]);
        let mut nested = Vec::new();
        for Descendant { parent, child } in self.descendants(id)? {
            let outermost = parent == id;
            let tree = if outermost { snapshot } else { parent };
            let directory = match search::directory_path(&self.fd, tree, child.directory) {
                Ok(directory) => directory,
                // Removed while we looked, or made since the snapshot.
                Err(Errno::ENOENT) => continue,
                Err(e) => return Err(e).context(|| self.call("BTRFS_IOC_TREE_SEARCH_V2")),
            };
            let Some(above) = paths.get(&parent) else { continue };
            let path = above.join(directory).join(child.name);
            paths.insert(child.id, path.clone());
            nested.push(Inner { path: path.into_os_string().into_vec(), id: child.id, outermost });
        }
        Ok(nested)
    }
}

/// A subvolume inside another.
#[derive(Debug)]
pub(super) struct Inner {
    /// Below the root of the outer one.
    pub(super) path: Vec<u8>,
    pub(super) id: u64,
    /// Whether none is around it but the outer one.
    pub(super) outermost: bool,
}
