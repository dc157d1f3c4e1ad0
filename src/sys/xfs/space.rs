//! Space that XFS gives back later than the call that freed it.

use super::XfsFd;

/// `struct xfs_fs_eofblocks`.
#[repr(C)]
struct Eofblocks {
    version: u32,
    flags: u32,
    uid: u32,
    gid: u32,
    project: u32,
    pad32: u32,
    min_file_size: u64,
    pad64: [u64; 12],
}

/// `XFS_EOFBLOCKS_VERSION`.
const VERSION: u32 = 1;
/// `XFS_EOF_FLAGS_SYNC`: wait for what others hold.
const SYNC: u32 = 1;

nix::ioctl_read!(free_eofblocks, b'X', 58, Eofblocks);

/// `XFS_IOC_FREE_EOFBLOCKS` (fs/xfs/libxfs/xfs_fs.h): give back what is allocated ahead of writers, and wait until files
/// that have no name any more are gone. Their blocks are freed in the background (Linux 5.14): after unlink(2) of a file
/// in many pieces, statfs(2) and even syncfs(2) don't know of it yet.
///
/// # Errors
/// EROFS; EPERM without CAP_SYS_ADMIN.
pub fn free_unused(any: &XfsFd) -> nix::Result<()> {
    let mut request = Eofblocks {
        version: VERSION,
        flags: SYNC,
        uid: 0,
        gid: 0,
        project: 0,
        pad32: 0,
        min_file_size: 0,
        pad64: [0; 12],
    };
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
        assert_eq!(nix::request_code_read!(b'X', 58, size_of::<Eofblocks>()), 0x8080_583a);
    }
}
