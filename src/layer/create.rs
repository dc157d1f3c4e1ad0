//! New inodes in a directory of the tree. None of these follows or replaces anything: they fail with EEXIST.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, fstat, futimens, makedev, mkdirat, mknodat, openat, statat, symlinkat,
};
use rustix::io::Errno;

use super::dirs::{Dir, Id};
use super::reader::{Archive, Attributes, Segment, What};
use super::{attributes, holes, refused};
use crate::error::{Context, Result};

/// An empty file, open for writing.
pub(crate) fn file(dir: &Dir, name: &[u8], mode: u32) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(&dir.fd, name, flags, Mode::from_raw_mode(mode & 0o777))
}

/// Write the content of the file `path` from the archive, then set all its attributes. Its inode, if the archive has
/// content for it.
pub(crate) fn fill(
    fd: &OwnedFd,
    path: &[u8],
    size: u64,
    map: Option<&[Segment]>,
    archive: &mut Archive<'_>,
    want: &Attributes,
    inherits: bool,
) -> Result<Option<u64>> {
    let whole = [Segment { offset: 0, length: size }];
    for &part in map.unwrap_or(&whole) {
        copy(archive, fd, path, part)?;
    }
    let now = fstat(fd).context(|| "stat")?;
    // Not always: to Btrfs giving a file the length that it has is a truncation like any other.
    if u64::try_from(now.st_size) != Ok(size) {
        rustix::fs::ftruncate(fd, size).map_err(|errno| refused("give it its length", errno))?;
    }
    attributes::set(fd, &now, want, inherits)?;
    futimens(fd, &attributes::both(want.mtime)).context(|| "set its times")?;
    let stored = map.map_or(size > 0, |map| map.iter().any(|part| part.length > 0));
    Ok(stored.then(|| Id::of(&now).inode))
}

fn copy(archive: &mut Archive<'_>, fd: &OwnedFd, path: &[u8], part: Segment) -> Result<()> {
    let mut writer = holes::Writer::new(fd.as_fd(), part.offset);
    let (mut offset, end) = (part.offset, part.offset + part.length);
    while offset < end {
        let lent = archive.content(path, offset, end - offset)?;
        writer.write(lent)?;
        offset += lent.len() as u64;
    }
    writer.end()
}

/// A symlink, device or FIFO, without its attributes.
pub(crate) fn node(dir: &Dir, name: &[u8], what: &What, mode: u32) -> rustix::io::Result<()> {
    let mode = Mode::from_raw_mode(mode);
    match what {
        What::Symlink(target) => symlinkat(target, &dir.fd, name),
        What::CharDevice { major, minor } => {
            mknodat(&dir.fd, name, FileType::CharacterDevice, mode, makedev(*major, *minor))
        }
        What::BlockDevice { major, minor } => {
            mknodat(&dir.fd, name, FileType::BlockDevice, mode, makedev(*major, *minor))
        }
        What::Fifo => mknodat(&dir.fd, name, FileType::Fifo, mode, 0),
        What::File { .. } | What::HardLink(_) | What::Directory => Err(Errno::INVAL),
    }
}

/// What [`node`] made gets its attributes.
pub(crate) fn describe_node(dir: &Dir, name: &[u8], what: &What, want: &Attributes) -> Result<()> {
    let now = statat(&dir.fd, name, AtFlags::SYMLINK_NOFOLLOW).context(|| "stat")?;
    attributes::set_by_name(dir, name, &now, want, matches!(what, What::Symlink(_)))
}

/// An empty directory.
pub(crate) fn directory(dir: &Dir, name: &[u8], mode: u32) -> rustix::io::Result<()> {
    mkdirat(&dir.fd, name, Mode::from_raw_mode(mode & 0o777))
}
