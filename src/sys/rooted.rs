//! Reading files of a tree that nobody can be trusted to have left in order.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

use crate::{Context, Error, Kind, Result};

/// Read the regular file `path` below `root`, following links only inside of it (`openat2`, RESOLVE_IN_ROOT).
/// `None` if there is none; an error if it is longer than `most` bytes.
pub fn read(root: &Path, path: &str, most: u64) -> Result<Option<Vec<u8>>> {
    let shown = || format!("open {} in {}", path, root.display());
    let root_fd =
        openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).context(shown)?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = match openat2(&root_fd, path, flags, Mode::empty(), resolve) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
        Err(e) => return Err(e).context(shown),
    };
    if !file.metadata().context(shown)?.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).context(shown)?;
    if bytes.len() as u64 > most {
        return Err(Error::new(Kind::BadInput, format!("{path} is longer than {most} bytes")));
    }
    Ok(Some(bytes))
}

/// The directory `path` below `root`, found with links followed only inside of it. `None` if there is no such directory.
pub fn directory(root: &Path, path: &str) -> Result<Option<OwnedFd>> {
    let shown = || format!("open {} in {}", path, root.display());
    let root_fd =
        openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).context(shown)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match openat2(&root_fd, path, flags, Mode::empty(), resolve) {
        Ok(directory) => Ok(Some(directory)),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
        Err(e) => Err(e).context(shown),
    }
}
