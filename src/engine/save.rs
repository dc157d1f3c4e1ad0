//! Saving images: each layer's tar from its recipe and its tree, bit for bit as it came.
//!
//! While a save runs it keeps collectors of layers away, as a load does: what it has found stays until it ends. It
//! changes nothing in the store. The tar of each layer is digested while it is written, so that a tree that was changed
//! behind our back is noticed before an archive is whole.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use super::Engine;
use super::image::{familiar, short};
use crate::layer::recipe;
use crate::oci::{
    Compression, DiffId, Digest, Digesting, ImageConfig, Layers, Output, Reference, Target, TargetImage,
};
use crate::store::{self, Image, Lock, Record};
use crate::{Context, Error, Kind, Result};

/// Layers by what they are, each once.
struct Trees<'e> {
    engine: &'e Engine,
    /// Whether what is written is kept in the store first, to be compressed.
    spooled: bool,
    layers: BTreeMap<DiffId, Saved>,
}

/// An image's layers, the lowest first: what each is, and its tree.
pub(super) type Chain = Vec<(DiffId, Record)>;

/// Where a layer's tar is to come from.
pub(super) struct Saved {
    recipe: PathBuf,
    root: PathBuf,
    /// Of its tar, in bytes.
    size: u64,
    /// An image that includes it, for messages.
    image: String,
}

impl Engine {
    /// Write images as others load them, each under the names that it was asked for by. One that was asked for by its ID
    /// has none.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for a layer without a recipe, [`Kind::Damaged`] for one that isn't what it was.
    pub fn save(&self, names: &[String], target: &Target, output: Output<'_>) -> Result<()> {
        let saved = || names.join(", ");
        let kept = self.store.lock_loads(Lock::Shared)?;
        let mut images: Vec<(String, TargetImage)> = Vec::new();
        let mut trees =
            Trees { engine: self, spooled: target.compression != Compression::Plain, layers: BTreeMap::new() };
        for name in names {
            let added = self.find_image(name).and_then(|image| {
                let given = self.given_name(&image, name);
                match images.iter_mut().find(|(id, _)| *id == image.id) {
                    Some((_, known)) => known.names.extend(given.filter(|given| !known.names.contains(given))),
                    None => {
                        let config = self.add_layers(&image, &mut trees)?;
                        let names = given.into_iter().collect();
                        images.push((image.id, TargetImage { names, ..config }));
                    }
                }
                Ok(())
            });
            added.context(|| format!("cannot save image {name}"))?;
        }
        let images: Vec<_> = images.into_iter().map(|(_, image)| image).collect();
        let written = target.write(&images, &trees, output).context(|| format!("cannot save {}", saved()));
        drop(kept);
        written
    }

    /// The name that an image is to have where it goes.
    fn given_name(&self, image: &Image, asked: &str) -> Option<Reference> {
        // One that it doesn't have is an ID. What others call a name has a tag; a digest is that of the old manifest.
        let name = self.name_for(image, asked);
        let given = image.names.contains_key(&name).then(|| name.parse::<Reference>().ok())??;
        (given.tag().is_some() && given.digest().is_none()).then_some(given)
    }

    /// Find all layers of an image, and read its configuration.
    fn add_layers(&self, image: &Image, trees: &mut Trees<'_>) -> Result<TargetImage> {
        let (config, chain) = self.layers_of(image)?;
        let shown = shown(image);
        for (diff_id, record) in &chain {
            if !trees.layers.contains_key(diff_id) {
                trees.layers.insert(*diff_id, self.layer_to_save(*diff_id, record, &shown)?);
            }
        }
        let diff_ids = chain.into_iter().map(|(diff_id, _)| diff_id).collect();
        Ok(TargetImage { config, diff_ids, names: Vec::new() })
    }

    /// The bytes of an image's configuration, and its layers, the lowest first: what it says they are, and their trees.
    ///
    /// # Errors
    /// [`Kind::Damaged`] if either isn't what it was.
    pub(super) fn layers_of(&self, image: &Image) -> Result<(Vec<u8>, Chain)> {
        let config = self.image_config_bytes(&image.id)?;
        let damaged = |why: String| {
            Error::new(Kind::Damaged, why).with_hint("remove the image and load it again, to have it anew")
        };
        if Digest::of(&config).to_string() != image.id {
            return Err(damaged("its configuration is not what it was".into()));
        }
        let diff_ids = ImageConfig::parse(&config)?.diff_ids;
        let chain = self.all_layers()?.chain(image.top);
        let found = chain.iter().filter_map(Record::layer).map(|layer| layer.diff_id.as_str());
        if !found.eq(diff_ids.iter().map(ToString::to_string)) {
            return Err(damaged("its layers are not those of its configuration".into()));
        }
        Ok((config, diff_ids.into_iter().zip(chain).collect()))
    }

    /// Where the tar of a layer is to come from. `image` includes it, for messages.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for a layer without a recipe.
    pub(super) fn layer_to_save(&self, diff_id: DiffId, record: &Record, image: &str) -> Result<Saved> {
        let recipe = store::recipe(&self.store.place(record.uuid));
        let size = match recipe::plain_size(&recipe) {
            Err(e) if e.kind() == Kind::NotFound => {
                let why = "it was loaded by an older reflinkd, which kept no recipe of its tar";
                Err(Error::new(Kind::Unsupported, why).with_hint(format!(
                    "remove all images with this layer (reflinkd rmi {image}) and load them again"
                )))
            }
            size => size.map_err(|e| made_anew(e, image)),
        };
        let size = size.context(|| format!("layer {}", diff_id.0.short()))?;
        Ok(Saved { recipe, root: self.tree(record).root(), size, image: image.to_string() })
    }

    /// Write a layer's tar. `spooled` says whether it goes into the store, where room is to be left.
    ///
    /// # Errors
    /// [`Kind::Damaged`] if it isn't what it was; then it has been written all the same.
    pub(super) fn restore_layer(
        &self,
        layer: DiffId,
        saved: &Saved,
        spooled: bool,
        out: &mut dyn Write,
    ) -> Result<()> {
        let restored = || {
            let mut out = Digesting::new(out);
            let mut restore = |stop: &dyn Fn() -> bool| recipe::restore(&saved.recipe, &saved.root, &mut out, stop);
            if spooled { self.while_room(restore) } else { restore(&|| self.is_cancelled()) }?;
            let digest = out.into_inner().1.finish();
            if digest == layer.0 {
                return Ok(());
            }
            let (why, tree) = ("its tree was changed after it was loaded", saved.root.display());
            Err(Error::new(Kind::Damaged, format!("{why}: from {tree} comes a tar with the digest {digest}")))
        };
        let context = || format!("layer {} of image {}", layer.0.short(), saved.image);
        restored().map_err(|e| made_anew(e, &saved.image)).context(context)
    }
}

/// What an image is called in messages.
pub(super) fn shown(image: &Image) -> String {
    image.names.keys().next().map_or_else(|| short(&image.id).to_string(), |name| familiar(name))
}

impl Trees<'_> {
    fn saved(&self, layer: DiffId) -> Result<&Saved> {
        self.layers.get(&layer).ok_or_else(|| Error::new(Kind::System, format!("layer {layer} was not looked for")))
    }
}

impl Layers for Trees<'_> {
    fn size(&self, layer: DiffId) -> Result<u64> {
        self.saved(layer).map(|saved| saved.size)
    }

    fn write(&self, layer: DiffId, out: &mut dyn Write) -> Result<()> {
        self.engine.restore_layer(layer, self.saved(layer)?, self.spooled, out)
    }
}

/// The way out where a layer is damaged.
fn made_anew(error: Error, image: &str) -> Error {
    match error.kind() {
        Kind::Damaged => error.with_hint(format!(
            "remove all images and containers that have this layer (reflinkd rmi {image}) and load them again"
        )),
        _ => error,
    }
}
