//! Taking turns at the index.
//!
//! SQLite's own locks are polled: who finds one taken sleeps for 1 to 100 ms and looks again, so that 32 processes that
//! each need 0.1 ms of it wait for each other's sleep. Here they queue in flock(2), which wakes the next one at once.
//! SQLite's locks stay what keeps the index whole; without this file (a full disk) there is only the longer wait.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::files::{self, Lock};
use crate::Result;

/// The queue of one index, by one open file description: for one caller at a time.
#[derive(Debug)]
pub(super) struct Turns {
    file: Option<File>,
    path: PathBuf,
}

/// The right to use the index, until dropped.
#[derive(Debug)]
pub(super) struct Turn<'a>(Option<&'a File>);

impl Turns {
    /// The queue at `path`, made if it is missing.
    pub(super) fn at(path: &Path) -> Self {
        // Reading is enough to lock it, and works on a filesystem that takes no writes.
        let file = File::open(path).ok().or_else(|| files::make_lock_file(path).ok());
        Self { file, path: path.to_path_buf() }
    }

    /// The queue at `path` if there is one: for who must not make it.
    pub(super) fn existing(path: &Path) -> Self {
        Self { file: File::open(path).ok(), path: path.to_path_buf() }
    }

    /// For an index that nobody else sees.
    pub(super) fn none() -> Self {
        Self { file: None, path: PathBuf::new() }
    }

    /// Wait for it: with others who read, or alone to write.
    pub(super) fn take(&self, how: Lock) -> Result<Turn<'_>> {
        let Some(file) = &self.file else { return Ok(Turn(None)) };
        files::lock(file, &self.path, how)?;
        Ok(Turn(Some(file)))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // Unlocking what is locked can't fail; if it did, the lock would go with the file.
        let _ = self.0.map(|file| flock(file, FlockOperation::Unlock));
    }
}
