//! Keyed trees of all owners, for `layers` and `df`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;

use uuid::Uuid;

use crate::Result;
use crate::backend::Want;
use crate::engine::Engine;
use crate::engine::usage::KeyedUsage;
use crate::store::{Keyed, Record, Stage, TreeKind};

/// A keyed tree, for a list.
#[derive(Debug, Clone)]
pub struct KeyedInfo {
    pub record: Record,
    /// The key of what it is based on.
    pub parent: Option<String>,
    /// The key of what its init layer is based on, if it has one.
    pub below_init: Option<String>,
    /// Bytes that it takes and what it is based on doesn't.
    pub size: u64,
    /// How they were counted; nothing has been for one without a tree.
    pub method: Option<String>,
    /// `None` for one without a tree.
    pub directory: Option<PathBuf>,
}

/// What `df` counts.
pub(in crate::engine) struct AllKeyed {
    pub(in crate::engine) owners: Vec<KeyedUsage>,
    pub(in crate::engine) trees: Vec<Record>,
    /// Bytes of reused layers, as often as they are counted beyond the first time.
    pub(in crate::engine) counted_again: u64,
}

impl Engine {
    /// The keyed trees of all owners, parents before their children. Sizes are as of the last commit of the filesystem.
    pub fn keyed_trees(&self) -> Result<Vec<KeyedInfo>> {
        let mut records = self.store.list(TreeKind::Keyed)?;
        let sizes = self.active_sizes(&records)?;
        let by_uuid: HashMap<Uuid, Record> = records.iter().map(|record| (record.uuid, record.clone())).collect();
        let above = |record: &Record| record.parent.and_then(|parent| by_uuid.get(&parent));
        records.sort_by_cached_key(|record| std::iter::successors(Some(record), |record| above(record)).count());
        Ok(records
            .iter()
            .filter_map(|record| {
                let keyed = record.keyed()?;
                let (size, method) = match &keyed.stage {
                    Stage::Reserved | Stage::View => (0, None),
                    Stage::Committed { size, size_method, .. } => (*size, Some(size_method.clone())),
                    Stage::Active => sizes.get(&record.uuid).cloned().unwrap_or_default(),
                };
                let below = above(record).and_then(Record::keyed).map(|parent| parent.key.clone());
                let (parent, below_init) = match &keyed.init {
                    Some(init) => (Some(init.key.clone()), below),
                    None => (below, None),
                };
                let directory = record.has_tree().then(|| self.tree(record).root());
                Some(KeyedInfo { record: record.clone(), parent, below_init, size, method, directory })
            })
            .collect())
    }

    fn active_sizes(&self, records: &[Record]) -> Result<HashMap<Uuid, (u64, Option<String>)>> {
        let active = records.iter().filter(|record| is(record, |keyed| keyed.stage == Stage::Active)).cloned();
        let sizes = self.sizes(active.collect(), Want { sync: false, apparent: false })?;
        Ok(sizes
            .into_iter()
            .map(|(record, sizes)| (record.uuid, (sizes.size, Some(sizes.method.to_string()))))
            .collect())
    }

    /// What each owner's keyed trees take, as of the last commit of the filesystem.
    pub(in crate::engine) fn keyed_usage(&self) -> Result<AllKeyed> {
        let trees = self.store.list(TreeKind::Keyed)?;
        let sizes = self.active_sizes(&trees)?;
        let mut owners = BTreeMap::new();
        for record in &trees {
            let Some(keyed) = record.keyed() else { continue };
            let usage = owners.entry(record.owner.clone()).or_insert_with(|| KeyedUsage {
                owner: record.owner.clone(),
                layers: 0,
                containers: 0,
                layers_size: 0,
                containers_size: 0,
            });
            match &keyed.stage {
                Stage::Reserved => usage.layers += 1,
                Stage::View => usage.containers += 1,
                Stage::Committed { size, .. } => {
                    usage.layers += 1;
                    usage.layers_size += size;
                }
                Stage::Active => {
                    usage.containers += 1;
                    usage.containers_size += sizes.get(&record.uuid).map_or(0, |(size, _)| *size);
                }
            }
        }
        let counted_again = self.counted_again(&trees)?;
        Ok(AllKeyed { owners: owners.into_values().collect(), trees, counted_again })
    }

    fn counted_again(&self, trees: &[Record]) -> Result<u64> {
        let (mut again, mut counted) = (0, HashSet::new());
        for keyed in trees.iter().filter_map(Record::keyed) {
            if let (Stage::Committed { .. }, Some(reused)) = (&keyed.stage, &keyed.reused)
                && (!counted.insert(reused.origin) || self.store.get(reused.origin)?.is_some())
            {
                again += reused.size;
            }
        }
        Ok(again)
    }
}

fn is(record: &Record, what: impl Fn(&Keyed) -> bool) -> bool {
    record.keyed().is_some_and(what)
}
