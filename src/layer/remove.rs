//! Subtrees on their way out: all of them, or only what lower layers have.
//!
//! Iterative, so that depth costs memory and no stack; at most [`WINDOW`] directories are open at once, the
//! ones above are found again through `..` and must then be the same inode. Never follows a symlink and
//! never crosses a mount: a mount inside the tree is an error, its content isn't ours.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Timestamps, fstat, futimens, openat, statat, unlinkat};
use rustix::io::Errno;

use super::attributes;
use super::dirs::{Dir, Dirs, Id, mtime_of, open_child, timespec};
use super::made::Made;
use super::name::quoted;
use super::reader::Time;
use super::trace::Trace;
use super::{bad, implied, refused};
use crate::error::{Context, Result};

/// Directories open at once.
const WINDOW: usize = 32;
/// Bytes of names read at once.
const LISTING: usize = 32 << 10;

/// What is spared: the names that this layer made, and directories that hold such names.
pub(crate) struct Keep<'a> {
    pub(crate) made: &'a mut Made,
    pub(crate) dirs: &'a Dirs,
    /// Whose directories are that no entry describes.
    pub(crate) owner: (u32, u32),
}

/// What becomes of what is met.
pub(crate) enum Fate<'a> {
    Remove,
    /// What this layer made stays.
    Keep(Keep<'a>),
    /// Contents of this layer's files are set aside.
    Save(Save<'a>),
}

pub(crate) struct Save<'a> {
    pub(crate) trace: &'a mut Trace,
    pub(crate) made: &'a mut Made,
    pub(crate) root: &'a Dir,
}

/// A directory of which some entries are still to be removed.
struct Frame {
    /// `None` while further up than the window.
    fd: Option<OwnedFd>,
    id: Id,
    name: Vec<u8>,
    mtime: Time,
    /// Directories still to be gone into.
    subdirs: Vec<Vec<u8>>,
    /// Something in it stays.
    kept: bool,
}

/// Remove the directory `name` in `dir` with all that is in it. With [`Fate::Keep`], it stays if this layer made it
/// or anything below it.
pub(crate) fn subtree(dir: &Dir, name: &[u8], fate: Fate<'_>, check: &dyn Fn() -> Result<()>) -> Result<()> {
    let mut base = base(dir)?;
    base.subdirs.push(name.to_vec());
    let (keep, save) = match fate {
        Fate::Remove => (None, None),
        Fate::Keep(keep) => (Some(keep), None),
        Fate::Save(save) => (None, Some(save)),
    };
    Walk { keep, save, check, stack: vec![base] }.run()
}

/// Remove from `dir` all that `keep` doesn't spare.
pub(crate) fn children(dir: &Dir, keep: Keep<'_>, check: &dyn Fn() -> Result<()>) -> Result<()> {
    let mut walk = Walk { keep: Some(keep), save: None, check, stack: Vec::new() };
    let mut base = base(dir)?;
    walk.scan(&mut base)?;
    walk.stack.push(base);
    walk.run()
}

/// A descriptor of its own: reading the names moves its position.
fn base(dir: &Dir) -> Result<Frame> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = openat(&dir.fd, c".", flags, Mode::empty()).context(|| "open a directory again")?;
    Ok(Frame { fd: Some(fd), id: dir.id, name: Vec::new(), mtime: dir.mtime(), subdirs: Vec::new(), kept: false })
}

struct Walk<'a> {
    keep: Option<Keep<'a>>,
    save: Option<Save<'a>>,
    check: &'a dyn Fn() -> Result<()>,
    stack: Vec<Frame>,
}

impl Walk<'_> {
    fn run(mut self) -> Result<()> {
        while let Some(top) = self.stack.last_mut() {
            if let Some(name) = top.subdirs.pop() {
                self.descend(name)?;
            } else if let Some(done) = self.stack.pop() {
                self.ascend(&done)?;
            }
        }
        Ok(())
    }

    fn descend(&mut self, name: Vec<u8>) -> Result<()> {
        (self.check)()?;
        let depth = self.stack.len();
        let top = &self.stack[depth - 1];
        let fd = open_child(open(top), &name).map_err(|errno| match errno {
            Errno::XDEV => bad(format!("{} below it is a mount point", quoted(&name))),
            _ => refused(format!("open {} below it", quoted(&name)), errno),
        })?;
        let stat = fstat(&fd).context(|| "stat a directory")?;
        let id = Id::of(&stat);
        let open_already = self.keep.as_ref().and_then(|keep| keep.dirs.get(id));
        let mtime = open_already.map_or_else(|| mtime_of(&stat), |dir| dir.mtime());
        let mut frame = Frame { fd: Some(fd), id, name, mtime, subdirs: Vec::new(), kept: false };
        self.scan(&mut frame)?;
        self.stack.push(frame);
        if depth >= WINDOW {
            self.stack[depth - WINDOW].fd = None;
        }
        Ok(())
    }

    /// Unlink what is no directory, and note the directories. Of a directory that was cleared before, all stays.
    fn scan(&mut self, frame: &mut Frame) -> Result<()> {
        let mut buffer = vec![MaybeUninit::uninit(); LISTING];
        let Frame { fd, id, subdirs, kept, .. } = frame;
        let fd = fd.as_ref().expect("a directory is read right after it was opened");
        let mut listing = RawDir::new(fd, &mut buffer);
        let cleared = self.keep.as_ref().is_some_and(|keep| keep.made.is_cleared(*id));
        while let Some(entry) = listing.next() {
            let entry = entry.context(|| "list a directory")?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            if cleared {
                *kept = true;
                return Ok(());
            }
            let kind = match entry.file_type() {
                FileType::Unknown => {
                    let stat = statat(fd, name, AtFlags::SYMLINK_NOFOLLOW).context(|| "stat")?;
                    FileType::from_raw_mode(stat.st_mode)
                }
                known => known,
            };
            if kind == FileType::Directory {
                subdirs.push(name.to_vec());
            } else if self.keep.as_ref().is_some_and(|keep| keep.made.contains(*id, name)) {
                *kept = true;
            } else if let Some(Save { trace, made, root }) = &mut self.save
                && trace.save(root, made, (fd, *id), name, None)?
            {
                // Moved, which is as good as removed.
            } else {
                unlinkat(fd, name, AtFlags::empty()).context(|| format!("remove {} below it", quoted(name)))?;
            }
        }
        if let Some(keep) = &mut self.keep {
            keep.made.clear(*id);
        }
        Ok(())
    }

    /// A directory has been gone through: remove it from its parent, unless it stays.
    fn ascend(&mut self, done: &Frame) -> Result<()> {
        let Some(parent) = self.stack.last_mut() else {
            return Ok(());
        };
        if parent.fd.is_none() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = openat(open(done), c"..", flags, Mode::empty()).context(|| "open a parent directory again")?;
            if Id::of(&fstat(&fd).context(|| "stat a directory")?) != parent.id {
                return Err(bad(format!("{} was moved while it was being removed", quoted(&done.name))));
            }
            parent.fd = Some(fd);
        }
        if let Some(keep) = &mut self.keep {
            let made = keep.made.contains(parent.id, &done.name);
            if made || done.kept {
                parent.kept = true;
                return stay(keep, parent.id, done, made);
            }
        }
        unlinkat(open(parent), &done.name, AtFlags::REMOVEDIR)
            .context(|| format!("remove the directory {} below it", quoted(&done.name)))
    }
}

/// A directory stays. If the layer only made something in it, the lower layers' directory is hidden and this
/// is one that the layer implies.
fn stay(keep: &mut Keep<'_>, parent: Id, done: &Frame, made: bool) -> Result<()> {
    let fd = open(done);
    let mut mtime = done.mtime;
    if !made {
        let implied = implied(keep.owner);
        let now = fstat(fd).context(|| "stat a directory")?;
        attributes::set(fd, &now, &implied, true)?;
        if let Some(dir) = keep.dirs.get(done.id) {
            dir.describe(implied.mtime, false);
        }
        keep.made.insert(parent, &done.name);
        mtime = implied.mtime;
    }
    let omit = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    futimens(fd, &Timestamps { last_access: omit, last_modification: timespec(mtime) })
        .context(|| "set a directory's times")
}

/// The top frame's descriptor, and that of one that `ascend` just opened again.
fn open(frame: &Frame) -> &OwnedFd {
    frame.fd.as_ref().expect("the frame being worked on is within the window")
}
