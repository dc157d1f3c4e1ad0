//! Small files that must be whole and durable: written aside, fsync'd, renamed into place.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::{Context, Result};

/// Put a file with what `fill` writes in the place of `path`. After a power cut it is the old one or the new one.
pub(super) fn replace(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let aside = path.with_extension("new");
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
        fill(&mut file)?;
        file.sync_all()?;
        std::fs::rename(&aside, path)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&aside);
    }
    written.context(|| format!("write {}", path.display()))?;
    sync_directory(path.parent().unwrap_or(Path::new("/")))
}

/// Make names in a directory durable.
pub(super) fn sync_directory(path: &Path) -> Result<()> {
    File::open(path).and_then(|d| d.sync_all()).context(|| format!("fsync {}", path.display()))
}

/// Whether to wait for a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    Exclusive,
    Shared,
    /// Exclusive, or `None` at once.
    TryExclusive,
}

/// Lock a file or directory until the handle is dropped. `None` only for [`Lock::TryExclusive`].
pub(super) fn lock(file: File, path: &Path, how: Lock) -> Result<Option<File>> {
    let operation = match how {
        Lock::Exclusive => FlockOperation::LockExclusive,
        Lock::Shared => FlockOperation::LockShared,
        Lock::TryExclusive => FlockOperation::NonBlockingLockExclusive,
    };
    loop {
        match flock(&file, operation) {
            Ok(()) => return Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e).context(|| format!("flock {}", path.display())),
        }
    }
}

/// Open the lock file at `path` (made if missing) and lock it.
pub(super) fn lock_file(path: &Path, how: Lock) -> Result<Option<File>> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .context(|| format!("open {}", path.display()))?;
    lock(file, path, how)
}
