//! Space that XFS holds ahead of its writers, or gives back later than the call that freed it.

use super::XfsFd;

/// `struct xfs_fs_eofblocks`.
#[repr(C)]
#[derive(Default)]
struct EofBlocks {
    version: u32,
    flags: u32,
    uid: u32,
    gid: u32,
    project: u32,
    pad32: u32,
    min_file_size: u64,
    pad64: [u64; 12],
}
const _: () = assert!(size_of::<EofBlocks>() == 128);

/// `XFS_EOFBLOCKS_VERSION`.
const VERSION: u32 = 1;
/// `XFS_EOF_FLAGS_SYNC`: wait for what others hold.
const SYNC: u32 = 1 << 0;

// Declared _IOR, though it only writes to the kernel.
nix::ioctl_read!(free_eofblocks, b'X', 58, EofBlocks);

/// `XFS_IOC_FREE_EOFBLOCKS`: give back the blocks preallocated behind the ends of files and for copy-on-write, everywhere
/// on the filesystem, and wait for what is left to do for unlinked files. From 5.14 on another thread does that: after
/// unlink(2) of a file in many pieces, statfs(2) and even syncfs(2) don't know of it yet. After syncfs(2) and this a
/// project holds exactly what its files have; on 5.10, which leaves what is preallocated for copy-on-write, up to 128 KiB
/// more for each file that was overwritten.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN; EROFS.
pub fn free_preallocated(any: &XfsFd) -> nix::Result<()> {
    let mut request = EofBlocks { version: VERSION, flags: SYNC, ..EofBlocks::default() };
    // SAFETY: the kernel reads one xfs_fs_eofblocks, which `request` is.
    unsafe { free_eofblocks(any.raw(), &raw mut request) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number that strace(1) shows of xfs_spaceman's `prealloc`.
    #[test]
    fn the_call_is_the_kernels() {
        assert_eq!(nix::request_code_read!(b'X', 58, size_of::<EofBlocks>()), 0x8080_583a);
    }
}
