//! One of the two trees that are compared: opens its directories and looks at what is in them.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, StatxFlags, openat, statx};
use rustix::io::Errno;

use super::entry::Facts;
use crate::sys::rooted;
use crate::{Context, Error, Kind, Result};

/// Reading a directory leaves its access time alone.
const OPEN: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NOATIME).union(OFlags::CLOEXEC);

/// A tree, by the descriptor of its root. Each directory is opened by its path below that when its turn comes, so that
/// depth costs no descriptors; no symlink is followed and no mount crossed.
#[derive(Debug)]
pub(in crate::backend) struct Side<'a> {
    root: OwnedFd,
    path: PathBuf,
    grafts: Option<Grafts<'a>>,
}

/// What belongs to the tree but stands elsewhere.
///
/// A snapshot has an empty directory in the place of each subvolume that was made in its source: here are the
/// subvolumes themselves.
pub(in crate::backend) struct Grafts<'a> {
    /// The inode number of all those empty directories. One without a graft counts as nothing.
    pub(in crate::backend) placeholder: u64,
    /// What each is called by `open`, by its path below the tree's root.
    pub(in crate::backend) ids: &'a BTreeMap<Vec<u8>, u64>,
    pub(in crate::backend) open: &'a dyn Fn(u64) -> io::Result<OwnedFd>,
}

impl fmt::Debug for Grafts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grafts")
            .field("placeholder", &self.placeholder)
            .field("ids", self.ids)
            .finish_non_exhaustive()
    }
}

impl<'a> Side<'a> {
    /// The tree whose root directory is `path`.
    ///
    /// # Errors
    /// `NotFound` if there is none; `Damaged` if something else is there.
    pub(in crate::backend) fn open(path: &Path) -> Result<Self> {
        let root = openat(CWD, path, OPEN | OFlags::DIRECTORY, Mode::empty()).map_err(|errno| match errno {
            Errno::NOENT => Error::new(Kind::NotFound, format!("no tree at {}", path.display())),
            Errno::NOTDIR | Errno::LOOP => {
                Error::new(Kind::Damaged, format!("{} is not a directory", path.display()))
            }
            _ => Error::system(format!("open {}", path.display()), &errno.into()),
        })?;
        Ok(Self::new(root, path))
    }

    /// The tree of an open root directory; `path` is for messages.
    pub(in crate::backend) fn new(root: OwnedFd, path: &Path) -> Self {
        Self { root, path: path.to_path_buf(), grafts: None }
    }

    pub(in crate::backend) fn with_grafts(self, grafts: Grafts<'a>) -> Self {
        Self { grafts: Some(grafts), ..self }
    }

    /// What the root directory is.
    pub(in crate::backend) fn root(&self) -> Result<Facts> {
        self.itself(&self.root, b"")
    }

    /// What the open directory `path` is.
    pub(super) fn itself(&self, directory: &OwnedFd, path: &[u8]) -> Result<Facts> {
        self.look(directory.as_fd(), b".").context(|| self.call("stat", path))
    }

    /// Open the directory `path`; `None` if it isn't one, or isn't there any more.
    pub(super) fn directory(&self, path: &[u8]) -> Result<Option<OwnedFd>> {
        let opened = match self.graft_above(path) {
            Some((id, below)) => self.graft(id).and_then(|root| Ok(rooted::beneath(&root, below, OPEN)?)),
            None => rooted::beneath(&self.root, path, OPEN).map_err(Into::into),
        };
        match opened {
            Ok(directory) => Ok(Some(directory)),
            Err(e) => match e.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ESTALE) => Ok(None),
                Some(libc::EXDEV) => {
                    let at = self.shown(path);
                    Err(Error::new(Kind::InUse, format!("something is mounted on {at}, and hides what is there"))
                        .with_hint(format!("umount {at}")))
                }
                _ => Err(e).context(|| self.call("open", path)),
            },
        }
    }

    /// The names in an open directory, in no order.
    pub(super) fn names(&self, directory: &OwnedFd, path: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(directory).context(|| self.call("read", path))? {
            let entry = entry.context(|| self.call("read", path))?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        Ok(names)
    }

    /// What `name` in an open directory is, `path` being the path of `name`; `None` if it isn't there.
    pub(super) fn facts(&self, directory: &OwnedFd, path: &[u8], name: &[u8]) -> Result<Option<Facts>> {
        match self.look(directory.as_fd(), name) {
            Err(Errno::NOENT) => Ok(None),
            Ok(facts) if self.is_placeholder(&facts, path) => self.grafted(path),
            other => other.map(Some).context(|| self.call("stat", path)),
        }
    }

    /// For messages: a call and the path that it was about.
    pub(super) fn call(&self, call: &str, path: &[u8]) -> String {
        format!("{call} {}", self.shown(path))
    }

    fn shown(&self, path: &[u8]) -> String {
        format!("{}/{}", self.path.display(), path.escape_ascii())
    }

    fn look(&self, directory: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<Facts> {
        statx(directory, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS).map(|stat| Facts::of(&stat))
    }

    /// Those inside a graft are its own: it is a snapshot itself.
    fn is_placeholder(&self, facts: &Facts, path: &[u8]) -> bool {
        self.grafts.as_ref().is_some_and(|grafts| {
            facts.id.inode == grafts.placeholder
                && (grafts.ids.contains_key(path) || self.graft_above(path).is_none())
        })
    }

    /// The root of the graft at `path`; `None` if it is gone, or never was one.
    fn grafted(&self, path: &[u8]) -> Result<Option<Facts>> {
        let Some(id) = self.grafts.as_ref().and_then(|grafts| grafts.ids.get(path)) else { return Ok(None) };
        let root = match self.graft(*id) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => return Ok(None),
            root => root.context(|| self.call("open", path))?,
        };
        self.look(root.as_fd(), b".").map(Some).context(|| self.call("stat", path))
    }

    fn graft(&self, id: u64) -> io::Result<OwnedFd> {
        let grafts = self.grafts.as_ref().expect("only grafts have ids");
        (grafts.open)(id)
    }

    /// The innermost graft that `path` is in, and the path below that.
    pub(in crate::backend) fn graft_above<'p>(&self, path: &'p [u8]) -> Option<(u64, &'p [u8])> {
        let ids = self.grafts.as_ref().map(|grafts| grafts.ids).filter(|ids| !ids.is_empty())?;
        let ends = path.iter().enumerate().rev().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        std::iter::once(path.len()).chain(ends).find_map(|end| {
            let below = path[end..].strip_prefix(b"/").unwrap_or_default();
            ids.get(&path[..end]).map(|id| (*id, below))
        })
    }
}

/// `name` in the directory `path`.
pub(in crate::backend) fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, name].join(&b'/') }
}
