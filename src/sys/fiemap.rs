//! Where a file's data lies on disk: FIEMAP.
//!
//! The call is the VFS's own (linux/fiemap.h), so that any filesystem may answer it, or say EOPNOTSUPP or ENOTTY.

#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;

use nix::errno::Errno;

/// `FIEMAP_FLAG_SYNC`: write the file's dirty data first.
const FLAG_SYNC: u32 = 0x1;
/// `FIEMAP_EXTENT_LAST`.
const LAST: u32 = 0x1;
/// `FIEMAP_EXTENT_UNKNOWN`: no place on disk yet. Set with `FIEMAP_EXTENT_DELALLOC`.
const UNKNOWN: u32 = 0x2;
/// `FIEMAP_EXTENT_ENCODED`: compressed or encrypted, so that its length on disk is another one.
const ENCODED: u32 = 0x8;
/// `FIEMAP_EXTENT_DATA_INLINE`: among the metadata.
const INLINE: u32 = 0x200;
/// `FIEMAP_EXTENT_SHARED`.
const SHARED: u32 = 0x2000;

/// How many extents one call is asked for: 7 KiB of stack.
const BATCH: usize = 128;

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// `struct fiemap` without the array at its end.
#[repr(C)]
struct Header {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
}

/// `struct fiemap`.
#[repr(C)]
struct Request {
    header: Header,
    extents: [RawExtent; BATCH],
}

nix::ioctl_readwrite!(fs_fiemap, b'f', 11, Header);

/// A piece of a file that takes space: data, or room that was allocated for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub place: Place,
    /// In the file, in bytes, whole blocks; what it takes on disk, unless it is compressed.
    pub length: u64,
    /// Whether another file, or another part of this one, has it too.
    pub shared: bool,
}

/// Where an extent's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// From this address of the filesystem on, byte by byte.
    At(u64),
    /// Compressed or encrypted, from this address on; how many bytes it takes there can't be asked.
    EncodedAt(u64),
    /// In memory still, or among the metadata.
    Nowhere,
}

/// All extents of a file, holes left out. `sync` writes its dirty data first, after which all of them have a place, but for what
/// finds no room.
///
/// # Errors
/// EOPNOTSUPP or ENOTTY where the filesystem doesn't tell.
pub fn extents(file: &File, mut sync: bool) -> nix::Result<Vec<Extent>> {
    const NONE: RawExtent =
        RawExtent { logical: 0, physical: 0, length: 0, reserved64: [0; 2], flags: 0, reserved: [0; 3] };
    let mut found = Vec::new();
    let mut start = 0;
    loop {
        let header = Header {
            start,
            length: u64::MAX - start,
            flags: if sync { FLAG_SYNC } else { 0 },
            mapped: 0,
            count: BATCH as u32,
            reserved: 0,
        };
        let mut request = Request { header, extents: [NONE; BATCH] };
        // SAFETY: the descriptor is open; behind the header are `count` extents, and the kernel writes no more.
        match unsafe { fs_fiemap(file.as_raw_fd(), (&raw mut request).cast()) } {
            Err(Errno::ENOSPC | Errno::EDQUOT) if sync => {
                sync = false;
                continue;
            }
            asked => asked?,
        };
        let mapped = &request.extents[..(request.header.mapped as usize).min(BATCH)];
        found.extend(mapped.iter().map(|raw| Extent {
            place: match raw.flags {
                flags if flags & (UNKNOWN | INLINE) != 0 => Place::Nowhere,
                flags if flags & ENCODED != 0 => Place::EncodedAt(raw.physical),
                _ => Place::At(raw.physical),
            },
            length: raw.length,
            shared: raw.flags & SHARED != 0,
        }));
        match mapped.last() {
            Some(last) if last.flags & LAST == 0 => start = last.logical + last.length,
            _ => return Ok(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use linux_raw_sys::ioctl as op;

    use super::*;

    #[test]
    fn structures_and_numbers_are_the_kernels() {
        assert_eq!(size_of::<RawExtent>(), 56);
        assert_eq!(std::mem::offset_of!(RawExtent, flags), 40);
        assert_eq!(std::mem::offset_of!(Request, extents), 32);
        let ours = nix::request_code_readwrite!(b'f', 11, size_of::<Header>());
        assert_eq!(ours, u64::from(op::FS_IOC_FIEMAP));
        let flags = [
            (FLAG_SYNC, op::FIEMAP_FLAG_SYNC),
            (LAST, op::FIEMAP_EXTENT_LAST),
            (UNKNOWN, op::FIEMAP_EXTENT_UNKNOWN),
            (ENCODED, op::FIEMAP_EXTENT_ENCODED),
            (INLINE, op::FIEMAP_EXTENT_DATA_INLINE),
            (SHARED, op::FIEMAP_EXTENT_SHARED),
        ];
        assert!(flags.into_iter().all(|(ours, kernels)| ours == kernels));
    }
}
