//! A container's whole root filesystem as a tar: `export`.

use std::path::Path;

use rustix::fs::stat;

use super::Engine;
use crate::backend::{Access, CloneCost, Tree};
use crate::layer::pack::{Packed, pack_tree};
use crate::layer::sink::Sink;
use crate::store::Record;
use crate::{Context, Error, Kind, Result};

impl Engine {
    /// Write everything in a container, or a snapshot of one (`NAME@LABEL`), as a tar. As of one moment where a snapshot costs nothing; elsewhere, and where
    /// there is no room for one, each file as it is when it comes by.
    ///
    /// # Errors
    /// Also if the container is removed or reset meanwhile, or has subvolumes inside that a snapshot wouldn't have.
    pub fn export(&self, name: &str, sink: &mut dyn Sink) -> Result<Packed> {
        (|| {
            let record = self.find_tree(name)?;
            if record.is_view() {
                let layer = self.parent_tree(&record)?;
                let layer = layer.ok_or_else(|| Error::new(Kind::Damaged, "its record names no layer"))?;
                return self.pack_still(&layer.root(), sink);
            }
            match self.backend.clone_cost() {
                CloneCost::Constant => self.export_snapshot(&record, sink),
                CloneCost::PerFile => self.pack_live(&self.tree(&record), sink),
            }
        })()
        .context(|| format!("cannot export container {name}"))
    }

    fn export_snapshot(&self, record: &Record, sink: &mut dyn Sink) -> Result<Packed> {
        let tree = self.tree(record);
        self.with_scratch(record, |scratch| {
            let Some(scratch) = scratch else { return self.pack_live(&tree, sink) };
            match self.backend.fork(&tree, scratch, Access::ReadOnly, None) {
                Ok(()) => self.pack_still(&scratch.root(), sink),
                Err(e) if e.kind() == Kind::NoSpace => {
                    tracing::warn!("no room for a snapshot, so what is written meanwhile may be missed: {e}");
                    self.pack_live(&tree, sink)
                }
                Err(e) => Err(e),
            }
        })
    }

    /// Pack a tree that others may write to, or even remove: then what was written isn't all of it.
    fn pack_live(&self, tree: &Tree, sink: &mut dyn Sink) -> Result<Packed> {
        let root = tree.root();
        let inode = || {
            let found = stat(&root).context(|| format!("stat {}", root.display()))?;
            Ok((found.st_dev, found.st_ino))
        };
        let before = inode()?;
        let packed = self.pack_still(&root, sink)?;
        match inode() {
            Ok(after) if after == before => Ok(packed),
            Err(e) if e.kind() != Kind::NotFound => Err(e),
            _ => Err(Error::new(Kind::NotFound, "it was removed or reset meanwhile")),
        }
    }

    fn pack_still(&self, root: &Path, sink: &mut dyn Sink) -> Result<Packed> {
        pack_tree(root, u64::MAX, sink, &|| self.is_cancelled())
    }
}
