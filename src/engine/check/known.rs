//! What is known of layers, whatever became of their places: by their records, by the index, by the configurations of images.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use uuid::Uuid;

use super::Engine;
use crate::engine::image::hex;
use crate::oci::{Digest, ImageConfig, chain_ids};
use crate::store::survey::Survey;
use crate::store::{Content, Image, Layer, Owner, Record};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Those that are, or should be.
    pub(super) layers: HashMap<Uuid, Record>,
    /// Who is based on a tree, in words.
    pub(super) needed: BTreeMap<Uuid, BTreeSet<String>>,
    /// Trees that a record tells of, on disk.
    pub(super) there: BTreeMap<Uuid, Record>,
    /// Configurations that are what their digest says, by image ID.
    pub(super) configs: HashMap<String, ImageConfig>,
}

impl Known {
    pub(super) fn of(survey: &Survey, engine: &Engine) -> Self {
        let mut known = Self::default();
        for place in &survey.places {
            if let Some(record) = place.whole() {
                known.there.insert(place.uuid, record.clone());
            }
        }
        for blob in &survey.blobs {
            let Ok(bytes) = engine.store.blob(blob) else { continue };
            if Digest::of(&bytes).hex() == *blob
                && let Ok(config) = ImageConfig::parse(&bytes)
            {
                known.configs.insert(Digest::of(&bytes).to_string(), config);
            }
        }
        let rows = survey.index.rows().iter().map(|(record, _)| record);
        for record in rows.chain(known.there.values()).filter(|record| record.layer().is_some()) {
            known.layers.insert(record.uuid, record.clone());
        }
        for record in known.there.values() {
            if let Some(parent) = record.parent {
                known.needed.entry(parent).or_default().insert(super::called(record));
            }
        }
        for image in survey.images.iter().filter_map(|file| file.image.as_ref().ok()) {
            if let Some(top) = image.top {
                let name = image.names.keys().next().unwrap_or(&image.id);
                known.needed.entry(top).or_default().insert(crate::engine::image::familiar(name));
            }
            known.follow(image);
        }
        known
    }

    /// An image's configuration names its layers from the base up, and its file the topmost one's tree.
    fn follow(&mut self, image: &Image) {
        let Some(config) = self.configs.get(&image.id) else { return };
        let diff_ids = config.diff_ids.clone();
        let chain: Vec<_> = chain_ids(&diff_ids).into_iter().map(|id| id.to_string()).collect();
        let mut next = image.top;
        for at in (0..chain.len()).rev() {
            let below = at.checked_sub(1).and_then(|below| self.by_chain(&chain[below]));
            let Some(uuid) = next else { return };
            let record = self.layers.entry(uuid).or_insert_with(|| Record {
                uuid,
                owner: Owner::cli(),
                parent: below,
                group: None,
                created: image.loaded,
                replacing: false,
                related: false,
                inherits: Vec::new(),
                instead_of: None,
                content: Content::Layer(Layer {
                    diff_id: diff_ids[at].to_string(),
                    chain_id: chain[at].clone(),
                    size: 0,
                    size_method: String::new(),
                    apparent_size: 0,
                }),
            });
            if at > 0 && record.parent.is_none() && !self.there.contains_key(&uuid) {
                // Nothing tells which UUID it had; each look has to make up the same.
                record.parent = Some(made_up(&chain[at - 1]));
            }
            next = record.parent;
        }
    }

    fn by_chain(&self, chain_id: &str) -> Option<Uuid> {
        self.layers.values().find(|record| record.key().as_deref() == Some(chain_id)).map(|record| record.uuid)
    }

    /// The topmost tree of the layers of a configuration, if all of them are there.
    pub(super) fn top_of(&self, config: &ImageConfig) -> Option<Option<Uuid>> {
        match chain_ids(&config.diff_ids).last() {
            None => Some(None),
            Some(chain) => {
                let chain = chain.to_string();
                let found = self.there.values().find(|record| record.key().as_deref() == Some(chain.as_str()));
                found.map(|record| Some(record.uuid))
            }
        }
    }

    /// Layers that others are based on and that have no place.
    pub(super) fn missing(&self, survey: &Survey) -> Vec<&Record> {
        let mut missing: Vec<_> = self
            .layers
            .values()
            .filter(|record| !survey.places.iter().any(|place| place.uuid == record.uuid))
            .filter(|record| self.is_needed(record.uuid))
            .collect();
        missing.sort_by_key(|record| self.depth(record.uuid));
        missing
    }

    /// Whether trees, images or layers that are missing themselves are based on it.
    pub(super) fn is_needed(&self, uuid: Uuid) -> bool {
        self.needed.contains_key(&uuid)
            || self.layers.values().any(|layer| layer.parent == Some(uuid) && !self.there.contains_key(&layer.uuid))
    }

    /// How many layers are below one.
    pub(super) fn depth(&self, uuid: Uuid) -> usize {
        let parent = |uuid: &Uuid| self.layers.get(uuid).and_then(|record| record.parent);
        // Damaged records may form a ring.
        std::iter::successors(Some(uuid), parent).take(self.layers.len() + 1).count()
    }

    /// Who is based on it, in words.
    pub(super) fn users(&self, uuid: Uuid) -> String {
        match self.needed.get(&uuid) {
            None => "other layers".into(),
            Some(users) => {
                let shown: Vec<_> = users.iter().take(3).map(String::as_str).collect();
                let more = users.len().saturating_sub(shown.len());
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                format!("{}{more}", shown.join(", "))
            }
        }
    }
}

/// A UUID for the layer with this chain ID.
fn made_up(chain_id: &str) -> Uuid {
    let hex = Digest::of(chain_id.as_bytes()).hex();
    let bytes = u128::from_str_radix(hex.get(..32).unwrap_or_default(), 16).unwrap_or_default();
    uuid::Builder::from_random_bytes(bytes.to_be_bytes()).into_uuid()
}

/// The name of a blob's file.
pub(super) fn blob_name(digest: &str) -> &str {
    hex(digest)
}
