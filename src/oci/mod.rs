//! Images, as far as they aren't trees: digests, names, manifests, configs, and what carries them.
//!
//! For: opening whatever `load` is given ([`Source`]), saying what images are in it
//! ([`SourceImage`]), and handing out each layer's plain tar while its digests are checked
//! ([`LayerStream`]); and for writing images again as others read them ([`Target`]). Everything here comes from outside and is believed only after its digest, size
//! and shape were checked. This module never writes below ROOT, never unpacks, and keeps no state;
//! memory is bounded by [`SourceLimits`], whatever the input claims.
//!
//! ```no_run
//! # use reflinkd::oci::{Expected, Input, LayerStream, Source, SourceLimits};
//! # fn main() -> reflinkd::Result<()> {
//! let source = Source::open(Input::Path("nginx.tar".into()), "/var/tmp".as_ref(), &SourceLimits::default())?;
//! for image in source.images() {
//!     for layer in &image.layers {
//!         let expected = Expected::of(layer, 10 << 30);
//!         let mut tar = LayerStream::start(source.layer_reader(layer)?, expected, Default::default())?;
//!         std::io::copy(&mut tar, &mut std::io::sink()).ok();
//!         tar.finish()?; // only now is the tar known to be what the image promised
//!     }
//! }
//! # Ok(())
//! # }
//! ```

// In a test, a panic is how it fails.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod build;
mod compress;
mod config;
mod decompress;
mod digest;
mod json;
mod limits;
mod manifest;
mod platform;
mod reference;
mod source;
mod stream;
mod target;
#[cfg(test)]
mod testing;

pub use build::Commit;
pub use compress::Compressor;
pub use config::{HistoryStep, ImageConfig, Step};
pub use decompress::{Compression, plain};
pub(crate) use digest::quoted;
pub use digest::{ChainId, DiffId, Digest, Digesting, Hasher, ImageId, chain_ids};
pub use limits::SourceLimits;
pub(crate) use limits::beyond;
pub use manifest::{Descriptor, Named};
pub use platform::Platform;
pub use reference::Reference;
pub use source::{Input, NamedDocument, Remote, Source, SourceImage, SourceLayer};
pub use stream::{Expected, LayerStream, Verified};
pub use target::{Format, Layers, Output, Spooled, Target, TargetImage, image_manifest, layer_type, oci_layer_type};
