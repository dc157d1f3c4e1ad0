//! Handing free blocks to the device below: FITRIM (linux/fs.h), which any filesystem on a device may answer.

#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

/// `struct fstrim_range`.
#[repr(C)]
struct Range {
    start: u64,
    len: u64,
    minlen: u64,
}

nix::ioctl_readwrite!(fs_fitrim, b'X', 121, Range);

/// Hand all free blocks of the filesystem to the device below; returns how many bytes, 0 where nothing takes them.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN; EIO.
pub fn fitrim(any: impl AsFd) -> nix::Result<u64> {
    let mut range = Range { start: 0, len: u64::MAX, minlen: 0 };
    // SAFETY: the descriptor is open, and the kernel reads and writes one fstrim_range.
    match unsafe { fs_fitrim(any.as_fd().as_raw_fd(), &raw mut range) } {
        Ok(_) => Ok(range.len),
        Err(Errno::EOPNOTSUPP | Errno::ENOTTY) => Ok(0),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use linux_raw_sys::{btrfs as k, ioctl as op};

    use super::*;

    #[test]
    fn the_call_is_the_kernels() {
        assert_eq!(size_of::<Range>(), size_of::<k::fstrim_range>());
        assert_eq!(nix::request_code_readwrite!(b'X', 121, size_of::<Range>()), u64::from(op::FITRIM));
    }

    #[test]
    fn what_has_no_device_takes_nothing() {
        let proc = std::fs::File::open("/proc").expect("open");
        assert_eq!(fitrim(&proc), Ok(0));
    }
}
