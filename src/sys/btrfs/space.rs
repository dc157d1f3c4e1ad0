//! Commits and space.

use std::mem::MaybeUninit;
use std::path::Path;

use super::{BtrfsFd, raw};
use crate::sys::durable;

/// `BTRFS_IOC_SYNC` (linux/btrfs.h): commit, and wake the transaction thread, which wakes the cleaner.
/// Quota numbers want syncfs(2) on top.
pub fn sync(any: &BtrfsFd) -> nix::Result<()> {
    durable::step("sync", Path::new("filesystem"))?;
    // SAFETY: the request takes no argument.
    unsafe { raw::sync(any.raw()) }?;
    Ok(())
}

/// `BTRFS_IOC_START_SYNC` (linux/btrfs.h): begin a commit; the answer is for [`wait_sync`].
pub fn start_sync(any: &BtrfsFd) -> nix::Result<u64> {
    let mut transid = 0;
    // SAFETY: the kernel writes one u64.
    unsafe { raw::start_sync(any.raw(), &raw mut transid) }?;
    Ok(transid)
}

/// `BTRFS_IOC_WAIT_SYNC` (linux/btrfs.h): wait until `transid` is on disk. EINVAL for one that was never begun.
pub fn wait_sync(any: &BtrfsFd, transid: u64) -> nix::Result<()> {
    // SAFETY: the kernel reads one u64.
    unsafe { raw::wait_sync(any.raw(), &raw const transid) }?;
    Ok(())
}

/// What FS_INFO says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FsInfo {
    /// The filesystem's UUID, as in `/sys/fs/btrfs/<fsid>`.
    pub fsid: [u8; 16],
    /// Bytes of a metadata block.
    pub nodesize: u32,
    /// Bytes of a data block.
    pub sectorsize: u32,
}

/// `BTRFS_IOC_FS_INFO` (linux/btrfs.h).
pub fn fs_info(any: &BtrfsFd) -> nix::Result<FsInfo> {
    let mut args = MaybeUninit::<raw::FsInfoArgs>::zeroed();
    // SAFETY: the kernel fills the structure, which is plain numbers.
    unsafe { raw::fs_info(any.raw(), args.as_mut_ptr()) }?;
    // SAFETY: all-zero is a valid value of plain numbers, and so is what the kernel wrote.
    let args = unsafe { args.assume_init() };
    Ok(FsInfo { fsid: args.fsid, nodesize: args.nodesize, sectorsize: args.sectorsize })
}

/// Bytes of block groups, each block once however many copies its profile keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpaceInfo {
    /// Used by data, metadata and system blocks. The global reserve is left out: nobody wrote it.
    pub used: u64,
    /// In block groups for data, and not used: metadata can't have it.
    pub unused_data: u64,
}

/// `BTRFS_IOC_SPACE_INFO` (linux/btrfs.h), as of now.
pub fn space_info(any: &BtrfsFd) -> nix::Result<SpaceInfo> {
    let mut args = raw::SpaceArgs {
        space_slots: raw::SPACE_SLOTS as u64,
        total_spaces: 0,
        spaces: [raw::SpaceInfo::default(); raw::SPACE_SLOTS],
    };
    // SAFETY: space_slots is how many entries follow, and the kernel writes no more.
    unsafe { raw::space_info(any.raw(), &raw mut args) }?;
    let filled = usize::try_from(args.total_spaces).unwrap_or(usize::MAX).min(raw::SPACE_SLOTS);
    let mut info = SpaceInfo::default();
    for space in &args.spaces[..filled] {
        if space.flags & raw::BLOCK_GROUP_TYPES == 0 || space.flags & raw::SPACE_INFO_GLOBAL_RSV != 0 {
            continue;
        }
        info.used += space.used_bytes;
        if space.flags & raw::BLOCK_GROUP_TYPES == raw::BLOCK_GROUP_DATA {
            info.unused_data += space.total_bytes.saturating_sub(space.used_bytes);
        }
    }
    Ok(info)
}

/// Which block groups [`balance`] takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockGroups {
    /// Those for data that hold nothing: they are given back, and no data moves.
    EmptyData,
    /// All for metadata: their content moves into new ones of the size that the kernel picks now.
    Metadata,
}

/// `BTRFS_IOC_BALANCE_V2` (linux/btrfs.h); returns when it is done.
///
/// # Errors
/// EINPROGRESS while another balance or such runs; ECANCELED; EROFS; ENOSPC.
pub fn balance(any: &BtrfsFd, which: BlockGroups) -> nix::Result<()> {
    let empty = raw::BalanceArgs { usage: 0, flags: raw::BALANCE_ARGS_USAGE, ..Default::default() };
    let (flags, data) = match which {
        BlockGroups::EmptyData => (raw::BALANCE_DATA, empty),
        BlockGroups::Metadata => (raw::BALANCE_METADATA, raw::BalanceArgs::default()),
    };
    let (meta, sys) = (raw::BalanceArgs::default(), raw::BalanceArgs::default());
    let mut args = raw::BalanceIoctlArgs { flags, state: 0, data, meta, sys, stat: [0; 3], unused: [0; 72] };
    // SAFETY: args is a whole btrfs_ioctl_balance_args, which the kernel reads and writes.
    unsafe { raw::balance_v2(any.raw(), &raw mut args) }?;
    Ok(())
}

/// `BTRFS_IOC_RESIZE` (linux/btrfs.h) to `max`: grow device 1 to what the device below has now.
///
/// # Errors
/// EROFS; ENOSPC; EPERM without CAP_SYS_ADMIN; a positive answer (another exclusive operation such as a balance
/// runs) comes back as EBUSY.
pub fn resize_max(any: &BtrfsFd) -> nix::Result<()> {
    let mut args = raw::VolArgs { fd: 0, name: [0; 4088] };
    args.name[..3].copy_from_slice(b"max");
    // SAFETY: args is a whole btrfs_ioctl_vol_args with a terminated name.
    let answer = unsafe { raw::resize(any.raw(), &raw const args) }?;
    if answer == 0 { Ok(()) } else { Err(nix::errno::Errno::EBUSY) }
}
