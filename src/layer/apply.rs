//! One entry after the other onto the tree.
//!
//! An entry is first tried as if nothing stood in its place, which costs nothing where that is so; what does
//! stand there is removed, and the entry tried once more.

use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Stat, fstat, linkat, statat, unlinkat};
use rustix::io::Errno;

use super::dirs::{self, Dir, Dirs, Id, Place};
use super::ids::IdMaps;
use super::made::Made;
use super::name::{Meaning, Name, quoted};
use super::reader::{Archive, Attributes, Entry, What};
use super::remove::{self, Fate, Save};
use super::trace::Trace;
use super::{Limits, Summary, attributes, bad, create, implied, refused, whiteout};
use crate::error::{Context, Result};
use crate::oci::beyond;

pub(crate) struct Unpacker<'a> {
    archive: Archive<'a>,
    dirs: Dirs,
    made: Made,
    limits: Limits,
    ids: &'a IdMaps,
    /// The host's ids of the container's root.
    owner: (u32, u32),
    summary: Summary,
    /// If a recipe is written.
    trace: Option<Trace>,
}

impl<'a> Unpacker<'a> {
    pub(crate) fn new(
        archive: Archive<'a>,
        root: &Path,
        limits: &Limits,
        ids: &'a IdMaps,
        trace: Option<Trace>,
    ) -> Result<Self> {
        let owner = ids.root()?;
        let dirs = Dirs::new(root)?;
        dirs::check_kernel(dirs.root())?;
        let (made, summary) = (Made::default(), Summary::default());
        Ok(Self { archive, dirs, made, limits: *limits, ids, owner, summary, trace })
    }

    /// Make all that the archive says. With a trace, the stream is read to its end.
    pub(crate) fn run(mut self) -> Result<Unpacked> {
        while let Some(mut entry) = self.archive.next_entry()? {
            self.entry(&mut entry).context(|| format!("entry {}", quoted(&entry.name)))?;
        }
        if self.trace.is_some() {
            self.archive.drain()?;
        }
        Ok(Unpacked { dirs: self.dirs, summary: self.summary, trace: self.trace })
    }

    fn entry(&mut self, entry: &mut Entry) -> Result<()> {
        self.count()?;
        self.summary.foreign_attributes += entry.foreign_attributes;
        if let What::File { size, .. } = entry.what {
            self.summary.bytes = self.summary.bytes.saturating_add(size);
        }
        let name = Name::parse(&entry.name, self.limits.max_depth)?;
        match name.meaning()? {
            Meaning::Nothing => return Ok(()),
            Meaning::Whiteout(_) | Meaning::Opaque => return self.marker(&name),
            Meaning::Content => {}
        }
        // Of a hard link only the names count.
        if !matches!(entry.what, What::HardLink(_)) {
            self.ids.map_in(&mut entry.attributes)?;
        }
        if name.is_root() {
            let What::Directory = entry.what else {
                return Err(bad("the root of the tree can only be a directory"));
            };
            let root = Rc::clone(self.dirs.root());
            return describe(&root, &entry.attributes, true);
        }
        let (parent, last) = name.split();
        match &entry.what {
            What::Directory => self.directory(&name, &entry.attributes),
            What::HardLink(target) => {
                // First: making the parent could close the directory it is in.
                let (target_dir, target) = self.link_target(target)?;
                let dir = self.parent(parent)?;
                self.hard_link(&dir, last, &target_dir, &target)
            }
            What::File { size, map } => {
                let dir = self.parent(parent)?;
                let fd = self.place(&dir, last, |dir| create::file(dir, last, entry.attributes.mode))?;
                let archive = &mut self.archive;
                let inherits = dir.default_acl();
                let inode =
                    create::fill(&fd, name.path(), *size, map.as_deref(), archive, &entry.attributes, inherits)?;
                if let (Some(trace), Some(inode)) = (&mut self.trace, inode) {
                    trace.note(name.path(), inode);
                }
                Ok(())
            }
            what @ (What::Symlink(_) | What::CharDevice { .. } | What::BlockDevice { .. } | What::Fifo) => {
                let dir = self.parent(parent)?;
                self.place(&dir, last, |dir| create::node(dir, last, what, entry.attributes.mode))?;
                create::describe_node(&dir, last, what, &entry.attributes)
            }
        }
    }

    /// One more thing that the tree is to hold.
    fn count(&mut self) -> Result<()> {
        self.summary.entries += 1;
        let limit = self.limits.max_entries;
        if self.summary.entries > limit {
            return Err(beyond(format!("the layer has more entries than the limit of {limit}"), "max_layer_entries"));
        }
        Ok(())
    }

    /// A whiteout or opaque marker. Where there is no such directory, there is nothing to hide.
    fn marker(&mut self, name: &Name) -> Result<()> {
        let (parent, _) = name.split();
        let Place::Dir(dir) = self.dirs.resolve(parent)? else {
            return Ok(());
        };
        let check = || self.archive.check_cancelled();
        match name.meaning()? {
            Meaning::Whiteout(hidden) => {
                whiteout::hide(&dir, hidden, &mut self.dirs, &mut self.made, self.owner, &check)
            }
            _ => whiteout::hide_children(&dir, &mut self.dirs, &mut self.made, self.owner, &check),
        }
    }

    /// The directory at `path`, made with its parents if it is missing.
    fn parent(&mut self, path: &[u8]) -> Result<Rc<Dir>> {
        let (mut dir, mut at) = match self.dirs.resolve(path)? {
            Place::Dir(dir) => return Ok(dir),
            Place::Missing { dir, resolved } => (dir, resolved),
            Place::Blocked(error) => return Err(error),
        };
        while at < path.len() {
            self.count()?;
            let start = if at == 0 { 0 } else { at + 1 };
            let length = path[start..].iter().position(|&b| b == b'/').unwrap_or(path.len() - start);
            at = start + length;
            dir = self.new_directory(&dir, &path[start..at], &path[..at], &implied(self.owner))?;
        }
        Ok(dir)
    }

    fn directory(&mut self, name: &Name, want: &Attributes) -> Result<()> {
        let (parent, last) = name.split();
        let dir = self.parent(parent)?;
        if let Some(there) = stat(&dir, last)?
            && FileType::from_raw_mode(there.st_mode) == FileType::Directory
        {
            let Place::Dir(merged) = self.dirs.resolve(name.path())? else {
                return Err(bad("the directory went away"));
            };
            self.made.insert(dir.id, last);
            return describe(&merged, want, true);
        }
        self.new_directory(&dir, last, name.path(), want).map(drop)
    }

    fn new_directory(&mut self, dir: &Rc<Dir>, name: &[u8], path: &[u8], want: &Attributes) -> Result<Rc<Dir>> {
        self.place(dir, name, |dir| create::directory(dir, name, want.mode))?;
        let Place::Dir(made) = self.dirs.resolve(path)? else {
            return Err(bad("the directory went away"));
        };
        describe(&made, want, dir.default_acl())?;
        Ok(made)
    }

    /// The directory and name of a hard link's target. The target itself is never followed.
    fn link_target(&mut self, raw: &[u8]) -> Result<(Rc<Dir>, Vec<u8>)> {
        let what = || format!("hard link to {}", quoted(raw));
        let name = Name::parse(raw, self.limits.max_depth).context(what)?;
        if name.is_root() {
            return Err(bad("a directory can't be linked to")).context(what);
        }
        let (parent, last) = name.split();
        let dir = match self.dirs.resolve(parent).context(what)? {
            Place::Dir(dir) => dir,
            Place::Missing { .. } => return Err(bad("the target doesn't exist")).context(what),
            Place::Blocked(error) => return Err(error).context(what),
        };
        match stat(&dir, last).context(what)? {
            None => Err(bad("the target doesn't exist")).context(what),
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                Err(bad("a directory can't be linked to")).context(what)
            }
            Some(_) => Ok((dir, last.to_vec())),
        }
    }

    fn hard_link(&mut self, dir: &Rc<Dir>, name: &[u8], target_dir: &Dir, target: &[u8]) -> Result<()> {
        if let (Some(there), Some(linked)) = (stat(dir, name)?, stat(target_dir, target)?)
            && Id::of(&there) == Id::of(&linked)
        {
            // Two names of one inode already, or one name twice: replacing it could lose the last one.
            self.made.insert(dir.id, name);
            return Ok(());
        }
        let link = |dir: &Dir| linkat(&target_dir.fd, target, &dir.fd, name, AtFlags::empty());
        self.place(dir, name, link).context(|| format!("hard link to {}", quoted(target)))
    }

    /// Make `name` in `dir`, in place of anything that is there.
    fn place<T>(&mut self, dir: &Rc<Dir>, name: &[u8], make: impl Fn(&Dir) -> rustix::io::Result<T>) -> Result<T> {
        dir.touch();
        let made = match make(dir) {
            Err(Errno::EXIST) => {
                self.clear(dir, name)?;
                make(dir)
            }
            other => other,
        };
        let made = made.map_err(|errno| refused("create", errno))?;
        self.made.insert(dir.id, name);
        Ok(made)
    }

    /// Remove whatever `name` in `dir` is.
    fn clear(&mut self, dir: &Rc<Dir>, name: &[u8]) -> Result<()> {
        let Some(there) = stat(dir, name)? else {
            return Ok(());
        };
        let kind = FileType::from_raw_mode(there.st_mode);
        if kind == FileType::Directory {
            let check = || self.archive.check_cancelled();
            let fate = match &mut self.trace {
                Some(trace) => Fate::Save(Save { trace, made: &mut self.made, root: self.dirs.root() }),
                None => Fate::Remove,
            };
            remove::subtree(dir, name, fate, &check).context(|| "replace the directory that is there")?;
            self.dirs.forget_paths();
        } else {
            let saved = match &mut self.trace {
                Some(trace) => trace.save(self.dirs.root(), &mut self.made, (&dir.fd, dir.id), name, Some(&there))?,
                None => false,
            };
            if !saved {
                unlinkat(&dir.fd, name, AtFlags::empty()).context(|| "replace what is there")?;
            }
            if kind == FileType::Symlink {
                self.dirs.forget_linked();
            }
        }
        Ok(())
    }
}

/// A tree that has all of a layer, but directories still to get their times.
#[must_use]
pub(crate) struct Unpacked {
    dirs: Dirs,
    summary: Summary,
    trace: Option<Trace>,
}

impl Unpacked {
    pub(crate) fn settle(mut self) -> Result<Summary> {
        self.dirs.settle()?;
        Ok(self.summary)
    }

    /// Make the recipe that was written meanwhile one of the tree as it has become.
    pub(crate) fn trace(&mut self, recipe: &Path, check: &dyn Fn() -> Result<()>) -> Result<()> {
        let linked = self.dirs.passed_symlink();
        match self.trace.take() {
            Some(trace) => trace.settle(recipe, self.dirs.root(), linked, check),
            None => Ok(()),
        }
    }
}

/// Give a directory an entry's attributes. `stale`: it may have some that are to go.
fn describe(dir: &Dir, want: &Attributes, stale: bool) -> Result<()> {
    let now = fstat(&dir.fd).context(|| "stat")?;
    attributes::set(&dir.fd, &now, want, stale)?;
    dir.describe(want.mtime, attributes::hands_down_acl(want));
    Ok(())
}

/// What `name` in `dir` is, not followed.
fn stat(dir: &Dir, name: &[u8]) -> Result<Option<Stat>> {
    match statat(&dir.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(refused("stat", errno)),
    }
}
