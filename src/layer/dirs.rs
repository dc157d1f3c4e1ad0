//! Directories of the tree as descriptors: the only place where a path is resolved.
//!
//! A run of entries in one directory costs one resolution. A path is walked from its nearest open ancestor
//! without following symlinks; only where one stands in the way is it resolved from the root, with
//! RESOLVE_IN_ROOT, so that absolute and climbing symlinks stay inside the tree. No step crosses a mount.
//! Walking from open ancestors also reaches directories deeper than PATH_MAX.
//!
//! Each open directory knows the mtime that it is to have in the end, and gets it when its descriptor is
//! closed: what is on disk is right for every directory that isn't open here, so nothing else needs to be
//! remembered. That holds only if all changes to a directory's entries go through [`Dir::touch`].

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, UTIME_OMIT, fgetxattr, fstat, futimens};
use rustix::io::Errno;

use super::name::quoted;
use super::reader::Time;
use super::{bad, refused};
use crate::error::{Context, Error, Kind, Result};
use crate::sys::rooted;

/// Directories kept open.
const MOST_OPEN: usize = 64;
/// Paths kept for them; more than that only where symlinks give a directory many names.
const MOST_PATHS: usize = 4 * MOST_OPEN;
/// Longest path that the kernel takes, its final NUL included (linux/limits.h).
const PATH_MAX: usize = 4096;

const NEVER: ResolveFlags = ResolveFlags::NO_MAGICLINKS.union(ResolveFlags::NO_XDEV);
/// Below a directory, through no symlink and no mount.
const STRAIGHT: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(NEVER);
/// Through symlinks, all of them seen from the root.
const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(NEVER);

/// What a directory is, whatever its name. The device is there for Btrfs, where each subvolume counts its
/// inodes for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Id {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

impl Id {
    // The fields' types differ between architectures.
    #[allow(clippy::useless_conversion, clippy::unnecessary_cast)]
    pub(crate) fn of(stat: &Stat) -> Self {
        Self { device: stat.st_dev as u64, inode: stat.st_ino as u64 }
    }
}

/// An open directory of the tree.
#[derive(Debug)]
pub(crate) struct Dir {
    pub(crate) fd: OwnedFd,
    pub(crate) id: Id,
    mtime: Cell<Time>,
    times: Cell<Times>,
    /// New inodes inherit ACLs from it.
    default_acl: Cell<bool>,
}

/// What a directory's times need before it is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Times {
    /// Nothing: they are as they should be.
    Right,
    /// The mtime it had, its children having changed.
    Restore,
    /// Those of an entry.
    Set,
}

impl Dir {
    /// To be called before a child is made or removed: the mtime is put back in the end.
    pub(crate) fn touch(&self) {
        if self.times.get() == Times::Right {
            self.times.set(Times::Restore);
        }
    }

    /// The directory's attributes were just set: remember the times for the end, and if children inherit.
    pub(crate) fn describe(&self, mtime: Time, default_acl: bool) {
        self.mtime.set(mtime);
        self.times.set(Times::Set);
        self.default_acl.set(default_acl);
    }

    pub(crate) fn default_acl(&self) -> bool {
        self.default_acl.get()
    }

    /// The mtime it is to have in the end.
    pub(crate) fn mtime(&self) -> Time {
        self.mtime.get()
    }

    fn settle(&self) -> Result<()> {
        let mtime = timespec(self.mtime.get());
        let atime = match self.times.replace(Times::Right) {
            Times::Right => return Ok(()),
            Times::Restore => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            Times::Set => mtime,
        };
        futimens(&self.fd, &Timestamps { last_access: atime, last_modification: mtime })
            .context(|| "set a directory's times")
    }
}

pub(crate) fn timespec(time: Time) -> Timespec {
    Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() }
}

// As in `Id::of`.
#[allow(clippy::useless_conversion, clippy::unnecessary_cast)]
pub(crate) fn mtime_of(stat: &Stat) -> Time {
    Time { seconds: stat.st_mtime as i64, nanoseconds: stat.st_mtime_nsec as u32 }
}

/// Where a path leads.
pub(crate) enum Place {
    Dir(Rc<Dir>),
    /// Only the first `resolved` bytes of the path are there, and lead to `dir`.
    Missing {
        dir: Rc<Dir>,
        resolved: usize,
    },
    /// Something else than a directory stands in the way.
    Blocked(Error),
}

/// The open directories.
#[derive(Debug)]
pub(crate) struct Dirs {
    root: Rc<Dir>,
    open: HashMap<Id, (Rc<Dir>, u64)>,
    /// In order, so that the nearest one is found without trying each prefix of a path that may have thousands.
    paths: BTreeMap<Vec<u8>, Known>,
    clock: u64,
    linked: bool,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    id: Id,
    /// A symlink is part of the path.
    linked: bool,
}

impl Dirs {
    pub(crate) fn new(root: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(root, flags, Mode::empty()).context(|| format!("open {}", root.display()))?;
        let root = fstat(&fd).context(|| "stat a directory")?;
        let root = Rc::new(dir(fd, &root));
        Ok(Self { root, open: HashMap::new(), paths: BTreeMap::new(), clock: 0, linked: false })
    }

    pub(crate) fn root(&self) -> &Rc<Dir> {
        &self.root
    }

    /// The directory with this identity, if it is open.
    pub(crate) fn get(&self, id: Id) -> Option<&Rc<Dir>> {
        if id == self.root.id { Some(&self.root) } else { self.open.get(&id).map(|(dir, _)| dir) }
    }

    /// Whether any directory so far was found through a symlink.
    pub(crate) fn passed_symlink(&self) -> bool {
        self.linked
    }

    /// Find the directory at `path`, the last component through a symlink too.
    pub(crate) fn resolve(&mut self, path: &[u8]) -> Result<Place> {
        let (mut dir, mut at, mut linked) = self.nearest(path);
        let mut by_component = false;
        while at < path.len() {
            let start = if at == 0 { 0 } else { at + 1 };
            let end = step(path, start, by_component);
            let single = !path[start..end].contains(&b'/');
            let blocked = match open_below(&dir, &path[start..end]) {
                Ok(fd) => {
                    dir = self.keep(fd, &path[..end], linked)?;
                    at = end;
                    continue;
                }
                Err(Errno::NOENT) if single => return Ok(Place::Missing { dir, resolved: at }),
                Err(errno @ (Errno::NOENT | Errno::NOTDIR | Errno::LOOP)) => errno,
                Err(errno) => return Err(refused(format!("open {}", quoted(&path[..end])), errno)),
            };
            if blocked == Errno::LOOP {
                match self.open_in_root(&path[..end]) {
                    Ok(fd) => {
                        linked = true;
                        self.linked = true;
                        dir = self.keep(fd, &path[..end], linked)?;
                        at = end;
                        continue;
                    }
                    Err(errno) if single => return symlink_refused(&path[..end], errno).map(Place::Blocked),
                    Err(_) => {}
                }
            } else if single {
                return Ok(Place::Blocked(bad(format!("{} is not a directory", quoted(&path[..end])))));
            }
            // Something on the way is in the way: find out what.
            by_component = true;
        }
        Ok(Place::Dir(dir))
    }

    /// A symlink is gone: forget what was found through symlinks.
    pub(crate) fn forget_linked(&mut self) {
        self.paths.retain(|_, known| !known.linked);
    }

    /// A directory is gone: forget where the others were found. They stay open.
    pub(crate) fn forget_paths(&mut self) {
        self.paths.clear();
    }

    /// Give all directories that are open the times they are to have.
    pub(crate) fn settle(&mut self) -> Result<()> {
        self.paths.clear();
        for (_, (dir, _)) in self.open.drain() {
            dir.settle()?;
        }
        self.root.settle()
    }

    /// The deepest known ancestor of `path`, or `path` itself: its directory, the bytes that lead there, and
    /// whether through a symlink.
    fn nearest(&mut self, path: &[u8]) -> (Rc<Dir>, usize, bool) {
        let mut rest = path;
        // Ancestors of a path stand before it in order, and what stands between shares less with it.
        while let Some((known, &Known { id, linked })) = self.paths.range::<[u8], _>(up_to(rest)).next_back() {
            let shared = shared(known, rest);
            if shared < known.len() {
                rest = &rest[..shared];
                continue;
            }
            self.clock += 1;
            if id == self.root.id {
                return (Rc::clone(&self.root), shared, linked);
            }
            if let Some((dir, used)) = self.open.get_mut(&id) {
                *used = self.clock;
                return (Rc::clone(dir), shared, linked);
            }
            rest = parent(known.len(), rest);
        }
        (Rc::clone(&self.root), 0, false)
    }

    /// Remember what `path` leads to. One directory is open only once, or it would have two ideas of its times.
    fn keep(&mut self, fd: OwnedFd, path: &[u8], linked: bool) -> Result<Rc<Dir>> {
        let stat = fstat(&fd).context(|| "stat a directory")?;
        let id = Id::of(&stat);
        self.clock += 1;
        let dir = if let Some(known) = self.get(id) {
            Rc::clone(known)
        } else {
            self.make_room()?;
            Rc::new(dir(fd, &stat))
        };
        if id != self.root.id {
            self.open.insert(id, (Rc::clone(&dir), self.clock));
        }
        if self.paths.len() >= MOST_PATHS {
            self.paths.clear();
        }
        self.paths.insert(path.to_vec(), Known { id, linked });
        Ok(dir)
    }

    /// Close the directory that was used longest ago, but none that somebody is working with.
    fn make_room(&mut self) -> Result<()> {
        if self.open.len() < MOST_OPEN {
            return Ok(());
        }
        let idle = self.open.iter().filter(|(_, (dir, _))| Rc::strong_count(dir) == 1);
        let oldest = idle.min_by_key(|(_, (_, used))| *used).map(|(id, _)| *id);
        if let Some((dir, _)) = oldest.and_then(|id| self.open.remove(&id)) {
            self.paths.retain(|_, known| known.id != dir.id);
            dir.settle()?;
        }
        Ok(())
    }

    fn open_in_root(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        open2(&self.root, path, IN_ROOT)
    }
}

fn up_to(path: &[u8]) -> (Bound<&[u8]>, Bound<&[u8]>) {
    (Bound::Unbounded, Bound::Included(path))
}

/// The bytes of `path` that lead to the parent of its first `length` ones.
fn parent(length: usize, path: &[u8]) -> &[u8] {
    &path[..path[..length].iter().rposition(|&b| b == b'/').unwrap_or(0)]
}

/// How many bytes of whole components two paths begin with alike.
pub(crate) fn shared(one: &[u8], other: &[u8]) -> usize {
    let same = one.iter().zip(other).take_while(|(a, b)| a == b).count();
    let ends = |path: &[u8]| path.get(same).is_none_or(|&b| b == b'/');
    if ends(one) && ends(other) { same } else { parent(same, one).len() }
}

/// Open a directory below another without following symlinks: one component or several.
pub(crate) fn open_below(dir: &Dir, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    open2(dir, path, STRAIGHT)
}

fn open2(dir: &Dir, path: &[u8], resolve: ResolveFlags) -> rustix::io::Result<OwnedFd> {
    open_at(&dir.fd, path, resolve)
}

fn open_at(fd: &OwnedFd, path: &[u8], resolve: ResolveFlags) -> rustix::io::Result<OwnedFd> {
    rooted::open(fd, path, OFlags::RDONLY | OFlags::DIRECTORY, resolve)
}

/// [`open_below`] for a walk that keeps its own descriptors.
pub(crate) fn open_child(fd: &OwnedFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    open_at(fd, name, STRAIGHT)
}

/// Where the next step of a walk along `path` from `start` ends: as far as the kernel takes it, or after one
/// component.
fn step(path: &[u8], start: usize, one: bool) -> usize {
    let rest = &path[start..];
    let component = || rest.iter().position(|&b| b == b'/').unwrap_or(rest.len());
    let length = match rest.len() {
        _ if one => component(),
        short if short < PATH_MAX => short,
        _ => rest[..PATH_MAX].iter().rposition(|&b| b == b'/').unwrap_or_else(component),
    };
    start + length
}

/// Why the symlink at the end of `path` doesn't lead to a directory: the archive's fault, or the system's.
fn symlink_refused(path: &[u8], errno: Errno) -> Result<Error> {
    let path = quoted(path);
    Ok(bad(match errno {
        Errno::NOENT => format!("the symlink {path} leads to nothing"),
        Errno::NOTDIR => format!("the symlink {path} doesn't lead to a directory"),
        Errno::LOOP => format!("the symlink {path} leads in a circle"),
        Errno::NAMETOOLONG => format!("the symlink {path} stands deeper than {PATH_MAX} bytes of path"),
        Errno::XDEV => format!("the symlink {path} leads out of the tree's filesystem"),
        _ => return Err(refused(format!("open {path}"), errno)),
    }))
}

fn dir(fd: OwnedFd, stat: &Stat) -> Dir {
    // Any answer but "too small for its value" and a value means that there is none.
    let default_acl = match fgetxattr(&fd, "system.posix_acl_default", &mut [0_u8; 256][..]) {
        Ok(length) => length > 0,
        Err(errno) => errno == Errno::RANGE,
    };
    Dir {
        id: Id::of(stat),
        mtime: Cell::new(mtime_of(stat)),
        times: Cell::new(Times::Right),
        default_acl: Cell::new(default_acl),
        fd,
    }
}

/// Everything here rests on openat2; say clearly where a kernel or a seccomp filter has none.
pub(crate) fn check_kernel(root: &Dir) -> Result<()> {
    match open2(root, b".", IN_ROOT) {
        Ok(_) => Ok(()),
        Err(Errno::NOSYS) => Err(Error::new(Kind::Unsupported, "this kernel has no openat2 (Linux 5.6)")),
        Err(errno) => Err(refused("open the tree's root", errno)),
    }
}
