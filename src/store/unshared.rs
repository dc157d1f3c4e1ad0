//! Going on without the index on disk, where that can't be written: on a full disk, say.
//!
//! Names and numbers are given only where everyone sees it. What is removed, or is there by its record and tree already, is so
//! whatever becomes of the index: whoever opens the store next makes it anew, and this process goes on with one in memory.

use std::path::Path;

use super::index::{Change, Index, is_unwritten};
use super::{Store, scan};
use crate::{Context, Error, Kind, Result};

impl Store {
    /// Go back to the index on disk, if we had to go on without it and it can be written again; and make it anew, if another
    /// process had to. As [`Store::open`], whose `instance` is asked for anew. Before each verb that writes.
    pub fn rejoin(
        &self,
        instance: &dyn Fn() -> Result<String>,
        highest_group: &dyn Fn() -> Result<Option<u32>>,
    ) -> Result<()> {
        let mut index = self.index();
        if index.private().is_some() || is_outdated(&index, &self.root) {
            *index = scan::open_index(&self.root, &instance()?, highest_group)?;
        }
        Ok(())
    }

    /// Whether the index that we have open is one that another process couldn't write to.
    pub(super) fn is_outdated(&self) -> bool {
        is_outdated(&self.index(), &self.root)
    }

    /// Whether this process had to go on without the index on disk.
    fn unshared(&self, index: &Index) -> Result<()> {
        let Some(why) = index.private() else { return Ok(()) };
        let stat = rustix::fs::statvfs(&self.root).context(|| format!("statvfs {}", self.root.display()))?;
        let write = || format!("write {}", self.root.join("index.db").display());
        Err(if stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
            Error::new(Kind::Denied, "Read-only file system").context(write())
        } else if why.kind() == Kind::Denied {
            // All that SQLite says of a file for which there is no room.
            Error::system(write(), &std::io::Error::from_raw_os_error(libc::ENOSPC))
        } else {
            why.clone()
        })
    }

    /// A change that gives names or numbers: only where everyone sees it.
    pub(super) fn reserving<T>(&self, steps: impl FnOnce(&Change<'_>) -> Result<T>) -> Result<T> {
        let mut index = self.index();
        self.unshared(&index)?;
        index.change(steps)
    }

    /// A change on the way of a removal: it must not fail for want of room. If the index can't be written, it is
    /// given up (whoever opens next makes it anew) and this process goes on with one in memory.
    pub(super) fn removing(&self, steps: impl Fn(&Change<'_>) -> Result<()>) -> Result<()> {
        // What can't be unlinked is on a read-only or broken filesystem. A row too many does no harm.
        self.without_index(steps, || drop(scan::distrust_index(&self.root)))
    }

    /// A change that says what records and trees say already, durably: what is done can't fail any more because the index
    /// can't be written. It fails if everyone would go on believing that index.
    pub(super) fn following(&self, steps: impl Fn(&Change<'_>) -> Result<()>) -> Result<()> {
        let mut left = Ok(());
        let done = self.without_index(steps, || left = scan::distrust_index(&self.root));
        left.and(done)
    }

    /// Make a change, if needs be in an index in memory, which the one on disk must not be believed after: `distrust` sees to
    /// that.
    fn without_index(&self, steps: impl Fn(&Change<'_>) -> Result<()>, mut distrust: impl FnMut()) -> Result<()> {
        let mut index = self.index();
        match index.change(&steps) {
            Err(e) if is_unwritten(e.kind()) => {
                distrust();
                *index = scan::in_memory(&self.root, e)?;
                index.change(&steps)
            }
            changed => {
                if index.private().is_some() {
                    // Somebody may have made the index anew while it said something else.
                    distrust();
                }
                changed
            }
        }
    }
}

fn is_outdated(index: &Index, root: &Path) -> bool {
    index.is_marked() && !scan::is_current(root)
}
