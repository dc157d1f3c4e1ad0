//! Labels of SELinux. They are the host's: whoever runs containers gives a tree the one that its policy wants.

use std::path::Path;

/// Where an inode's label is, with a NUL behind it.
pub const LABEL: &str = "security.selinux";

/// Whether this kernel holds anybody to a policy: selinuxfs is mounted where everybody looks for it.
#[must_use]
pub fn is_enabled() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}
