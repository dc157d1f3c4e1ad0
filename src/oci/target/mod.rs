//! Images on their way out: the archives and layouts that other tools load.
//!
//! ```text
//! docker-archive   blobs/sha256/<hex>...  index.json  manifest.json  oci-layout  repositories   in a tar
//! oci-archive      blobs/sha256/<hex>...  index.json  oci-layout                                in a tar
//! oci-layout       the same, in a directory
//! ```
//!
//! A docker-archive is what `docker save` writes from version 25 on: both an OCI layout and what every older Docker,
//! podman and skopeo reads. Its layers are plain tars, as those expect. In the OCI forms they may be compressed.
//!
//! Several images share one archive, and what they have in common is in it once. The same images give the same bytes:
//! all times are 0, all owners root. The configuration is written as it came, so that the image keeps its ID; the
//! manifest is made here.
//!
//! What can't be finished leaves nothing: a file is made beside its place and renamed, a directory is emptied again. It
//! relies on the caller for the plain tar of each layer ([`Layers`]), who also verifies it, and knows nothing of trees.
//!
//! ```no_run
//! use reflinkd::oci::{Compression, DiffId, Format, Layers, Output, Target, TargetImage};
//! # fn example(layers: &dyn Layers, config: Vec<u8>, diff_ids: Vec<DiffId>) -> reflinkd::Result<()> {
//! let image = TargetImage { config, diff_ids, names: vec!["nginx".parse()?] };
//! let target = Target { format: Format::OciArchive, compression: Compression::Zstd, spool: "/var/tmp".into() };
//! target.write(&[image], layers, Output::Path("nginx.tar".as_ref()))
//! # }
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::decompress::Compression;
use super::digest::{DiffId, Digest};
use super::reference::Reference;
use crate::{Error, Kind, Result};

mod blob;
mod documents;
mod file;
mod shelf;
#[cfg(test)]
mod tests;

pub use blob::Spooled;
pub use documents::{image_manifest, layer_type, oci_layer_type};

use documents::{Blob, Documents};
use shelf::{Archive, Directory, Shelf};

/// How images are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    DockerArchive,
    OciArchive,
    OciLayout,
}

/// An image to be written.
#[derive(Debug, Clone)]
pub struct TargetImage {
    /// The bytes of its configuration.
    pub config: Vec<u8>,
    /// Its layers, the lowest first.
    pub diff_ids: Vec<DiffId>,
    /// Names with a tag. None is fine.
    pub names: Vec<Reference>,
}

/// Where the plain tars of layers come from.
pub trait Layers {
    /// The length of a layer's tar in bytes, known before it is written.
    fn size(&self, layer: DiffId) -> Result<u64>;

    /// Write a layer's tar.
    ///
    /// # Errors
    /// Also if what was written has another digest.
    fn write(&self, layer: DiffId, out: &mut dyn Write) -> Result<()>;
}

/// Where images go.
pub enum Output<'a> {
    /// A file, or the directory of a layout.
    Path(&'a Path),
    /// For archives.
    Stream(&'a mut dyn Write),
}

impl std::fmt::Debug for Output<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path(path) => f.debug_tuple("Path").field(path).finish(),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

/// How to write images.
#[derive(Debug, Clone)]
pub struct Target {
    pub format: Format,
    /// Of layers.
    pub compression: Compression,
    /// A directory for files without a name: the length of what is compressed is known only at its end.
    pub spool: PathBuf,
}

impl Target {
    /// Write images.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for what can't be meant; [`Kind::Exists`] for a directory that isn't empty.
    pub fn write(&self, images: &[TargetImage], layers: &dyn Layers, output: Output<'_>) -> Result<()> {
        if self.format == Format::DockerArchive && self.compression != Compression::Plain {
            return Err(Error::new(Kind::Invalid, "layers of a docker-archive aren't compressed")
                .with_hint("use --format oci-archive, or compress the whole archive"));
        }
        match (self.format, output) {
            (Format::OciLayout, Output::Path(path)) => {
                let mut directory = Directory::make(path)?;
                self.fill(&mut directory, images, layers)?;
                directory.keep()
            }
            (Format::OciLayout, Output::Stream(_)) => Err(Error::new(Kind::Invalid, "an OCI layout is a directory")
                .with_hint("say where with -o DIR, or use --format oci-archive")),
            (_, Output::Path(path)) => file::write(path, |out| self.archive(out, images, layers)),
            (_, Output::Stream(out)) => self.archive(out, images, layers),
        }
    }

    fn archive(&self, out: &mut dyn Write, images: &[TargetImage], layers: &dyn Layers) -> Result<()> {
        let mut archive = Archive::begin(BufWriter::with_capacity(256 << 10, out))?;
        self.fill(&mut archive, images, layers)?;
        archive.end()
    }

    /// Everything, the documents that name the rest last.
    fn fill(&self, shelf: &mut dyn Shelf, images: &[TargetImage], layers: &dyn Layers) -> Result<()> {
        let mut blobs: BTreeMap<DiffId, Blob> = BTreeMap::new();
        for diff_id in images.iter().flat_map(|image| &image.diff_ids) {
            if !blobs.contains_key(diff_id) {
                blobs.insert(*diff_id, self.layer(shelf, *diff_id, layers)?);
            }
        }
        let mut documents = Documents::default();
        let mut written: BTreeSet<Digest> = blobs.values().map(|blob| blob.digest).collect();
        for image in images {
            for bytes in [&image.config, &documents.add(image, &blobs, self.compression)?] {
                let digest = Digest::of(bytes);
                if written.insert(digest) {
                    put(shelf, &blob::name(digest), bytes)?;
                }
            }
        }
        put(shelf, "index.json", &documents.index()?)?;
        if self.format == Format::DockerArchive {
            put(shelf, "manifest.json", &documents.docker_manifest()?)?;
        }
        put(shelf, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        if self.format == Format::DockerArchive {
            put(shelf, "repositories", &documents.repositories()?)?;
        }
        Ok(())
    }

    fn layer(&self, shelf: &mut dyn Shelf, diff_id: DiffId, layers: &dyn Layers) -> Result<Blob> {
        if self.compression == Compression::Plain {
            let blob = Blob { digest: diff_id.0, size: layers.size(diff_id)? };
            shelf.file(&blob::name(blob.digest), blob.size, &mut |out| layers.write(diff_id, out))?;
            return Ok(blob);
        }
        let mut spooled = Spooled::compress(self.compression, &self.spool, &mut |out| layers.write(diff_id, out))?;
        let blob = Blob { digest: spooled.digest, size: spooled.size };
        shelf.file(&blob::name(blob.digest), blob.size, &mut |out| spooled.copy(out))?;
        Ok(blob)
    }
}

fn put(shelf: &mut dyn Shelf, name: &str, bytes: &[u8]) -> Result<()> {
    shelf.file(name, bytes.len() as u64, &mut |out| {
        out.write_all(bytes).map_err(|e| Error::system(format!("write {name}"), &e))
    })
}
