//! What nobody should have done: writing into a tree that is as it stays.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, openat};

use super::changes::Walk;
use super::walk::OPEN_DIRECTORY;
use super::{Reflink, place};
use crate::backend::Tree;
use crate::{Context, Result};

impl Reflink {
    /// The manifest of a tree that was cloned read-only has its own inodes and change times as they were then. That of one
    /// that was made so later has those of its clone's making, and can't tell.
    pub(super) fn touched_in(&self, tree: &Tree) -> Result<Option<Vec<PathBuf>>> {
        let manifest = place::manifest(tree)?;
        let head = &manifest.head;
        if !head.read_only || head.fork || head.base.as_ref().is_none_or(|base| base.read_only) {
            return Ok(None);
        }
        let root = tree.root();
        let open =
            openat(CWD, &root, OPEN_DIRECTORY, Mode::empty()).context(|| format!("open {}", root.display()))?;
        let (plan, _) = Walk::new(&manifest, &root, &open)?.plan(&open)?;
        let mut touched = Vec::new();
        for (directory, planned) in plan {
            let directory = Path::new(OsStr::from_bytes(&directory)).to_path_buf();
            touched.extend(planned.names.into_keys().map(|name| directory.join(OsStr::from_bytes(&name))));
        }
        Ok(Some(touched))
    }
}
