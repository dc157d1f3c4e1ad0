//! Pushing images: what is here goes to a registry, each layer as registries know it wherever that can be done.
//!
//! ```text
//!                 the destination has a blob of the layer ──────────────────────────── nothing to do
//! layer ─ known ─ another repository of that registry has it ─ mount ──────────────── nothing is sent
//!   │     blobs └ another registry has it ─ GET ─ digested while it streams ─ PUT ─── with its digest
//!   └ none, or nobody gives it any more ─ tar from recipe and tree ─ gzip or zstd ─── packed anew, the same each time
//! ```
//!
//! What registries have is noted by pulls and pushes (`store::LayerBlob`), for whichever image has the layer. Three layers are
//! on their way at a time. The configuration goes as it is, so that the image keeps its ID, and last of all the manifest under
//! the tag: the one that came with the image if all its blobs are there, so that it keeps its digest, or else one made here.
//!
//! Collectors of layers are kept away as by a save; the store is changed only when all is done, by a note of where blobs are.
//! What is packed is in files without names. A push that ends early leaves the tag as it was, and has its uploads cancelled.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::Engine;
use super::save::{Chain, shown};
use crate::oci::{Compression, Descriptor, DiffId, Digest, Named, Reference, image_manifest, oci_layer_type};
use crate::store::{Image, LayerBlob, Lock, Record};
use crate::{Context, Error, Kind, Result};

mod blob;
mod platforms;
mod transfer;

use transfer::Transfer;

/// What is to be pushed, and how.
#[derive(Debug, Clone)]
pub struct Push {
    /// Name or ID.
    pub image: String,
    pub destination: Reference,
    /// What layers have to be compressed by; as registries have them, and gzip for others, if not given.
    pub compression: Option<Compression>,
    /// The index that the image came with, and all that it names.
    pub all_platforms: bool,
}

/// What the registry has now under the destination's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pushed {
    pub digest: Digest,
    /// Bytes of the manifest or index.
    pub size: u64,
}

/// Told how a push goes on. Layers are named by the first digits of their diff ID, other platforms' blobs by those of their
/// digest.
pub trait Progress: Sync {
    fn preparing(&self, _layer: &str) {}
    /// The counter rises to `total` bytes; it falls back to 0 if it is begun anew.
    fn pushing(&self, _layer: &str, _total: u64, _sent: &Arc<AtomicU64>) {}
    fn pushed(&self, _layer: &str) {}
    /// The registry had it already.
    fn exists(&self, _layer: &str) {}
    /// The registry had it in another repository.
    fn mounted(&self, _layer: &str, _from: &str) {}
}

/// For callers that don't want to know.
#[derive(Debug)]
pub struct Silent;

impl Progress for Silent {}

/// A layer on its way.
struct Leaving {
    diff_id: DiffId,
    tree: Record,
    /// What registries have of it, the best first.
    known: Vec<Known>,
}

/// A blob that a registry has or may have.
#[derive(Debug, Clone)]
struct Known {
    blob: Descriptor,
    /// The latest first.
    repositories: Vec<String>,
}

impl Engine {
    /// Send an image to a registry.
    ///
    /// # Errors
    /// What the registry says; [`Kind::Denied`] where it wants another login; [`Kind::Damaged`] for a layer that isn't what it
    /// was. Then the registry has the name as before.
    pub fn push(&self, push: &Push, progress: &dyn Progress) -> Result<Pushed> {
        let named = push.image.parse::<Reference>().is_ok_and(|image| image == push.destination);
        self.push_image(push, progress)
            // Whoever ends us is to hear of that, and not of what it broke.
            .map_err(|e| if self.is_cancelled() { Error::new(Kind::Interrupted, "interrupted") } else { e })
            .context(|| match named {
                true => format!("cannot push {}", push.destination),
                false => format!("cannot push {} to {}", push.image, push.destination),
            })
    }

    fn push_image(&self, push: &Push, progress: &dyn Progress) -> Result<Pushed> {
        let _kept = self.store.lock_loads(Lock::Shared)?;
        let image = self.find_image(&push.image)?;
        let transfer = Transfer::new(self, &push.destination, progress)?;
        if push.all_platforms {
            return self.push_index(&image, &transfer);
        }
        let (config, chain) = self.layers_of(&image)?;
        let manifest = self.kept_manifest(&image);
        let layers = self.leaving(&image, chain, manifest.as_ref(), push.compression)?;
        for layer in &layers {
            progress.preparing(&layer.diff_id.0.short());
        }
        let shown = shown(&image);
        let compression = push.compression.unwrap_or(Compression::Gzip);
        let sent = transfer.each(&layers, |layer| {
            let label = layer.diff_id.0.short();
            transfer.layer(layer, compression, &shown).context(|| format!("layer {label}"))
        })?;
        let by_layer: BTreeMap<DiffId, Descriptor> =
            layers.iter().zip(sent).map(|(layer, blob)| (layer.diff_id, blob)).collect();
        let diff_ids = crate::oci::ImageConfig::parse(&config)?.diff_ids;
        let blobs: Vec<&Descriptor> = diff_ids.iter().filter_map(|diff_id| by_layer.get(diff_id)).collect();
        transfer.document_blob(&config).context(|| "its configuration")?;

        let kept = manifest.filter(|kept| kept.is_of(&config, &blobs));
        let (media_type, bytes) = match kept {
            Some(kept) => (kept.named.media_type, kept.bytes),
            None => {
                let oci =
                    |blob: &&Descriptor| Descriptor::new(&oci_layer_type(&blob.media_type), blob.digest, blob.size);
                let (media_type, bytes) = image_manifest(&config, &blobs.iter().map(oci).collect::<Vec<_>>())?;
                (media_type.to_string(), bytes)
            }
        };
        transfer.tag(&media_type, &bytes)?;
        if let Err(e) = self.note_pushed(&image, &push.destination, &by_layer, &bytes) {
            tracing::warn!("it is pushed, but where its layers are now can't be noted: {e}");
        }
        Ok(Pushed { digest: Digest::of(&bytes), size: bytes.len() as u64 })
    }

    /// The manifest that came with an image, if it did and can still be read.
    fn kept_manifest(&self, image: &Image) -> Option<KeptManifest> {
        let digest = image.manifest.as_deref()?;
        let read = || {
            let bytes = self.document(digest)?;
            let named = Named::by(&bytes, &self.settings.source_limits)?;
            Ok(KeptManifest { bytes, named })
        };
        let kept: Result<_> = read();
        kept.inspect_err(|e| tracing::warn!("another manifest takes the place of {digest}: {e}")).ok()
    }

    /// A manifest or index of the store.
    fn document(&self, digest: &str) -> Result<Vec<u8>> {
        let bytes = self.store.blob(super::image::hex(digest))?;
        if Digest::of(&bytes).to_string() != digest {
            return Err(Error::new(Kind::Damaged, "it is not what it was").with_hint("pull the image again"));
        }
        Ok(bytes)
    }

    /// An image's layers, each once, with what is known of them: what its manifest has comes first, then what is known of
    /// this image and of others.
    fn leaving(
        &self,
        image: &Image,
        chain: Chain,
        manifest: Option<&KeptManifest>,
        compression: Option<Compression>,
    ) -> Result<Vec<Leaving>> {
        let images = self.store.images()?;
        let others = images.iter().filter(|other| other.uuid != image.uuid);
        let noted: Vec<&LayerBlob> =
            image.blobs.iter().rev().chain(others.flat_map(|other| other.blobs.iter().rev())).collect();
        let in_manifest = manifest.map_or(&[][..], |kept| kept.named.blobs.get(1..).unwrap_or_default());
        let mut layers: Vec<Leaving> = Vec::new();
        for (at, (diff_id, tree)) in chain.into_iter().enumerate() {
            if layers.iter().any(|layer| layer.diff_id == diff_id) {
                continue;
            }
            let mut known: Vec<Known> = Vec::new();
            // What only a manifest says is asked for where the image goes. A plain tar isn't worth it.
            if let Some(blob) = in_manifest.get(at).filter(|blob| blob.digest != diff_id.0) {
                known.push(Known { blob: blob.clone(), repositories: Vec::new() });
            }
            for noted in noted.iter().filter(|noted| noted.diff_id == diff_id.to_string()) {
                let digest: Digest = noted.digest.parse()?;
                let repositories = noted.repositories.iter().rev().cloned();
                match known.iter_mut().find(|known| known.blob.digest == digest) {
                    Some(known) => known.repositories.extend(repositories),
                    None => known.push(Known {
                        blob: Descriptor::new(&noted.media_type, digest, noted.size),
                        repositories: repositories.collect(),
                    }),
                }
            }
            known.retain(|known| compression.is_none_or(|wanted| is_packed(&known.blob.media_type, wanted)));
            let first = in_manifest.get(at).map(|blob| blob.digest);
            known.sort_by_key(|known| Some(known.blob.digest) != first);
            layers.push(Leaving { diff_id, tree, known });
        }
        Ok(layers)
    }

    /// Note where an image's layers are now. An image without a manifest has the one that was made of it.
    fn note_pushed(
        &self,
        image: &Image,
        to: &Reference,
        layers: &BTreeMap<DiffId, Descriptor>,
        manifest: &[u8],
    ) -> Result<()> {
        let guard = self.store.lock_images()?;
        let Some(before) = guard.list()?.into_iter().find(|known| known.uuid == image.uuid) else {
            return Ok(());
        };
        let mut image = before.clone();
        for (diff_id, blob) in layers {
            image.remember(&LayerBlob {
                diff_id: diff_id.to_string(),
                digest: blob.digest.to_string(),
                media_type: blob.media_type.clone(),
                size: blob.size,
                repositories: vec![to.repository()],
            });
        }
        if image.manifest.is_none() {
            let digest = Digest::of(manifest);
            guard.put_blob(&digest.hex(), manifest)?;
            image.manifest = Some(digest.to_string());
        }
        if image == before { Ok(()) } else { guard.put(&image) }
    }
}

struct KeptManifest {
    bytes: Vec<u8>,
    named: Named,
}

impl KeptManifest {
    /// Whether it says of the image what is so.
    fn is_of(&self, config: &[u8], layers: &[&Descriptor]) -> bool {
        let named = self.named.blobs.iter().map(|blob| blob.digest);
        named.eq(std::iter::once(Digest::of(config)).chain(layers.iter().map(|layer| layer.digest)))
    }
}

/// Whether a layer's media type says that it is compressed like this.
fn is_packed(media_type: &str, compression: Compression) -> bool {
    match compression {
        Compression::Gzip => media_type.ends_with("gzip"),
        Compression::Zstd => media_type.ends_with("zstd"),
        Compression::Plain => media_type.ends_with("tar"),
    }
}
