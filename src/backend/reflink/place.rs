//! What is at a place: a tree, the manifest that goes with it by its inode, and manifests without a tree.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, IFlags, StatxAttributes, StatxFlags, statx};
use rustix::io::Errno;

use super::manifest::{Head, Manifest};
use crate::backend::Tree;
use crate::sys::durable;
use crate::sys::reflink;
use crate::{Context, Error, Kind, Result};

const MANIFEST: &str = "manifest.";

/// Where the manifest of the tree at `root` is, or would be; `None` if there is no tree.
///
/// # Errors
/// `Damaged` if something else than a directory is there: it isn't ours, and stays untouched. `InUse` if something is
/// mounted there, which must not be taken for the tree.
pub(super) fn manifest_path(root: &Path) -> Result<Option<PathBuf>> {
    let facts = match statx(CWD, root, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE | StatxFlags::INO) {
        Err(Errno::NOENT) => return Ok(None),
        facts => facts.context(|| format!("stat {}", root.display()))?,
    };
    if facts.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(Error::new(Kind::InUse, format!("something is mounted on {}", root.display()))
            .with_hint(format!("umount {}", root.display())));
    }
    if !FileType::from_raw_mode(facts.stx_mode.into()).is_dir() {
        return Err(Error::new(Kind::Damaged, format!("{} is not a directory", root.display())));
    }
    Ok(Some(manifest_of(root, facts.stx_ino)))
}

/// Where the manifest is of a tree whose path is `root`, and whose root directory has this inode.
pub(super) fn manifest_of(root: &Path, inode: u64) -> PathBuf {
    root.with_file_name(format!("{MANIFEST}{inode}"))
}

pub(super) fn head(tree: &Tree) -> Result<Head> {
    read(&tree.root(), Head::read)
}

pub(super) fn manifest(tree: &Tree) -> Result<Manifest> {
    read(&tree.root(), Manifest::read)
}

/// Read the manifest of the tree at `root`, which somebody may replace or remove meanwhile.
///
/// # Errors
/// `NotFound` if there is no tree; `Damaged` if it has no manifest, or a damaged one.
pub(super) fn read<T>(root: &Path, read: impl Fn(&Path) -> Result<T>) -> Result<T> {
    loop {
        let path = manifest_path(root)?.ok_or_else(|| missing(root))?;
        match read(&path) {
            Err(e) if e.kind() == Kind::NotFound => {
                // Trees leave before their manifests do.
                if manifest_path(root)?.as_ref() == Some(&path) {
                    return Err(Error::new(Kind::Damaged, format!("{} is missing", path.display())));
                }
            }
            answer => return answer,
        }
    }
}

/// What a tree takes besides its files' data, by its manifest at `path`.
pub(super) fn overhead(path: &Path, head: &Head) -> Result<u64> {
    match fs::metadata(path) {
        Ok(file) => Ok(head.metadata + file.blocks() * 512),
        // It is on its way out with its tree.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(head.metadata),
        Err(e) => Err(e).context(|| format!("stat {}", path.display())),
    }
}

pub(super) fn missing(root: &Path) -> Error {
    Error::new(Kind::NotFound, format!("there is no tree at {}", root.display()))
}

/// The manifests in a directory, those without a tree too; none if there is no directory.
pub(super) fn manifests(place: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(place) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context(|| format!("read {}", place.display()))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.context(|| format!("read {}", place.display()))?;
        let name = entry.file_name();
        let inode = name.to_str().and_then(|name| name.strip_prefix(MANIFEST));
        if inode.is_some_and(|inode| inode.bytes().all(|byte| byte.is_ascii_digit())) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Clear `+i` and `+a` of a tree's root, which would keep it from being moved.
pub(super) fn unlock(root: &Path) -> Result<()> {
    let call = || format!("clear the immutable flag of {}", root.display());
    let locks = IFlags::IMMUTABLE | IFlags::APPEND;
    let directory = fs::File::open(root).context(call)?;
    if reflink::flags(&directory).context(call)?.intersects(locks) {
        reflink::set_flags(&directory, IFlags::empty(), locks).context(call)?;
    }
    Ok(())
}

pub(super) fn remove(path: &Path) -> Result<()> {
    match durable::unlink(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).context(|| format!("remove {}", path.display())),
        _ => Ok(()),
    }
}
