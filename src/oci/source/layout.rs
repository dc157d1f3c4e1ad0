//! OCI layouts (image-layout.md): `index.json`, and blobs by their digests.
//!
//! The top index lists *images*, an index below it lists one image's *platforms*. Tools also put
//! several platforms of one image straight into the top index; entries there under one name (or all
//! without one) of which some fit this machine stand for those alone.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::loader::{Document, Loader, blob_name};
use super::{NamedDocument, SourceImage, SourceLayer};
use crate::oci::digest::{DiffId, Digest, ImageId, quoted};
use crate::oci::json;
use crate::oci::limits::beyond;
use crate::oci::manifest::{self, Descriptor, Index, Manifest, Media};
use crate::oci::platform::{Platform, listed};
use crate::oci::reference::Reference;
use crate::{Context, Error, Kind, Result};

/// A full name, written by containerd, Docker and BuildKit.
const IMAGE_NAME: &str = "io.containerd.image.name";
/// A tag or a name, as each tool likes (annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Written by BuildKit at manifests that describe another one.
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";

/// The usable images of a layout, and why others weren't.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) images: Vec<SourceImage>,
    /// Media types of what isn't an image.
    artifacts: Vec<String>,
}

impl Found {
    pub(super) fn no_image(&self) -> Error {
        let why = match self.artifacts.first() {
            Some(one) => format!("it holds no image, only other artifacts ({})", quoted(one)),
            None => "it holds no image: its index is empty".into(),
        };
        Error::new(Kind::BadInput, why)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    image_layout_version: String,
}

/// The images of the input's layout, or nothing if it has none.
pub(super) fn images(loader: &mut Loader<'_>) -> Result<Option<Found>> {
    let Some(bytes) = loader.read("index.json", Document::Manifest).context(|| "index.json")? else {
        return Ok(None);
    };
    // Docker wrote layouts without the version's file, so only a wrong one counts.
    if let Some(version) = loader.document::<Version>("oci-layout")?
        && !version.image_layout_version.starts_with("1.")
    {
        let why = format!("its OCI layout has version {}, not 1.x", quoted(&version.image_layout_version));
        return Err(Error::new(Kind::Unsupported, why));
    }
    let index = Index::parse(&bytes).context(|| "index.json")?;
    let mut walk = Walk::new(loader);
    let mut images = Vec::new();
    for entry in walk.choose_top(&index)? {
        let names: Vec<_> = name(&entry.annotations)?.into_iter().collect();
        let label = names.first().map_or_else(|| format!("image {}", entry.digest), |name| format!("image {name}"));
        if let Some(mut image) = walk.visit(entry, 0).context(|| label)? {
            image.names = names;
            walk.loader.merge(&mut images, image)?;
        }
    }
    Ok(Some(Found { images, artifacts: walk.artifacts }))
}

/// The image for this machine of a manifest or index that has been read, and that. `media_type` is what it came as;
/// `expected` is what its digest has to be, if that is known.
pub(super) fn named(
    loader: &mut Loader<'_>,
    media_type: &str,
    bytes: Vec<u8>,
    expected: Option<Digest>,
) -> Result<(NamedDocument, SourceImage)> {
    loader.admit(bytes.len() as u64, Document::Manifest)?;
    json::check(&bytes, loader.limits)?;
    let digest = Digest::of(&bytes);
    if let Some(expected) = expected.filter(|expected| *expected != digest) {
        let why = format!("its bytes have the digest {digest}, {expected} was asked for");
        return Err(Error::new(Kind::BadInput, why));
    }
    // Some servers say application/json or nothing; then it is what it calls itself.
    let media_type = match Media::of(media_type) {
        Media::Other => manifest::own_media_type(&bytes)?,
        _ => media_type.to_string(),
    };
    let entry = Descriptor::new(&media_type, digest, bytes.len() as u64);
    let index = (Media::of(&media_type) == Media::Index).then(|| bytes.clone());
    let mut walk = Walk { at_hand: Some((digest, bytes)), ..Walk::new(loader) };
    let Some(image) = walk.visit(&entry, 0)? else {
        return Err(Found { images: Vec::new(), artifacts: walk.artifacts }.no_image());
    };
    let platform = &image.config.platform;
    if !platform.architecture.is_empty() && platform.distance(&walk.host).is_none() {
        return Err(walk.no_platform([platform]));
    }
    Ok((NamedDocument { digest, index }, image))
}

/// What an entry of the top index is called.
///
/// A bare `org.opencontainers.image.ref.name` is a name for some tools (`skopeo copy ... oci:DIR:nginx`) and a tag for
/// others (umoci's `latest`): it names the image unless it looks like a tag.
fn name(annotations: &BTreeMap<String, String>) -> Result<Option<Reference>> {
    if let Some(name) = annotations.get(IMAGE_NAME) {
        return name.parse().map(Some).map_err(|e: Error| Error::new(Kind::BadInput, e.to_string()));
    }
    Ok(match annotations.get(REF_NAME) {
        // The spec allows more characters in it than names have; then it names nothing.
        Some(name) if !looks_like_a_tag(name) => name.parse().ok(),
        _ => None,
    })
}

fn looks_like_a_tag(name: &str) -> bool {
    let version = name.strip_prefix('v').unwrap_or(name);
    let is_version = version.starts_with(|c: char| c.is_ascii_digit());
    !name.contains(['/', ':']) && (is_version || ["latest", "stable", "edge", "main", "master"].contains(&name))
}

struct Walk<'l, 'a> {
    loader: &'l mut Loader<'a>,
    host: Platform,
    artifacts: Vec<String>,
    /// A document that has been read already.
    at_hand: Option<(Digest, Vec<u8>)>,
}

impl<'l, 'a> Walk<'l, 'a> {
    fn new(loader: &'l mut Loader<'a>) -> Self {
        Self { loader, host: Platform::host(), artifacts: Vec::new(), at_hand: None }
    }

    /// The entries of the top index that stand for an image each.
    fn choose_top<'i>(&self, index: &'i Index) -> Result<Vec<&'i Descriptor>> {
        let entries: Vec<&Descriptor> = index.manifests.iter().filter(|entry| !is_attestation(entry)).collect();
        let mut best: BTreeMap<Option<&str>, u8> = BTreeMap::new();
        for entry in &entries {
            if let Some(distance) = entry.platform().and_then(|platform| platform.distance(&self.host)) {
                let least = best.entry(raw_name(entry)).or_insert(distance);
                *least = distance.min(*least);
            }
        }
        let usable = |entry: &Descriptor| match entry.platform() {
            None => true,
            Some(platform) => {
                platform.distance(&self.host).is_some_and(|distance| best.get(&raw_name(entry)) == Some(&distance))
            }
        };
        let chosen: Vec<&Descriptor> = entries.iter().copied().filter(|entry| usable(entry)).collect();
        let covered: BTreeSet<Option<&str>> = chosen.iter().map(|entry| raw_name(entry)).collect();
        if let Some(name) = entries.iter().map(|entry| raw_name(entry)).find(|name| !covered.contains(name)) {
            let has = entries.iter().filter(|entry| raw_name(entry) == name).filter_map(|entry| entry.platform());
            let error = self.no_platform(has);
            return Err(match name {
                Some(name) => error.context(format!("image {}", quoted(name))),
                None => error,
            });
        }
        Ok(chosen)
    }

    /// The image that a manifest is, or the one for this machine out of an index.
    fn visit(&mut self, entry: &Descriptor, depth: usize) -> Result<Option<SourceImage>> {
        match Media::of(&entry.media_type) {
            Media::Manifest => self.image(entry).context(|| format!("manifest {}", entry.digest)),
            Media::Index if depth == self.loader.limits.index_depth => Err(beyond(
                format!("it has indexes within indexes more than the limit of {depth} deep"),
                "max_index_depth",
            )),
            Media::Index => {
                let index = self.document(entry).and_then(|bytes| Index::parse(&bytes));
                let index = index.context(|| format!("index {}", entry.digest))?;
                self.pick(&index, depth)
            }
            Media::Schema1 => {
                Err(Error::new(Kind::Unsupported, "its manifest is a Docker schema 1, which has no config")
                    .with_hint("pull and save it with a newer Docker"))
            }
            _ => {
                self.artifacts.push(entry.media_type.clone());
                Ok(None)
            }
        }
    }

    /// One image out of an index: best platform first; entries that don't tell theirs come last, and
    /// count if their config fits.
    fn pick(&mut self, index: &Index, depth: usize) -> Result<Option<SourceImage>> {
        let mut candidates: Vec<(u8, &Descriptor)> = Vec::new();
        let mut unfit: Vec<Platform> = Vec::new();
        for entry in index.manifests.iter().filter(|entry| !is_attestation(entry)) {
            match entry.platform() {
                None => candidates.push((u8::MAX, entry)),
                Some(platform) => match platform.distance(&self.host) {
                    Some(distance) => candidates.push((distance, entry)),
                    None => unfit.push(platform.clone()),
                },
            }
        }
        candidates.sort_by_key(|(distance, _)| *distance);
        for (_, entry) in candidates {
            let Some(image) = self.visit(entry, depth + 1)? else { continue };
            let platform = &image.config.platform;
            if entry.platform().is_some() || platform.distance(&self.host).is_some() {
                return Ok(Some(image));
            }
            unfit.push(platform.clone());
        }
        if unfit.is_empty() { Ok(None) } else { Err(self.no_platform(&unfit)) }
    }

    fn no_platform<'p>(&self, has: impl IntoIterator<Item = &'p Platform>) -> Error {
        let why = format!("it has no image for {}; it has {}", self.host, listed(has));
        Error::new(Kind::Unsupported, why)
    }

    /// The verified bytes of a manifest or index.
    fn document(&mut self, entry: &Descriptor) -> Result<Vec<u8>> {
        self.loader.count_document()?;
        if let Some((_, bytes)) = self.at_hand.take_if(|(digest, _)| *digest == entry.digest) {
            return Ok(bytes);
        }
        let bytes = self.loader.blob(entry, Document::Manifest)?;
        bytes.ok_or_else(|| self.missing())
    }

    fn missing(&self) -> Error {
        Error::new(Kind::BadInput, format!("it is missing from the {}", self.loader.files.noun()))
    }

    fn image(&mut self, entry: &Descriptor) -> Result<Option<SourceImage>> {
        let bytes = self.document(entry)?;
        let manifest = Manifest::parse(&bytes)?;
        if Media::of(&manifest.config.media_type) != Media::Config {
            self.artifacts.push(manifest.config.media_type);
            return Ok(None);
        }
        let digest = manifest.config.digest;
        let (config_bytes, config) = self
            .loader
            .blob(&manifest.config, Document::Config)
            .and_then(|bytes| bytes.ok_or_else(|| self.missing()))
            .and_then(|bytes| self.loader.config(&bytes).map(|config| (bytes, config)))
            .context(|| format!("config {digest}"))?;
        self.loader.check_layer_count(manifest.layers.len(), &config)?;
        let total = manifest.layers.len();
        let mut layers = Vec::with_capacity(total);
        for (i, (blob, diff_id)) in manifest.layers.iter().zip(&config.diff_ids).enumerate() {
            let label = || format!("layer {} of {total} ({})", i + 1, blob.digest);
            layers.push(self.layer(blob, *diff_id).context(label)?);
        }
        Ok(Some(SourceImage {
            names: Vec::new(),
            manifest: Some((entry.digest, bytes)),
            config_bytes,
            id: ImageId(digest),
            config,
            layers,
        }))
    }

    fn layer(&self, blob: &Descriptor, diff_id: DiffId) -> Result<SourceLayer> {
        let media = Media::of(&blob.media_type);
        if !matches!(media, Media::Layer | Media::ForeignLayer) {
            let why = format!("its media type is {}, which isn't a filesystem layer's", quoted(&blob.media_type));
            return Err(Error::new(Kind::Unsupported, why));
        }
        let layer = self.loader.layer(blob_name(blob.digest), diff_id, Some(blob))?;
        layer.ok_or_else(|| match media {
            Media::ForeignLayer => {
                self.missing().with_hint("a foreign layer: whoever made the image may not pass it on")
            }
            _ => self.missing(),
        })
    }
}

/// The name as written, by which the top index's entries belong together.
fn raw_name(entry: &Descriptor) -> Option<&str> {
    let name = entry.annotations.get(IMAGE_NAME).or_else(|| entry.annotations.get(REF_NAME));
    name.map(String::as_str)
}

/// Whether an entry is about another image instead of being one (BuildKit's provenance, SBOMs).
fn is_attestation(entry: &Descriptor) -> bool {
    entry.platform().is_some_and(Platform::is_unknown) || entry.annotations.contains_key(REFERENCE_TYPE)
}
