//! Removing trees, whatever their users have done to them.
//!
//! A tree's own users can nest subvolumes in it, set `+i` on their roots or on the directories around them, make
//! them read-only, and bury them deeper than PATH_MAX. None of that may keep the tree alive. What may: an active
//! swapfile and a running send.

use std::io::BufRead;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use rustix::fs::IFlags;

use super::{Btrfs, Descendant, tree};
use crate::backend::QuotaMode;
use crate::sys::btrfs::{BtrfsFd, SUBVOLUME_INODE, search, subvol};
use crate::{Context, Error, Kind, Result};

/// How often to begin anew when subvolumes appear while their parent is being destroyed.
const ATTEMPTS: usize = 16;

impl Btrfs {
    /// Remove the subvolume at `path` with all that are nested in it; nothing there is fine.
    pub(super) fn destroy_subvolume(&self, path: &Path) -> Result<()> {
        for _ in 0..ATTEMPTS {
            let Some(root) = tree::open_subvolume(path)? else { return Ok(()) };
            if self.try_destroy(&root, path)? {
                return Ok(());
            }
        }
        let message = format!("{}: subvolumes are being made in it faster than they can be removed", path.display());
        Err(Error::new(Kind::InUse, message).with_hint("stop the processes that use it"))
    }

    /// One attempt; `false` if something has changed and the next may succeed.
    fn try_destroy(&self, root: &BtrfsFd, path: &Path) -> Result<bool> {
        let info = subvol::get_subvol_info(root);
        let id = info.context(|| format!("BTRFS_IOC_GET_SUBVOL_INFO {}", path.display()))?.id;
        for descendant in self.descendants(id)?.iter().rev() {
            if !self.destroy_nested(descendant, path)? {
                return Ok(false);
            }
        }
        let place = tree::open_place(path.parent().unwrap_or(path))?;
        match subvol::snap_destroy(&place, tree::name_of(path)) {
            Ok(()) => {
                self.remember_destroyed(id);
                Ok(true)
            }
            Err(Errno::ENOENT) => Ok(true),
            Err(Errno::ENOTEMPTY) => Ok(false),
            Err(Errno::EPERM) => {
                if unlock(root, path)? {
                    return Ok(false);
                }
                Err(self.not_permitted(root, id, path))
            }
            Err(e) => Err(e).context(|| format!("destroy subvolume {}", path.display())),
        }
    }

    /// Remove one nested subvolume without children; `false` if it has got some meanwhile.
    fn destroy_nested(&self, descendant: &Descendant, tree: &Path) -> Result<bool> {
        let Descendant { parent, child } = descendant;
        let call = || format!("destroy subvolume {} ({:?}) in {}", child.id, child.name, tree.display());
        match subvol::snap_destroy_by_id(&self.fd, child.id) {
            Ok(()) => {
                self.remember_destroyed(child.id);
                return Ok(true);
            }
            Err(Errno::ENOENT | Errno::ESTALE) => return Ok(true),
            Err(Errno::ENOTEMPTY) => return Ok(false),
            // In the way are flags, a read-only parent, a path past PATH_MAX or an idmapped mount.
            Err(Errno::EPERM | Errno::EACCES | Errno::EROFS | Errno::ENAMETOOLONG | Errno::EOPNOTSUPP) => {}
            Err(e) => return Err(e).context(call),
        }
        let open = |id, inode| subvol::open_directory(&self.fd, id, inode).context(call);
        let (root, directory) = (open(child.id, SUBVOLUME_INODE)?, open(*parent, child.directory)?);
        let parent_root = open(*parent, SUBVOLUME_INODE)?;
        make_writable(&parent_root, tree)?;
        unlock(&directory, tree)?;
        unlock(&root, tree)?;
        match subvol::snap_destroy(&directory, &child.name) {
            Ok(()) => {
                self.remember_destroyed(child.id);
                Ok(true)
            }
            // Gone or renamed: the next attempt sees which.
            Err(Errno::ENOENT | Errno::ENOTEMPTY) => Ok(false),
            Err(Errno::EPERM) => Err(self.not_permitted(&root, child.id, tree)),
            Err(e) => Err(e).context(call),
        }
    }

    /// Full quotas of older kernels keep the group of a destroyed subvolume: remember which are ours.
    fn remember_destroyed(&self, id: u64) {
        if matches!(self.mode(), Ok(QuotaMode::Full)) {
            self.destroyed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(id);
        }
    }

    /// Why the kernel says EPERM of a subvolume without `+i`.
    fn not_permitted(&self, root: &BtrfsFd, id: u64, path: &Path) -> Error {
        if search::default_subvolume(&self.fd).is_ok_and(|default| default == Some(id)) {
            let message = format!("{} is the filesystem's default subvolume", path.display());
            return Error::new(Kind::InUse, message).with_hint("btrfs subvolume set-default 5 MOUNTPOINT");
        }
        active_swapfile(root, path, Kind::InUse)
    }
}

/// Clear `+i` and `+a`; whether there were any.
pub(super) fn unlock(directory: &BtrfsFd, path: &Path) -> Result<bool> {
    let call = || format!("clear the immutable flag in {}", path.display());
    let flags = rustix::fs::ioctl_getflags(directory.as_fd()).context(call)?;
    let locks = IFlags::IMMUTABLE | IFlags::APPEND;
    if !flags.intersects(locks) {
        return Ok(false);
    }
    // Flags of a read-only subvolume can't be changed either (EROFS).
    if directory.is_subvolume().context(call)? {
        make_writable(directory, path)?;
    }
    rustix::fs::ioctl_setflags(directory.as_fd(), flags - locks).context(call)?;
    Ok(true)
}

fn make_writable(root: &BtrfsFd, path: &Path) -> Result<()> {
    let call = || format!("make a subvolume in {} writable", path.display());
    if subvol::is_read_only(root).context(call)? {
        subvol::set_read_only(root, false).context(call)?;
    }
    Ok(())
}

/// The error for a subvolume that the kernel won't snapshot or destroy because of a swapfile in use; by name if
/// the swapfile is visible from here. A send is the other reason.
pub(super) fn active_swapfile(root: &BtrfsFd, path: &Path, kind: Kind) -> Error {
    match find_swapfile(root) {
        Some(file) => Error::new(kind, format!("{} is an active swapfile", file.display()))
            .with_hint(format!("swapoff {}", file.display())),
        None => Error::new(kind, format!("{} holds an active swapfile or is being sent", path.display()))
            .with_hint("see swapon --show; wait for btrfs send to end"),
    }
}

/// A line of /proc/swaps whose file is in the subvolume: each has a device number of its own.
fn find_swapfile(root: &BtrfsFd) -> Option<PathBuf> {
    let device = rustix::fs::fstat(root.as_fd()).ok()?.st_dev;
    let swaps = std::fs::File::open("/proc/swaps").ok()?;
    std::io::BufReader::new(swaps).split(b'\n').skip(1).map_while(std::result::Result::ok).find_map(|line| {
        let path = unescape(line.split(|b| *b == b' ' || *b == b'\t').next()?);
        let path = PathBuf::from(std::ffi::OsString::from_vec(path));
        let file = std::fs::metadata(&path).ok()?;
        (file.is_file() && file.dev() == device).then_some(path)
    })
}

/// Undo the kernel's `\ooo` for blanks and backslashes (seq_path).
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let octal = |d: &[u8]| {
            d.iter().try_fold(0_u32, |n, d| (b'0'..=b'7').contains(d).then(|| n * 8 + u32::from(d - b'0')))
        };
        match (first, tail.get(..3).and_then(octal).and_then(|n| u8::try_from(n).ok())) {
            (b'\\', Some(byte)) => {
                plain.push(byte);
                rest = &tail[3..];
            }
            _ => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::unescape;

    #[test]
    fn paths_of_proc_swaps_are_unescaped() {
        assert_eq!(unescape(br"/a\040b\134c"), br"/a b\c");
        assert_eq!(unescape(br"/a\04"), br"/a\04");
        assert_eq!(unescape(br"/\777\"), br"/\777\");
    }
}
