//! Owner, mode, xattrs, times and inode flags of an inode of the clone.
//!
//! The order is the kernel's. A change of owner drops set-id bits and capabilities, so mode and xattrs come after it;
//! an ACL is part of the mode, so it comes after that; FICLONE and everything done in a directory moves its times, so they
//! come after all of it; +i and +a forbid to set times, so flags are last. A call that would change nothing is
//! spared: its price, times the number of files, is what a clone is made of.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::{
    AtFlags, FileType, Gid, IFlags, Mode, Statx, StatxFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat,
    fchmod, fchown, fgetxattr, flistxattr, fsetxattr, futimens, lgetxattr, llistxattr, lsetxattr, statx, utimensat,
};
use rustix::io::Errno;

use super::Origin;
use super::queue::Made;
use crate::sys::reflink::{self, Extras};
use crate::{Context, Result};

/// linux/limits.h: `XATTR_SIZE_MAX` and `XATTR_LIST_MAX`.
const XATTR_MAX: usize = 65536;
const SET_ID: u32 = 0o6000;
/// Flags that a clone has from its source.
const KEPT: IFlags = LOCKING.union(IFlags::NODUMP).union(IFlags::NOATIME).union(reflink::SYNC).union(IFlags::NOCOW);
/// Of these, those that forbid to link, move and change.
pub(super) const LOCKING: IFlags = IFlags::IMMUTABLE.union(IFlags::APPEND);

/// Everything about a source's inode that statx tells.
pub(super) fn facts(at: impl AsFd, name: &CStr, flags: AtFlags) -> rustix::io::Result<Statx> {
    statx(at, name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME)
}

/// What the manifest has of an inode of the clone, which was made of `origin`.
pub(super) fn made(at: impl AsFd, name: &CStr, flags: AtFlags, origin: Option<Origin>) -> rustix::io::Result<Made> {
    let facts = statx(at, name, flags, StatxFlags::INO | StatxFlags::CTIME | StatxFlags::BLOCKS)?;
    let ctime = (facts.stx_ctime.tv_sec, facts.stx_ctime.tv_nsec);
    Ok(Made { inode: facts.stx_ino, ctime, blocks: facts.stx_blocks, origin })
}

/// What is known of an inode of the source by now, if that is still what `before` tells of.
pub(super) fn origin(
    at: impl AsFd,
    name: &CStr,
    flags: AtFlags,
    before: &Statx,
) -> rustix::io::Result<Option<Origin>> {
    match statx(at, name, flags, StatxFlags::INO | StatxFlags::CTIME) {
        Ok(now) if (device_of(&now), now.stx_ino) == (device_of(before), before.stx_ino) => Ok(Some(origin_of(&now))),
        Ok(_) | Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

pub(super) fn origin_of(facts: &Statx) -> Origin {
    Origin { inode: facts.stx_ino, ctime: (facts.stx_ctime.tv_sec, facts.stx_ctime.tv_nsec) }
}

pub(super) fn device_of(facts: &Statx) -> (u32, u32) {
    (facts.stx_dev_major, facts.stx_dev_minor)
}

/// Sets attributes, and has the buffers for it.
#[derive(Debug)]
pub(super) struct Attributes {
    /// Whom a new inode belongs to.
    me: (Uid, Gid),
    names: Vec<u8>,
    value: Vec<u8>,
}

impl Attributes {
    pub(super) fn new(me: (Uid, Gid)) -> Self {
        Self { me, names: vec![0; XATTR_MAX], value: vec![0; XATTR_MAX] }
    }

    /// Set everything but the flags of an open file or directory, which was made with the permissions `mode`.
    pub(super) fn set(
        &mut self,
        source: impl AsFd,
        clone: impl AsFd,
        facts: &Statx,
        extras: Extras,
        mode: Mode,
    ) -> Result<()> {
        let (source, clone) = (source.as_fd(), clone.as_fd());
        let (uid, gid) = owner(facts);
        let foreign = (uid, gid) != self.me;
        if foreign {
            fchown(clone, Some(uid), Some(gid)).context(|| "chown")?;
        }
        let wanted = Mode::from_raw_mode(u32::from(facts.stx_mode));
        if wanted != mode {
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
    pub(super) fn set_by_name(
        &mut self,
        source: impl AsFd,
        clone: impl AsFd,
        name: &CStr,
        facts: &Statx,
    ) -> Result<()> {
        let (source, clone) = (source.as_fd(), clone.as_fd());
        let (uid, gid) = owner(facts);
        if (uid, gid) != self.me {
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
        for name in names.filter(|name| !name.starts_with(b"trusted.SGI_ACL_")) {
            let why = |call: &str| format!("{call} its xattr {}", name.escape_ascii());
            let length = match get(name, &mut self.value) {
                Err(Errno::NODATA | Errno::NOENT) => continue, // somebody removed it meanwhile
                length => length.context(|| why("get"))?,
            };
            match set(name, &self.value[..length]) {
                Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP) if is_policys(name) => {}
                result => result.context(|| why("set"))?,
            }
        }
        Ok(())
    }
}

/// Give an inode of the clone its source's flags. With `all` those too that forbid to link and move it.
pub(super) fn set_flags(clone: impl AsFd, flags: IFlags, all: bool) -> Result<()> {
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

pub(super) fn kind_of(facts: &Statx) -> FileType {
    FileType::from_raw_mode(facts.stx_mode.into())
}

fn owner(facts: &Statx) -> (Uid, Gid) {
    (Uid::from_raw(facts.stx_uid), Gid::from_raw(facts.stx_gid))
}

pub(super) fn times(facts: &Statx) -> Timestamps {
    let time = |t: rustix::fs::StatxTimestamp| Timespec { tv_sec: t.tv_sec, tv_nsec: t.tv_nsec.into() };
    Timestamps { last_access: time(facts.stx_atime), last_modification: time(facts.stx_mtime) }
}
