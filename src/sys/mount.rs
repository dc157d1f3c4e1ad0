//! Mounting, and what is mounted where in this process's mount namespace.
//!
//! Questions about one directory go through its descriptor (`statx`, `statfs`), not through the mount table:
//! they cost microseconds, and mean the same whatever path leads there. The table (`/proc/PID/mountinfo`) is
//! for error messages, for other namespaces, and where a filesystem answers nothing any more.

use std::ffi::{CStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use uuid::Uuid;

use crate::sys::btrfs::{BtrfsFd, space};
use crate::sys::xfs::{self, XfsFd, geometry};
use crate::{Context, Error, Kind, Result};

/// Mount the filesystem of type `name` on `device` at the directory `target` with noatime and the filesystem's own
/// options: the first of `options` that the kernel knows (EINVAL for one that it doesn't).
///
/// # Errors
/// `Unsupported` where the kernel has no such filesystem; `InUse` for EBUSY (a mount of the device is just going away);
/// `NoSpace` if there is none for what it has to write.
pub fn mount(device: &Path, target: &Path, name: &str, options: &[&CStr]) -> Result<()> {
    let attempt = |data: &CStr| rustix::mount::mount(device, target, name, MountFlags::NOATIME, data);
    let mut mounted = Err(rustix::io::Errno::INVAL);
    for data in options {
        mounted = attempt(data);
        if mounted != Err(rustix::io::Errno::INVAL) {
            break;
        }
    }
    mounted.map_err(|errno| {
        let error =
            Error::system(format!("mount {} at {} as {name}", device.display(), target.display()), &errno.into());
        match errno {
            rustix::io::Errno::NODEV => Error::new(Kind::Unsupported, error.to_string())
                .with_hint(format!("this kernel has no {name}; if it is a module: modprobe {name}")),
            rustix::io::Errno::NOSPC => error.with_hint("make room on the filesystem that holds it"),
            rustix::io::Errno::PERM => error.with_hint("mounting needs root"),
            rustix::io::Errno::INVAL | rustix::io::Errno::IO | rustix::io::Errno::UCLEAN => {
                error.with_hint("the kernel's log (dmesg) says why")
            }
            _ => error,
        }
    })
}

/// Unmount the topmost mount at `target`. Data is on disk when it returns, if it was the filesystem's last.
///
/// # Errors
/// `InUse` if something uses it (EBUSY).
pub fn unmount(target: &Path) -> Result<()> {
    rustix::mount::unmount(target, UnmountFlags::empty()).context(|| format!("unmount {}", target.display()))
}

/// Whether a mounted filesystem takes writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    Writable,
    /// The mount or the filesystem refuses them.
    ReadOnly,
    /// XFS met an error and gave up: everything in it answers EIO until it is unmounted.
    ShutDown,
}

/// What is mounted at a directory that is a mount point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountedAt {
    /// The filesystem's uuid; `None` if it is neither Btrfs nor XFS.
    pub uuid: Option<Uuid>,
    /// The mount's id, as in `/proc/PID/mountinfo`.
    pub id: u64,
    pub health: Health,
}

/// The topmost mount at `target`, `None` if it isn't the root of one or doesn't exist.
pub fn mounted_at(target: &Path) -> Result<Option<MountedAt>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = match rustix::fs::open(target, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
        Err(errno) => match shut_down_at(target) {
            Some(mounted) if errno == rustix::io::Errno::IO => return Ok(Some(mounted)),
            _ => return Err(errno).context(|| format!("open {}", target.display())),
        },
    };
    let about = rustix::fs::statx(&directory, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)
        .context(|| format!("statx {}", target.display()))?;
    // STATX_ATTR_MOUNT_ROOT and the mount id came with Linux 5.8, as LOOP_CONFIGURE did.
    if !about.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(Error::new(
            Kind::Unsupported,
            "the kernel doesn't tell mount points (statx, Linux 5.8 or newer)",
        ));
    }
    if !about.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(None);
    }
    let filesystem = rustix::fs::fstatvfs(&directory).context(|| format!("statvfs {}", target.display()))?;
    let read_only = filesystem.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY);
    Ok(Some(MountedAt {
        uuid: uuid_of(directory).context(|| format!("ask {} for its uuid", target.display()))?,
        id: about.stx_mnt_id,
        health: if read_only { Health::ReadOnly } else { Health::Writable },
    }))
}

/// The filesystem's uuid, `None` if it is neither Btrfs nor XFS.
fn uuid_of(directory: OwnedFd) -> io::Result<Option<Uuid>> {
    const BTRFS: u32 = libc::BTRFS_SUPER_MAGIC as u32;
    const XFS: u32 = libc::XFS_SUPER_MAGIC as u32;
    // The field's type differs between platforms; the magic number is one of 32 bits everywhere.
    match rustix::fs::fstatfs(&directory)?.f_type as u32 {
        BTRFS => Ok(Some(Uuid::from_bytes(space::fs_info(&BtrfsFd::prove(directory)?)?.fsid))),
        XFS => Ok(Some(geometry::geometry(&XfsFd::prove(directory)?)?.uuid)),
        _ => Ok(None),
    }
}

/// The mount at `target` if it is that of an XFS which has shut down: it answers nothing itself, but the kernel still
/// has the mount, and the device its superblock.
fn shut_down_at(target: &Path) -> Option<MountedAt> {
    let id = mount_id(target)?;
    // The way up from the root of a mount leads out of it.
    if mount_id(&target.join("..")) == Some(id) {
        return None;
    }
    let entry = table("self").ok()?.into_iter().find(|entry| entry.id == id)?;
    let uuid = xfs::superblock_uuid(&File::open(entry.source).ok()?).ok()??;
    Some(MountedAt { uuid: Some(uuid), id, health: Health::ShutDown })
}

/// The id of the mount that `path` is on, symlinks followed (those in /proc/PID too); `None` if it can't be told.
/// Asks the kernel about the descriptor, not the filesystem (statx): one that has shut down says nothing.
#[must_use]
pub fn mount_id(path: &Path) -> Option<u64> {
    let opened = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", opened.as_raw_fd())).ok()?;
    about.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()
}

/// A line of `/proc/PID/mountinfo`, as far as anyone here asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    pub id: u64,
    /// The mount that it stands on.
    pub parent: u64,
    /// The directory of the filesystem that is mounted.
    pub root: PathBuf,
    pub target: PathBuf,
    /// The peer groups that it is in, or gets the mounts of.
    pub peers: Vec<u64>,
    /// The device as the filesystem names it: for Btrfs the path under which it last saw the device.
    pub source: PathBuf,
}

/// The mounts in the namespace of process `pid` ("self" or a number).
pub fn table(pid: &str) -> Result<Vec<MountEntry>> {
    let path = format!("/proc/{pid}/mountinfo");
    let bytes = std::fs::read(&path).context(|| format!("read {path}"))?;
    Ok(bytes.split(|&byte| byte == b'\n').filter_map(entry).collect())
}

/// `None` for the empty line at the end and for what no kernel writes.
///
/// ID PARENT MAJOR:MINOR ROOT TARGET OPTIONS [OPTIONAL...] - TYPE SOURCE SUPER-OPTIONS (proc_pid_mountinfo(5))
fn entry(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|&byte| byte == b' ');
    let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse().ok();
    let (id, parent) = (number()?, number()?);
    let path = |field| PathBuf::from(OsString::from_vec(unescaped(field)));
    let (root, target) = (path(fields.nth(1)?), path(fields.next()?));
    let groups = fields.by_ref().skip(1).take_while(|&field| field != b"-");
    let peers = groups.filter_map(|field| {
        let text = std::str::from_utf8(field).ok()?;
        text.strip_prefix("shared:").or_else(|| text.strip_prefix("master:"))?.parse().ok()
    });
    let peers = peers.collect();
    let source = path(fields.nth(1)?);
    Some(MountEntry { id, parent, root, target, peers, source })
}

/// mountinfo writes space, tab, newline and backslash as `\` and three octal digits.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, behind)) = rest.split_first() {
        let octal = behind
            .get(..3)
            .filter(|_| first == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(octal.unwrap_or(first));
        rest = if octal.is_some() { &behind[3..] } else { behind };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines() {
        let line = b"36 35 98:12 /mnt1 /mnt\\0402\\134x rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        let found = entry(line).expect("a line of proc(5)");
        assert_eq!(
            found,
            MountEntry {
                id: 36,
                parent: 35,
                root: PathBuf::from("/mnt1"),
                target: PathBuf::from("/mnt 2\\x"),
                peers: vec![1],
                source: PathBuf::from("/dev/root")
            }
        );
        assert_eq!(entry(b""), None);
        assert_eq!(entry(b"36 x 98:12 /a /b rw"), None);
    }

    #[test]
    fn a_backslash_without_three_digits_stays() {
        assert_eq!(unescaped(b"a\\0b\\"), b"a\\0b\\");
        assert_eq!(unescaped(b"\\777"), b"\\777");
    }

    #[test]
    fn proc_is_a_mount_point_and_its_entries_are_not() {
        let proc = mounted_at(Path::new("/proc")).expect("readable").expect("a mount point");
        assert_eq!((proc.uuid, proc.health), (None, Health::Writable));
        let listed = table("self").expect("readable");
        let line = listed.iter().find(|entry| entry.id == proc.id).expect("in the table");
        assert_eq!(line.target, Path::new("/proc"));
        assert_eq!(mounted_at(Path::new("/proc/self")).expect("readable"), None);
        assert_eq!(mounted_at(Path::new("/proc/none")).expect("readable"), None);
    }

    #[test]
    fn a_process_is_on_the_mount_of_its_files() {
        let proc = mounted_at(Path::new("/proc")).expect("readable").expect("a mount point");
        let file = File::open("/proc/self/status").expect("open");
        let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        assert_eq!(mount_id(Path::new(&link)), Some(proc.id));
    }
}
