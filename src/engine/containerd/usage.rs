//! What a snapshot has beyond its parent, as numbers. They are kept for as long as the tree is as it was: kubelets ask for all
//! containers again and again.

use super::{Snapshots, stage_of};
use crate::backend::{CloneCost, Want};
use crate::engine::keyed::Counted;
use crate::store::{Content, Keyed, Record, Stage};
use crate::{Context, Result};

/// See the module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes on disk.
    pub size: u64,
    pub inodes: u64,
}

pub(in crate::engine) type Usages = Counted<Usage>;

impl Snapshots<'_> {
    /// What a snapshot has beyond its parent: of a committed one as it was then, of an active one as of now.
    pub fn usage(&self, key: &str) -> Result<Usage> {
        let used = || -> Result<_> {
            let record = self.record(key)?;
            match stage_of(&record)? {
                Stage::Committed { size, inodes, .. } => {
                    let inodes = inodes.map_or_else(|| self.count_for_good(&record), Ok)?;
                    Ok(Usage { size: *size, inodes })
                }
                Stage::View | Stage::Reserved => Ok(Usage::default()),
                Stage::Active => match record.keyed().and_then(|keyed| keyed.reused.as_ref()) {
                    Some(reused) => {
                        let since = self.charged(&record)?;
                        Ok(Usage { size: reused.size + since.size, ..since })
                    }
                    None => self.measured(&record),
                },
            }
        };
        used().context(|| format!("cannot tell what {key} uses"))
    }

    /// The inodes of a committed snapshot, of which its record tells from now on.
    fn count_for_good(&self, record: &Record) -> Result<u64> {
        let engine = self.engine;
        let count = self.keys.with_still(record, |tree| self.keys.counted_in(record, tree))?;
        let told = engine.store.update(record.uuid, |record| {
            if let Content::Keyed(Keyed { stage: Stage::Committed { apparent_size, inodes, .. }, .. }) =
                &mut record.content
            {
                (*apparent_size, *inodes) = (Some(count.file_bytes), Some(count.inodes));
            }
            Ok(())
        });
        if let Err(e) = told {
            tracing::debug!("what {} holds has to be counted again: {e}", record.uuid);
        }
        Ok(count.inodes)
    }

    fn measured(&self, record: &Record) -> Result<Usage> {
        let (engine, tree) = (self.engine, self.engine.tree(record));
        let known = engine.backend.state(&tree)?.and_then(|state| engine.usages.get(record.uuid, state));
        if let Some(usage) = known {
            return Ok(usage);
        }
        if engine.backend.clone_cost() != CloneCost::Constant || !engine.backend.nested(&tree)?.is_empty() {
            return self.charged(record);
        }
        let parent = engine.parent_tree(record)?;
        if let Some(now) = engine.backend.own_now(&tree, parent.as_ref())? {
            let usage = Usage { size: now.bytes, inodes: now.inodes };
            if let Some(state) = now.state {
                engine.usages.put(record.uuid, state, usage);
            }
            return Ok(usage);
        }
        self.keys.with_still(record, |still| {
            // On a full disk it may be the tree itself.
            if still.place() == tree.place() {
                return self.charged(record);
            }
            // Not the quota group's charge: the fork keeps what is deleted from now on charged until it is cleaned up, and what
            // both share isn't exclusive to either.
            let size = engine.backend.own(still, parent.as_ref())?.bytes();
            let usage = Usage { size, inodes: self.keys.counted_in(record, still)?.inodes };
            if let Some(state) = engine.backend.state_of_fork(&tree, still)? {
                engine.usages.put(record.uuid, state, usage);
            }
            Ok(usage)
        })
    }

    /// By the filesystem's own account, or where it keeps none by looking at the tree.
    fn charged(&self, record: &Record) -> Result<Usage> {
        let (backend, tree) = (&self.engine.backend, self.engine.tree(record));
        let measured = backend.measure(&[&tree], Want { sync: true, apparent: false })?;
        let size = measured.sizes.first().map_or(0, |size| size.charged);
        Ok(Usage { size, inodes: self.keys.count(record)?.inodes })
    }
}
