//! Pulling images: what a registry has under a name becomes an image here.
//!
//! ```text
//! Engine::pull ─ registry::Repository ─ oci::Source::remote (manifest, config) ─ lock ─ Fetch ┐
//!                                                      Engine::load_image (as of a load) ────┴─ image
//! ```
//!
//! All but the fetching is what a load does: layers that are here are found by their chain ID and not asked for, the others
//! are unpacked while they come in, and verified. What a pull leaves that fails or is ended is what a load leaves.

use std::sync::Arc;
use std::time::Duration;

use super::Engine;
use super::fetch::Fetch;
use super::load::{Origin, Progress};
use crate::oci::{Digest, Reference, Source, SourceImage, SourceLayer, beyond, chain_ids};
use crate::registry::Repository;
use crate::store::{Image, Owner, TreeKind};
use crate::{Context, Error, Kind, Result};

/// How soon to look again whether somebody else's pull of the same has ended.
const GLANCE: Duration = Duration::from_millis(100);

/// An image that was pulled.
#[derive(Debug, Clone)]
pub struct Pulled {
    pub image: Image,
    /// Of what the registry has under the name: a manifest or an index.
    pub digest: Digest,
    /// Whether the name stood for this image already.
    pub up_to_date: bool,
}

impl Engine {
    /// Fetch the image of that name for this machine, and give it the name.
    ///
    /// # Errors
    /// What the registry says, [`Kind::Denied`] where it wants another login; `BadInput` for what isn't what its digest
    /// says; `Unsupported` if there is none for this machine.
    pub fn pull(&self, name: &Reference, progress: &dyn Progress) -> Result<Pulled> {
        (|| {
            let source = self.remote_source(name)?;
            let (Some(image), Some(named)) = (source.images().first(), source.named()) else {
                return Err(Error::new(Kind::BadInput, "it is no image"));
            };
            let origin = Origin { repository: name.repository(), named };
            let _alone = self.wait_for_pulls(image)?;
            self.check_size(image)?;
            let up_to_date = self.is_known(image)?;
            let image = self.while_loading(|| {
                let wanted = self.missing_layers(image)?;
                for at in &wanted {
                    progress.waiting(&image.layers[*at].diff_id.0.short());
                }
                let directory = self.spool_directory();
                let room = || self.guard_host();
                let fetch = Fetch::new(&source, image, &wanted, directory, progress, &room, self.cancellation());
                fetch.during(|open| self.load_image(image, open, Some(&origin), progress))
            })?;
            Ok(Pulled { image, digest: named.digest, up_to_date })
        })()
        // Whoever ends us is to hear of that, and not of what it broke.
        .map_err(|e| if self.is_cancelled() { Error::new(Kind::Interrupted, "interrupted") } else { e })
        .context(|| format!("cannot pull {name}"))
    }

    /// What a registry has under a name, for this machine: an image whose layers are fetched as they are read.
    ///
    /// # Errors
    /// As of [`Engine::pull`]; the message doesn't have the name.
    pub fn remote_source(&self, name: &Reference) -> Result<Source> {
        let repository = Repository::new(name, &self.settings.registries, self.cancellation())?;
        Source::remote(Arc::new(repository), name, &self.settings.source_limits)
    }

    /// The name that an image which isn't here can be pulled by; `None` if it is here, or what names it is no such name.
    pub fn missing_image(&self, name: &str) -> Result<Option<Reference>> {
        match self.find_image(name) {
            Err(e) if e.kind() == Kind::NotFound => Ok(name.parse().ok()),
            found => found.map(|_| None),
        }
    }

    /// The right to pull an image alone. Whoever had to wait for it finds most of it here.
    fn wait_for_pulls(&self, image: &SourceImage) -> Result<std::fs::File> {
        loop {
            if let Some(alone) = self.store.try_lock_pull(&image.id.0.hex())? {
                return Ok(alone);
            }
            self.check_cancelled()?;
            std::thread::sleep(GLANCE);
        }
    }

    /// What an image says of its layers' sizes is all that bounds what is fetched ahead of their unpacking.
    fn check_size(&self, image: &SourceImage) -> Result<()> {
        let limit = self.settings.source_limits.spool_bytes;
        let sizes = image.layers.iter().map(SourceLayer::size);
        if sizes.fold(0, u64::saturating_add) > limit {
            return Err(beyond(format!("its layers have more bytes than the limit of {limit}"), "max_archive_size"));
        }
        Ok(())
    }

    /// Whether there is that image under that name.
    fn is_known(&self, image: &SourceImage) -> Result<bool> {
        let id = image.id.to_string();
        let known = self.store.images()?.into_iter().find(|known| known.id == id);
        Ok(known.is_some_and(|known| image.names.iter().all(|name| known.names.contains_key(&name.canonical()))))
    }

    /// The numbers of the layers that nobody has, nor is making.
    fn missing_layers(&self, image: &SourceImage) -> Result<Vec<usize>> {
        let diff_ids: Vec<_> = image.layers.iter().map(|layer| layer.diff_id).collect();
        let mut missing = Vec::new();
        for (at, chain_id) in chain_ids(&diff_ids).iter().enumerate() {
            if self.store.by_key(&Owner::cli(), TreeKind::Layer, &chain_id.to_string())?.is_none() {
                missing.push(at);
            }
        }
        Ok(missing)
    }
}
