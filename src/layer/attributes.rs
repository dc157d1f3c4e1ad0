//! Owner, permissions, extended attributes and times of an inode.
//!
//! The order is the kernel's: chown clears set-id bits and capabilities, so permissions and attributes come
//! after it; everything moves the change time and nothing else, so the times can be last. A call that would
//! change nothing is spared: its price is what an unpack is made of.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timestamps, Uid, XattrFlags, chmod, chownat, fchmod,
    fchown, flistxattr, fremovexattr, fsetxattr, fstat, lremovexattr, lsetxattr, utimensat,
};
use rustix::io::Errno;

use super::dirs::{Dir, timespec};
use super::name::quoted;
use super::reader::{Attributes, Time};
use super::{bad, refused};
use crate::error::{Context, Error, Kind, Result};
use crate::sys::rooted;
use crate::sys::selinux::LABEL;

const SET_ID: u32 = 0o6000;
/// The kernel's limit on a list of names (linux/limits.h).
const XATTR_LIST_MAX: usize = 65536;
/// Values up to this fit into an attribute on every filesystem.
const SHORT_VALUE: usize = 3800;
pub(crate) const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
pub(crate) const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";
pub(crate) const CAPABILITY: &[u8] = b"security.capability";

/// Set all but the times of an open file or directory. `stale`: it may have attributes of its own, from an
/// entry before or inherited, that are to go.
pub(crate) fn set(fd: impl AsFd, now: &Stat, want: &Attributes, stale: bool) -> Result<()> {
    let fd = fd.as_fd();
    let chown = owner_differs(now, want);
    if chown {
        fchown(fd, Some(Uid::from_raw(want.uid)), Some(Gid::from_raw(want.gid))).context(|| "chown")?;
    }
    if stale {
        remove_others(fd, &want.xattrs)?;
    }
    if mode_differs(now, want, chown) {
        fchmod(fd, Mode::from_raw_mode(want.mode)).context(|| "chmod")?;
    }
    for (name, value) in &want.xattrs {
        fsetxattr(fd, name, value, XattrFlags::empty()).map_err(|errno| cannot_set(name, value, errno))?;
    }
    Ok(())
}

/// Set everything on what `name` in `dir` is: a symlink, a device or a FIFO, which can't be opened for it.
pub(crate) fn set_by_name(dir: &Dir, name: &[u8], now: &Stat, want: &Attributes, symlink: bool) -> Result<()> {
    let chown = owner_differs(now, want);
    if chown {
        let (uid, gid) = (Uid::from_raw(want.uid), Gid::from_raw(want.gid));
        chownat(&dir.fd, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).context(|| "chown")?;
    }
    // The descriptor's name in /proc leads to the directory itself, whatever became of its path.
    let path = || [format!("/proc/self/fd/{}/", dir.fd.as_raw_fd()).as_bytes(), name].concat();
    if !symlink && dir.default_acl() {
        match lremovexattr(path(), ACCESS_ACL) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(errno) => return Err(refused("remove the ACL it inherited", errno)),
        }
    }
    if !symlink && mode_differs(now, want, chown) {
        // By a descriptor: chmod(2) would follow a symlink that somebody put in its place.
        let made = rooted::open(&dir.fd, name, OFlags::PATH | OFlags::NOFOLLOW, ResolveFlags::NO_SYMLINKS);
        let made = made.map_err(|errno| refused("open what was made", errno))?;
        if FileType::from_raw_mode(fstat(&made).context(|| "stat")?.st_mode) == FileType::Symlink {
            return Err(Error::new(Kind::InUse, "somebody exchanged it while it was made"));
        }
        chmod(format!("/proc/self/fd/{}", made.as_raw_fd()), Mode::from_raw_mode(want.mode)).context(|| "chmod")?;
    }
    for (attribute, value) in &want.xattrs {
        lsetxattr(path(), attribute, value, XattrFlags::empty()).map_err(|errno| match errno {
            Errno::PERM if attribute.starts_with(b"user.") => {
                bad(format!("only files and directories can have the attribute {}", quoted(attribute)))
            }
            _ => cannot_set(attribute, value, errno),
        })?;
    }
    utimensat(&dir.fd, name, &both(want.mtime), AtFlags::SYMLINK_NOFOLLOW).context(|| "set its times")
}

/// A filesystem that can't hold so long a value says that it is full.
fn cannot_set(name: &[u8], value: &[u8], errno: Errno) -> Error {
    let error = refused(format!("set the attribute {} of {} bytes", quoted(name), value.len()), errno);
    match errno {
        Errno::NOSPC if value.len() > SHORT_VALUE => {
            error.with_hint("ext4 holds values of about 4 KB, Btrfs of 15 KB, XFS of 64 KB")
        }
        _ => error,
    }
}

/// Both times of an entry.
pub(crate) fn both(mtime: Time) -> Timestamps {
    Timestamps { last_access: timespec(mtime), last_modification: timespec(mtime) }
}

/// Whether a directory with these attributes hands ACLs down to what is made in it.
pub(crate) fn hands_down_acl(attributes: &Attributes) -> bool {
    attributes.xattrs.contains_key(DEFAULT_ACL)
}

fn owner_differs(now: &Stat, want: &Attributes) -> bool {
    (now.st_uid, now.st_gid) != (want.uid, want.gid)
}

fn mode_differs(now: &Stat, want: &Attributes, chowned: bool) -> bool {
    now.st_mode & 0o7777 != want.mode || (chowned && want.mode & SET_ID != 0)
}

/// Remove all attributes that a layer can give and `keep` doesn't have.
fn remove_others(fd: impl AsFd, keep: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<()> {
    let fd = fd.as_fd();
    let mut small = [0_u8; 1024];
    let mut large;
    let list = match flistxattr(fd, &mut small[..]) {
        Ok(length) => &small[..length],
        Err(Errno::RANGE) => {
            large = vec![0; XATTR_LIST_MAX];
            let length = flistxattr(fd, &mut large[..]).context(|| "list its attributes")?;
            &large[..length]
        }
        Err(Errno::NOTSUP) => return Ok(()),
        Err(errno) => return Err(errno).context(|| "list its attributes"),
    };
    for name in list.split(|&b| b == 0).filter(|name| !name.is_empty() && is_layers(name)) {
        if !keep.contains_key(name) {
            fremovexattr(fd, name).context(|| format!("remove the attribute {}", quoted(name)))?;
        }
    }
    Ok(())
}

/// Whether an attribute belongs to layers: it isn't the host's label, nor a filesystem's setting.
pub(crate) fn is_layers(name: &[u8]) -> bool {
    let starts = |prefix: &[u8]| name.starts_with(prefix);
    starts(b"user.")
        // XFS lists each ACL a second time, which goes with the first.
        || (starts(b"trusted.") && !starts(b"trusted.SGI_ACL_"))
        || starts(b"system.posix_acl_")
        || (starts(b"security.") && !is_label(name))
}

/// Whether it is the label that the host's policy goes by.
pub(crate) fn is_label(name: &[u8]) -> bool {
    name == LABEL.as_bytes()
}
