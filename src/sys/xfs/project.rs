//! Which project a directory belongs to, and giving back what XFS has preallocated.

use super::XfsFd;

/// `struct fsxattr` of linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct FsXattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}
const _: () = assert!(size_of::<FsXattr>() == 28);

/// `FS_XFLAG_PROJINHERIT`.
const PROJINHERIT: u32 = 0x200;

/// `struct xfs_fs_eofblocks` of XFS's xfs_fs.h.
#[repr(C)]
#[derive(Default)]
struct EofBlocks {
    version: u32,
    flags: u32,
    uid: u32,
    gid: u32,
    prid: u32,
    pad32: u32,
    min_file_size: u64,
    pad64: [u64; 12],
}
const _: () = assert!(size_of::<EofBlocks>() == 128);

/// `XFS_EOFBLOCKS_VERSION`, `XFS_EOF_FLAGS_SYNC`.
const EOFBLOCKS_VERSION: u32 = 1;
const EOF_SYNC: u32 = 1 << 0;

nix::ioctl_read!(fs_ioc_fsgetxattr, b'X', 31, FsXattr);
nix::ioctl_write_ptr!(fs_ioc_fssetxattr, b'X', 32, FsXattr);
// Declared _IOR, though it only writes to the kernel.
nix::ioctl_read!(xfs_ioc_free_eofblocks, b'X', 58, EofBlocks);

/// The project of a file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Project {
    /// 0 for none.
    pub id: u32,
    /// Whether what is made in the directory is of the project too; renames and links into it from others fail (EXDEV).
    pub inherited: bool,
}

/// `FS_IOC_FSGETXATTR`.
pub fn get(file: &XfsFd) -> nix::Result<Project> {
    let raw = get_raw(file)?;
    Ok(Project { id: raw.projid, inherited: raw.xflags & PROJINHERIT != 0 })
}

/// `FS_IOC_FSSETXATTR`: give a directory to a project; nothing else of it changes.
///
/// # Errors
/// EPERM for who doesn't own it, EINVAL in another than the initial user namespace.
pub fn set(directory: &XfsFd, project: Project) -> nix::Result<()> {
    let mut raw = get_raw(directory)?;
    raw.projid = project.id;
    raw.xflags = if project.inherited { raw.xflags | PROJINHERIT } else { raw.xflags & !PROJINHERIT };
    // SAFETY: the kernel reads one fsxattr.
    unsafe { fs_ioc_fssetxattr(directory.raw(), &raw const raw) }?;
    Ok(())
}

fn get_raw(file: &XfsFd) -> nix::Result<FsXattr> {
    let mut raw = FsXattr::default();
    // SAFETY: the kernel writes one fsxattr.
    unsafe { fs_ioc_fsgetxattr(file.raw(), &raw mut raw) }?;
    Ok(raw)
}

/// `XFS_IOC_FREE_EOFBLOCKS` (Linux 3.8): give back the blocks preallocated behind the ends of files, and for
/// copy-on-write (4.16), everywhere on the filesystem. Waits, too, until files that have no name any more are gone: their
/// blocks are freed in the background (5.14), and neither statfs(2) nor syncfs(2) waits for that.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN; EROFS.
pub fn free_eofblocks(any: &XfsFd) -> nix::Result<()> {
    let mut raw = EofBlocks { version: EOFBLOCKS_VERSION, flags: EOF_SYNC, ..EofBlocks::default() };
    // SAFETY: the kernel reads one xfs_fs_eofblocks.
    unsafe { xfs_ioc_free_eofblocks(any.raw(), &raw mut raw) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use linux_raw_sys::general::fsxattr;
    use linux_raw_sys::ioctl;

    use super::*;

    #[test]
    fn the_structure_is_the_kernels() {
        assert_eq!(size_of::<FsXattr>(), size_of::<fsxattr>());
        assert_eq!(std::mem::offset_of!(FsXattr, projid), std::mem::offset_of!(fsxattr, fsx_projid));
        assert_eq!(PROJINHERIT, linux_raw_sys::general::FS_XFLAG_PROJINHERIT);
        assert_eq!(nix::request_code_read!(b'X', 31, size_of::<FsXattr>()), u64::from(ioctl::FS_IOC_FSGETXATTR));
        assert_eq!(nix::request_code_write!(b'X', 32, size_of::<FsXattr>()), u64::from(ioctl::FS_IOC_FSSETXATTR));
    }
}
