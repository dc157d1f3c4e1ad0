//! Owner, mode, xattrs, times and inode flags of a copied inode.
//!
//! The order is the kernel's. A change of owner drops set-id bits and capabilities, so mode and xattrs come after it;
//! an ACL is part of the mode, so it comes after that; FICLONE and everything done in a directory moves its times, so they
//! come after all of it; +i and +a forbid to set times, so flags are last. A call that would change nothing is
//! spared: its price, times the number of files, is what a copy is made of.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, IFlags, Mode, Statx, Uid, XattrFlags, chmod, chmodat, chownat, fchmod, fchown,
    fgetxattr, flistxattr, fremovexattr, fsetxattr, futimens, getxattr, lgetxattr, listxattr, llistxattr, lsetxattr,
    removexattr, setxattr, utimensat,
};
use rustix::io::Errno;

use super::facts::{owner, times};
use crate::sys::reflink::{self, Extras};
use crate::sys::selinux::LABEL;
use crate::{Context, Result};

/// linux/limits.h: `XATTR_SIZE_MAX` and `XATTR_LIST_MAX`.
const XATTR_MAX: usize = 65536;
const SET_ID: u32 = 0o6000;
const DEFAULT_ACL: &str = "system.posix_acl_default";
const ACCESS_ACL: &str = "system.posix_acl_access";
/// Flags that a clone has from its source.
const KEPT: IFlags = LOCKING.union(IFlags::NODUMP).union(IFlags::NOATIME).union(reflink::SYNC).union(IFlags::NOCOW);
/// Of these, those that forbid to link, move and change.
pub(crate) const LOCKING: IFlags = IFlags::IMMUTABLE.union(IFlags::APPEND);

/// Sets attributes, and has the buffers for it.
#[derive(Debug)]
pub(crate) struct Attributes {
    /// Whom a new inode belongs to; `None` if that depends on the directory it is in.
    me: Option<(Uid, Gid)>,
    /// Xattrs that the filesystem can't hold: left out and counted here, if it is to be so.
    unheld: Option<u64>,
    /// Whether SELinux's label goes along. Else that of what is there stands, or what the policy gives to new inodes.
    labels: bool,
    names: Vec<u8>,
    value: Vec<u8>,
}

impl Attributes {
    pub(crate) fn new(me: Option<(Uid, Gid)>) -> Self {
        Self { me, unheld: None, labels: true, names: vec![0; XATTR_MAX], value: vec![0; XATTR_MAX] }
    }

    /// Leave out xattrs that a filesystem has no place for, instead of failing.
    pub(crate) fn lenient(self) -> Self {
        Self { unheld: Some(0), ..self }
    }

    /// Leave SELinux's labels out: for copies in another place, whose files others may read than the source's.
    pub(crate) fn without_labels(self) -> Self {
        Self { labels: false, ..self }
    }

    /// How many were left out.
    pub(crate) fn unheld(&self) -> u64 {
        self.unheld.unwrap_or_default()
    }

    /// Set everything but the flags of an open file or directory, which was made with the permissions `mode`; `None` for
    /// one that has others.
    pub(crate) fn set(
        &mut self,
        source: impl AsFd,
        clone: impl AsFd,
        facts: &Statx,
        extras: Extras,
        mode: Option<Mode>,
    ) -> Result<()> {
        let (source, clone) = (source.as_fd(), clone.as_fd());
        let (uid, gid) = owner(facts);
        if self.me != Some((uid, gid)) {
            fchown(clone, Some(uid), Some(gid)).context(|| "chown")?;
        }
        let wanted = Mode::from_raw_mode(u32::from(facts.stx_mode));
        if mode != Some(wanted) {
            fchmod(clone, wanted).context(|| "chmod")?;
        }
        if extras.xattrs {
            self.xattrs(
                |names| flistxattr(source, names),
                |name, value| fgetxattr(source, name, value),
                |name, value| fsetxattr(clone, name, value, XattrFlags::empty()),
            )?;
        }
        futimens(clone, &times(facts)).context(|| "set its times")
    }

    /// Set everything of what can't be opened for it: a symlink, or a node, which was made with its own mode.
    pub(crate) fn set_by_name(
        &mut self,
        source: impl AsFd,
        clone: impl AsFd,
        name: &CStr,
        facts: &Statx,
    ) -> Result<()> {
        let (source, clone) = (source.as_fd(), clone.as_fd());
        let (uid, gid) = owner(facts);
        if self.me != Some((uid, gid)) {
            chownat(clone, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).context(|| "chown")?;
            let mode = u32::from(facts.stx_mode);
            if mode & SET_ID != 0 && FileType::from_raw_mode(mode) != FileType::Symlink {
                chmodat(clone, name, Mode::from_raw_mode(mode), AtFlags::empty()).context(|| "chmod")?;
            }
        }
        // A descriptor's name in /proc leads to the directory itself, whatever became of its path.
        let path = |at: &dyn AsFd| {
            [format!("/proc/self/fd/{}/", at.as_fd().as_raw_fd()).as_bytes(), name.to_bytes()].concat()
        };
        let (from, to) = (path(&source), path(&clone));
        self.xattrs(
            |names| llistxattr(&*from, names),
            |name, value| lgetxattr(&*from, name, value),
            |name, value| lsetxattr(&*to, name, value, XattrFlags::empty()),
        )?;
        utimensat(clone, name, &times(facts), AtFlags::SYMLINK_NOFOLLOW).context(|| "set its times")
    }

    /// The same by O_PATH descriptors of the two, for where somebody may exchange what has the name.
    pub(crate) fn set_by_descriptor(&mut self, source: impl AsFd, copy: impl AsFd, facts: &Statx) -> Result<()> {
        let (from, to) = (by_descriptor(&source), by_descriptor(&copy));
        let (uid, gid) = owner(facts);
        chownat(&copy, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH).context(|| "chown")?;
        let mode = u32::from(facts.stx_mode);
        if FileType::from_raw_mode(mode) != FileType::Symlink {
            chmod(&*to, Mode::from_raw_mode(mode)).context(|| "chmod")?;
        }
        self.xattrs(
            |names| listxattr(&*from, names),
            |name, value| getxattr(&*from, name, value),
            |name, value| setxattr(&*to, name, value, XattrFlags::empty()),
        )?;
        utimensat(CWD, &*to, &times(facts), AtFlags::empty()).context(|| "set its times")
    }

    fn xattrs(
        &mut self,
        list: impl FnOnce(&mut [u8]) -> rustix::io::Result<usize>,
        get: impl Fn(&[u8], &mut [u8]) -> rustix::io::Result<usize>,
        set: impl Fn(&[u8], &[u8]) -> rustix::io::Result<()>,
    ) -> Result<()> {
        let length = match list(&mut self.names) {
            // A filesystem without them, or a source that vanished when the clone was made of it.
            Err(Errno::OPNOTSUPP | Errno::NOENT) => return Ok(()),
            length => length.context(|| "list its xattrs")?,
        };
        let names = self.names[..length].split(|&b| b == 0).filter(|name| !name.is_empty());
        // XFS lists each ACL a second time, as what it stores.
        let skipped =
            |name: &[u8]| name.starts_with(b"trusted.SGI_ACL_") || (!self.labels && name == LABEL.as_bytes());
        for name in names.filter(|name| !skipped(name)) {
            let why = |call: &str| format!("{call} its xattr {}", name.escape_ascii());
            let length = match get(name, &mut self.value) {
                Err(Errno::NODATA | Errno::NOENT) => continue, // somebody removed it meanwhile
                length => length.context(|| why("get"))?,
            };
            match set(name, &self.value[..length]) {
                Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP) if is_policys(name) => {}
                Err(Errno::OPNOTSUPP) if self.unheld.is_some() => self.unheld = self.unheld.map(|count| count + 1),
                result => result.context(|| why("set"))?,
            }
        }
        Ok(())
    }
}

/// Take the ACLs away that a new inode has from the directory it is in.
pub(crate) fn disinherit(fd: impl AsFd) -> rustix::io::Result<()> {
    for acl in [DEFAULT_ACL, ACCESS_ACL] {
        match fremovexattr(&fd, acl) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The same by an O_PATH descriptor, of a device or FIFO: these have one ACL at most.
pub(crate) fn disinherit_node(fd: impl AsFd) -> rustix::io::Result<()> {
    match removexattr(by_descriptor(fd), ACCESS_ACL) {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Where an O_PATH descriptor's inode is reached by calls that want a path. What is there leads to the inode itself, also
/// to a symlink.
fn by_descriptor(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// Whether what is made in a directory inherits ACLs from it.
pub(crate) fn hands_down_acl(directory: impl AsFd) -> bool {
    // Any answer but "too small for its value" and a value means that there is none.
    match fgetxattr(directory, DEFAULT_ACL, &mut [0_u8; 256][..]) {
        Ok(length) => length > 0,
        Err(errno) => errno == Errno::RANGE,
    }
}

/// Give an inode of the clone its source's flags. With `all` those too that forbid to link and move it.
pub(crate) fn set_flags(clone: impl AsFd, flags: IFlags, all: bool) -> Result<()> {
    let wanted = flags & if all { KEPT } else { KEPT - LOCKING };
    if wanted.is_empty() {
        return Ok(());
    }
    match reflink::set_flags(clone, wanted, wanted) {
        // Another filesystem than the source's, with fewer flags.
        Err(Errno::OPNOTSUPP | Errno::NOTTY) => Ok(()),
        result => result.context(|| "set its flags"),
    }
}

/// A label that a security module may refuse, having given the new inode one by its own rules: what the host's
/// policy says stands. `security.capability` is no such label.
fn is_policys(xattr: &[u8]) -> bool {
    xattr.starts_with(b"security.") && xattr != b"security.capability"
}
