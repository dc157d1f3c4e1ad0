//! `docker save`: a `manifest.json` that names each image's config and layers by their paths.
//!
//! Written in three ways. Docker up to 24: `<id>.json` and `<hex>/layer.tar`, the latter a symlink to
//! another where images share a layer. Docker from 25 and podman: paths of blobs. go-containerregistry
//! and kaniko: a config called `sha256:<id>` and compressed layers. There is no digest of a manifest;
//! what ties it together is that the config's digest is the image's ID and lists the diff IDs.

use serde::Deserialize;

use super::loader::{Document, Loader};
use super::{SourceImage, SourceLayer};
use crate::oci::digest::{DiffId, Digest, ImageId, quoted};
use crate::oci::json::null_default;
use crate::oci::manifest::Descriptor;
use crate::oci::reference::Reference;
use crate::{Context, Error, Kind, Result};

/// Where the archive's description is.
pub(super) const MANIFEST: &str = "manifest.json";

/// The contents of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub(super) struct Archive(#[serde(deserialize_with = "null_default")] Vec<Entry>);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    #[serde(default, deserialize_with = "null_default")]
    config: String,
    #[serde(default, deserialize_with = "null_default")]
    repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "null_default")]
    layers: Vec<String>,
}

impl Entry {
    fn names(&self) -> Result<Vec<Reference>> {
        let parse = |name: &String| name.parse().map_err(|e: Error| Error::new(Kind::BadInput, e.to_string()));
        self.repo_tags.iter().map(parse).collect()
    }

    fn label(&self) -> String {
        let name = self.repo_tags.first().unwrap_or(&self.config);
        format!("image {}", quoted(name))
    }
}

/// The images that the archive describes.
pub(super) fn images(loader: &mut Loader<'_>, archive: &Archive) -> Result<Vec<SourceImage>> {
    let mut images = Vec::new();
    for entry in &archive.0 {
        loader.count_document()?;
        let image = image(loader, entry).context(|| entry.label())?;
        loader.merge(&mut images, image)?;
    }
    if images.is_empty() {
        return Err(Error::new(Kind::BadInput, "it holds no image: its manifest.json is empty"));
    }
    Ok(images)
}

/// Add the archive's names to images that came from the OCI layout beside it.
pub(super) fn add_names(loader: &Loader<'_>, archive: &Archive, images: &mut [SourceImage]) -> Result<()> {
    for entry in &archive.0 {
        let Some(digest) = digest_in(&entry.config)? else { continue };
        for image in images.iter_mut().filter(|image| image.id == ImageId(digest)) {
            loader.add_names(image, entry.names().context(|| MANIFEST)?)?;
        }
    }
    Ok(())
}

fn image(loader: &mut Loader<'_>, entry: &Entry) -> Result<SourceImage> {
    let missing = |noun| Error::new(Kind::BadInput, format!("it is missing from the {noun}"));
    let noun = loader.files.noun();
    let label = || format!("config {}", quoted(&entry.config));
    let bytes = loader.read(&entry.config, Document::Config).context(label)?;
    let config_bytes = bytes.ok_or_else(|| missing(noun)).context(label)?;
    let digest = Digest::of(&config_bytes);
    if let Some(expected) = digest_in(&entry.config).context(label)?
        && expected != digest
    {
        return Err(Error::new(Kind::BadInput, format!("its bytes have the digest {digest}")).context(label()));
    }
    let config = loader.config(&config_bytes).context(label)?;
    loader.check_layer_count(entry.layers.len(), &config)?;
    let total = entry.layers.len();
    let mut layers = Vec::with_capacity(total);
    for (i, (name, diff_id)) in entry.layers.iter().zip(&config.diff_ids).enumerate() {
        let layer = layer(loader, name, *diff_id).and_then(|layer| layer.ok_or_else(|| missing(noun)));
        layers.push(layer.context(|| format!("layer {} of {total} ({})", i + 1, quoted(name)))?);
    }
    Ok(SourceImage { names: entry.names()?, manifest: None, config_bytes, id: ImageId(digest), config, layers })
}

fn layer(loader: &Loader<'_>, name: &str, diff_id: DiffId) -> Result<Option<SourceLayer>> {
    let mut layer = loader.layer(name.to_string(), diff_id, None)?;
    if let Some(layer) = &mut layer
        && let Some(hex) = name.strip_prefix("blobs/sha256/")
    {
        layer.blob = Some(Descriptor::bare(Digest::from_hex(hex)?, layer.size));
    }
    Ok(layer)
}

/// The digest that a config's path promises. Paths of other forms promise nothing.
fn digest_in(path: &str) -> Result<Option<Digest>> {
    if let Some(hex) = path.strip_prefix("blobs/sha256/") {
        return Digest::from_hex(hex).map(Some);
    }
    if path.starts_with("sha256:") {
        return path.parse().map(Some);
    }
    let stem = path.strip_suffix(".json").unwrap_or(path);
    Ok(Digest::from_hex(stem).ok())
}
