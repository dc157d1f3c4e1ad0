//! Labels of SELinux. They are the host's: whoever runs containers gives a tree the one that its policy wants.

use std::path::Path;

use rustix::fs::{XattrFlags, lgetxattr, lsetxattr};
use rustix::io::Errno;

/// Where an inode's label is, with a NUL behind it.
pub const LABEL: &str = "security.selinux";

/// Whether this kernel holds anybody to a policy: selinuxfs is mounted where everybody looks for it.
#[must_use]
pub fn is_enabled() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

/// Give a new directory the label of the one that it is in, which the kernel doesn't do for the root of a subvolume
/// (fs/btrfs/inode.c, `btrfs_create_new_inode`) or of a filesystem: without any, nothing that a policy confines gets at
/// what is in it. Where the policy refuses it, its own stands.
///
/// # Errors
/// Those of reading and writing an attribute.
pub fn inherit(directory: &Path) -> rustix::io::Result<()> {
    if !is_enabled() {
        return Ok(());
    }
    let mut label = [0; 256];
    let length = match lgetxattr(directory.join(".."), LABEL, &mut label[..]) {
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => return Ok(()),
        length => length?,
    };
    match lsetxattr(directory, LABEL, &label[..length], XattrFlags::empty()) {
        Err(Errno::ACCESS | Errno::PERM | Errno::OPNOTSUPP) => Ok(()),
        set => set,
    }
}
