//! Images: names for topmost layers, with their configuration.

use std::collections::{BTreeMap, HashMap};

use uuid::Uuid;

use super::Engine;
use crate::oci::{Digest, ImageConfig, Reference};
use crate::store::{Image, ImageIndex, LayerBlob, Record, TreeKind};
use crate::{Context, Error, Kind, Result};

/// An image with what its users ask for.
#[derive(Debug, Clone)]
pub struct ImageInfo {
    pub image: Image,
    /// Bytes of all its layers, as they were charged when each was committed.
    pub size: u64,
    /// Its layers, the lowest first.
    pub layers: Vec<Record>,
}

/// One step of an image's making; the oldest first.
#[derive(Debug, Clone)]
pub struct Step {
    pub created: Option<String>,
    pub created_by: String,
    pub comment: String,
    /// The layer it made, if it made one.
    pub layer: Option<Record>,
}

/// What removing an image came to, a line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    Untagged(String),
    /// Its ID.
    Deleted(String),
}

/// All layers by their tree, to follow chains without asking the store for each.
#[derive(Debug)]
pub(super) struct Layers(HashMap<Uuid, Record>);

impl Layers {
    /// The chain that ends in `top`, the lowest first.
    pub(super) fn chain(&self, top: Option<Uuid>) -> Vec<Record> {
        let mut chain = Vec::new();
        let mut next = top;
        while let Some(record) = next.and_then(|uuid| self.0.get(&uuid)) {
            // Damaged records may form a ring.
            if chain.len() == self.0.len() {
                break;
            }
            next = record.parent;
            chain.push(record.clone());
        }
        chain.reverse();
        chain
    }

    pub(super) fn size(&self, top: Option<Uuid>) -> u64 {
        self.chain(top).iter().filter_map(Record::layer).map(|layer| layer.size).sum()
    }
}

impl Engine {
    pub(super) fn all_layers(&self) -> Result<Layers> {
        Ok(Layers(self.store.list(TreeKind::Layer)?.into_iter().map(|record| (record.uuid, record)).collect()))
    }

    /// All images, oldest first.
    pub fn images(&self) -> Result<Vec<ImageInfo>> {
        let layers = self.all_layers()?;
        let images = self.store.images()?;
        Ok(images.into_iter().map(|image| Self::info_of(image, &layers)).collect())
    }

    pub(super) fn info_of(image: Image, layers: &Layers) -> ImageInfo {
        let layers = layers.chain(image.top);
        let size = layers.iter().filter_map(Record::layer).map(|layer| layer.size).sum();
        ImageInfo { image, size, layers }
    }

    /// An image by name, or by ID or its unambiguous beginning, with or without `sha256:`.
    pub fn find_image(&self, name: &str) -> Result<Image> {
        find_among(&self.store.images()?, name)
    }

    /// The canonical name that an image was asked for by, or its ID.
    pub(super) fn name_for(&self, image: &Image, asked: &str) -> String {
        let canonical = asked.parse::<Reference>().map(|reference| reference.canonical());
        match canonical {
            Ok(name) if image.names.contains_key(&name) => name,
            _ => image.id.clone(),
        }
    }

    /// The configuration of an image.
    pub fn image_config(&self, image_id: &str) -> Result<ImageConfig> {
        ImageConfig::parse(&self.store.blob(hex(image_id))?)
            .context(|| format!("configuration of image {}", short(image_id)))
    }

    /// The bytes of an image's configuration, as it came.
    pub fn image_config_bytes(&self, image_id: &str) -> Result<Vec<u8>> {
        self.store.blob(hex(image_id))
    }

    /// How an image was made. Whether a step made a layer is what its configuration says (`empty_layer`), never a guess
    /// from sizes.
    pub fn history(&self, name: &str) -> Result<Vec<Step>> {
        let image = self.find_image(name)?;
        let layers = self.all_layers()?.chain(image.top);
        let config = self.image_config(&image.id)?;
        let mut layers = layers.into_iter();
        let steps = config.history_layers().context(|| format!("history of image {name}"))?;
        Ok(steps
            .into_iter()
            .map(|step| Step {
                created: step.history.and_then(|history| history.created.clone()),
                created_by: step.history.map_or_else(String::new, |history| history.created_by.clone()),
                comment: step.history.map_or_else(String::new, |history| history.comment.clone()),
                layer: step.diff_id.and_then(|_| layers.next()),
            })
            .collect())
    }

    /// Give an image a further name; the image that had it loses it.
    pub fn tag(&self, name: &str, new_name: &str) -> Result<()> {
        (|| {
            let reference = checked_tag(new_name)?;
            self.guard_host()?;
            let guard = self.store.lock_images()?;
            let mut image = find_among(&guard.list()?, name)?;
            image.names.insert(reference.canonical(), guard.time()?);
            guard.put(&image)
        })()
        .context(|| format!("cannot tag image {name} as {new_name}"))
    }

    /// Remove a name of an image, and the image with its last one. Its layers go unless other images or containers
    /// are based on them.
    ///
    /// # Errors
    /// `InUse` naming the containers based on it; with `force` it loses its names and stays for them.
    pub fn remove_image(&self, name: &str, force: bool) -> Result<Vec<Removed>> {
        (|| {
            self.tidy()?;
            let guard = self.store.lock_images()?;
            let mut image = find_among(&guard.list()?, name)?;
            let named = self.name_for(&image, name);
            if image.names.len() > 1 {
                if image.names.remove(&named).is_some() {
                    guard.put(&image)?;
                    return Ok(vec![Removed::Untagged(named)]);
                }
                if !force {
                    let names: Vec<_> = image.names.keys().map(|name| familiar(name)).collect();
                    return Err(Error::new(Kind::InUse, format!("it has several names: {}", names.join(", ")))
                        .with_hint("remove each name, or use --force"));
                }
            }
            let mut removed: Vec<_> = image.names.keys().cloned().map(Removed::Untagged).collect();
            let users = self.begun_from(&image)?;
            if users.is_empty() {
                guard.delete(&image)?;
                removed.push(Removed::Deleted(image.id.clone()));
            } else if force {
                image.names = BTreeMap::new();
                guard.put(&image)?;
            } else {
                return Err(Error::new(Kind::InUse, format!("containers are based on it: {}", users.join(", ")))
                    .with_hint("remove them first, or use --force to take its name away"));
            }
            if let Err(e) = self.store.collect_blobs(&guard, false) {
                tracing::warn!("what no image names any more stays for now: {e}");
            }
            drop(guard);
            self.collect_now();
            Ok(removed)
        })()
        .context(|| format!("cannot remove image {name}"))
    }

    /// Names of the containers that were made from an image.
    pub fn containers_of(&self, image: &Image) -> Result<Vec<String>> {
        let containers = self.containers()?;
        let based = containers.iter().filter_map(Record::container).filter(|c| c.image_id == image.id);
        Ok(based.map(|container| container.name.clone()).collect())
    }

    /// The same, with those that are being made.
    fn begun_from(&self, image: &Image) -> Result<Vec<String>> {
        let containers = self.store.list_begun(TreeKind::Container)?;
        let based = containers.iter().filter_map(Record::container).filter(|c| c.image_id == image.id);
        Ok(based.map(|container| container.name.clone()).collect())
    }

    /// Write down an image whose layers are all here.
    pub(super) fn put_image(&self, new: &NewImage<'_>) -> Result<Image> {
        let guard = self.store.lock_images()?;
        guard.put_blob(&new.id.hex(), new.config)?;
        if let Some((digest, bytes)) = &new.manifest {
            guard.put_blob(&digest.hex(), bytes)?;
        }
        if let Some((digest, bytes, _)) = &new.index {
            guard.put_blob(&digest.hex(), bytes)?;
        }
        let (now, named) = (jiff::Timestamp::now(), guard.time()?);
        let known = guard.list()?.into_iter().find(|image| image.id == new.id.to_string());
        let mut image = known.unwrap_or_else(|| Image {
            uuid: Uuid::new_v4(),
            id: new.id.to_string(),
            manifest: None,
            top: new.top,
            loaded: now,
            names: BTreeMap::new(),
            index: None,
            blobs: Vec::new(),
        });
        image.top = new.top;
        if let Some((digest, _)) = &new.manifest {
            image.manifest = Some(digest.to_string());
        }
        if let Some((digest, _, repository)) = &new.index {
            image.index = Some(ImageIndex { digest: digest.to_string(), repository: repository.clone() });
        }
        new.blobs.iter().for_each(|blob| image.remember(blob));
        image.names.extend(new.names.iter().map(|name| (name.canonical(), named)));
        guard.put(&image)?;
        Ok(image)
    }
}

/// The image that a name, or an ID or its unambiguous beginning, means among these.
fn find_among(images: &[Image], name: &str) -> Result<Image> {
    let parsed = name.parse::<Reference>();
    if let Ok(reference) = &parsed {
        let canonical = reference.kept().canonical();
        if let Some(image) = images.iter().find(|image| image.names.contains_key(&canonical)) {
            return Ok(image.clone());
        }
        // name@sha256:... means the manifest, whatever tag it carries.
        if let Some(digest) = reference.digest()
            && let Some(image) = images.iter().find(|image| image.manifest == Some(digest.to_string()))
        {
            return Ok(image.clone());
        }
    }
    let prefix = name.strip_prefix("sha256:").unwrap_or(name);
    if !prefix.is_empty() && prefix.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        let mut found = images.iter().filter(|image| hex(&image.id).starts_with(prefix));
        if let Some(image) = found.next() {
            if found.next().is_some() {
                return Err(Error::new(Kind::Invalid, format!("{name} is the beginning of several image IDs"))
                    .with_hint("give more digits; reflinkd images --no-trunc shows them"));
            }
            return Ok(image.clone());
        }
    }
    match parsed {
        Ok(reference) => Err(Error::new(Kind::NotFound, format!("there is no image {reference}"))
            .with_hint("reflinkd images lists them; reflinkd pull or reflinkd load adds one")),
        Err(e) => Err(e),
    }
}

/// What [`Engine::put_image`] is given.
#[derive(Debug)]
pub(super) struct NewImage<'a> {
    pub id: Digest,
    pub config: &'a [u8],
    pub manifest: Option<(Digest, &'a [u8])>,
    pub top: Option<Uuid>,
    pub names: &'a [Reference],
    /// The index it came through, with its bytes and the repository that has it.
    pub index: Option<(Digest, &'a [u8], String)>,
    /// What is known of its layers' blobs.
    pub blobs: Vec<LayerBlob>,
}

/// A name to give to an image: a tag is needed, a digest can't be given.
pub fn checked_tag(name: &str) -> Result<Reference> {
    let reference: Reference = name.parse()?;
    if reference.digest().is_some() {
        return Err(Error::new(Kind::Invalid, format!("{name} has a digest, which can't be given to an image")));
    }
    Ok(reference)
}

/// The form of a canonical name that people write; an ID stays as it is.
#[must_use]
pub fn familiar(canonical: &str) -> String {
    canonical.parse::<Reference>().map_or_else(|_| canonical.to_string(), |reference| reference.to_string())
}

/// The hexadecimal part of a digest.
#[must_use]
pub fn hex(digest: &str) -> &str {
    digest.split_once(':').map_or(digest, |(_, hex)| hex)
}

/// The first twelve digits of a digest or ID.
#[must_use]
pub fn short(digest: &str) -> &str {
    let hex = hex(digest);
    hex.get(..12).unwrap_or(hex)
}
