//! Reading an input's small documents within its limits.
//!
//! The limits hold for the sum as well as for each, so that an archive that lists one large config a
//! thousand times can't take more memory or time than one that lists it once.

use std::io::Read;

use serde::de::DeserializeOwned;

use super::files::Files;
use super::{SourceImage, SourceLayer, docker, layout, remote};
use crate::oci::config::ImageConfig;
use crate::oci::digest::{DiffId, Digest};
use crate::oci::json;
use crate::oci::limits::{SourceLimits, beyond};
use crate::oci::manifest::Descriptor;
use crate::oci::reference::Reference;
use crate::{Context, Error, Kind, Result};

/// An input being opened.
pub(super) struct Loader<'a> {
    pub(super) files: &'a Files,
    pub(super) limits: &'a SourceLimits,
    /// Bytes of documents that may still be read.
    bytes_left: u64,
    /// Manifests and indexes that may still be looked at.
    documents_left: usize,
}

/// What a document is read as, and so which limit it has.
#[derive(Clone, Copy, Debug)]
pub(super) enum Document {
    /// Indexes, too.
    Manifest,
    Config,
}

fn bad(why: impl Into<String>) -> Error {
    Error::new(Kind::BadInput, why)
}

/// Where a blob is in an OCI layout (image-layout.md).
pub(super) fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

impl<'a> Loader<'a> {
    pub(super) fn new(files: &'a Files, limits: &'a SourceLimits) -> Self {
        Self { files, limits, bytes_left: limits.metadata_bytes, documents_left: limits.images }
    }

    /// All images of the input: of its OCI layout if it has a usable one, else of its `manifest.json`.
    pub(super) fn images(&mut self) -> Result<Vec<SourceImage>> {
        let layout = layout::images(self)?;
        let manifest: Option<docker::Archive> = self.document(docker::MANIFEST)?;
        match (layout, manifest) {
            (Some(mut found), manifest) if !found.images.is_empty() => {
                if let Some(archive) = manifest {
                    docker::add_names(self, &archive, &mut found.images)?;
                }
                Ok(found.images)
            }
            (_, Some(archive)) => docker::images(self, &archive),
            (Some(found), None) => Err(found.no_image()),
            (None, None) => Err(self.not_an_image()),
        }
    }

    fn not_an_image(&self) -> Error {
        let noun = self.files.noun();
        if matches!(self.files.find("repositories"), Ok(Some(_))) {
            return Error::new(Kind::Unsupported, "it was saved by a Docker before 1.10")
                .with_hint("load it into a newer Docker and save it again");
        }
        let why = format!("the {noun} holds no image: it has neither an index.json nor a manifest.json");
        bad(why).with_hint("a root filesystem without an image around it is loaded by: reflinkd import")
    }

    /// Count one manifest or index.
    pub(super) fn count_document(&mut self) -> Result<()> {
        self.documents_left = self.documents_left.checked_sub(1).ok_or_else(|| {
            let why = format!("it has more images, manifests and indexes than the limit of {}", self.limits.images);
            beyond(why, "max_images")
        })?;
        Ok(())
    }

    /// A document that no digest vouches for.
    pub(super) fn document<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>> {
        match self.read(name, Document::Manifest).context(|| name.to_string())? {
            Some(bytes) => json::parse(&bytes).context(|| name.to_string()).map(Some),
            None => Ok(None),
        }
    }

    /// The bytes of a document that a descriptor vouches for; `None` if the blob is missing.
    pub(super) fn blob(&mut self, descriptor: &Descriptor, document: Document) -> Result<Option<Vec<u8>>> {
        let read = match self.files {
            Files::Remote(remote) => {
                self.admit(descriptor.size, document)?;
                let bytes = match document {
                    Document::Manifest => remote.manifest(descriptor)?,
                    Document::Config => {
                        let mut bytes = Vec::new();
                        let read = remote.blob(descriptor)?.take(descriptor.size + 1).read_to_end(&mut bytes);
                        read.context(|| "read it")?;
                        bytes
                    }
                };
                json::check(&bytes, self.limits)?;
                Some(bytes)
            }
            _ => self.read(&blob_name(descriptor.digest), document)?,
        };
        let Some(bytes) = read else { return Ok(None) };
        if bytes.len() as u64 != descriptor.size {
            return Err(bad(format!("it has {} bytes, its descriptor says {}", bytes.len(), descriptor.size)));
        }
        let digest = Digest::of(&bytes);
        if digest != descriptor.digest {
            return Err(bad(format!("its bytes have the digest {digest}")));
        }
        Ok(Some(bytes))
    }

    /// The bytes of a file that is to be read as JSON, within its limits.
    pub(super) fn read(&mut self, name: &str, document: Document) -> Result<Option<Vec<u8>>> {
        let Some(extent) = self.files.find(name)? else { return Ok(None) };
        self.admit(extent.len, document)?;
        let mut bytes = Vec::with_capacity(usize::try_from(extent.len).unwrap_or_default());
        extent.reader().read_to_end(&mut bytes).context(|| format!("read {name}"))?;
        json::check(&bytes, self.limits)?;
        Ok(Some(bytes))
    }

    /// Count the bytes of a document before it is read.
    pub(super) fn admit(&mut self, len: u64, document: Document) -> Result<()> {
        let (limit, key) = match document {
            Document::Manifest => (self.limits.manifest_bytes, "max_manifest_size"),
            Document::Config => (self.limits.config_bytes, "max_config_size"),
        };
        if len > limit {
            return Err(beyond(format!("it has {len} bytes, more than the limit of {limit}"), key));
        }
        self.charge(len)
    }

    /// Parse a config that is known to be the right one.
    pub(super) fn config(&mut self, bytes: &[u8]) -> Result<ImageConfig> {
        let config = ImageConfig::parse(bytes)?;
        self.charge(config.overhead())?;
        Ok(config)
    }

    fn charge(&mut self, bytes: u64) -> Result<()> {
        let limit = self.limits.metadata_bytes;
        self.bytes_left = self.bytes_left.checked_sub(bytes).ok_or_else(|| {
            beyond(
                format!("its manifests and configs take more than the limit of {limit} bytes"),
                "max_metadata_size",
            )
        })?;
        Ok(())
    }

    /// Whether so many layers are as many as the config has, and not absurdly many.
    pub(super) fn check_layer_count(&self, layers: usize, config: &ImageConfig) -> Result<()> {
        if layers > self.limits.layers {
            let limit = self.limits.layers;
            return Err(beyond(format!("it has {layers} layers, more than the limit of {limit}"), "max_layers"));
        }
        let diff_ids = config.diff_ids.len();
        if layers != diff_ids {
            return Err(bad(format!("its manifest has {layers} layers, its config {diff_ids} diff IDs")));
        }
        Ok(())
    }

    /// A layer's blob by its name in the input; `None` if it is missing.
    pub(super) fn layer(
        &self,
        name: String,
        diff_id: DiffId,
        blob: Option<&Descriptor>,
    ) -> Result<Option<SourceLayer>> {
        if let (Files::Remote(_), Some(blob)) = (self.files, blob) {
            return Ok(Some(remote::layer(name, diff_id, blob)));
        }
        let Some(extent) = self.files.find(&name)? else { return Ok(None) };
        if let Some(blob) = blob
            && blob.size != extent.len
        {
            return Err(bad(format!("its blob has {} bytes, its descriptor says {}", extent.len, blob.size)));
        }
        Ok(Some(SourceLayer { diff_id, blob: blob.cloned(), size: extent.len, name }))
    }

    /// Add an image, or its names to the one that is already there.
    pub(super) fn merge(&self, images: &mut Vec<SourceImage>, mut image: SourceImage) -> Result<()> {
        let digest = |image: &SourceImage| image.manifest.as_ref().map(|(digest, _)| *digest);
        let names = std::mem::take(&mut image.names);
        let known = images.iter().position(|known| known.id == image.id && digest(known) == digest(&image));
        let at = known.unwrap_or_else(|| {
            images.push(image);
            images.len() - 1
        });
        self.add_names(&mut images[at], names)
    }

    /// Give an image the names that it doesn't have yet.
    pub(super) fn add_names(&self, image: &mut SourceImage, names: Vec<Reference>) -> Result<()> {
        for name in names {
            if image.names.contains(&name) {
                continue;
            }
            if image.names.len() == self.limits.images {
                let why = format!("image {name} has more names than the limit of {}", self.limits.images);
                return Err(beyond(why, "max_images"));
            }
            image.names.push(name);
        }
        Ok(())
    }
}
