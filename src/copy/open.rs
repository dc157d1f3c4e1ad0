//! Opening what somebody may be exchanging at this moment.
//!
//! What a name is is found out by a descriptor that opens nothing (O_PATH); a regular file is then opened by that
//! descriptor, not by its name. So no device and no FIFO that takes its place is ever opened.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat};

use crate::{Context, Result};

/// For reading. Nothing waits for a FIFO or takes a terminal, should a file have become one.
pub(crate) const OPEN_FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NOATIME)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);
/// How a single name is opened: no symlink and no mount point.
pub(crate) const HERE: ResolveFlags = ResolveFlags::NO_SYMLINKS.union(ResolveFlags::NO_XDEV);
/// To learn what a name is.
pub(crate) const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// `/proc/self/fd`, for [`reopen`].
pub(crate) fn descriptors() -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, "/proc/self/fd", flags, Mode::empty()).context(|| "open /proc/self/fd")
}

/// Open for reading the regular file that an O_PATH descriptor stands for.
pub(crate) fn reopen(descriptors: impl AsFd, found: impl AsFd) -> rustix::io::Result<OwnedFd> {
    // What is there is a link, though one that leads to the inode itself.
    let name = found.as_fd().as_raw_fd().to_string();
    openat(descriptors, name, OPEN_FILE.difference(OFlags::NOFOLLOW), Mode::empty())
}
