//! Manifests and indexes, of OCI and of Docker (schema 2): the same shapes under two names.
//!
//! A document is believed only if it is what its descriptor said: digest, size and kind. One that
//! could be read as both an index and a manifest is refused (CVE-2021-41190).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::digest::{Digest, quoted};
use super::json::{self, null_default};
use super::limits::SourceLimits;
use super::platform::Platform;
use crate::{Error, Kind, Result};

/// What another document says about a blob (OCI image spec, descriptor.md).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Its form. Only a claim: compression is told from the bytes.
    #[serde(default, deserialize_with = "null_default")]
    pub media_type: String,
    /// Digest of its bytes.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// For a manifest in an index: the machine it is for.
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default, deserialize_with = "null_default")]
    pub(super) annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// A blob of that form.
    #[must_use]
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.to_string(), ..Self::bare(digest, size) }
    }

    /// A blob that only its name and length are known of.
    pub(super) fn bare(digest: Digest, size: u64) -> Self {
        Self { media_type: String::new(), digest, size, platform: None, annotations: BTreeMap::new() }
    }

    /// The machine it is for, if it says so.
    pub(super) fn platform(&self) -> Option<&Platform> {
        self.platform.as_ref().filter(|platform| !platform.os.is_empty() || !platform.architecture.is_empty())
    }
}

/// What a media type stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Media {
    Index,
    Manifest,
    /// Docker's first manifests, signed and without a config: no tool has written them since 2017.
    Schema1,
    Config,
    Layer,
    /// A layer that is fetched from elsewhere and mostly isn't in the archive.
    ForeignLayer,
    Other,
}

impl Media {
    pub(super) fn of(media_type: &str) -> Self {
        match media_type {
            "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json" => Self::Index,
            "application/vnd.oci.image.manifest.v1+json" | "application/vnd.docker.distribution.manifest.v2+json" => {
                Self::Manifest
            }
            "application/vnd.docker.distribution.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v1+prettyjws" => Self::Schema1,
            "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json" => {
                Self::Config
            }
            // containerd and buildkit write Docker's type with a "+zstd" of their own.
            "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Self::Layer,
            "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Self::ForeignLayer,
            _ => Self::Other,
        }
    }
}

/// An image index or manifest list.
#[derive(Debug)]
pub(super) struct Index {
    pub(super) manifests: Vec<Descriptor>,
}

/// An image manifest.
#[derive(Debug)]
pub(super) struct Manifest {
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
}

/// What a manifest or an index names, in its order.
#[derive(Clone, Debug, Default)]
pub struct Named {
    /// Of what kind it is, by its own word or else by its shape.
    pub media_type: String,
    /// Manifests and indexes: those of an index.
    pub manifests: Vec<Descriptor>,
    /// Blobs: a manifest's configuration first, then its layers.
    pub blobs: Vec<Descriptor>,
}

impl Named {
    /// By a document that is kept or was fetched, within the limits on its shape.
    ///
    /// # Errors
    /// [`Kind::BadInput`] for what is neither a manifest nor an index, [`Kind::Unsupported`] for other kinds of either.
    pub fn by(bytes: &[u8], limits: &SourceLimits) -> Result<Self> {
        json::check(bytes, limits)?;
        let media_type = own_media_type(bytes)?;
        match Media::of(&media_type) {
            Media::Index => Ok(Self { manifests: Index::parse(bytes)?.manifests, media_type, blobs: Vec::new() }),
            Media::Manifest => {
                let Manifest { config, layers } = Manifest::parse(bytes)?;
                let blobs = std::iter::once(config).chain(layers).collect();
                Ok(Self { blobs, media_type, manifests: Vec::new() })
            }
            _ => Err(Error::new(Kind::Unsupported, format!("it is of an unknown kind ({})", quoted(&media_type)))),
        }
    }
}

/// Either, before it is known to be one of them.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    schema_version: Option<u64>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
}

fn bad(why: impl Into<String>) -> Error {
    Error::new(Kind::BadInput, why)
}

/// The media type that a document has by its own word, or by its shape where it says nothing.
///
/// # Errors
/// [`Kind::BadInput`] for what isn't a manifest or an index.
pub(super) fn own_media_type(bytes: &[u8]) -> Result<String> {
    let document: Document = json::parse_object(bytes)?;
    match document.media_type {
        Some(claim) if !claim.is_empty() => Ok(claim),
        _ if document.manifests.is_some() => Ok("application/vnd.oci.image.index.v1+json".into()),
        _ if document.config.is_some() => Ok("application/vnd.oci.image.manifest.v1+json".into()),
        _ if document.schema_version == Some(1) => Ok("application/vnd.docker.distribution.manifest.v1+json".into()),
        _ => Err(bad("it is neither a manifest nor an index")),
    }
}

impl Document {
    fn parse(bytes: &[u8], expected: Media) -> Result<Self> {
        let document: Self = json::parse_object(bytes)?;
        match document.media_type.as_deref() {
            None | Some("") => {}
            Some(claim) if Media::of(claim) == expected => {}
            Some(claim) => return Err(bad(format!("it calls itself {}", quoted(claim)))),
        }
        if document.schema_version.is_some_and(|version| version != 2) {
            return Err(bad("its schemaVersion isn't 2"));
        }
        if document.manifests.is_some() && (document.layers.is_some() || document.config.is_some()) {
            return Err(bad("it has both manifests and layers, and so is neither an index nor a manifest"));
        }
        Ok(document)
    }
}

impl Index {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let document = Document::parse(bytes, Media::Index)?;
        if document.layers.is_some() || document.config.is_some() {
            return Err(bad("it is a manifest, not an index"));
        }
        // Go writes an empty list as null.
        Ok(Self { manifests: document.manifests.unwrap_or_default() })
    }
}

impl Manifest {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let document = Document::parse(bytes, Media::Manifest)?;
        if document.manifests.is_some() {
            return Err(bad("it is an index, not a manifest"));
        }
        let config = document.config.ok_or_else(|| bad("it has no config"))?;
        Ok(Self { config, layers: document.layers.unwrap_or_default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_document_is_one_thing_only() {
        let descriptor = format!(r#"{{"mediaType":"x","digest":"{DIGEST}","size":0}}"#);
        let manifest = format!(r#"{{"schemaVersion":2,"config":{descriptor},"layers":[]}}"#);
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{descriptor}]}}"#);
        let both = format!(r#"{{"schemaVersion":2,"config":{descriptor},"layers":[],"manifests":[{descriptor}]}}"#);
        assert!(Manifest::parse(manifest.as_bytes()).unwrap().layers.is_empty());
        assert_eq!(Index::parse(index.as_bytes()).unwrap().manifests.len(), 1);
        assert!(Index::parse(br#"{"schemaVersion":2,"manifests":null}"#).unwrap().manifests.is_empty());
        for error in [
            Manifest::parse(index.as_bytes()).unwrap_err(),
            Index::parse(manifest.as_bytes()).unwrap_err(),
            Manifest::parse(both.as_bytes()).unwrap_err(),
            Index::parse(both.as_bytes()).unwrap_err(),
            Manifest::parse(br#"{"schemaVersion":2}"#).unwrap_err(),
            Manifest::parse(manifest.replace(":2", ":1").as_bytes()).unwrap_err(),
            Manifest::parse(manifest.replace(r#""size":0"#, r#""size":-1"#).as_bytes()).unwrap_err(),
            Manifest::parse(manifest.replace("sha256:e3", "sha256:/3").as_bytes()).unwrap_err(),
            Manifest::parse(
                manifest.replacen('{', r#"{"mediaType":"application/vnd.oci.image.index.v1+json","#, 1).as_bytes(),
            )
            .unwrap_err(),
        ] {
            assert_eq!(error.kind(), Kind::BadInput, "{error}");
        }
    }
}
