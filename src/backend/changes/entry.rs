//! One entry of a tree, and whether two are the same.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Statx, StatxFlags, makedev, openat, readlinkat, statx};
use rustix::io::Errno;

use super::EntryKind;
use crate::sys::holes::next_data;
use crate::sys::selinux::LABEL;
use crate::sys::xattrs;

/// Bytes that are compared at once.
const CHUNK: usize = 256 << 10;

/// An inode: numbers of its filesystem (each subvolume of Btrfs has one) and of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::backend) struct Id {
    pub(in crate::backend) device: u64,
    pub(in crate::backend) inode: u64,
}

/// What statx(2) says of an entry, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::backend) struct Facts {
    pub(in crate::backend) id: Id,
    pub(in crate::backend) kind: EntryKind,
    pub(in crate::backend) links: u32,
    /// Allocated, in bytes.
    pub(in crate::backend) allocated: u64,
    size: u64,
    mode: u16,
    owner: (u32, u32),
    node: (u32, u32),
    mtime: (i64, u32),
}

impl Facts {
    pub(super) fn of(stat: &Statx) -> Self {
        let id = Id { device: makedev(stat.stx_dev_major, stat.stx_dev_minor), inode: stat.stx_ino };
        Self {
            id,
            kind: kind(stat),
            links: stat.stx_nlink,
            allocated: stat.stx_blocks * 512,
            size: stat.stx_size,
            mode: stat.stx_mode,
            owner: (stat.stx_uid, stat.stx_gid),
            node: (stat.stx_rdev_major, stat.stx_rdev_minor),
            mtime: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
        }
    }

    fn has_content(&self) -> bool {
        self.kind == EntryKind::File && self.size > 0
    }
}

fn kind(stat: &Statx) -> EntryKind {
    match FileType::from_raw_mode(stat.stx_mode.into()) {
        FileType::Directory => EntryKind::Directory,
        FileType::Symlink => EntryKind::Symlink,
        FileType::Fifo => EntryKind::Fifo,
        FileType::Socket => EntryKind::Socket,
        FileType::CharacterDevice => EntryKind::CharacterDevice,
        FileType::BlockDevice => EntryKind::BlockDevice,
        FileType::RegularFile | FileType::Unknown => EntryKind::File,
    }
}

/// An entry: the directory that it is in, its name there, and what it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'a> {
    pub(super) directory: &'a OwnedFd,
    pub(super) name: &'a [u8],
    pub(super) facts: &'a Facts,
}

/// In what two entries of one type differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Difference {
    None,
    /// Directories, in their time of modification alone.
    Time,
    Some,
}

/// Compare two entries of one type; their bytes only if `content` says that those may differ.
pub(super) fn compare(old: Entry<'_>, new: Entry<'_>, content: bool) -> rustix::io::Result<Difference> {
    let (was, is) = (old.facts, new.facts);
    let directory = is.kind == EntryKind::Directory;
    let sized = |facts: &Facts| if directory { 0 } else { facts.size };
    let same_time = was.mtime == is.mtime;
    let same = (was.mode, was.owner, was.node, sized(was)) == (is.mode, is.owner, is.node, sized(is))
        && (same_time || directory)
        && (is.kind != EntryKind::Symlink || target(old)? == target(new)?)
        && xattrs(old)? == xattrs(new)?
        && !(content && is.has_content() && !same_content(old, new)?);
    Ok(match (same, same_time) {
        (false, _) => Difference::Some,
        (true, false) => Difference::Time,
        (true, true) => Difference::None,
    })
}

fn target(link: Entry<'_>) -> rustix::io::Result<std::ffi::CString> {
    readlinkat(link.directory, link.name, Vec::new())
}

/// All xattrs but the label, which is the host's and no layer's.
fn xattrs(entry: Entry<'_>) -> rustix::io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    // These calls know paths only. This one is short however deep the directory is, and nothing can redirect it.
    let path = [format!("/proc/self/fd/{}/", entry.directory.as_raw_fd()).as_bytes(), entry.name].concat();
    let mut all = xattrs::read(&path, xattrs::Last::Itself)?;
    all.remove(LABEL.as_bytes());
    Ok(all)
}

/// Whether two files of the same size have the same bytes. What is a hole in both isn't read.
fn same_content(old: Entry<'_>, new: Entry<'_>) -> rustix::io::Result<bool> {
    let size = new.facts.size;
    let (Some(old), Some(new)) = (open(old)?, open(new)?) else { return Ok(false) };
    let (mut ours, mut theirs) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut at = 0;
    loop {
        at = next_data(&old, at, size)?.min(next_data(&new, at, size)?);
        if at == size {
            return Ok(true);
        }
        let want = usize::try_from(size - at).unwrap_or(CHUNK).min(CHUNK);
        read(&old, &mut ours[..want], at)?;
        read(&new, &mut theirs[..want], at)?;
        if ours[..want] != theirs[..want] {
            return Ok(false);
        }
        at += want as u64;
    }
}

/// Open a file for reading; `None` if its name leads to something else by now. Only what is known to be the file is
/// opened: opening a device may do anything.
fn open(entry: Entry<'_>) -> rustix::io::Result<Option<File>> {
    let path = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = openat(entry.directory, entry.name, path, Mode::empty())?;
    if Facts::of(&statx(&found, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?).id != entry.facts.id {
        return Ok(None);
    }
    let flags = OFlags::RDONLY | OFlags::NOATIME | OFlags::CLOEXEC;
    openat(CWD, format!("/proc/self/fd/{}", found.as_raw_fd()), flags, Mode::empty()).map(|file| Some(file.into()))
}

/// Fill the buffer; with zeros behind the end of a file that somebody has made shorter.
fn read(file: &File, buffer: &mut [u8], at: u64) -> rustix::io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        let got = file.read_at(&mut buffer[filled..], at + filled as u64);
        match got.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO)) {
            Err(Errno::INTR) => {}
            Ok(0) => {
                buffer[filled..].fill(0);
                break;
            }
            got => filled += got?,
        }
    }
    Ok(())
}
