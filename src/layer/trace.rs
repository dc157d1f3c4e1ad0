//! Where the contents of this layer's files are while it is unpacked and its recipe written.
//!
//! A file is known by its inode, as its names come and go. Before its last name goes, it is moved aside within the
//! tree, into a directory that no archive can name: so no inode of a content is ever given to another, and what the
//! tree has no more is still there for the recipe. The directory is removed when the recipe is whole.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, mkdirat, openat, renameat, statat};
use uuid::Uuid;

use super::dirs::{Dir, Id};
use super::made::Made;
use super::recipe::{self, Aside, LONGEST_PATH};
use super::remove::{self, Fate};
use crate::error::{Context, Result};

/// What became of the contents so far.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    /// Of each file with content, in the tar's order.
    inodes: Vec<u64>,
    /// A name of a file of this layer is gone.
    moved: bool,
    aside: Option<(OwnedFd, Vec<u8>)>,
}

impl Trace {
    /// The file at `path` has content of the tar.
    pub(crate) fn note(&mut self, path: &[u8], inode: u64) {
        // What is content of no possible path is literal in the recipe.
        if path.len() <= LONGEST_PATH {
            self.inodes.push(inode);
        }
    }

    /// Before `name` in `dir` is unlinked: move the file aside if that is the last name of a content. Whether it was.
    pub(crate) fn save(
        &mut self,
        root: &Dir,
        made: &mut Made,
        (fd, id): (&OwnedFd, Id),
        name: &[u8],
        stat: Option<&Stat>,
    ) -> Result<bool> {
        // Lower layers have recipes of their own.
        if !made.contains(id, name) {
            return Ok(false);
        }
        let stat = match stat {
            Some(stat) => *stat,
            None => statat(fd, name, AtFlags::SYMLINK_NOFOLLOW).context(|| "stat")?,
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_size == 0 {
            return Ok(false);
        }
        self.moved = true;
        if stat.st_nlink > 1 {
            return Ok(false);
        }
        let aside = self.aside(root, made)?;
        renameat(fd, name, aside, Id::of(&stat).inode.to_string()).context(|| "set a replaced file aside")?;
        Ok(true)
    }

    fn aside(&mut self, root: &Dir, made: &mut Made) -> Result<&OwnedFd> {
        if self.aside.is_none() {
            let name = format!(".reflinkd-{}", Uuid::new_v4()).into_bytes();
            root.touch();
            mkdirat(&root.fd, &name, Mode::RWXU).context(|| "make a directory for replaced files")?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = openat(&root.fd, &name, flags, Mode::empty()).context(|| "open a directory")?;
            // Markers are to leave it alone, and all that is in it.
            made.insert(root.id, &name);
            made.clear(Id::of(&fstat(&fd).context(|| "stat a directory")?));
            self.aside = Some((fd, name));
        }
        match &self.aside {
            Some((fd, _)) => Ok(fd),
            None => unreachable!("made above"),
        }
    }

    /// The layer is unpacked: make `recipe` one of the tree as it is now, and the tree what the layer says.
    /// `linked`: some directory was found through a symlink.
    pub(crate) fn settle(
        self,
        recipe: &Path,
        root: &Dir,
        linked: bool,
        check: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        let aside = self.aside.as_ref().map(|(directory, name)| Aside { directory, name });
        if self.moved || linked {
            recipe::retrace(recipe, &root.fd, &self.inodes, aside, check).context(|| "write the layer's recipe")?;
        }
        match aside {
            Some(aside) => remove::subtree(root, aside.name, Fate::Remove, check),
            None => Ok(()),
        }
    }
}
