//! Clearing up: what crashed processes left, what nothing is based on, and the space of what was removed.

use std::collections::HashMap;
use std::time::Duration;

use super::docker::orphans::{Orphans, key_of};
use super::{Engine, view};
use crate::backend::Tree;
use crate::store::Record;
use crate::{Error, Result};

/// How long to wait for the filesystem to clean up what was removed.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// Something that nobody needs, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Garbage {
    pub kind: &'static str,
    /// Its UUID, digest or group number.
    pub id: String,
    pub reason: &'static str,
    /// Bytes, where known.
    pub size: Option<u64>,
}

/// What a collection found, and what the filesystem gave back.
#[derive(Debug, Default)]
pub struct Collected {
    pub garbage: Vec<Garbage>,
    /// How many bytes less the filesystem uses.
    pub freed: u64,
    /// What couldn't be told, and so wasn't touched.
    pub unknown: Vec<Error>,
}

impl Engine {
    /// Find what nobody needs; remove it unless `dry_run`. Images and containers are never touched.
    pub fn collect_garbage(&self, dry_run: bool) -> Result<Collected> {
        let before = self.backend.space()?.used;
        // Before this collection removes anything itself.
        let leftovers = self.backend.leftovers(&self.live_groups()?)?;
        let mut garbage = Vec::new();
        let records = if dry_run {
            // Dropped again at once: held only to tell the dead's from the living's.
            self.store.debris()?.iter().map(|held| held.record().clone()).collect()
        } else {
            self.tidy()?
        };
        garbage.extend(records.into_iter().map(|record| Garbage {
            kind: "tree",
            id: record.uuid.to_string(),
            reason: "whoever was making, replacing or removing it died",
            size: None,
        }));
        let (strays, mut unknown) = self.store.strays()?;
        for stray in strays {
            let place = stray.place().to_path_buf();
            if !dry_run {
                let removed = view::clear(&place)
                    .and_then(|()| self.backend.destroy(&Tree::new(&place, None)))
                    .and_then(|()| self.store.remove_stray(stray));
                if let Err(e) = removed {
                    tracing::warn!("cannot remove {}: {e}", place.display());
                    continue;
                }
            }
            garbage.push(Garbage {
                kind: "place",
                id: place.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
                reason: "it has no tree, and nobody knows it: whoever made it died",
                size: None,
            });
        }
        let spares = self.spares()?;
        let overhead = |spare: &Record| self.backend.overhead(&[&self.tree(spare)]).ok();
        let sized: HashMap<_, _> = spares.iter().map(|spare| (spare.uuid, overhead(spare))).collect();
        let spares = if dry_run { spares } else { self.drop_spares(|_| true)? };
        garbage.extend(spares.into_iter().map(|spare| Garbage {
            kind: "spare",
            id: spare.uuid.to_string(),
            reason: "it is only there to make the next container sooner",
            size: sized.get(&spare.uuid).copied().flatten(),
        }));
        let Orphans { trees, unknown: of_docker } = self.docker_orphans()?;
        unknown.extend(of_docker);
        let sized: HashMap<_, _> = trees.iter().map(|tree| (tree.uuid, self.orphan_size(tree))).collect();
        let trees = if dry_run { trees } else { self.remove_orphans(trees)? };
        garbage.extend(trees.into_iter().map(|tree| Garbage {
            kind: "docker-layer",
            id: key_of(&tree),
            reason: "dockerd was killed, and doesn't know it any more",
            size: sized.get(&tree.uuid).copied().flatten(),
        }));
        let layers = if dry_run { self.unused_layers()? } else { self.collect_layers()? };
        garbage.extend(layers.into_iter().map(|record| Garbage {
            kind: "layer",
            id: record.layer().map_or_else(String::new, |layer| layer.chain_id.clone()),
            reason: "no image or container is based on it",
            size: record.layer().map(|layer| layer.size),
        }));
        let guard = self.store.lock_images()?;
        garbage.extend(self.store.collect_blobs(&guard, dry_run)?.into_iter().map(|digest| Garbage {
            kind: "blob",
            id: format!("sha256:{digest}"),
            reason: "no image names it",
            size: None,
        }));
        garbage.extend(self.store.collect_drafts(&guard, dry_run)?.into_iter().map(|name| Garbage {
            kind: "draft",
            id: name,
            reason: "whoever wrote this image's file died at it",
            size: None,
        }));
        drop(guard);
        garbage.extend(leftovers.into_iter().map(|leftover| Garbage {
            kind: leftover.kind,
            id: leftover.name,
            reason: "its tree was removed",
            size: Some(leftover.charged),
        }));
        if !dry_run {
            if let Err(e) = self.backend.reclaim(&self.live_groups()?, PATIENCE) {
                tracing::warn!("some of what was removed is given back by the next collection: {e}");
            }
            self.backend.sync_to_count();
            self.backend.trim()?;
        }
        let freed = before.saturating_sub(self.backend.space()?.used);
        Ok(Collected { garbage, freed, unknown })
    }
}
