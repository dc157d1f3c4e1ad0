//! What is known of an inode before it is copied.

use std::ffi::CStr;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, Gid, Statx, StatxFlags, Timespec, Timestamps, Uid, statx};

/// Everything about a source's inode that statx tells.
pub(crate) fn facts(at: impl AsFd, name: &CStr, flags: AtFlags) -> rustix::io::Result<Statx> {
    statx(at, name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME)
}

/// The same of an open one, O_PATH too.
pub(crate) fn facts_of(fd: impl AsFd) -> rustix::io::Result<Statx> {
    facts(fd, c"", AtFlags::EMPTY_PATH)
}

pub(crate) fn kind_of(facts: &Statx) -> FileType {
    FileType::from_raw_mode(facts.stx_mode.into())
}

pub(crate) fn device_of(facts: &Statx) -> (u32, u32) {
    (facts.stx_dev_major, facts.stx_dev_minor)
}

pub(crate) fn owner(facts: &Statx) -> (Uid, Gid) {
    (Uid::from_raw(facts.stx_uid), Gid::from_raw(facts.stx_gid))
}

pub(crate) fn times(facts: &Statx) -> Timestamps {
    let time = |t: rustix::fs::StatxTimestamp| Timespec { tv_sec: t.tv_sec, tv_nsec: t.tv_nsec.into() };
    Timestamps { last_access: time(facts.stx_atime), last_modification: time(facts.stx_mtime) }
}

/// An inode of the source. The birth time tells it from a later one with the same number, in a source that is being
/// changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    device: (u32, u32),
    inode: u64,
    born: (i64, u32),
}

impl Key {
    pub(crate) fn of(facts: &Statx) -> Self {
        Self {
            device: device_of(facts),
            inode: facts.stx_ino,
            born: (facts.stx_btime.tv_sec, facts.stx_btime.tv_nsec),
        }
    }
}
