//! The documents of an archive: manifests, the index of a layout, and Docker's own.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::TargetImage;
use super::blob::name;
use crate::oci::decompress::Compression;
use crate::oci::digest::{DiffId, Digest};
use crate::oci::manifest::Descriptor;
use crate::oci::reference::Reference;
use crate::{Error, Kind, Result};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// The media type of a layer that is stored like this.
#[must_use]
pub fn layer_type(compression: Compression) -> String {
    match compression {
        Compression::Plain => LAYER.to_string(),
        Compression::Gzip => format!("{LAYER}+gzip"),
        Compression::Zstd => format!("{LAYER}+zstd"),
    }
}

/// OCI's media type for a layer that has Docker's: an OCI manifest has its own.
#[must_use]
pub fn oci_layer_type(media_type: &str) -> String {
    const DOCKER: &str = "application/vnd.docker.image.rootfs.diff.tar";
    const FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar";
    let suffix = |rest: &str| rest.strip_prefix('.').map_or_else(String::new, |how| format!("+{how}"));
    if let Some(rest) = media_type.strip_prefix(DOCKER) {
        return format!("{LAYER}{}", suffix(rest));
    }
    match media_type.strip_prefix(FOREIGN) {
        Some(rest) => format!("application/vnd.oci.image.layer.nondistributable.v1.tar{}", suffix(rest)),
        None => media_type.to_string(),
    }
}

/// The manifest of an image with these blobs as its layers, the lowest first: its media type and its bytes.
///
/// # Errors
/// If it can't be written as JSON.
pub fn image_manifest(config: &[u8], layers: &[Descriptor]) -> Result<(&'static str, Vec<u8>)> {
    let layer = |blob: &Descriptor| descriptor(&blob.media_type, blob.digest, blob.size);
    let manifest = bytes(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, Digest::of(config), config.len() as u64),
        "layers": layers.iter().map(layer).collect::<Vec<_>>(),
    }))?;
    Ok((MANIFEST, manifest))
}

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
        let media_type = layer_type(compression);
        let layer = |blob: &Blob| descriptor(&media_type, blob.digest, blob.size);
        let described: Vec<_> =
            layers.iter().map(|blob| Descriptor::new(&media_type, blob.digest, blob.size)).collect();
        let manifest = image_manifest(&image.config, &described)?.1;

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
        // In full: to podman a short name is one of `localhost`.
        let tags: Vec<_> = image.names.iter().map(Reference::canonical).collect();
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
