//! Telling one mount of a filesystem from the next.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, StatxFlags, fstat, major, minor, statx};

use crate::sys::btrfs::{BtrfsFd, space};
use crate::sys::reflink;
use crate::{Context, Result};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// `STATX_MNT_ID_UNIQUE` (linux/stat.h, Linux 6.8), which rustix doesn't name: never used twice in a boot.
const MOUNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// Names the boot and the mounted filesystem that `directory` is on. On XFS and Btrfs it is the same for every process
/// and every mount point: the inode of the filesystem's directory in sysfs, which is made anew with the first mount.
/// Elsewhere it is the mount's id, and another mount namespace has another one.
pub(super) fn instance(directory: &OwnedFd, root: &Path) -> Result<String> {
    let boot = std::fs::read_to_string(BOOT_ID).context(|| format!("read {BOOT_ID}"))?;
    let mount = match sysfs(directory, root)? {
        Some(path) => std::fs::metadata(&path).context(|| format!("stat {}", path.display()))?.ino(),
        None => {
            statx(directory, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID | MOUNT_ID_UNIQUE)
                .context(|| format!("statx {}", root.display()))?
                .stx_mnt_id
        }
    };
    Ok(format!("{}/{mount}", boot.trim()))
}

/// The directory of a mounted filesystem in sysfs.
fn sysfs(directory: &OwnedFd, root: &Path) -> Result<Option<PathBuf>> {
    if reflink::is_xfs(directory).context(|| format!("statfs {}", root.display()))? {
        let device = fstat(directory).context(|| format!("stat {}", root.display()))?.st_dev;
        let block = format!("/sys/dev/block/{}:{}", major(device), minor(device));
        let device = std::fs::read_link(&block).context(|| format!("readlink {block}"))?;
        return Ok(device.file_name().map(|name| Path::new("/sys/fs/xfs").join(name)));
    }
    let call = || format!("BTRFS_IOC_FS_INFO {}", root.display());
    match BtrfsFd::prove(directory.try_clone().context(call)?) {
        Ok(btrfs) => {
            let fsid = uuid::Uuid::from_bytes(space::fs_info(&btrfs).context(call)?.fsid);
            Ok(Some(Path::new("/sys/fs/btrfs").join(fsid.to_string())))
        }
        Err(e) if e.raw_os_error() == Some(libc::ENOTTY) => Ok(None),
        Err(e) => Err(e).context(call),
    }
}
