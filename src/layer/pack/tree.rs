//! The tree that is packed, by descriptors: the only place that opens anything.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::vec::IntoIter;

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, fstat, major, minor, openat, readlinkat};
use rustix::io::{Errno, fcntl_dupfd_cloexec};

use super::super::attributes;
use super::super::dirs::{Id, mtime_of};
use super::super::reader::Attributes;
use super::split;
use crate::error::{Context, Error, Kind, Result};
use crate::sys::{rooted, xattrs};

const READ: OFlags = OFlags::RDONLY.union(OFlags::NOATIME).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A tree, by the descriptor of its root and of the directory that was asked for last.
pub(in super::super) struct Source {
    root: OwnedFd,
    at: Vec<u8>,
    directory: Option<OwnedFd>,
}

/// Something in the tree, by a descriptor that only says what it is.
pub(in super::super) struct Node {
    fd: OwnedFd,
    pub(in super::super) kind: FileType,
    pub(in super::super) id: Id,
    /// Major and minor number of a device.
    pub(in super::super) device: (u32, u32),
    links: u64,
    pub(in super::super) size: u64,
    attributes: Attributes,
}

/// The paths below the root, each before what is in it, in the order of their names.
#[derive(Default)]
pub(in super::super) struct Walk {
    /// Of each directory on the way, how long its path is, and the names still to come.
    open: Vec<(usize, IntoIter<Vec<u8>>)>,
    path: Vec<u8>,
}

impl Walk {
    pub(in super::super) fn next(&mut self) -> Option<&[u8]> {
        loop {
            let (length, names) = self.open.last_mut()?;
            self.path.truncate(*length);
            let Some(name) = names.next() else {
                self.open.pop();
                continue;
            };
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend(name);
            return Some(&self.path);
        }
    }

    /// What came last, at first the root, is a directory with these names.
    pub(in super::super) fn enter(&mut self, names: Vec<Vec<u8>>) {
        self.open.push((self.path.len(), names.into_iter()));
    }
}

impl Source {
    pub(in super::super) fn open(root: &Path) -> Result<Self> {
        let root = openat(CWD, root, READ | OFlags::DIRECTORY, Mode::empty())
            .context(|| format!("open {}", root.display()))?;
        Ok(Self::of(root))
    }

    /// A directory that is open, or by O_PATH something else, which is all of the tree then.
    pub(in super::super) fn of(root: OwnedFd) -> Self {
        Self { root, at: Vec::new(), directory: None }
    }

    /// What `path` is; `None` if it isn't there.
    pub(in super::super) fn node(&mut self, path: &[u8]) -> Result<Option<Node>> {
        let (parent, name) = split(path);
        let found = match path.is_empty() {
            true => match rooted::node(&self.root, b".") {
                Err(Errno::NOTDIR) => fcntl_dupfd_cloexec(&self.root, 0),
                found => found,
            },
            false => self.directory(parent).and_then(|directory| rooted::node(directory, name)),
        };
        match found {
            Err(errno) if is_gone(errno) => Ok(None),
            Err(errno) => Err(refused("open", errno)),
            Ok(fd) => Node::of(fd).map(Some),
        }
    }

    /// The names in the directory `path`, sorted. None if it is no directory any more.
    pub(in super::super) fn names(&mut self, path: &[u8]) -> Result<Vec<Vec<u8>>> {
        let read = |directory: &OwnedFd| {
            let names = Dir::read_from(directory)?.map(|entry| Ok(entry?.file_name().to_bytes().to_vec()));
            names.filter(|name| !matches!(name.as_deref(), Ok(b"." | b".."))).collect::<rustix::io::Result<Vec<_>>>()
        };
        match self.directory(path).and_then(read) {
            Err(errno) if is_gone(errno) => Ok(Vec::new()),
            Err(errno) => Err(refused("read", errno)).map_err(|error| super::entry_error(path, error)),
            Ok(mut names) => {
                names.sort_unstable();
                Ok(names)
            }
        }
    }

    /// Open the directory `path`, from the one that was open if that leads to it.
    fn directory(&mut self, path: &[u8]) -> rustix::io::Result<&OwnedFd> {
        if path.is_empty() {
            return Ok(&self.root);
        }
        let opened = match self.directory.take() {
            Some(open) if self.at == path => open,
            open => {
                let below = path.strip_prefix(self.at.as_slice()).and_then(|rest| rest.strip_prefix(b"/"));
                match open.zip(below) {
                    Some((open, below)) => rooted::beneath(open, below, READ)?,
                    None => rooted::beneath(&self.root, path, READ)?,
                }
            }
        };
        self.at = path.to_vec();
        Ok(self.directory.insert(opened))
    }
}

impl Node {
    // The fields' types differ between architectures.
    #[allow(clippy::useless_conversion)]
    fn of(fd: OwnedFd) -> Result<Self> {
        let stat = fstat(&fd).context(|| "stat")?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        Ok(Self {
            kind,
            id: Id::of(&stat),
            device: match kind {
                FileType::CharacterDevice | FileType::BlockDevice => (major(stat.st_rdev), minor(stat.st_rdev)),
                _ => (0, 0),
            },
            links: stat.st_nlink.into(),
            size: u64::try_from(stat.st_size).unwrap_or_default(),
            attributes: Attributes {
                mode: stat.st_mode & 0o7777,
                uid: stat.st_uid,
                gid: stat.st_gid,
                mtime: mtime_of(&stat),
                xattrs: Default::default(),
            },
            fd,
        })
    }

    pub(in super::super) fn has_other_names(&self) -> bool {
        self.kind != FileType::Directory && self.links > 1
    }

    /// All that a layer says of it besides its content.
    pub(in super::super) fn attributes(&self) -> Result<Attributes> {
        let mut all = xattrs::read(&self.proc_path(), xattrs::Last::Followed).context(|| "read its attributes")?;
        all.retain(|name, _| attributes::is_layers(name));
        Ok(Attributes { xattrs: all, ..self.attributes })
    }

    pub(in super::super) fn target(&self) -> Result<Vec<u8>> {
        Ok(readlinkat(&self.fd, "", Vec::new()).context(|| "read the symlink")?.into_bytes())
    }

    /// Open it, being a regular file, for reading.
    pub(in super::super) fn open(&self) -> Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOATIME | OFlags::CLOEXEC;
        Ok(openat(CWD, self.proc_path(), flags, Mode::empty()).context(|| "open")?.into())
    }

    /// Leads to the inode itself, whatever became of its name, and a symlink no further.
    pub(in super::super) fn proc_path(&self) -> Vec<u8> {
        format!("/proc/self/fd/{}", self.fd.as_fd().as_raw_fd()).into_bytes()
    }
}

/// Another process has removed it, or put something else in the place of a directory on the way.
fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE)
}

fn refused(call: &str, errno: Errno) -> Error {
    match errno {
        Errno::XDEV => Error::new(Kind::InUse, "something is mounted on it, and hides what is there"),
        _ => Error::system(call, &errno.into()),
    }
}
