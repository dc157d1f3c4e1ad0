//! What a snapshot has beyond its parent, as numbers. They are kept for as long as the tree is as it was: kubelets ask for all
//! containers again and again.

use super::{Snapshots, stage_of};
use crate::backend::{CloneCost, Want};
use crate::engine::delta;
use crate::engine::keyed::Counted;
use crate::layer::pack;
use crate::store::{Record, Stage};
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
                Stage::Committed { size, inodes: Some(inodes), .. } => Ok(Usage { size: *size, inodes: *inodes }),
                Stage::View | Stage::Reserved => Ok(Usage::default()),
                Stage::Active | Stage::Committed { .. } => self.measured(&record),
            }
        };
        used().context(|| format!("cannot tell what {key} uses"))
    }

    fn measured(&self, record: &Record) -> Result<Usage> {
        let (engine, tree) = (self.engine, self.engine.tree(record));
        let known = engine.backend.state(&tree)?.and_then(|state| engine.usages.get(record.uuid, state));
        if let Some(usage) = known {
            return Ok(usage);
        }
        let size = |sync| -> Result<u64> {
            let measured = engine.backend.measure(&[&tree], Want { sync, apparent: false })?;
            Ok(measured.sizes.first().map_or(0, |size| size.charged))
        };
        if engine.backend.clone_cost() != CloneCost::Constant || !engine.backend.nested(&tree)?.is_empty() {
            return Ok(Usage { size: size(true)?, inodes: self.keys.count(record)?.inodes });
        }
        self.keys.with_still(record, |still| {
            let changes = self.keys.since_parent(record, still)?;
            let cancelled = || engine.is_cancelled();
            let inodes = pack::count(&still.root(), &delta::items(&changes), &cancelled)?.inodes;
            // On a full disk it may be the tree itself. Otherwise making it was a commit.
            let is_fork = still.place() != tree.place();
            let usage = Usage { size: size(!is_fork)?, inodes };
            if is_fork && let Some(state) = engine.backend.state_of_fork(&tree, still)? {
                engine.usages.put(record.uuid, state, usage);
            }
            Ok(usage)
        })
    }
}
