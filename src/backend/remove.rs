//! Removal of a directory tree that nobody can be trusted to have left in order.
//!
//! Iterative, so that depth costs no stack; at most [`WINDOW`] directories are open at once, the ones above are found
//! again through `..` and must then be the same inode. Never follows a symlink and never crosses a mount. Inode flags
//! that forbid removal are cleared where they stand in the way, and so is the read-only flag of a Btrfs subvolume inside.
//!
//! Others may be removing the same tree: what is gone already is fine. Who *adds* to it meanwhile can make this fail
//! with ENOTEMPTY.

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, IFlags, Mode, OFlags, RawDir, fstat, openat, statat, unlinkat};
use rustix::io::Errno;
use rustix::path::Arg;

use crate::sys::btrfs::{BtrfsFd, SUBVOLUME_INODE, subvol};
use crate::sys::{reflink, rooted};
use crate::{Context, Error, Kind, Result};

/// Directories open at once.
const WINDOW: usize = 16;
/// Bytes of names read at once.
const LISTING: usize = 32 << 10;
const OPEN: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
/// Flags that forbid to remove an inode, and what is in a directory.
const LOCKING: IFlags = IFlags::IMMUTABLE.union(IFlags::APPEND);

/// Remove the directory `root` and all that is in it: how many entries that were. Succeeds if there is none.
///
/// # Errors
/// They name the entry: `InUse` where something is mounted, `Denied` for what the kernel won't remove, an active swapfile
/// among it.
pub fn remove_tree(root: &Path) -> Result<u64> {
    let mut removal = Removal { root, stack: Vec::new(), removed: 0, listing: vec![MaybeUninit::uninit(); LISTING] };
    let done = match openat(CWD, root, OPEN | OFlags::DIRECTORY, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(0),
        fd => fd.context(|| "open").and_then(|fd| removal.run(fd)),
    };
    let reached = removal.stack.iter().skip(1).map(|frame| format!("/{}", frame.name.to_bytes().escape_ascii()));
    done.context(|| format!("remove {}{}", root.display(), reached.collect::<String>()))?;
    Ok(removal.removed)
}

/// A directory of which some entries are still to be removed.
#[derive(Debug)]
struct Frame {
    /// `None` while further up than the window.
    fd: Option<OwnedFd>,
    /// Device and inode.
    id: (u64, u64),
    /// In the directory above; empty for the root.
    name: CString,
    /// Directories still to be gone into.
    below: Vec<CString>,
}

#[derive(Debug)]
struct Removal<'a> {
    root: &'a Path,
    /// From the root down to the directory being worked on.
    stack: Vec<Frame>,
    removed: u64,
    listing: Vec<MaybeUninit<u8>>,
}

impl Removal<'_> {
    fn run(&mut self, root: OwnedFd) -> Result<()> {
        self.enter(root, CString::default())?;
        while let Some(top) = self.stack.last_mut() {
            if let Some(name) = top.below.pop() {
                match rooted::beneath(opened(top), name.to_bytes(), OPEN) {
                    Err(Errno::NOENT) => {}
                    Err(errno) => return Err(refused("open", &name, errno)),
                    Ok(fd) => self.enter(fd, name)?,
                }
            } else if let Some(done) = self.stack.pop() {
                self.leave(&done)?;
            }
        }
        Ok(())
    }

    /// Remove what is no directory, and note the directories.
    fn enter(&mut self, fd: OwnedFd, name: CString) -> Result<()> {
        let id = id(&fd)?;
        if id.1 == SUBVOLUME_INODE {
            make_writable(&fd)?;
        }
        self.stack.push(Frame { fd: Some(fd), id, name, below: Vec::new() });
        let depth = self.stack.len();
        if let Some(above) = depth.checked_sub(WINDOW + 1) {
            self.stack[above].fd = None;
        }
        let Frame { fd: Some(fd), below, .. } = &mut self.stack[depth - 1] else { return Ok(()) };
        let mut listing = RawDir::new(&*fd, &mut self.listing);
        while let Some(entry) = listing.next() {
            let entry = match entry {
                Err(Errno::NOENT) => break, // somebody removed the directory
                entry => entry.context(|| "list")?,
            };
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            if kind(&*fd, name, entry.file_type())? == Some(FileType::Directory) {
                below.push(name.to_owned());
                continue;
            }
            let unlocked = || unlock(&*fd).and_then(|()| unlock_file(&*fd, name));
            let removed = unlink(&*fd, name, AtFlags::empty(), unlocked);
            self.removed += removed.map_err(|errno| refused("unlink", name, errno))?;
        }
        Ok(())
    }

    /// A directory is empty: remove it from the one it is in.
    fn leave(&mut self, done: &Frame) -> Result<()> {
        let fd = opened(done);
        let removed = match self.stack.last_mut() {
            None => unlink(CWD, self.root, AtFlags::REMOVEDIR, || unlock(fd)),
            Some(parent) => {
                if parent.fd.is_none() {
                    let above = openat(fd, "..", OPEN | OFlags::DIRECTORY, Mode::empty()).context(|| "open ..")?;
                    if id(&above)? != parent.id {
                        let moved = format!("{} was moved meanwhile", done.name.to_bytes().escape_ascii());
                        return Err(Error::new(Kind::InUse, moved));
                    }
                    parent.fd = Some(above);
                }
                let parent = opened(parent);
                unlink(parent, &done.name, AtFlags::REMOVEDIR, || unlock(parent).and_then(|()| unlock(fd)))
            }
        };
        self.removed += removed.map_err(|errno| refused("rmdir", &done.name, errno))?;
        Ok(())
    }
}

fn opened(frame: &Frame) -> &OwnedFd {
    frame.fd.as_ref().expect("the directory being worked on is within the window")
}

fn id(fd: &OwnedFd) -> Result<(u64, u64)> {
    let stat = fstat(fd).context(|| "stat")?;
    Ok((stat.st_dev, stat.st_ino))
}

/// What `name` is; `None` if it is gone.
fn kind(directory: impl AsFd, name: &CStr, listed: FileType) -> Result<Option<FileType>> {
    if listed != FileType::Unknown {
        return Ok(Some(listed));
    }
    match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(None),
        stat => stat.map(|stat| Some(FileType::from_raw_mode(stat.st_mode))).context(|| "stat"),
    }
}

/// unlinkat(2), a second time after `unlock` if it isn't permitted. How many that removed: 0 if it was gone already.
fn unlink(
    directory: impl AsFd,
    name: impl Arg + Copy,
    flags: AtFlags,
    unlock: impl FnOnce() -> rustix::io::Result<()>,
) -> rustix::io::Result<u64> {
    let removed = match unlinkat(&directory, name, flags) {
        Err(Errno::PERM) => unlock().and_then(|()| unlinkat(&directory, name, flags)),
        removed => removed,
    };
    match removed {
        Ok(()) => Ok(1),
        Err(Errno::NOENT) => Ok(0),
        Err(errno) => Err(errno),
    }
}

/// If a directory is the root of a Btrfs subvolume, let it be written to.
fn make_writable(directory: &OwnedFd) -> Result<()> {
    let call = || "make a subvolume writable";
    match BtrfsFd::prove(directory.try_clone().context(call)?) {
        Ok(root) if subvol::is_read_only(&root).context(call)? => subvol::set_read_only(&root, false).context(call),
        Ok(_) => Ok(()),
        Err(e) if e.raw_os_error() == Some(libc::ENOTTY) => Ok(()),
        Err(e) => Err(e).context(call),
    }
}

fn unlock(fd: &OwnedFd) -> rustix::io::Result<()> {
    if reflink::flags(fd)?.intersects(LOCKING) {
        reflink::set_flags(fd, IFlags::empty(), LOCKING)?;
    }
    Ok(())
}

/// Only regular files have flags, and nothing else is safe to open.
fn unlock_file(directory: &OwnedFd, name: &CStr) -> rustix::io::Result<()> {
    let file = openat(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
        return Ok(());
    }
    // What is in /proc is a link, though one that leads to the file itself.
    let flags = OPEN.difference(OFlags::NOFOLLOW);
    unlock(&openat(CWD, format!("/proc/self/fd/{}", file.as_raw_fd()), flags, Mode::empty())?)
}

fn refused(call: &str, name: &CStr, errno: Errno) -> Error {
    let name = name.to_bytes().escape_ascii();
    match errno {
        Errno::XDEV | Errno::BUSY => {
            Error::new(Kind::InUse, format!("something is mounted at {name} in it")).with_hint("unmount it first")
        }
        _ => Error::system(format!("{call} {name}"), &errno.into()),
    }
}
