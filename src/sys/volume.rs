//! A mounted Btrfs as a whole: which one it is, and its size.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use uuid::Uuid;

use crate::{Context, Error, Kind, Result};

/// `BTRFS_SUPER_MAGIC` (linux/magic.h).
const BTRFS_SUPER_MAGIC: u64 = 0x9123_683e;

/// `struct btrfs_ioctl_fs_info_args`; what stands behind `fsid` isn't asked for.
#[repr(C)]
struct FsInfo {
    max_id: u64,
    num_devices: u64,
    fsid: [u8; 16],
    rest: [u64; 124],
}

/// `struct btrfs_ioctl_vol_args`.
#[repr(C)]
struct VolArgs {
    fd: i64,
    name: [u8; 4088],
}

mod ioctl {
    use super::{FsInfo, VolArgs};

    pub(super) const MAGIC: u8 = 0x94;
    pub(super) const RESIZE: u8 = 3;
    pub(super) const FS_INFO: u8 = 31;

    nix::ioctl_write_ptr!(resize, MAGIC, RESIZE, VolArgs);
    nix::ioctl_read!(fs_info, MAGIC, FS_INFO, FsInfo);
}

/// `BTRFS_IOC_FS_INFO`: the uuid of the Btrfs filesystem that `directory` is on, `None` on another filesystem.
pub fn fsid(directory: BorrowedFd<'_>) -> Result<Option<Uuid>> {
    if !is_btrfs(directory)? {
        return Ok(None);
    }
    let mut info = FsInfo { max_id: 0, num_devices: 0, fsid: [0; 16], rest: [0; 124] };
    // SAFETY: the descriptor is on Btrfs, whose kernel side fills in a whole `struct btrfs_ioctl_fs_info_args`.
    unsafe { ioctl::fs_info(directory.as_raw_fd(), &raw mut info) }.context(|| "BTRFS_IOC_FS_INFO")?;
    Ok(Some(Uuid::from_bytes(info.fsid)))
}

/// `BTRFS_IOC_RESIZE` with `max`: let the filesystem that `directory` is on use all of its (first) device.
///
/// # Errors
/// `Unsupported` on another filesystem; `InUse` while a balance or another resize runs.
pub fn resize_to_device(directory: BorrowedFd<'_>) -> Result<()> {
    if !is_btrfs(directory)? {
        return Err(Error::new(Kind::Unsupported, "not a Btrfs filesystem"));
    }
    let mut args = VolArgs { fd: 0, name: [0; 4088] };
    args.name[..3].copy_from_slice(b"max");
    // SAFETY: the descriptor is on Btrfs, whose kernel side reads a `struct btrfs_ioctl_vol_args`, its name
    // terminated by the zeros behind it.
    match unsafe { ioctl::resize(directory.as_raw_fd(), &raw const args) } {
        Ok(0) => Ok(()),
        // BTRFS_ERROR_DEV_EXCL_RUN_IN_PROGRESS: a number above zero is one of Btrfs's own errors.
        Ok(_) => Err(Error::new(Kind::InUse, "a balance, device change or resize is going on")
            .with_hint("wait for it: btrfs balance status")),
        Err(error) => Err(error).context(|| "BTRFS_IOC_RESIZE max"),
    }
}

fn is_btrfs(fd: BorrowedFd<'_>) -> Result<bool> {
    let filesystem = rustix::fs::fstatfs(fd).context(|| "fstatfs")?;
    // The sign and width of `f_type` depend on the architecture; the magic number has 32 bits.
    Ok(filesystem.f_type as u64 & 0xffff_ffff == BTRFS_SUPER_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;
    use linux_raw_sys::{btrfs as kernel, ioctl as opcodes};

    #[test]
    fn structs_and_opcodes_are_the_kernels() {
        assert_eq!(size_of::<FsInfo>(), size_of::<kernel::btrfs_ioctl_fs_info_args>());
        assert_eq!(size_of::<VolArgs>(), size_of::<kernel::btrfs_ioctl_vol_args>());
        assert_eq!(std::mem::offset_of!(FsInfo, fsid), std::mem::offset_of!(kernel::btrfs_ioctl_fs_info_args, fsid));
        assert_eq!(
            nix::request_code_write!(ioctl::MAGIC, ioctl::RESIZE, size_of::<VolArgs>()) as u32,
            opcodes::BTRFS_IOC_RESIZE
        );
        assert_eq!(
            nix::request_code_read!(ioctl::MAGIC, ioctl::FS_INFO, size_of::<FsInfo>()) as u32,
            opcodes::BTRFS_IOC_FS_INFO
        );
    }
}
