//! An image whose blobs are elsewhere: what is needed of a registry, and one image by its name there.

use std::fmt;
use std::io::Read;

use super::layout;
use super::loader::Loader;
use super::{NamedDocument, SourceImage, SourceLayer};
use crate::Result;
use crate::oci::manifest::Descriptor;
use crate::oci::reference::Reference;

/// One repository, such as that of a registry. Nothing that it answers is believed: whoever asks bounds and verifies.
pub trait Remote: Send + Sync + fmt::Debug {
    /// What the name stands for, at most `most` bytes of it: a manifest or an index, with the media type that it is
    /// said to have (empty if none is).
    fn named(&self, most: u64) -> Result<(String, Vec<u8>)>;

    /// A manifest or index by its digest. More than the descriptor's size isn't read.
    fn manifest(&self, descriptor: &Descriptor) -> Result<Vec<u8>>;

    /// Any other blob from its beginning. What it is short of, or has too much, its reader finds out.
    fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send>>;

    /// Break off all that is under way, now and for good.
    fn stop(&self);
}

/// The image of that name for this machine, and what the name stands for.
pub(super) fn image(
    loader: &mut Loader<'_>,
    remote: &dyn Remote,
    name: &Reference,
) -> Result<(NamedDocument, SourceImage)> {
    let (media_type, bytes) = remote.named(loader.limits.manifest_bytes)?;
    let (named, mut image) = layout::named(loader, &media_type, bytes, name.digest())?;
    image.names = vec![name.kept()];
    Ok((named, image))
}

/// What the manifest says of a layer is all that is known of it before it is fetched.
pub(super) fn layer(name: String, diff_id: crate::oci::DiffId, blob: &Descriptor) -> SourceLayer {
    SourceLayer { diff_id, blob: Some(blob.clone()), size: blob.size, name }
}
