//! Reading files of a tree that nobody can be trusted to have left in order.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;

use crate::{Context, Error, Kind, Result};

/// Read the regular file `path` below `root`, following links only inside of it (`openat2`, RESOLVE_IN_ROOT).
/// `None` if there is none; an error if it is longer than `most` bytes.
pub fn read(root: &Path, path: &str, most: u64) -> Result<Option<Vec<u8>>> {
    let shown = || format!("open {} in {}", path, root.display());
    let root_fd =
        openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).context(shown)?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let found = match openat2(&root_fd, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
        Ok(found) => found,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
        Err(e) => return Err(e).context(shown),
    };
    let Some(file) = regular(&found, OFlags::empty()).context(shown)? else { return Ok(None) };
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).context(shown)?;
    if bytes.len() as u64 > most {
        return Err(Error::new(Kind::BadInput, format!("{path} is longer than {most} bytes")));
    }
    Ok(Some(bytes))
}

/// Open for reading, with these flags too, what an O_PATH descriptor stands for; `None` if that is no regular file. Opening
/// anything else may do anything: wait, rewind a tape, start a watchdog.
pub fn regular(found: impl AsFd, flags: OFlags) -> rustix::io::Result<Option<File>> {
    if !FileType::from_raw_mode(fstat(&found)?.st_mode).is_file() {
        return Ok(None);
    }
    // What is there is a link, though one that leads to the inode itself.
    let path = format!("/proc/self/fd/{}", found.as_fd().as_raw_fd());
    let file = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC | flags, Mode::empty())?;
    Ok(Some(file.into()))
}

/// The directory `path` below `root`, found with links followed only inside of it. `None` if there is no such directory.
pub fn directory(root: &Path, path: &str) -> Result<Option<OwnedFd>> {
    let shown = || format!("open {} in {}", path, root.display());
    let root_fd =
        openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).context(shown)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match openat2(&root_fd, path, flags, Mode::empty(), resolve) {
        Ok(directory) => Ok(Some(directory)),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
        Err(e) => Err(e).context(shown),
    }
}

/// How often to try again when a rename elsewhere makes the kernel give up on `..` (openat2(2), EAGAIN).
const RETRIES: usize = 1000;

/// openat2(2), as often as it takes while others rename directories.
pub fn open(at: impl AsFd, path: &[u8], flags: OFlags, resolve: ResolveFlags) -> rustix::io::Result<OwnedFd> {
    let mut tries = 0;
    loop {
        match openat2(&at, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) if tries < RETRIES => tries += 1,
            other => return other,
        }
    }
}

/// Longest path that the kernel takes, its final NUL included (linux/limits.h).
const PATH_MAX: usize = 4096;

/// Open the directory `path` below `root`, through no symlink, no `..` and no mount, however long the path is; `root`
/// itself if it is empty. The bytes of `path` are names with single slashes between them.
///
/// # Errors
/// What openat2(2) says: ELOOP for a symlink on the way, EXDEV for a mount. EINVAL for a path that leads up.
pub fn beneath(root: impl AsFd, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    beneath_by(root, path, flags, ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV)
}

/// The same by other rules: through mounts, say.
pub fn beneath_by(root: impl AsFd, path: &[u8], flags: OFlags, resolve: ResolveFlags) -> rustix::io::Result<OwnedFd> {
    // Not by RESOLVE_BENEATH, which answers EXDEV, as for a mount, when a directory on the way is moved meanwhile.
    if path.starts_with(b"/") || path.split(|&b| b == b'/').any(|name| name == b"..") {
        return Err(Errno::INVAL);
    }
    let open = |at: BorrowedFd<'_>, part: &[u8]| {
        openat2(at, part, flags | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), resolve)
    };
    if path.is_empty() {
        return open(root.as_fd(), b".");
    }
    let (mut rest, mut reached): (_, Option<OwnedFd>) = (path, None);
    while rest.len() >= PATH_MAX {
        // A name has at most 255 bytes.
        let end = rest[..PATH_MAX].iter().rposition(|&b| b == b'/').ok_or(Errno::NAMETOOLONG)?;
        reached = Some(open(reached.as_ref().map_or(root.as_fd(), AsFd::as_fd), &rest[..end])?);
        rest = &rest[end + 1..];
    }
    open(reached.as_ref().map_or(root.as_fd(), AsFd::as_fd), rest)
}

/// What `name` in a directory is, whatever that may be, by a descriptor that opens nothing (O_PATH): a symlink isn't
/// followed, a mount not crossed.
///
/// # Errors
/// What openat2(2) says: EXDEV for a mount. EINVAL for a path of several names.
pub fn node(directory: impl AsFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    if name.contains(&b'/') || name == b".." {
        return Err(Errno::INVAL);
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(directory, name, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV)
}

/// The directory that many steps above an open one. Where that is has to be found out by the caller: directories move.
pub fn above(directory: impl AsFd, steps: u32) -> rustix::io::Result<OwnedFd> {
    const MOST: u32 = 1000;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let up = |from: BorrowedFd<'_>, steps: u32| openat(from, "../".repeat(steps as usize), flags, Mode::empty());
    let mut reached = up(directory.as_fd(), steps.min(MOST))?;
    let mut left = steps.saturating_sub(MOST);
    while left > 0 {
        reached = up(reached.as_fd(), left.min(MOST))?;
        left = left.saturating_sub(MOST);
    }
    Ok(reached)
}

#[cfg(test)]
mod tests {
    use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
    use rustix::fs::{RawMode, makedev, mknodat};

    use super::*;

    #[test]
    fn what_is_no_file_is_not_even_opened() {
        let root = tempfile::tempdir_in(std::env::temp_dir()).expect("a directory");
        let device = |name: &str, kind: FileType, major| {
            let mode = Mode::from_raw_mode(0o666 as RawMode);
            mknodat(CWD, root.path().join(name), kind, mode, makedev(major, 3)).expect("mknod");
        };
        device("null", FileType::CharacterDevice, 1);
        device("fifo", FileType::Fifo, 0);
        std::fs::write(root.path().join("file"), "content").expect("write");
        let watch = init(CreateFlags::NONBLOCK).expect("inotify");
        for name in ["null", "fifo"] {
            add_watch(&watch, root.path().join(name), WatchFlags::OPEN).expect("watch");
            assert_eq!(read(root.path(), name, 9).expect("no error"), None, "{name}");
        }
        let opened = rustix::io::read(&watch, &mut [0_u8; 4096][..]);
        assert_eq!(opened, Err(Errno::AGAIN), "somebody opened them");
        assert_eq!(read(root.path(), "file", 7).expect("read"), Some(b"content".to_vec()));
        let found = node(rustix::fs::open(root.path(), OFlags::PATH, Mode::empty()).expect("open"), b"file");
        assert!(regular(found.expect("a node"), OFlags::NOATIME).expect("open").is_some());
    }
}
