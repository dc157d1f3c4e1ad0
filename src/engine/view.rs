//! Read-only containers: a view of the tree of their image's topmost layer, and no tree of their own.
//!
//! The root of one is a read-only mount of the layer's tree at its own place. So there is nothing to clone, all views of
//! a layer have their files once in the page cache, and the kernel refuses writes on every filesystem. The container is
//! its record; the mount is of this boot and this mount namespace, and made again where it is missing.
//!
//! ```text
//! let draft = store.begin(...)                    place, record, names
//! mkdir PLACE/fs; store.confirm(&draft)           the mount point: durable, and from here on the container is whole
//! mount LAYER/fs at PLACE/fs                      read-only from its first moment
//! store.publish(draft)
//! ```

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::Engine;
use crate::backend::Tree;
use crate::backend::remove::remove_tree;
use crate::store::{Draft, Record, TreeKind};
use crate::sys::durable;
use crate::sys::users::{self, User};
use crate::sys::{bind, mount};
use crate::{Context, Error, Kind, Result};

impl Engine {
    /// Give the draft of a read-only container its mount point and its mount. Durable on return.
    pub(super) fn make_view(&self, draft: &Draft, shown: Option<&Tree>) -> Result<()> {
        let shown = shown.ok_or_else(|| Error::new(Kind::Unsupported, "its image has no layers"))?;
        let root = draft.place().join("fs");
        durable::mkdir(&root, 0o755).context(|| format!("mkdir {}", root.display()))?;
        self.store.confirm(draft)?;
        bind::mount_read_only(&shown.root(), &root)
    }

    /// Mount the root of a read-only container if it isn't, in this mount namespace.
    pub(super) fn show_view(&self, record: &Record) -> Result<()> {
        let shown = self.parent_tree(record)?;
        let shown = shown.ok_or_else(|| Error::new(Kind::Damaged, "its record names no layer"))?.root();
        let root = self.tree(record).root();
        if is_same(&shown, &root)? {
            return Ok(());
        }
        // Two at once would mount it twice; and nobody mounts what is being removed.
        let _held = match self.store.hold(record.uuid) {
            // On a filesystem that takes no writes nobody locks, and nothing is removed; mounted twice, it shows the same.
            Err(e) if e.kind() == Kind::Denied => None,
            held => Some(held?),
        };
        if is_same(&shown, &root)? {
            return Ok(());
        }
        if mount::mounted_at(&root)?.is_some() {
            return Err(Error::new(Kind::InUse, format!("something else is mounted at {}", root.display())));
        }
        bind::mount_read_only(&shown, &root)
    }

    /// Let the views of a layer show the tree that is in its place now. Who has an old one open goes on in that.
    pub(super) fn show_again(&self, layer: Uuid) -> Result<()> {
        for view in self.store.list(TreeKind::Container)? {
            let root = self.tree(&view).root();
            if view.is_view() && view.parent == Some(layer) && mount::mounted_at(&root)?.is_some() {
                unmount(self.tree(&view).place())?;
                self.show_view(&view)?;
            }
        }
        Ok(())
    }

    /// A process that uses a read-only container, not others of the same layer.
    ///
    /// # Errors
    /// `InUse` naming what is mounted in it, or what somebody wrote there while it wasn't mounted.
    pub(super) fn user_of_view(&self, record: &Record) -> Result<Option<User>> {
        let view = self.tree(record);
        if let Some(strange) = below_the_mount(&view.root())? {
            let what = format!("somebody wrote {} while nothing was mounted there", strange.display());
            return Err(Error::new(Kind::InUse, what).with_hint("move it away, or use --force"));
        }
        let nested = mount::table("self")?.into_iter().find(|entry| is_in(&entry.target, &view.root()));
        if let Some(nested) = nested {
            let what = format!("something is mounted in it at {}", nested.target.display());
            return Err(Error::new(Kind::InUse, what).with_hint("unmount that first, or use --force"));
        }
        let others = self.store.list(TreeKind::Container)?;
        let last =
            !others.iter().any(|other| other.is_view() && other.parent == record.parent && other.uuid != record.uuid);
        // By the record alone: also if the layer is damaged or gone, this one can go.
        let shown = record.parent.map(|layer| self.store.place(layer));
        shown.map_or(Ok(None), |shown| users::user_of_view(view.place(), &shown, last))
    }
}

/// Take away the view in `place`, with all that is mounted in it; in other mount namespaces too, as the kernel unmounts
/// what stands on a directory that is removed. With it goes what somebody wrote there while it wasn't mounted. Succeeds
/// if there is none.
pub(super) fn take_away(place: &Path) -> Result<()> {
    let root = unmount(place)?;
    match durable::rmdir(&root) {
        // By then it is certain that nothing is mounted on it.
        Err(e) if e.kind() == std::io::ErrorKind::DirectoryNotEmpty => remove_tree(&root).map(drop),
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).context(|| format!("rmdir {}", root.display())),
        _ => Ok(()),
    }
}

/// The same for a place that nobody knows: if it holds a tree, that stays.
pub(super) fn clear(place: &Path) -> Result<()> {
    let root = unmount(place)?;
    // Whatever is left there is for the backend, and keeps the place from being removed.
    let _ = durable::rmdir(&root);
    Ok(())
}

fn unmount(place: &Path) -> Result<PathBuf> {
    let root = place.join("fs");
    // Several may lie on top of each other.
    while bind::detach(&root)? {}
    Ok(root)
}

/// Something in the directory that a view belongs on, if no view hides it.
fn below_the_mount(root: &Path) -> Result<Option<PathBuf>> {
    if mount::mounted_at(root)?.is_some() {
        return Ok(None);
    }
    let call = || format!("read {}", root.display());
    match std::fs::read_dir(root) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        entries => Ok(entries.context(call)?.next().transpose().context(call)?.map(|entry| entry.path())),
    }
}

/// Whether two paths lead to the same directory. What isn't there is the same as nothing.
fn is_same(one: &Path, other: &Path) -> Result<bool> {
    let stat = |path: &Path| std::fs::metadata(path).context(|| format!("stat {}", path.display()));
    let (one, other) = (stat(one)?, stat(other)?);
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
}

/// Whether a mount point as the kernel names it lies below the root of a view, whatever links lead to the store.
fn is_in(target: &Path, root: &Path) -> bool {
    let canonical = root.canonicalize();
    let root = canonical.as_deref().unwrap_or(root);
    target != root && target.starts_with(root)
}
