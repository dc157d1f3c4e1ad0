//! Numbers of what there is, for who watches: cheap, and as of the last commit.

use std::collections::BTreeMap;

use super::Engine;
use super::info::StoreInfo;
use crate::Result;
use crate::store::{Owner, Stage, TreeKind};

/// See the module.
#[derive(Debug, Clone)]
pub struct Census {
    pub info: StoreInfo,
    pub snapshots: usize,
    pub spares: usize,
    /// Trees with keys, by owner and stage.
    pub keyed: BTreeMap<(String, &'static str), usize>,
    /// Removed trees that the filesystem hasn't cleaned up yet, and the bytes that they hold.
    pub pending: (usize, u64),
}

impl Engine {
    pub fn census(&self) -> Result<Census> {
        let mut keyed = BTreeMap::new();
        for record in self.store.list(TreeKind::Keyed)? {
            let stage = match record.keyed().map(|keyed| &keyed.stage) {
                Some(Stage::Reserved) => "reserved",
                Some(Stage::Active) => "active",
                Some(Stage::View) => "view",
                Some(Stage::Committed { .. }) => "committed",
                None => continue,
            };
            *keyed.entry((record.owner.as_str().to_string(), stage)).or_default() += 1;
        }
        let leftovers = self.backend.leftovers(&self.live_groups()?)?;
        Ok(Census {
            info: self.info()?,
            snapshots: self.store.list(TreeKind::Snapshot)?.len(),
            spares: self.spares()?.len(),
            keyed,
            pending: (leftovers.len(), leftovers.iter().map(|leftover| leftover.charged).sum()),
        })
    }

    /// Whether the index answers.
    pub fn probe(&self) -> Result<()> {
        self.store.by_key(&Owner::cli(), TreeKind::Keyed, "").map(drop)
    }
}
