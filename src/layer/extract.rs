//! Any tar into a tree that others may be using: what `tar -x` does, below a directory of a running container.
//!
//! Unlike [`unpack`](super::unpack) this isn't a layer's: `.wh.x` is a file of that name, nothing is hidden, and
//! directories that the tar doesn't describe get the times that the change gives them. Nor is it the only writer of the
//! tree. What it relies on is that the kernel resolves each path from the root, through links inside of it, or step by
//! step without any, and that everything else is done by descriptor or by a name that isn't followed. A file, link or
//! device is made under another name and renamed when it is whole.
//!
//! A directory merges with one that is there. Other things replace each other, but never a directory, and never are they
//! replaced by one. Hard links are to names below the same directory.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, fstat, linkat};
use rustix::io::Errno;

use super::dirs::{self, Dir, Dirs, Id, Place};
use super::name::{Name, quoted};
use super::reader::{Archive, Attributes, Entry, What};
use super::{Limits, Summary, attributes, bad, create, implied, refused};
use crate::copy::aside::Aside;
use crate::error::{Context, Error, Kind, Result};
use std::io::Read;

/// Extract a plain tar below the directory `under` of the tree at `root`. An entry for that directory itself changes
/// nothing of it. Owners are the tar's.
///
/// # Errors
/// As those of [`unpack`](super::unpack), and `Exists` where a directory and something else would have to replace each
/// other. What was extracted until then stays.
pub fn extract(tar: &mut dyn Read, root: &Path, under: &[u8], cancelled: &dyn Fn() -> bool) -> Result<Summary> {
    let dirs = Dirs::new(root)?;
    dirs::check_kernel(dirs.root())?;
    let archive = Archive::new(tar, u64::MAX, cancelled);
    Extractor { archive, dirs, under, described: HashSet::new(), summary: Summary::default() }.run()
}

struct Extractor<'a> {
    archive: Archive<'a>,
    dirs: Dirs,
    under: &'a [u8],
    /// Directories that have their times from the tar, and keep them.
    described: HashSet<Id>,
    summary: Summary,
}

impl Extractor<'_> {
    fn run(mut self) -> Result<Summary> {
        while let Some(entry) = self.archive.next_entry()? {
            self.entry(&entry).context(|| format!("entry {}", quoted(&entry.name)))?;
        }
        self.dirs.settle()?;
        Ok(self.summary)
    }

    fn entry(&mut self, entry: &Entry) -> Result<()> {
        self.summary.entries += 1;
        self.summary.foreign_attributes += entry.foreign_attributes;
        let Some(name) = self.place(&entry.name)? else {
            return Ok(());
        };
        let (parent, last) = name.split();
        let attributes = &entry.attributes;
        match &entry.what {
            What::Directory => self.directory(&name, attributes),
            What::HardLink(target) => {
                let what = || format!("hard link to {}", quoted(target));
                let target =
                    self.place(target).context(what)?.ok_or_else(|| bad("a directory can't be linked to"))?;
                let (directory, target) = target.split();
                let Place::Dir(directory) = self.dirs.resolve(directory)? else {
                    return Err(bad("the target doesn't exist")).context(what);
                };
                let parent = self.parent(parent)?;
                let link = |aside: &str| linkat(&directory.fd, target, &parent.fd, aside, AtFlags::empty());
                Aside::make(parent.fd.as_fd(), link).context(what)?.0.put(last)
            }
            What::File { size, map } => {
                let dir = self.parent(parent)?;
                let make = |aside: &str| create::file(&dir, aside.as_bytes(), 0o600);
                let (aside, fd) = Aside::make(dir.fd.as_fd(), make)?;
                create::fill(
                    &fd,
                    name.path(),
                    *size,
                    map.as_deref(),
                    &mut self.archive,
                    attributes,
                    dir.default_acl(),
                )?;
                self.summary.bytes = self.summary.bytes.saturating_add(*size);
                aside.put(last)
            }
            what => {
                let dir = self.parent(parent)?;
                let make = |aside: &str| create::node(&dir, aside.as_bytes(), what, 0o600);
                let (aside, ()) = Aside::make(dir.fd.as_fd(), make)?;
                create::describe_node(&dir, aside.name(), what, attributes)?;
                aside.put(last)
            }
        }
    }

    /// Where a name of the tar is in the tree; `None` for the directory that is extracted to.
    fn place(&self, name: &[u8]) -> Result<Option<Name>> {
        let depth = Limits::default().max_depth;
        let name = Name::parse(name, depth)?;
        if name.is_root() {
            return Ok(None);
        }
        Name::parse(&[self.under, b"/", name.path()].concat(), u32::MAX).map(Some)
    }

    /// The directory at `path`, made with its parents if it is missing. Things are going to be made in it.
    fn parent(&mut self, path: &[u8]) -> Result<Rc<Dir>> {
        let (dir, mut at) = match self.dirs.resolve(path)? {
            Place::Dir(dir) => {
                self.touch(&dir);
                return Ok(dir);
            }
            Place::Missing { dir, resolved } => (dir, resolved),
            Place::Blocked(error) => return Err(error),
        };
        let mut dir = dir;
        while at < path.len() {
            self.touch(&dir);
            let start = if at == 0 { 0 } else { at + 1 };
            let length = path[start..].iter().position(|&b| b == b'/').unwrap_or(path.len() - start);
            at = start + length;
            match create::directory(&dir, &path[start..at], implied((0, 0)).mode) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(refused("create the directory it is in", errno)),
            }
            dir = self.made(&path[..at])?;
        }
        Ok(dir)
    }

    fn directory(&mut self, name: &Name, want: &Attributes) -> Result<()> {
        let (parent, last) = name.split();
        let parent = self.parent(parent)?;
        let fresh = match create::directory(&parent, last, 0o700) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(refused("create", errno)),
        };
        // Not through a link: that is something else than a directory, as for Docker.
        if let Err(Errno::NOTDIR | Errno::LOOP) = dirs::open_below(&parent, last) {
            return Err(Error::new(Kind::Exists, "cannot overwrite something that is no directory with a directory")
                .with_hint("remove it first, or extract elsewhere"));
        }
        let dir = self.made(name.path())?;
        let now = fstat(&dir.fd).context(|| "stat")?;
        attributes::set(&dir.fd, &now, want, fresh && parent.default_acl())?;
        dir.describe(want.mtime, attributes::hands_down_acl(want) || (!fresh && dir.default_acl()));
        self.described.insert(dir.id);
        Ok(())
    }

    fn made(&mut self, path: &[u8]) -> Result<Rc<Dir>> {
        match self.dirs.resolve(path)? {
            Place::Dir(dir) => Ok(dir),
            Place::Missing { .. } => Err(Error::new(Kind::InUse, "somebody removed the directory meanwhile")),
            Place::Blocked(error) => Err(error),
        }
    }

    fn touch(&self, dir: &Dir) {
        if self.described.contains(&dir.id) {
            dir.touch();
        }
    }
}
