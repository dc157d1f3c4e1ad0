//! Where a path leads, on the host or inside a container's root.
//!
//! Paths are read as `docker cp` reads them: made absolute, `.` and `..` taken out of their text, what they end in
//! remembered.
//!
//! | path | means |
//! |---|---|
//! | `/a/b` | what has that name: a link itself, as a source |
//! | `/a/b/` | the directory there, through a link, too |
//! | `/a/b/.` | as a source the content of that directory |

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Statx, openat, readlinkat};
use rustix::io::Errno;

use super::facts::{Key, facts_of, kind_of};
use super::mounted;
use super::open::{HERE, LOOK};
use crate::sys::rooted;
use crate::{Context, Error, Kind, Result};

/// Symlinks on a way, as many as the kernel follows (linux/namei.h, `MAXSYMLINKS`).
const MOST_LINKS: u32 = 40;
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

/// One side of a copy.
#[derive(Debug)]
pub struct Side {
    root: OwnedFd,
    /// How a path is resolved.
    resolve: ResolveFlags,
    /// How names found in a directory are.
    pub(super) here: ResolveFlags,
}

/// A path as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// From the root, without a leading slash, and without `.` and `..`; empty for the root itself.
    path: Vec<u8>,
    ending: Ending,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Name,
    Slash,
    Dot,
}

/// What is to be copied.
#[derive(Debug)]
pub struct Source<'a> {
    pub(super) side: &'a Side,
    /// O_PATH, unless it is a directory.
    pub(super) fd: OwnedFd,
    pub(super) facts: Statx,
    /// What it is called in a directory that it is copied into; empty for the root.
    pub(super) name: Vec<u8>,
    /// Only what is in the directory.
    pub(super) content: bool,
}

/// Where it goes.
#[derive(Debug)]
pub enum Target {
    /// A directory that is there.
    Directory(OwnedFd),
    /// A name in a directory: of a file, which isn't a device, or of nothing yet.
    Name {
        parent: OwnedFd,
        name: Vec<u8>,
        exists: bool,
        /// It was said to be a directory.
        directory: bool,
    },
}

impl Source<'_> {
    /// It itself, open as it is, and what it is called; without a name if only its content is meant.
    #[must_use]
    pub fn into_open(self) -> (OwnedFd, Vec<u8>) {
        (self.fd, if self.content { Vec::new() } else { self.name })
    }
}

impl Spec {
    /// Read a path; one that isn't absolute starts at `base`.
    #[must_use]
    pub fn new(base: &[u8], path: &[u8]) -> Self {
        let ending = match path.rsplit(|&b| b == b'/').next() {
            Some(b".") => Ending::Dot,
            Some(b"") => Ending::Slash,
            _ => Ending::Name,
        };
        let base = if path.starts_with(b"/") { &b""[..] } else { base };
        let mut names: Vec<&[u8]> = Vec::new();
        for name in base.split(|&b| b == b'/').chain(path.split(|&b| b == b'/')) {
            match name {
                b"" | b"." => {}
                b".." => drop(names.pop()),
                _ => names.push(name),
            }
        }
        Self { path: names.join(&b'/'), ending }
    }

    /// From the root, without a leading slash.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// What its last name is; empty for the root.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        split(&self.path).1
    }

    /// Only the content of the directory is meant.
    #[must_use]
    pub fn is_content(&self) -> bool {
        self.ending == Ending::Dot || self.path.is_empty()
    }

    /// Whether it can only be a directory.
    fn is_directory(&self) -> bool {
        self.ending != Ending::Name || self.path.is_empty()
    }
}

impl Side {
    /// The tree of a container: nothing outside of it is ever reached.
    pub fn container(root: &Path) -> Result<Self> {
        let fd = open_root(root)?;
        let here = HERE;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        Ok(Self { root: fd, resolve, here })
    }

    /// The host's paths.
    pub fn host() -> Result<Self> {
        Ok(Self { root: open_root(Path::new("/"))?, resolve: ResolveFlags::empty(), here: ResolveFlags::NO_SYMLINKS })
    }

    /// What a path names. A link at its end is what is named, unless `follow`.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for a file that is said to be a directory; `InUse` where something is mounted in a container.
    pub fn source(&self, spec: &Spec, follow: bool) -> Result<Source<'_>> {
        let opened = if spec.is_directory() {
            self.open(&spec.path, DIRECTORY)
        } else if follow {
            self.open(&spec.path, OFlags::PATH)
        } else {
            let (parent, name) = split(&spec.path);
            self.open(parent, DIRECTORY).and_then(|parent| rooted::open(&parent, name, LOOK, self.here))
        };
        let mut fd = match opened {
            Ok(fd) => fd,
            Err(Errno::NOENT) => {
                return Err(Error::new(Kind::NotFound, "there is no such file or directory")
                    .with_hint("look for it: ls \"$(reflinkd mount NAME)\" for a container, ls for the host"));
            }
            Err(Errno::NOTDIR) => {
                let why = "what is there is not a directory";
                return Err(Error::new(Kind::Invalid, why).with_hint("leave out the / at its end"));
            }
            Err(errno) => return Err(unreachable(errno)),
        };
        let facts = facts_of(&fd).context(|| "stat")?;
        if kind_of(&facts) == FileType::Directory && !spec.is_directory() {
            fd = rooted::open(&fd, b".", DIRECTORY, self.here).context(|| "open")?;
        }
        Ok(Source { side: self, fd, facts, name: spec.name().to_vec(), content: spec.is_content() })
    }

    /// Where a path leads, links at its end followed, whether or not something is there.
    ///
    /// # Errors
    /// `NotFound` without a directory to put it in; `Invalid` for a device.
    pub fn target(&self, spec: &Spec) -> Result<Target> {
        match self.open(&spec.path, DIRECTORY) {
            Ok(directory) => return Ok(Target::Directory(directory)),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(errno) => return Err(unreachable(errno)),
        }
        let mut path = spec.path.clone();
        for _ in 0..MOST_LINKS {
            let (parent, name) = split(&path);
            let parent_fd = match self.open(parent, DIRECTORY) {
                Err(Errno::NOENT | Errno::NOTDIR) => return Err(no_directory(parent)),
                parent => parent.map_err(unreachable)?,
            };
            // The end of a link's target: what it leads to would have to be a directory, and there is none.
            if matches!(name, b"" | b"." | b"..") {
                return Err(no_directory(&path));
            }
            let (name, directory) = (name.to_vec(), spec.is_directory());
            let found = match rooted::open(&parent_fd, &name, LOOK, self.here) {
                Err(Errno::NOENT) => return Ok(Target::Name { parent: parent_fd, name, exists: false, directory }),
                found => found.map_err(unreachable)?,
            };
            match kind_of(&facts_of(&found).context(|| "stat")?) {
                FileType::Symlink => {
                    let target = readlinkat(&found, c"", Vec::new()).context(|| "read the link")?.into_bytes();
                    path = if target.starts_with(b"/") { target } else { [parent, b"/", &target].concat() };
                }
                FileType::RegularFile | FileType::Fifo | FileType::Socket => {
                    return Ok(Target::Name { parent: parent_fd, name, exists: true, directory });
                }
                FileType::Directory => {
                    let directory = rooted::open(&found, b".", DIRECTORY, self.here);
                    return directory.map(Target::Directory).map_err(unreachable);
                }
                _ => {
                    let why = "what is there is a device";
                    return Err(Error::new(Kind::Invalid, why).with_hint("choose another destination"));
                }
            }
        }
        Err(unreachable(Errno::LOOP))
    }

    /// Whether the directory `inner` is `outer`, or somewhere below it.
    pub(super) fn is_inside(&self, inner: &OwnedFd, outer: Key) -> Result<bool> {
        let key = |fd: &OwnedFd| facts_of(fd).map(|facts| Key::of(&facts)).context(|| "stat a directory");
        let top = key(&self.root)?;
        let mut at = inner.try_clone().context(|| "dup")?;
        loop {
            let here = key(&at)?;
            if here == outer {
                return Ok(true);
            }
            if here == top {
                return Ok(false);
            }
            let above = openat(&at, c"..", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
            let above = above.context(|| "open a directory's parent")?;
            if key(&above)? == here {
                return Ok(false);
            }
            at = above;
        }
    }

    /// `path` may have a leading slash.
    fn open(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let start = path.iter().position(|&b| b != b'/').unwrap_or(path.len());
        let path = if start == path.len() { b"." } else { &path[start..] };
        rooted::open(&self.root, path, flags, self.resolve)
    }
}

fn open_root(path: &Path) -> Result<OwnedFd> {
    openat(CWD, path, DIRECTORY | OFlags::CLOEXEC, Mode::empty()).context(|| format!("open {}", path.display()))
}

/// The path of the directory, and the last name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

fn no_directory(path: &[u8]) -> Error {
    let path = path.strip_prefix(b"/").unwrap_or(path).escape_ascii();
    Error::new(Kind::NotFound, format!("no such directory: /{path}"))
        .with_hint("parents of the destination are not made: make them first")
}

fn unreachable(errno: Errno) -> Error {
    match errno {
        Errno::XDEV => mounted(),
        Errno::LOOP => Error::new(Kind::Invalid, "the symlinks on the way lead in a circle")
            .with_hint("name what they should lead to instead"),
        errno => Error::system("open", &errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_as_docker_reads_them() {
        let read = |path: &str| {
            let spec = Spec::new(b"/home/me", path.as_bytes());
            (String::from_utf8(spec.path.clone()).expect("UTF-8"), spec.ending)
        };
        assert_eq!(read("/a//b/./c"), ("a/b/c".into(), Ending::Name));
        assert_eq!(read("a/../b"), ("home/me/b".into(), Ending::Name));
        assert_eq!(read("../../../../x/"), ("x".into(), Ending::Slash));
        assert_eq!(read("."), ("home/me".into(), Ending::Dot));
        assert_eq!(read("/a/."), ("a".into(), Ending::Dot));
        assert_eq!(read(".."), ("home".into(), Ending::Name));
        assert_eq!(read("/"), (String::new(), Ending::Slash));
        assert!(Spec::new(b"", b"/").is_content() && Spec::new(b"", b"a/.").is_content());
        assert!(!Spec::new(b"", b"a/").is_content());
        assert_eq!(Spec::new(b"/", b"x/y").name(), b"y");
    }
}
