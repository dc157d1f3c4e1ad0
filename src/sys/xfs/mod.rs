//! XFS by its own calls: what a filesystem is, how large, growing it, and its project quotas.
//!
//! Every call takes an [`XfsFd`], which exists only for a descriptor that fstatfs has proven to be on XFS: request codes
//! of other drivers overlap. Calls are named after the kernel's, return its errno untouched, and say in their docs what
//! each errno means. XFS's headers are no part of linux/*.h: structures are those of `fs/xfs/libxfs/xfs_fs.h`.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use uuid::Uuid;

pub mod geometry;
pub mod quota;
pub mod space;

/// An open file or directory, proven to be on an XFS filesystem.
#[derive(Debug)]
pub struct XfsFd(OwnedFd);

impl XfsFd {
    /// Open a directory; a symlink in the last place isn't followed.
    ///
    /// # Errors
    /// `Unsupported` (ENOTTY) if it isn't on XFS; else what open(2) says.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Self::prove(rustix::fs::open(path, flags, Mode::empty())?)
    }

    /// Take a descriptor if fstatfs(2) says that it is on XFS; ENOTTY, as an ioctl would, if not.
    pub fn prove(fd: OwnedFd) -> io::Result<Self> {
        // The field's type differs between platforms; the magic number is one of 32 bits everywhere.
        if rustix::fs::fstatfs(&fd)?.f_type as u32 == libc::XFS_SUPER_MAGIC as u32 {
            Ok(Self(fd))
        } else {
            Err(io::Error::from_raw_os_error(libc::ENOTTY))
        }
    }

    /// Another descriptor of the same open file.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for XfsFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// `XFS_SB_MAGIC` as it stands on disk, at the very beginning.
const MAGIC: &[u8; 4] = b"XFSB";
/// `offsetof(struct xfs_dsb, sb_uuid)`.
const UUID_AT: usize = 32;

/// The uuid of the XFS in a file or on a device, mounted or not, by its first superblock; `None` if there is none.
pub fn superblock_uuid(file: &File) -> io::Result<Option<Uuid>> {
    let mut block = [0; UUID_AT + 16];
    match file.read_exact_at(&mut block, 0) {
        Ok(()) if block.starts_with(MAGIC) => Ok(Uuid::from_slice(&block[UUID_AT..]).ok()),
        Ok(()) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_superblock_is_known_by_its_magic() {
        let file = tempfile::tempfile().expect("a scratch file");
        assert_eq!(superblock_uuid(&file).expect("an empty file"), None);
        file.set_len(4096).expect("longer");
        assert_eq!(superblock_uuid(&file).expect("zeros"), None);
        let uuid = Uuid::new_v4();
        file.write_all_at(MAGIC, 0).expect("write");
        file.write_all_at(uuid.as_bytes(), 32).expect("write");
        assert_eq!(superblock_uuid(&file).expect("a superblock"), Some(uuid));
    }

    #[test]
    fn other_filesystems_are_told_by_enotty() {
        let error = XfsFd::open(Path::new("/proc")).expect_err("proc is no XFS");
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    }
}
