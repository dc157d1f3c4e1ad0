//! A faithful copy of a directory tree: what a snapshot would have kept, entry by entry.
//!
//! Kept are types, modes, owners, all xattrs (ACLs and capabilities among them), modification and access
//! times to the ns, device numbers, hard links within the tree, and holes. Not kept is what a copy can't
//! keep: change and birth times, inode numbers, preallocated blocks, inode flags.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, XattrFlags, chmodat, chownat,
    fstat, lgetxattr, linkat, llistxattr, lsetxattr, mkdirat, mknodat, openat, readlinkat, seek, statat, symlinkat,
    utimensat,
};
use rustix::fs::{Gid, Uid};
use rustix::io::Errno;

use crate::{Context, Result};

/// linux/limits.h: XATTR_SIZE_MAX and XATTR_LIST_MAX.
const XATTR_MAX: usize = 65536;
const BUFFER: usize = 1 << 20;

/// Copy the directory `from` to `to`, which must not exist; what was copied before a failure stays.
pub(crate) fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let source = open_dir(CWD, from).context(|| format!("open {}", from.display()))?;
    let facts = fstat(&source).context(|| format!("stat {}", from.display()))?;
    mkdirat(CWD, to, Mode::RWXU).context(|| format!("create directory {}", to.display()))?;
    let target = open_dir(CWD, to).context(|| format!("open {}", to.display()))?;
    Copier { root: &target, links: HashMap::new() }.children(&source, &target, Path::new(""))?;
    attributes(&facts, from, to)
}

struct Copier<'a> {
    /// The copy's root, which the paths of `links` start from.
    root: &'a OwnedFd,
    /// Device and inode number of a source with several links, to the path of its copy.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Copier<'_> {
    /// Copy what is in the directory `source`, whose path below the tree's root is `path`.
    fn children(&mut self, source: &OwnedFd, target: &OwnedFd, path: &Path) -> Result<()> {
        let entries = Dir::read_from(source).context(|| format!("read {}", shown(path)))?;
        for entry in entries {
            let entry = entry.context(|| format!("read {}", shown(path)))?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                self.entry(source, target, name, &path.join(OsStr::from_bytes(name.to_bytes())))?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, source: &OwnedFd, target: &OwnedFd, name: &CStr, path: &Path) -> Result<()> {
        let why = |call: &str| format!("{call} {}", shown(path));
        let facts = statat(source, name, AtFlags::SYMLINK_NOFOLLOW).context(|| why("stat"))?;
        let kind = FileType::from_raw_mode(facts.st_mode);
        if facts.st_nlink > 1 && kind != FileType::Directory {
            if let Some(first) = self.links.get(&(facts.st_dev, facts.st_ino)) {
                return linkat(self.root, first, target, name, AtFlags::empty()).context(|| why("link"));
            }
            self.links.insert((facts.st_dev, facts.st_ino), path.to_path_buf());
        }
        match kind {
            FileType::Directory => {
                mkdirat(target, name, Mode::RWXU).context(|| why("create directory"))?;
                let below = open_dir(source, name).context(|| why("open"))?;
                let copy = open_dir(target, name).context(|| why("open"))?;
                self.children(&below, &copy, path)?;
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NOATIME | OFlags::CLOEXEC;
                let from = openat(source, name, flags, Mode::empty()).context(|| why("open"))?;
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let to = openat(target, name, flags, Mode::RUSR | Mode::WUSR).context(|| why("create"))?;
                content(&File::from(from), &File::from(to)).context(|| why("copy"))?;
            }
            FileType::Symlink => {
                let link = readlinkat(source, name, Vec::new()).context(|| why("read link"))?;
                symlinkat(link, target, name).context(|| why("link"))?;
            }
            _ => {
                let mode = Mode::from_raw_mode(facts.st_mode);
                mknodat(target, name, kind, mode, facts.st_rdev).context(|| why("make node"))?;
            }
        }
        attributes(&facts, &at(source, name), &at(target, name))
    }
}

/// Copy the data, and make holes by leaving them out.
fn content(from: &File, to: &File) -> std::io::Result<()> {
    let size = from.metadata()?.len();
    to.set_len(size)?;
    let mut buffer = vec![0; BUFFER];
    for range in data_ranges(from, size)? {
        let mut at = range.start;
        while at < range.end {
            let want = usize::try_from(range.end - at).unwrap_or(BUFFER).min(BUFFER);
            let got = from.read_at(&mut buffer[..want], at)?;
            if got == 0 {
                break; // somebody made it shorter meanwhile
            }
            to.write_all_at(&buffer[..got], at)?;
            at += got as u64;
        }
    }
    Ok(())
}

/// Owner before mode and xattrs, since a change of owner drops setuid and capabilities; times last.
fn attributes(facts: &Stat, from: &Path, to: &Path) -> Result<()> {
    let why = |call: &str| format!("{call} {}", to.display());
    let (uid, gid) = (Uid::from_raw(facts.st_uid), Gid::from_raw(facts.st_gid));
    chownat(CWD, to, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).context(|| why("chown"))?;
    if FileType::from_raw_mode(facts.st_mode) != FileType::Symlink {
        chmodat(CWD, to, Mode::from_raw_mode(facts.st_mode), AtFlags::empty()).context(|| why("chmod"))?;
    }
    xattrs(from, to)?;
    let time = |sec, nsec| Timespec { tv_sec: sec, tv_nsec: nsec };
    let times = Timestamps {
        last_access: time(facts.st_atime, facts.st_atime_nsec as _),
        last_modification: time(facts.st_mtime, facts.st_mtime_nsec as _),
    };
    utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW).context(|| why("set the times of"))
}

fn xattrs(from: &Path, to: &Path) -> Result<()> {
    let mut names = vec![0; XATTR_MAX];
    let length = match llistxattr(from, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        length => length.context(|| format!("list the xattrs of {}", from.display()))?,
    };
    let mut value = vec![0; XATTR_MAX];
    for name in names[..length].split(|&b| b == 0).filter(|n| !n.is_empty()) {
        let why = |call: &str| format!("{call} xattr {} of {}", String::from_utf8_lossy(name), from.display());
        let length = lgetxattr(from, name, &mut value[..]).context(|| why("get"))?;
        lsetxattr(to, name, &value[..length], XattrFlags::empty()).context(|| why("copy"))?;
    }
    Ok(())
}

pub(super) fn open_dir<P: rustix::path::Arg>(at: impl AsFd, name: P) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NOATIME | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

/// `name` in the directory behind a descriptor, for the calls that know paths only (the l*xattr ones):
/// short however deep the directory is, and not led elsewhere by a symlink above it.
fn at(directory: &OwnedFd, name: &CStr) -> PathBuf {
    Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(OsStr::from_bytes(name.to_bytes()))
}

/// A path below the tree's root, for messages.
pub(super) fn shown(path: &Path) -> impl std::fmt::Display {
    format!("/{}", path.display())
}

/// The parts of a file of `length` bytes that are not holes, in order.
pub(super) fn data_ranges(file: &File, length: u64) -> std::io::Result<Vec<Range<u64>>> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < length {
        let start = match seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            start => start?,
        };
        let end = seek(file, SeekFrom::Hole(start))?.min(length);
        if end <= start {
            break; // somebody made it shorter meanwhile
        }
        ranges.push(start..end);
        at = end;
    }
    Ok(ranges)
}
