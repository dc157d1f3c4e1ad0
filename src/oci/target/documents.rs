//! The documents of an archive: manifests, the index of a layout, and Docker's own.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::TargetImage;
use super::blob::name;
use crate::oci::decompress::Compression;
use crate::oci::digest::{DiffId, Digest};
use crate::oci::reference::Reference;
use crate::{Error, Kind, Result};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// What was written of a layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blob {
    pub(super) digest: Digest,
    pub(super) size: u64,
}

/// Grows with each image.
#[derive(Debug, Default)]
pub(super) struct Documents {
    /// Of the layout's index.
    manifests: Vec<Value>,
    /// Of `manifest.json`.
    entries: Vec<Value>,
    /// Docker's names before 1.10: repository, tag, topmost layer.
    repositories: BTreeMap<String, BTreeMap<String, String>>,
}

impl Documents {
    /// Take in an image whose layers are written. The bytes of its manifest.
    pub(super) fn add(
        &mut self,
        image: &TargetImage,
        blobs: &BTreeMap<DiffId, Blob>,
        compression: Compression,
    ) -> Result<Vec<u8>> {
        let config = Digest::of(&image.config);
        let layers: Vec<Blob> = image
            .diff_ids
            .iter()
            .map(|diff_id| blobs.get(diff_id).copied())
            .collect::<Option<_>>()
            .ok_or_else(|| Error::new(Kind::System, "a layer was not written"))?;
        let media_type = match compression {
            Compression::Plain => LAYER.to_string(),
            Compression::Gzip => format!("{LAYER}+gzip"),
            Compression::Zstd => format!("{LAYER}+zstd"),
        };
        let layer = |blob: &Blob| descriptor(&media_type, blob.digest, blob.size);
        let manifest = bytes(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, config, image.config.len() as u64),
            "layers": layers.iter().map(layer).collect::<Vec<_>>(),
        }))?;

        let listed = descriptor(MANIFEST, Digest::of(&manifest), manifest.len() as u64);
        self.manifests.extend(image.names.iter().map(|name| {
            let mut listed = listed.clone();
            // The full name in both: what reads the second alone takes it as it stands.
            let name = name.canonical();
            listed["annotations"] =
                json!({ "io.containerd.image.name": name, "org.opencontainers.image.ref.name": name });
            listed
        }));
        if image.names.is_empty() {
            self.manifests.push(listed);
        }

        let sources: BTreeMap<String, Value> =
            layers.iter().map(|blob| (blob.digest.to_string(), layer(blob))).collect();
        let tags: Vec<_> = image.names.iter().map(ToString::to_string).collect();
        self.entries.push(json!({
            "Config": name(config),
            "RepoTags": if tags.is_empty() { Value::Null } else { tags.into() },
            "Layers": layers.iter().map(|blob| name(blob.digest)).collect::<Vec<_>>(),
            "LayerSources": sources,
        }));
        if let Some(top) = layers.last() {
            for (name, tag) in image.names.iter().filter_map(tagged) {
                self.repositories.entry(name).or_default().insert(tag, top.digest.hex());
            }
        }
        Ok(manifest)
    }

    pub(super) fn index(&self) -> Result<Vec<u8>> {
        bytes(&json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": self.manifests }))
    }

    pub(super) fn docker_manifest(&self) -> Result<Vec<u8>> {
        bytes(&json!(self.entries))
    }

    pub(super) fn repositories(&self) -> Result<Vec<u8>> {
        bytes(&json!(self.repositories))
    }
}

fn tagged(name: &Reference) -> Option<(String, String)> {
    name.tag().map(|tag| (name.familiar_name(), tag.to_string()))
}

fn descriptor(media_type: &str, digest: Digest, size: u64) -> Value {
    json!({ "mediaType": media_type, "digest": digest, "size": size })
}

fn bytes(document: &Value) -> Result<Vec<u8>> {
    serde_json::to_vec(document).map_err(|e| Error::new(Kind::Invalid, format!("cannot write JSON: {e}")))
}
