//! ROOT as a subvolume of its own, so that snapshots of the filesystem around it don't pin what it holds.

use std::ffi::OsStr;
use std::path::Path;

use nix::errno::Errno;

use crate::sys::btrfs::{BtrfsFd, Create, subvol};
use crate::sys::durable;
use crate::sys::selinux;
use crate::{Context, Error, Kind, Result};

/// Make the subvolume `root`, root:root 0700; its parent directory must be there. An empty directory in its place is
/// replaced, unless it is a subvolume or a mount point already.
pub fn make(root: &Path) -> Result<()> {
    let (parent, name) = split(root)?;
    match BtrfsFd::open(root) {
        // Perhaps of one who died before the last step.
        Ok(fd) if fd.is_subvolume().context(|| format!("stat {}", root.display()))? => return private(root),
        Ok(_) => durable::rmdir(root).context(|| format!("rmdir {}", root.display()))?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).context(|| format!("open {}", root.display())),
    }
    let parent = BtrfsFd::open(parent).context(|| format!("open {}", parent.display()))?;
    subvol::subvol_create(&parent, name, &Create::default())
        .context(|| format!("BTRFS_IOC_SUBVOL_CREATE_V2 {}", root.display()))?;
    selinux::inherit(root).context(|| format!("label {}", root.display()))?;
    private(root)
}

fn private(root: &Path) -> Result<()> {
    durable::chmod(root, 0o700).context(|| format!("chmod {}", root.display()))
}

/// Remove the empty subvolume or directory `root`, on whatever filesystem. A mount point stays, and so does what a link
/// leads to.
pub fn remove(root: &Path) -> Result<()> {
    let (parent, name) = split(root)?;
    let call = || format!("BTRFS_IOC_SNAP_DESTROY_V2 {}", root.display());
    let refused = match durable::rmdir(root) {
        Ok(()) => return Ok(()),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EBUSY | libc::ENOTDIR)) => return Ok(()),
        Err(e) => e,
    };
    let parent = match BtrfsFd::open(parent) {
        Err(e) if e.raw_os_error() == Some(libc::ENOTTY) => {
            return Err(refused).context(|| format!("rmdir {}", root.display()));
        }
        parent => parent.context(|| format!("open the directory around {}", root.display()))?,
    };
    match subvol::snap_destroy(&parent, name) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        // The root of the filesystem itself, or something is mounted there.
        Err(Errno::EBUSY | Errno::EINVAL | Errno::EXDEV) => Ok(()),
        Err(e) => Err(e).context(call),
    }
}

fn split(root: &Path) -> Result<(&Path, &OsStr)> {
    root.parent()
        .zip(root.file_name())
        .ok_or_else(|| Error::new(Kind::Invalid, format!("{} can't be a store", root.display())))
}
