//! How large an XFS is, and making it larger.

use std::mem::MaybeUninit;

use uuid::Uuid;

use super::XfsFd;

/// `struct xfs_fsop_geom`.
#[repr(C)]
struct FsopGeom {
    blocksize: u32,
    rtextsize: u32,
    agblocks: u32,
    agcount: u32,
    logblocks: u32,
    sectsize: u32,
    inodesize: u32,
    imaxpct: u32,
    datablocks: u64,
    rtblocks: u64,
    rtextents: u64,
    logstart: u64,
    uuid: [u8; 16],
    /// sunit, swidth, version, flags, logsectsize, rtsectsize, dirblocksize, logsunit, sick, checked.
    rest: [u32; 10],
    reserved: [u64; 17],
}

/// `struct xfs_growfs_data`.
#[repr(C)]
struct GrowfsData {
    newblocks: u64,
    imaxpct: u32,
}

mod ioctl {
    use super::{FsopGeom, GrowfsData};

    nix::ioctl_read!(fsgeometry, b'X', 126, FsopGeom);
    nix::ioctl_write_ptr!(fsgrowfsdata, b'X', 110, GrowfsData);
}

/// `XFS_IOC_FSGEOMETRY`, as far as anyone here asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    pub uuid: Uuid,
    /// Bytes of a block.
    pub block_size: u32,
    /// Blocks of the data section, the log inside included.
    pub data_blocks: u64,
    /// Bytes of an inode.
    pub inode_size: u32,
    /// Percentage of the data section that inodes may take at most; growing has to repeat it.
    max_inode_percent: u32,
}

/// `XFS_IOC_FSGEOMETRY` (fs/xfs/libxfs/xfs_fs.h, Linux 5.2).
///
/// # Errors
/// EIO never, even where the filesystem has shut down; ENOTTY on older kernels.
pub fn geometry(any: &XfsFd) -> nix::Result<Geometry> {
    let mut geometry = MaybeUninit::<FsopGeom>::zeroed();
    // SAFETY: the kernel fills the structure, which is plain numbers.
    unsafe { ioctl::fsgeometry(any.raw(), geometry.as_mut_ptr()) }?;
    // SAFETY: all-zero is a valid value of plain numbers, and so is what the kernel wrote.
    let geometry = unsafe { geometry.assume_init() };
    Ok(Geometry {
        uuid: Uuid::from_bytes(geometry.uuid),
        block_size: geometry.blocksize,
        data_blocks: geometry.datablocks,
        inode_size: geometry.inodesize,
        max_inode_percent: geometry.imaxpct,
    })
}

/// `XFS_IOC_FSGROWFSDATA` (fs/xfs/libxfs/xfs_fs.h): let the data section have `bytes` of the device, which has them,
/// while the filesystem is mounted. What doesn't fill a block, or is too little for an allocation group of its own, is
/// left unused. Does nothing if it has them already.
///
/// # Errors
/// EAGAIN while somebody else grows it; EINVAL for less than it has; EPERM without CAP_SYS_ADMIN; EROFS; EIO if the
/// device is shorter, or the filesystem has shut down.
pub fn growfs_data(any: &XfsFd, bytes: u64) -> nix::Result<()> {
    let now = geometry(any)?;
    let newblocks = bytes / u64::from(now.block_size);
    if newblocks == now.data_blocks {
        return Ok(());
    }
    let grow = GrowfsData { newblocks, imaxpct: now.max_inode_percent };
    // SAFETY: the kernel reads one xfs_growfs_data, which `grow` is.
    unsafe { ioctl::fsgrowfsdata(any.raw(), &raw const grow) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers that strace(1) shows of xfs_growfs; the size of a structure is a part of them.
    #[test]
    fn structs_and_opcodes_are_the_kernels() {
        assert_eq!(size_of::<FsopGeom>(), 256);
        assert_eq!(std::mem::offset_of!(FsopGeom, uuid), 64);
        assert_eq!(nix::request_code_read!(b'X', 126, size_of::<FsopGeom>()), 0x8100_587e);
        assert_eq!(size_of::<GrowfsData>(), 16);
        assert_eq!(nix::request_code_write!(b'X', 110, size_of::<GrowfsData>()), 0x4010_586e);
    }
}
