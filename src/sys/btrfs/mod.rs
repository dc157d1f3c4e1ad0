//! Btrfs by its ioctls: subvolumes, tree searches, quota groups, space.
//!
//! Every call takes a [`BtrfsFd`], which exists only for a descriptor that fstatfs has proven to be on Btrfs:
//! request codes of other drivers overlap, and an ioctl meant for Btrfs must never reach them. Calls are named
//! after the kernel's, return its errno untouched, and say in their docs what each errno means; what to tell
//! a user is decided by who knows the object.
//!
//! ```no_run
//! # use std::path::Path;
//! # use reflinkd::sys::btrfs::{BtrfsFd, Create, subvol};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let place = BtrfsFd::open(Path::new("/pool/web1"))?;
//! let layer = BtrfsFd::open(Path::new("/pool/nginx/fs"))?;
//! subvol::snap_create(&layer, &place, "fs".as_ref(), &Create::default())?; // durable when it returns
//! # Ok(())
//! # }
//! ```

#![allow(unsafe_code)]

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};

pub mod qgroup;
pub mod quota_tree;
mod raw;
pub mod search;
pub mod send;
pub mod space;
pub mod subvol;

pub use subvol::Create;

/// Inode number of a subvolume's root directory: `BTRFS_FIRST_FREE_OBJECTID`.
pub const SUBVOLUME_INODE: u64 = raw::FIRST_FREE;
/// Inode number of the empty directories that a snapshot has in the place of subvolumes nested in its source:
/// `BTRFS_EMPTY_SUBVOL_DIR_OBJECTID`.
pub const PLACEHOLDER_INODE: u64 = raw::EMPTY_SUBVOLUME_DIRECTORY;

/// How directories are opened for the calls here. A symlink in the last place is never followed.
pub const OPEN_DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// An open file or directory, proven to be on a Btrfs filesystem.
#[derive(Debug)]
pub struct BtrfsFd(OwnedFd);

impl BtrfsFd {
    /// Open a directory.
    ///
    /// # Errors
    /// `Unsupported` (ENOTTY) if it isn't on Btrfs; else what open(2) says.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::prove(rustix::fs::open(path, OPEN_DIRECTORY, Mode::empty())?)
    }

    /// Open a directory by its name in this one.
    ///
    /// # Errors
    /// As [`BtrfsFd::open`]; EXDEV if something is mounted there, which would hide what this is about.
    pub fn open_at(&self, name: &OsStr) -> io::Result<Self> {
        let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
        Self::prove(rustix::fs::openat2(&self.0, name, OPEN_DIRECTORY, Mode::empty(), resolve)?)
    }

    /// Take a descriptor if fstatfs(2) says that it is on Btrfs; ENOTTY, as an ioctl would, if not.
    pub fn prove(fd: OwnedFd) -> io::Result<Self> {
        // The field's type differs between platforms; the magic number is one of 32 bits everywhere.
        if rustix::fs::fstatfs(&fd)?.f_type as u32 == libc::BTRFS_SUPER_MAGIC as u32 {
            Ok(Self(fd))
        } else {
            Err(io::Error::from_raw_os_error(libc::ENOTTY))
        }
    }

    /// Whether this is the root directory of a subvolume (the filesystem's own included).
    pub fn is_subvolume(&self) -> io::Result<bool> {
        Ok(rustix::fs::fstat(&self.0)?.st_ino == SUBVOLUME_INODE)
    }

    fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl From<BtrfsFd> for OwnedFd {
    fn from(fd: BtrfsFd) -> Self {
        fd.0
    }
}

impl AsFd for BtrfsFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
