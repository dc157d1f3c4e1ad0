//! Subvolumes: make, clone, destroy, look at.

use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use uuid::Uuid;

use super::{BtrfsFd, raw, search};
use crate::sys::durable;

/// `BTRFS_NAME_LEN`.
const LONGEST_NAME: usize = 255;

/// How a subvolume comes into being.
#[derive(Debug, Clone, Copy, Default)]
pub struct Create {
    /// `BTRFS_SUBVOL_RDONLY`; for snapshots only.
    pub read_only: bool,
    /// A quota group of level 1 or higher to be born into (`struct btrfs_qgroup_inherit`).
    pub group: Option<u64>,
}

impl Create {
    fn inherit(&self) -> Option<raw::QgroupInherit> {
        self.group.map(|group| raw::QgroupInherit { num_qgroups: 1, qgroups: [group], ..Default::default() })
    }
}

fn vol_args(name: &OsStr) -> nix::Result<raw::VolArgsV2> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.contains(&0) || bytes.contains(&b'/') {
        return Err(Errno::EINVAL);
    }
    let mut args =
        raw::VolArgsV2 { fd: 0, transid: 0, flags: 0, size: 0, qgroup_inherit: 0, unused: [0; 2], name: [0; 4040] };
    // One byte stays 0: the kernel wants the name terminated.
    let room = args.name.len() - 1;
    args.name[..room].get_mut(..bytes.len()).ok_or(Errno::ENAMETOOLONG)?.copy_from_slice(bytes);
    Ok(args)
}

/// Point `args` at `inherit`, which must outlive the call.
fn set_inherit(args: &mut raw::VolArgsV2, inherit: &mut raw::QgroupInherit) {
    args.flags |= raw::SUBVOL_QGROUP_INHERIT;
    // The kernel insists on the exact length.
    args.size = size_of::<raw::QgroupInherit>() as u64;
    args.qgroup_inherit = std::ptr::from_mut(inherit) as u64;
}

/// `BTRFS_IOC_SUBVOL_CREATE_V2` (linux/btrfs.h): make an empty subvolume `name` in the directory `parent`.
/// Not durable by itself. The root directory's mode follows the umask.
///
/// # Errors
/// EEXIST; ENOSPC; EDQUOT; EROFS; ENOENT if the inherited group doesn't exist (newer kernels; older ones
/// ignore it silently); EINVAL for a name with a slash.
pub fn subvol_create(parent: &BtrfsFd, name: &OsStr, how: &Create) -> nix::Result<()> {
    durable::step("create subvolume", Path::new(name))?;
    let mut args = vol_args(name)?;
    let mut inherit = how.inherit();
    if let Some(inherit) = &mut inherit {
        set_inherit(&mut args, inherit);
    }
    // SAFETY: args is a whole btrfs_ioctl_vol_args_v2, and what it points to lives until the call returns.
    unsafe { raw::subvol_create_v2(parent.raw(), &raw const args) }?;
    Ok(())
}

/// `BTRFS_IOC_SNAP_CREATE_V2` (linux/btrfs.h): snapshot the subvolume `source` as `name` in the directory `parent`.
///
/// Writes out the source's dirty data and commits the transaction: on return the snapshot with its content and
/// all earlier metadata of the filesystem are on disk.
///
/// # Errors
/// EEXIST; ETXTBSY for an active swapfile in `source`; EXDEV for another filesystem; EINVAL if `source` is no
/// subvolume's root; ENOSPC; EDQUOT; EROFS; ENOENT as [`subvol_create`].
pub fn snap_create(source: &BtrfsFd, parent: &BtrfsFd, name: &OsStr, how: &Create) -> nix::Result<()> {
    durable::step("snapshot", Path::new(name))?;
    let mut args = vol_args(name)?;
    args.fd = source.raw().into();
    if how.read_only {
        args.flags |= raw::SUBVOL_RDONLY;
    }
    let mut inherit = how.inherit();
    if let Some(inherit) = &mut inherit {
        set_inherit(&mut args, inherit);
    }
    // SAFETY: args is a whole btrfs_ioctl_vol_args_v2, and what it points to lives until the call returns.
    unsafe { raw::snap_create_v2(parent.raw(), &raw const args) }?;
    Ok(())
}

/// Write out the dirty data of `subvolume`, and of nothing else, without a commit: its extents are in its tree when this returns.
///
/// No call does only that. But a snapshot does it first (`btrfs_mksnapshot` in fs/btrfs/ioctl.c), and finds out only then that
/// nothing can have a name of more than 255 bytes in `parent`, a directory that both can be opened from.
///
/// # Errors
/// EOPNOTSUPP before Linux 5.12, which would look at the name first; ENOSPC; EROFS.
pub fn write_out(subvolume: &BtrfsFd, parent: &BtrfsFd) -> nix::Result<()> {
    if !is_at_least(5, 12) {
        return Err(Errno::EOPNOTSUPP);
    }
    let impossible = "x".repeat(LONGEST_NAME + 1);
    match snap_create(subvolume, parent, OsStr::new(&impossible), &Create { read_only: true, group: None }) {
        Err(Errno::ENAMETOOLONG) => Ok(()),
        Err(errno) => Err(errno),
        // So this kernel does have such names.
        Ok(()) => snap_destroy(parent, OsStr::new(&impossible)).and(Err(Errno::EOPNOTSUPP)),
    }
}

/// Whether the kernel is of this version or a later one; not if it doesn't say.
fn is_at_least(major: u32, minor: u32) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(major), Some(minor))
}

/// `BTRFS_IOC_SNAP_DESTROY_V2` (linux/btrfs.h) by name. Returns at once; the kernel's cleaner frees the space
/// later. Commits nothing: after a power cut the subvolume may be back.
///
/// # Errors
/// ENOENT; ENOTEMPTY for a subvolume nested in it; EPERM for `+i` or `+a` on its root directory or on `parent`,
/// an active swapfile in it, a running send of it, or the default subvolume; EROFS if `parent` is in a read-only
/// subvolume; EINVAL or ENOTDIR if it is no subvolume.
pub fn snap_destroy(parent: &BtrfsFd, name: &OsStr) -> nix::Result<()> {
    durable::step("destroy subvolume", Path::new(name))?;
    let args = vol_args(name)?;
    // SAFETY: args is a whole btrfs_ioctl_vol_args_v2 with a terminated name.
    unsafe { raw::snap_destroy_v2(parent.raw(), &raw const args) }?;
    Ok(())
}

/// `BTRFS_IOC_SNAP_DESTROY_V2` (linux/btrfs.h) by id, wherever on the filesystem of `any` it is.
///
/// # Errors
/// As [`snap_destroy`], and ENAMETOOLONG if its path is longer than PATH_MAX; EOPNOTSUPP on an idmapped mount.
pub fn snap_destroy_by_id(any: &BtrfsFd, id: u64) -> nix::Result<()> {
    durable::step("destroy subvolume", Path::new("ID"))?;
    let mut args = vol_args(OsStr::new("-"))?;
    args.flags = raw::SUBVOL_SPEC_BY_ID;
    args.name[..8].copy_from_slice(&id.to_ne_bytes());
    // SAFETY: args is a whole btrfs_ioctl_vol_args_v2; with SPEC_BY_ID the union holds a u64.
    unsafe { raw::snap_destroy_v2(any.raw(), &raw const args) }?;
    Ok(())
}

/// `BTRFS_IOC_SUBVOL_GETFLAGS` (linux/btrfs.h): whether the subvolume of root directory `subvolume` is read-only.
/// EINVAL if it is no subvolume's root.
pub fn is_read_only(subvolume: &BtrfsFd) -> nix::Result<bool> {
    let mut flags = 0;
    // SAFETY: the kernel writes one u64.
    unsafe { raw::subvol_getflags(subvolume.raw(), &raw mut flags) }?;
    Ok(flags & raw::SUBVOL_RDONLY != 0)
}

/// `BTRFS_IOC_SUBVOL_SETFLAGS` (linux/btrfs.h). Neither flushes dirty data nor stops descriptors that are open
/// for writing. EPERM during a send.
pub fn set_read_only(subvolume: &BtrfsFd, read_only: bool) -> nix::Result<()> {
    durable::step("set flags", Path::new("subvolume"))?;
    let flags = if read_only { raw::SUBVOL_RDONLY } else { 0 };
    // SAFETY: the kernel reads one u64.
    unsafe { raw::subvol_setflags(subvolume.raw(), &raw const flags) }?;
    Ok(())
}

/// What a subvolume's root item says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubvolInfo {
    /// The subvolume's id, and the number of its tree.
    pub id: u64,
    pub uuid: Uuid,
    /// The subvolume that it began as a snapshot of; `None` if it began empty.
    pub parent_uuid: Option<Uuid>,
    /// The transaction that last touched an inode in it. A snapshot begins with its parent's: making one, taking one
    /// and limiting it don't move this; data that is not written back yet has not moved it either.
    pub ctransid: u64,
    /// The transaction that made it: data of a later one was written here.
    pub otransid: u64,
    /// When it was made: seconds since the epoch, and nanoseconds.
    pub otime: (u64, u32),
}

/// `BTRFS_IOC_GET_SUBVOL_INFO` (linux/btrfs.h, since 4.18) of the subvolume that `within` is in.
pub fn get_subvol_info(within: &BtrfsFd) -> nix::Result<SubvolInfo> {
    let mut args = MaybeUninit::<raw::SubvolInfoArgs>::zeroed();
    // SAFETY: the kernel fills the structure, which is plain numbers.
    unsafe { raw::get_subvol_info(within.raw(), args.as_mut_ptr()) }?;
    // SAFETY: all-zero is a valid value of plain numbers, and so is what the kernel wrote.
    let args = unsafe { args.assume_init() };
    Ok(SubvolInfo {
        id: args.treeid,
        uuid: Uuid::from_bytes(args.uuid),
        parent_uuid: Some(Uuid::from_bytes(args.parent_uuid)).filter(|uuid| !uuid.is_nil()),
        ctransid: args.ctransid,
        otransid: args.otransid,
        otime: (args.otime.sec, args.otime.nsec),
    })
}

/// `struct file_handle` with Btrfs's id without a parent: inode, subvolume, generation.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    // The kernel's btrfs_fid is packed: 64 bits at an offset of 8 here too, but read as bytes.
    fid: [u8; 20],
}

/// open_by_handle_at(2): open directory `inode` of subvolume `id` without walking to it, so that neither the depth
/// of its path nor what is mounted over it matters. Needs `CAP_DAC_READ_SEARCH`.
///
/// # Errors
/// ESTALE if there is no such inode; ENOTDIR.
pub fn open_directory(any: &BtrfsFd, id: u64, inode: u64) -> io::Result<BtrfsFd> {
    match open_by_handle(any, id, inode, 0) {
        // 5.10 and 6.1 take the inode's own generation only, later kernels 0 for any.
        Err(stale) if stale.raw_os_error() == Some(libc::ESTALE) => match search::generation(any, id, inode) {
            Ok(generation) => open_by_handle(any, id, inode, generation),
            Err(Errno::ENOENT) => Err(stale),
            Err(e) => Err(e.into()),
        },
        opened => opened,
    }
}

fn open_by_handle(any: &BtrfsFd, id: u64, inode: u64, generation: u32) -> io::Result<BtrfsFd> {
    let mut fid = [0; 20];
    fid[..8].copy_from_slice(&inode.to_ne_bytes());
    fid[8..16].copy_from_slice(&id.to_ne_bytes());
    fid[16..].copy_from_slice(&generation.to_ne_bytes());
    let mut handle = Handle { bytes: 20, kind: raw::FILEID_BTRFS_WITHOUT_PARENT, fid };
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: handle is a file_handle whose handle_bytes bytes follow the two numbers.
    let fd = unsafe { libc::open_by_handle_at(any.raw(), (&raw mut handle).cast(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that the call just made and nobody else has.
    BtrfsFd::prove(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_single_component_are_refused() {
        for name in ["", "a/b", "/", "a\0b"] {
            assert_eq!(vol_args(OsStr::new(name)).err(), Some(Errno::EINVAL), "{name:?}");
        }
        let long = "x".repeat(4040);
        assert_eq!(vol_args(OsStr::new(&long)).err(), Some(Errno::ENAMETOOLONG));
        let args = vol_args(OsStr::new(&long[..4039])).ok().map(|a| a.name);
        assert_eq!(args.map(|n| n[4039]), Some(0));
    }
}
