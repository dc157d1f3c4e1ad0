//! ROOT.lock: one process at a time attaches, grows or takes down the pool.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use uuid::Uuid;

use crate::{Context, Result};

/// An exclusive flock on the file at `path`, given up when this is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Waits for whoever has it. Makes the file if there is none.
    pub(super) fn exclusive(path: &Path) -> Result<Self> {
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)
                .context(|| format!("open {}", path.display()))?;
            rustix::io::retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockExclusive))
                .context(|| format!("flock {}", path.display()))?;
            // Whoever had it may have removed the file (destroy): then it locks nobody out any more.
            let held = file.metadata().context(|| format!("fstat {}", path.display()))?;
            match std::fs::metadata(path) {
                Ok(named) if (named.dev(), named.ino()) == (held.dev(), held.ino()) => {
                    return Ok(Self { file, path: path.to_path_buf() });
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).context(|| format!("stat {}", path.display())),
            }
        }
    }

    /// Note down which filesystem is the pool's, for [`recorded`].
    pub(super) fn record(&self, fsid: Uuid) -> Result<()> {
        if recorded(&self.path)? == Some(fsid) {
            return Ok(());
        }
        let mut file = &self.file;
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{fsid}"))
            .context(|| format!("write {}", self.path.display()))
    }
}

/// What the last [`Lock::record`] noted down; `None` if there is none, or while it's being written: then the
/// caller takes the lock, and sees for itself.
pub(super) fn recorded(path: &Path) -> Result<Option<Uuid>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(std::str::from_utf8(&bytes).ok().and_then(|text| text.trim_end().parse().ok())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(|| format!("read {}", path.display())),
    }
}
