//! Loop devices: a regular file as a block device (linux/loop.h, drivers/block/loop.c).
//!
//! Nothing in the kernel keeps one file from being behind two loop devices, and a filesystem mounted from
//! both is destroyed: callers look with [`of_file`] before they [`configure`], under a lock of their own.
//! A file is recognised by its device and inode number, never by its path.
//!
//! A device made here clears itself when its last user closes it, mounts included (`LO_FLAGS_AUTOCLEAR`).
//! A [`LoopDevice`] holds it open, so while there is one the device stays what it was seen to be:
//!
//! ```text
//! let found = loopdev::of_file(&file)?;             // holds each of them open
//! let device = found.pop().or_else(configure)?;
//! mount(device.path(), root, ...)?;                 // from here on the mount holds it
//! drop(device);
//! umount(root)                                      // ... and this clears it
//! ```
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{Context, Error, Kind, Result};

const CONTROL: &str = "/dev/loop-control";
const SYSFS: &str = "/sys/block";

/// The logical block size of a device made here. With less than the host disk's own, direct I/O would not
/// be possible; with more than 4096, the filesystem's sectors would not.
const BLOCK_SIZE: u32 = 4096;

/// How often another process may take the number that `LOOP_CTL_GET_FREE` gave us.
const RACES: u32 = 256;

const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

mod ioctl {
    use super::{LoopConfig, LoopInfo64};

    pub(super) const CLR_FD: u32 = 0x4c01;
    pub(super) const GET_STATUS64: u32 = 0x4c05;
    pub(super) const SET_CAPACITY: u32 = 0x4c07;
    pub(super) const CONFIGURE: u32 = 0x4c0a;
    pub(super) const CTL_GET_FREE: u32 = 0x4c82;

    nix::ioctl_none_bad!(clr_fd, CLR_FD);
    nix::ioctl_read_bad!(get_status64, GET_STATUS64, LoopInfo64);
    nix::ioctl_none_bad!(set_capacity, SET_CAPACITY);
    nix::ioctl_write_ptr_bad!(configure, CONFIGURE, LoopConfig);
    nix::ioctl_none_bad!(ctl_get_free, CTL_GET_FREE);
}

/// A loop device that has a file, held open.
#[derive(Debug)]
pub struct LoopDevice {
    file: File,
    path: PathBuf,
    status: Status,
}

/// `LOOP_GET_STATUS64`, as far as anyone here asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// `st_dev` and `st_ino` of the file behind it.
    pub backing: (u64, u64),
    /// It shows only a part of the file: an offset or a size limit.
    pub partial: bool,
    pub read_only: bool,
    /// It clears itself on last close.
    pub autoclear: bool,
    /// It doesn't go through the page cache of the filesystem below.
    pub direct_io: bool,
}

impl LoopDevice {
    /// `/dev/loopN`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// As it was when the device was found or made.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// `LOOP_SET_CAPACITY`: take over the length that the file has now.
    pub fn set_capacity(&self) -> Result<()> {
        // SAFETY: takes no argument; the descriptor is a loop device's (its status was read).
        unsafe { ioctl::set_capacity(self.file.as_raw_fd()) }
            .map(drop)
            .context(|| format!("LOOP_SET_CAPACITY {}", self.path.display()))
    }

    /// `LOOP_CLR_FD`: take the file away, or, while others have the device open, as soon as they don't.
    /// Succeeds if it has no file any more.
    pub fn clear(&self) -> Result<()> {
        // SAFETY: as in `set_capacity`.
        match unsafe { ioctl::clr_fd(self.file.as_raw_fd()) } {
            Ok(_) | Err(nix::errno::Errno::ENXIO) => Ok(()),
            Err(error) => Err(error).context(|| format!("LOOP_CLR_FD {}", self.path.display())),
        }
    }
}

/// Every loop device that has `file`.
///
/// # Errors
/// `Unsupported` if a device is in use whose node isn't in /dev, as in a container with a /dev of its own: it
/// can't be ruled out that it has the file.
pub fn of_file(file: &File) -> Result<Vec<LoopDevice>> {
    let wanted = identity(file)?;
    let mut found = Vec::new();
    for name in configured()? {
        if let Some(device) = open(Path::new("/dev").join(&name))?
            && device.status.backing == wanted
        {
            found.push(device);
        }
    }
    Ok(found)
}

/// Put `file`, whole and open for reading and writing, behind a free loop device (`LOOP_CONFIGURE`, Linux
/// 5.8), with direct I/O where the filesystem below can do it. `label` is what `losetup` shows, cut at 63 bytes.
///
/// # Errors
/// `Unsupported` without loop devices (no /dev/loop-control, no node for the free one, an older kernel).
pub fn configure(file: &File, label: &Path) -> Result<LoopDevice> {
    let control = open_node(Path::new(CONTROL), true)?;
    for race in 0..RACES {
        // SAFETY: takes no argument; `control` is the loop control device.
        let number = unsafe { ioctl::ctl_get_free(control.as_raw_fd()) }.context(|| "LOOP_CTL_GET_FREE")?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = open_node(&path, true)?;
        match attach(&device, file, label, LO_FLAGS_DIRECT_IO) {
            Ok(()) => {
                let status = status(&device)?.ok_or_else(|| vanished(&path))?;
                return Ok(LoopDevice { file: device, path, status });
            }
            // Somebody else was given the same number.
            Err(nix::errno::Errno::EBUSY) => std::thread::sleep(Duration::from_micros(u64::from(race) * 100)),
            Err(error) => return Err(error).context(|| format!("LOOP_CONFIGURE {}", path.display())),
        }
    }
    Err(Error::new(Kind::InUse, format!("no loop device: {RACES} times somebody else took the free one")))
}

/// Kernels differ in what they do when direct I/O isn't possible: most go on without, some say EINVAL.
fn attach(device: &File, file: &File, label: &Path, wanted: u32) -> nix::Result<()> {
    let config = LoopConfig {
        fd: descriptor(file),
        block_size: BLOCK_SIZE,
        info: LoopInfo64 { flags: LO_FLAGS_AUTOCLEAR | wanted, file_name: file_name(label), ..LoopInfo64::empty() },
        reserved: [0; 8],
    };
    // SAFETY: `config` is a whole `struct loop_config`, only read; both descriptors are open for the call.
    match unsafe { ioctl::configure(device.as_raw_fd(), &raw const config) } {
        Err(nix::errno::Errno::EINVAL) if wanted & LO_FLAGS_DIRECT_IO != 0 => {
            attach(device, file, label, wanted & !LO_FLAGS_DIRECT_IO)
        }
        result => result.map(drop),
    }
}

impl LoopInfo64 {
    const fn empty() -> Self {
        Self {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            sizelimit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: 0,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        }
    }
}

/// An open descriptor isn't negative.
fn descriptor(file: &File) -> u32 {
    let fd: RawFd = file.as_raw_fd();
    fd.cast_unsigned()
}

fn file_name(label: &Path) -> [u8; 64] {
    let mut name = [0; 64];
    let bytes = label.as_os_str().as_encoded_bytes();
    let length = bytes.len().min(63);
    name[..length].copy_from_slice(&bytes[..length]);
    name
}

/// The names of the loop devices that have a file, from sysfs: no device has to be opened to rule it out.
fn configured() -> Result<Vec<String>> {
    let list = || format!("list {SYSFS}");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(SYSFS).context(list)? {
        let entry = entry.context(list)?;
        // `loop/` is there while the device has a file.
        if let Ok(name) = entry.file_name().into_string()
            && name.starts_with("loop")
            && entry.path().join("loop/backing_file").exists()
        {
            names.push(name);
        }
    }
    Ok(names)
}

/// `None` if it has no file (any more).
fn open(path: PathBuf) -> Result<Option<LoopDevice>> {
    let file = open_node(&path, false)
        .context(|| format!("cannot tell which file the loop device {} has", path.display()))?;
    Ok(status(&file)?.map(|status| LoopDevice { file, path, status }))
}

/// A device of somebody else is opened to read only: it may be a read-only one, and closing a writable
/// descriptor makes udev look at the device again.
fn open_node(path: &Path, write: bool) -> Result<File> {
    OpenOptions::new().read(true).write(write).open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::new(Kind::Unsupported, format!("there is no {}", path.display()))
            .with_hint(
                "a container sees the host's loop devices only with the host's /dev; a kernel has them with \
                 `modprobe loop`",
            ),
        _ => Error::system(format!("open {}", path.display()), &error),
    })
}

fn status(device: &File) -> Result<Option<Status>> {
    let mut info = LoopInfo64::empty();
    // SAFETY: the kernel fills in a whole `struct loop_info64`, which `info` is.
    match unsafe { ioctl::get_status64(device.as_raw_fd(), &raw mut info) } {
        Ok(_) => Ok(Some(Status {
            backing: (info.device, info.inode),
            partial: info.offset != 0 || info.sizelimit != 0,
            read_only: info.flags & LO_FLAGS_READ_ONLY != 0,
            autoclear: info.flags & LO_FLAGS_AUTOCLEAR != 0,
            direct_io: info.flags & LO_FLAGS_DIRECT_IO != 0,
        })),
        Err(nix::errno::Errno::ENXIO) => Ok(None),
        Err(error) => Err(error).context(|| "LOOP_GET_STATUS64"),
    }
}

/// In the kernel's encoding of `lo_device`, which is the C library's for every device that Linux can have
/// (majors of 12 bits).
fn identity(file: &File) -> Result<(u64, u64)> {
    let metadata = file.metadata().context(|| "stat the file of a loop device")?;
    Ok((metadata.dev(), metadata.ino()))
}

fn vanished(path: &Path) -> Error {
    Error::new(Kind::System, format!("{} lost its file as soon as it had it", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use linux_raw_sys::loop_device as kernel;

    #[test]
    fn structs_and_opcodes_are_the_kernels() {
        assert_eq!(size_of::<LoopInfo64>(), size_of::<kernel::loop_info64>());
        assert_eq!(size_of::<LoopConfig>(), size_of::<kernel::loop_config>());
        assert_eq!(std::mem::offset_of!(LoopInfo64, flags), std::mem::offset_of!(kernel::loop_info64, lo_flags));
        assert_eq!(
            std::mem::offset_of!(LoopInfo64, file_name),
            std::mem::offset_of!(kernel::loop_info64, lo_file_name)
        );
        assert_eq!(std::mem::offset_of!(LoopConfig, info), std::mem::offset_of!(kernel::loop_config, info));
        assert_eq!(ioctl::CLR_FD, kernel::LOOP_CLR_FD);
        assert_eq!(ioctl::GET_STATUS64, kernel::LOOP_GET_STATUS64);
        assert_eq!(ioctl::SET_CAPACITY, kernel::LOOP_SET_CAPACITY);
        assert_eq!(ioctl::CONFIGURE, kernel::LOOP_CONFIGURE);
        assert_eq!(ioctl::CTL_GET_FREE, kernel::LOOP_CTL_GET_FREE);
        let flags = [LO_FLAGS_READ_ONLY, LO_FLAGS_AUTOCLEAR, LO_FLAGS_DIRECT_IO];
        assert_eq!(
            flags,
            [kernel::LO_FLAGS_READ_ONLY as u32, kernel::LO_FLAGS_AUTOCLEAR as u32, kernel::LO_FLAGS_DIRECT_IO as u32]
        );
    }

    #[test]
    fn long_labels_are_cut_and_stay_terminated() {
        let name = file_name(Path::new(&"x".repeat(200)));
        assert_eq!(name.iter().filter(|&&byte| byte == b'x').count(), 63);
        assert_eq!(name[63], 0);
    }
}
