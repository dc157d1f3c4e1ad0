//! Names that appear when they are whole.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, renameat, unlinkat};
use rustix::io::Errno;

use crate::{Context, Error, Kind, Result};

/// How often a name drawn at random may be there already.
const TRIES: u32 = 100;

/// Something that stands beside its place, and goes away unless it is put there.
#[derive(Debug)]
pub(crate) struct Aside<'a> {
    directory: BorrowedFd<'a>,
    name: String,
}

impl<'a> Aside<'a> {
    /// Make it. `make` must refuse a name that is there.
    pub(crate) fn make<T>(
        directory: BorrowedFd<'a>,
        make: impl Fn(&str) -> rustix::io::Result<T>,
    ) -> Result<(Self, T)> {
        for _ in 0..TRIES {
            let random = getrandom::u64()
                .map_err(|e| Error::new(Kind::System, format!("cannot get random bytes for a name: {e}")))?;
            let name = format!(".reflinkd-{random:016x}");
            match make(&name) {
                Err(Errno::EXIST) => {}
                made => {
                    let made = made.context(|| "create")?;
                    return Ok((Self { directory, name }, made));
                }
            }
        }
        Err(Error::new(Kind::InUse, "every name for it is taken again and again"))
    }

    pub(crate) fn name(&self) -> &[u8] {
        self.name.as_bytes()
    }

    /// Put it in its place, instead of what is there, unless that is a directory.
    pub(crate) fn put(self, name: &[u8]) -> Result<()> {
        match renameat(self.directory, &*self.name, self.directory, name) {
            Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => {
                Err(Error::new(Kind::Exists, "cannot overwrite a directory with something that is none")
                    .with_hint("remove the directory first, or choose another name"))
            }
            renamed => renamed.context(|| "rename it into its place"),
        }
    }
}

impl Drop for Aside<'_> {
    fn drop(&mut self) {
        // Also after a rename: one of two names of the same inode does nothing.
        let _ = unlinkat(self.directory, &*self.name, AtFlags::empty());
    }
}
