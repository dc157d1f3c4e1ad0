//! What shares blocks between files, and the inode flags that neither stat(2) nor an xattr shows.
//!
//! FICLONE and the `FS_IOC_*` calls are the VFS's own (linux/fs.h), so that any filesystem may answer them, or say
//! ENOTTY or EOPNOTSUPP. Errno values are returned untouched.

#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::{IFlags, fstatfs, ioctl_ficlone, ioctl_getflags, ioctl_setflags};
use rustix::io::Errno;

/// `FS_XFLAG_*` of linux/fs.h.
const XFLAG_IMMUTABLE: u32 = 0x08;
const XFLAG_APPEND: u32 = 0x10;
const XFLAG_SYNC: u32 = 0x20;
const XFLAG_NOATIME: u32 = 0x40;
const XFLAG_NODUMP: u32 = 0x80;
const XFLAG_PROJINHERIT: u32 = 0x200;
const XFLAG_HASATTR: u32 = 0x8000_0000;

/// `struct fsxattr`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Fsxattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

mod ioctl {
    use super::Fsxattr;
    nix::ioctl_read!(fsgetxattr, b'X', 31, Fsxattr);
    nix::ioctl_write_ptr!(fssetxattr, b'X', 32, Fsxattr);
}

/// What an inode has beyond what stat(2) says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extras {
    /// Empty where the filesystem has no such flags.
    pub flags: IFlags,
    /// Whether there may be xattrs; `false` is certain.
    pub xattrs: bool,
}

/// Whether a descriptor is on XFS.
pub fn is_xfs(fd: impl AsFd) -> rustix::io::Result<bool> {
    // The field's type differs between platforms; the magic number is one of 32 bits everywhere.
    Ok(fstatfs(fd)?.f_type as u32 == libc::XFS_SUPER_MAGIC as u32)
}

/// Flags and xattrs of an open file or directory. XFS answers both in one call (`FS_XFLAG_HASATTR`); elsewhere only a
/// listing tells about xattrs.
pub fn extras(fd: impl AsFd, on_xfs: bool) -> rustix::io::Result<Extras> {
    if !on_xfs {
        return Ok(Extras { flags: flags(fd)?, xattrs: true });
    }
    let all = fsgetxattr(fd)?.xflags;
    let pairs = [
        (XFLAG_IMMUTABLE, IFlags::IMMUTABLE),
        (XFLAG_APPEND, IFlags::APPEND),
        (XFLAG_SYNC, SYNC),
        (XFLAG_NOATIME, IFlags::NOATIME),
        (XFLAG_NODUMP, IFlags::NODUMP),
    ];
    let set = pairs.into_iter().filter(|(xflag, _)| all & xflag != 0).map(|(_, flag)| flag);
    Ok(Extras { flags: set.collect(), xattrs: all & XFLAG_HASATTR != 0 })
}

/// `FS_SYNC_FL`, which rustix doesn't name.
pub const SYNC: IFlags = IFlags::from_bits_retain(0x08);

/// `FS_IOC_GETFLAGS`; none where the filesystem has no flags.
pub fn flags(fd: impl AsFd) -> rustix::io::Result<IFlags> {
    match ioctl_getflags(fd) {
        Err(Errno::NOTTY | Errno::OPNOTSUPP) => Ok(IFlags::empty()),
        flags => flags,
    }
}

/// `FS_IOC_SETFLAGS`: make those of `mask` be as in `flags`, and leave the others as they are.
pub fn set_flags(fd: impl AsFd, flags: IFlags, mask: IFlags) -> rustix::io::Result<()> {
    let now = ioctl_getflags(&fd)?;
    let wanted = now.difference(mask).union(flags.intersection(mask));
    if wanted == now { Ok(()) } else { ioctl_setflags(fd, wanted) }
}

/// Which project a file or directory is charged to, where the filesystem has projects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Project {
    /// 0 for none.
    pub id: u32,
    /// Of a directory: whether what is made in it is of the project, too. Nothing of another project can be renamed or
    /// linked into it then (EXDEV).
    pub inherited: bool,
}

/// `FS_IOC_FSGETXATTR`: the project of an open file or directory.
///
/// # Errors
/// EOPNOTSUPP or ENOTTY where the filesystem has no projects.
pub fn project(fd: impl AsFd) -> rustix::io::Result<Project> {
    let now = fsgetxattr(fd)?;
    Ok(Project { id: now.projid, inherited: now.xflags & XFLAG_PROJINHERIT != 0 })
}

/// `FS_IOC_FSSETXATTR`: charge a directory, and what will be made in it, to a project.
///
/// # Errors
/// EOPNOTSUPP or ENOTTY where the filesystem has no projects; EINVAL outside of the first user namespace.
pub fn set_project(directory: impl AsFd, project: u32) -> rustix::io::Result<()> {
    let now = fsgetxattr(&directory)?;
    let wanted = Fsxattr { xflags: now.xflags | XFLAG_PROJINHERIT, projid: project, ..now };
    // SAFETY: the descriptor is open, and the kernel reads one struct fsxattr, which `wanted` is.
    unsafe { ioctl::fssetxattr(directory.as_fd().as_raw_fd(), &raw const wanted) }.map_err(errno)?;
    Ok(())
}

/// `FS_IOC_FSSETXATTR`: charge a file or directory, and what will be made in it, to no project. Whether it was to one.
///
/// # Errors
/// As [`set_project`].
pub fn leave_project(fd: impl AsFd) -> rustix::io::Result<bool> {
    let now = fsgetxattr(&fd)?;
    let wanted = Fsxattr { xflags: now.xflags & !XFLAG_PROJINHERIT, projid: 0, ..now };
    if (now.projid, now.xflags) == (wanted.projid, wanted.xflags) {
        return Ok(false);
    }
    // SAFETY: the descriptor is open, and the kernel reads one struct fsxattr, which `wanted` is.
    unsafe { ioctl::fssetxattr(fd.as_fd().as_raw_fd(), &raw const wanted) }.map_err(errno)?;
    Ok(true)
}

/// `FICLONE`: make the empty file `to`, open for writing, share all blocks of `from`.
///
/// # Errors
/// EOPNOTSUPP, ENOTTY, EXDEV or EINVAL where they can't share; ETXTBSY for an active swapfile; ENOSPC and EDQUOT.
pub fn ficlone(to: impl AsFd, from: impl AsFd) -> rustix::io::Result<()> {
    ioctl_ficlone(to, from)
}

fn fsgetxattr(fd: impl AsFd) -> rustix::io::Result<Fsxattr> {
    let mut facts = Fsxattr::default();
    // SAFETY: the descriptor is open, and the kernel writes one struct fsxattr, which `facts` is.
    unsafe { ioctl::fsgetxattr(fd.as_fd().as_raw_fd(), &raw mut facts) }.map_err(errno)?;
    Ok(facts)
}

fn errno(errno: nix::errno::Errno) -> Errno {
    Errno::from_raw_os_error(errno as i32)
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use linux_raw_sys::{general as k, ioctl as op};
    use nix::{request_code_read, request_code_write};

    use super::*;

    #[test]
    fn structures_are_the_kernels() {
        assert_eq!(size_of::<Fsxattr>(), size_of::<k::fsxattr>());
        assert_eq!(offset_of!(Fsxattr, projid), offset_of!(k::fsxattr, fsx_projid));
        assert_eq!(offset_of!(Fsxattr, cowextsize), offset_of!(k::fsxattr, fsx_cowextsize));
    }

    #[test]
    fn numbers_are_the_kernels() {
        let size = size_of::<Fsxattr>();
        let pairs = [
            (request_code_read!(b'X', 31, size), op::FS_IOC_FSGETXATTR),
            (request_code_write!(b'X', 32, size), op::FS_IOC_FSSETXATTR),
            (u64::from(XFLAG_IMMUTABLE), k::FS_XFLAG_IMMUTABLE),
            (u64::from(XFLAG_APPEND), k::FS_XFLAG_APPEND),
            (u64::from(XFLAG_SYNC), k::FS_XFLAG_SYNC),
            (u64::from(XFLAG_NOATIME), k::FS_XFLAG_NOATIME),
            (u64::from(XFLAG_NODUMP), k::FS_XFLAG_NODUMP),
            (u64::from(XFLAG_PROJINHERIT), k::FS_XFLAG_PROJINHERIT),
            (u64::from(XFLAG_HASATTR), k::FS_XFLAG_HASATTR),
            (u64::from(SYNC.bits()), k::FS_SYNC_FL),
        ];
        for (ours, kernels) in pairs {
            assert_eq!(ours, u64::from(kernels), "{kernels:#x}");
        }
    }
}
