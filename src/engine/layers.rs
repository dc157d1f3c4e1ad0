//! Layers: listing them, and removing those that nothing is based on.

use std::collections::HashSet;

use super::Engine;
use crate::store::{Draft, Lock, Owner, Record, State, TreeKind};
use crate::{Error, Kind, Result};

/// A layer, and who holds it.
#[derive(Debug, Clone)]
pub struct LayerInfo {
    pub record: Record,
    pub directory: std::path::PathBuf,
    /// Names (or IDs) of the images that include it.
    pub images: Vec<String>,
    /// Names of the containers made from it.
    pub containers: Vec<String>,
}

impl Engine {
    /// All layers, parents before their children.
    pub fn layers(&self) -> Result<Vec<LayerInfo>> {
        let layers = self.all_layers()?;
        let images = self.store.images()?;
        let containers = self.containers()?;
        let chains: Vec<_> = images
            .iter()
            .map(|image| {
                let name = image.names.keys().next().unwrap_or(&image.id).clone();
                let members: HashSet<_> = layers.chain(image.top).iter().map(|layer| layer.uuid).collect();
                (name, members)
            })
            .collect();
        let mut records = self.store.list(TreeKind::Layer)?;
        records.sort_by_cached_key(|record| layers.chain(Some(record.uuid)).len());
        Ok(records
            .into_iter()
            .map(|record| LayerInfo {
                directory: self.store.place(record.uuid).join("fs"),
                images: chains
                    .iter()
                    .filter(|(_, of)| of.contains(&record.uuid))
                    .map(|(name, _)| name.clone())
                    .collect(),
                containers: containers
                    .iter()
                    .filter(|container| container.parent == Some(record.uuid))
                    .filter_map(|container| container.container().map(|c| c.name.clone()))
                    .collect(),
                record,
            })
            .collect())
    }

    /// Layers that no image, container or other layer is based on, from the top down.
    pub(super) fn unused_layers(&self) -> Result<Vec<Record>> {
        let images = self.store.images()?;
        let layers = self.store.list(TreeKind::Layer)?;
        let mut needed: HashSet<_> = images.iter().filter_map(|image| image.top).collect();
        needed.extend(self.containers()?.iter().filter_map(|container| container.parent));
        let chains = self.all_layers()?;
        let needed: HashSet<_> = needed.into_iter().flat_map(|top| chains.chain(Some(top))).map(|r| r.uuid).collect();
        let mut unused: Vec<_> = layers.into_iter().filter(|layer| !needed.contains(&layer.uuid)).collect();
        unused.sort_by_key(|layer| std::cmp::Reverse(chains.chain(Some(layer.uuid)).len()));
        Ok(unused)
    }

    /// After a load, whatever became of it: what it found broken off, and what its own failure left. After an image was removed,
    /// which it is whatever becomes of its layers.
    pub(super) fn collect_now(&self) {
        if let Err(e) = self.collect_layers() {
            tracing::warn!("cannot remove layers that nothing is based on: {e}");
        }
    }

    /// The layer that has the key of a draft, which is not needed then. Another process may be making it still.
    pub(super) fn same_layer(&self, draft: Draft) -> Result<Record> {
        let key = draft.record().key().unwrap_or_default().into_owned();
        self.discard(draft);
        let find = || self.store.by_key(&Owner::cli(), TreeKind::Layer, &key);
        let there = match find()? {
            Some((record, State::Making)) => {
                self.store.wait_for(record.uuid)?;
                find()?
            }
            there => there,
        };
        let whole = there.filter(|(_, state)| state.is_live()).map(|(record, _)| record);
        whole.ok_or_else(|| Error::new(Kind::InUse, "the same layer is being removed").with_hint("try again"))
    }

    /// Remove them, unless somebody is loading: a load counts on the layers it has found, and collects when it is done.
    pub(super) fn collect_layers(&self) -> Result<Vec<Record>> {
        let Some(alone) = self.store.lock_loads(Lock::TryExclusive)? else { return Ok(Vec::new()) };
        let mut removed = Vec::new();
        for layer in self.unused_layers()? {
            self.drop_spares(|spare| spare.parent == Some(layer.uuid))?;
            match self.remove_tree(&layer) {
                Ok(()) => removed.push(layer),
                // A container or a spare is made from it since we looked, or another process removes it.
                Err(e) if matches!(e.kind(), Kind::InUse | Kind::NotFound) => {}
                Err(e) => return Err(e),
            }
        }
        drop(alone);
        Ok(removed)
    }
}
