//! Whatever `load` or `pull` is given: what images are in it, and each layer's bytes.
//!
//! Five forms behind one type: an OCI layout as a directory; the same as a tar; what `docker save`
//! wrote up to Docker 24 (`manifest.json`, a directory per layer) and from 25 on (both of them in one);
//! each tar plain, or compressed with gzip or zstd; from a file, or from a stream that can't be sought.
//! An archive is scanned once for where its entries are and then read in place; only what can't be
//! sought or is compressed is copied first, into a file without a name.
//!
//! ```text
//! Source::open ─ spool (stream, compressed) ─ TarIndex ┐
//!              └ directory ────────────────────────────┼ Files ─ layout ─ SourceImage
//! Source::remote ─ Remote (a registry) ────────────────┘       └ docker ─┘
//! ```
//!
//! All small documents are read, verified and held within [`SourceLimits`] when it is opened, and every
//! layer's blob is known to be there with the size its descriptor says. What the blobs hold is
//! verified when they are streamed ([`super::LayerStream`]).

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::files::Files;
use self::loader::Loader;
use self::spool::Spool;
use super::config::ImageConfig;
use super::digest::{DiffId, Digest, ImageId};
use super::limits::SourceLimits;
use super::manifest::Descriptor;
use super::reference::Reference;
use crate::{Context, Error, Kind, Result};

mod docker;
mod files;
mod layout;
mod loader;
mod remote;
mod spool;
mod tar_index;

pub use remote::Remote;

/// Where images come from.
pub enum Input {
    /// A layout's directory or an archive's file. Other files (a fifo) are read as streams.
    Path(PathBuf),
    /// An archive, read once from front to back.
    Stdin(Box<dyn Read + Send>),
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.debug_tuple("Path").field(path).finish(),
            Self::Stdin(_) => f.write_str("Stdin"),
        }
    }
}

/// One image, as its documents describe it.
#[derive(Clone, Debug)]
pub struct SourceImage {
    /// What the input calls it; empty if it has no name.
    pub names: Vec<Reference>,
    /// The manifest and its digest; docker archives without an OCI layout have none.
    pub manifest: Option<(Digest, Vec<u8>)>,
    /// The config as it was written.
    pub config_bytes: Vec<u8>,
    /// Digest of the config.
    pub id: ImageId,
    /// What the config says.
    pub config: ImageConfig,
    /// The layers, the lowest first; one for each of the config's diff IDs.
    pub layers: Vec<SourceLayer>,
}

/// One layer's blob.
#[derive(Clone, Debug)]
pub struct SourceLayer {
    /// What the config says of its plain tar.
    pub diff_id: DiffId,
    /// What the manifest says of the blob; docker archives mostly say nothing.
    pub blob: Option<Descriptor>,
    /// The blob's length in bytes.
    size: u64,
    /// The blob's name in the input.
    name: String,
}

impl SourceLayer {
    /// Length of the blob in bytes, as stored: what a progress bar counts to.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }
}

/// An opened input.
#[derive(Debug)]
pub struct Source {
    files: Files,
    images: Vec<SourceImage>,
    named: Option<NamedDocument>,
}

/// What a repository has under the name that was asked for.
#[derive(Clone, Debug)]
pub struct NamedDocument {
    pub digest: Digest,
    /// Its bytes, if it is an index: a manifest is its image's.
    pub index: Option<Vec<u8>>,
}

impl Source {
    /// Open an input and read what images it has. `spool_dir` takes what has to be copied first; the
    /// copy has no name and is gone with the `Source`.
    ///
    /// # Errors
    /// [`Kind::BadInput`] for damaged, contradictory, oversized or escaping input and for one without
    /// any image; [`Kind::Unsupported`] for known forms that aren't supported and for images that are
    /// not for this machine; [`Kind::NotFound`], [`Kind::NoSpace`] and so on from the system. The
    /// message doesn't name the input; the caller does.
    pub fn open(input: Input, spool_dir: &Path, limits: &SourceLimits) -> Result<Self> {
        Self::open_while(input, spool_dir, limits, &|| Ok(()))
    }

    /// [`Source::open`], asking `check` before something is copied and every 16 MiB of it; what that says ends it.
    pub fn open_while(
        input: Input,
        spool_dir: &Path,
        limits: &SourceLimits,
        check: &dyn Fn() -> Result<()>,
    ) -> Result<Self> {
        let spool = &Spool { directory: spool_dir, check };
        let files = match input {
            Input::Stdin(stream) => Files::Archive(spool::stream(stream, spool, limits)?),
            Input::Path(path) => {
                let open = || format!("open {}", path.display());
                let file = File::open(&path).context(open)?;
                let kind = file.metadata().context(open)?.file_type();
                if kind.is_dir() {
                    Files::Directory(file.into())
                } else if kind.is_file() {
                    Files::Archive(spool::file(file, spool, limits)?)
                } else {
                    Files::Archive(spool::stream(Box::new(file), spool, limits)?)
                }
            }
        };
        let images = Loader::new(&files, limits).images()?;
        Ok(Self { files, images, named: None })
    }

    /// The one image that a name stands for in a repository, for this machine. Its layers aren't fetched yet.
    ///
    /// # Errors
    /// As of [`Source::open`], and the repository's own. The message doesn't have the name; the caller's does.
    pub fn remote(repository: Arc<dyn Remote>, name: &Reference, limits: &SourceLimits) -> Result<Self> {
        let files = Files::Remote(Arc::clone(&repository));
        let (named, image) = remote::image(&mut Loader::new(&files, limits), repository.as_ref(), name)?;
        Ok(Self { files, images: vec![image], named: Some(named) })
    }

    /// The manifest or index that a repository has under the name: what `NAME@DIGEST` means there.
    #[must_use]
    pub fn named(&self) -> Option<&NamedDocument> {
        self.named.as_ref()
    }

    /// The images, at least one, in the input's order.
    #[must_use]
    pub fn images(&self) -> &[SourceImage] {
        &self.images
    }

    /// The bytes of a layer's blob, as stored. Any number of readers may work at once.
    ///
    /// # Errors
    /// [`Kind::BadInput`] if the blob of a layout directory is gone since it was opened.
    pub fn layer_reader(&self, layer: &SourceLayer) -> Result<Box<dyn Read + Send>> {
        if let (Files::Remote(remote), Some(blob)) = (&self.files, &layer.blob) {
            return remote.blob(blob);
        }
        match self.files.find(&layer.name)? {
            Some(extent) => Ok(Box::new(extent.reader())),
            None => Err(Error::new(Kind::BadInput, format!("{} is gone", layer.name))),
        }
    }

    /// Break off what is being fetched for readers of layers. They say so; nothing more can be read.
    pub fn stop(&self) {
        if let Files::Remote(remote) = &self.files {
            remote.stop();
        }
    }
}

#[cfg(test)]
mod tests;
