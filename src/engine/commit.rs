//! Commits: a container's changes as a further layer of its image.
//!
//! ```text
//! fork web1 -> work, read-only     the moment that the image is of; who writes to web1 meanwhile or later changes nothing
//! changes(work against its image)  what is to be in the layer
//! pack                             the layer's tar goes by: its digest names the layer, its recipe makes it again
//! the record                       says from now on that work is the layer; the one durable step
//! put_image                        the image's configuration, with the layer and a line of history
//! ```
//!
//! The fork shares all its blocks with the container, and is charged where that is. Whoever dies before the record leaves a
//! work tree, which the next verb that writes removes; before the image, a layer without one, which goes as after a load.

use super::image::NewImage;
use super::snapshot::refuse_view;
use super::{Engine, delta, tree_at};
use crate::backend::Access;
use crate::backend::changes::Comparison;
use crate::layer::IdMaps;
use crate::layer::pack;
use crate::layer::recipe::RecipeWriter;
use crate::layer::sink::Plain;
use crate::oci::{Commit, DiffId, Digest, Digesting, ImageConfig, Reference, chain_ids};
use crate::store::{self, Content, Draft, Image, Layer, Lock, NewFork, Owner, Record};
use crate::{Context, Result};

/// What is to be made of a container.
#[derive(Debug, Clone)]
pub struct CommitContainer {
    /// Name or ID, or `NAME@LABEL` for a snapshot.
    pub container: String,
    /// Name for the image.
    pub image: Option<Reference>,
    pub message: String,
    pub author: String,
    /// Dockerfile instructions that change the image's configuration.
    pub changes: Vec<String>,
}

/// The image that was made, and what its user should know.
#[derive(Debug, Clone)]
pub struct Committed {
    pub image: Image,
    pub warnings: Vec<String>,
}

impl Engine {
    /// Make an image of a container as it is now, running or not. Durable on return. Without changes it has the layers of
    /// the container's image, as with Docker.
    pub fn commit(&self, wanted: &CommitContainer) -> Result<Committed> {
        (|| -> Result<_> {
            self.tidy()?;
            self.make_room(None)?;
            self.guard_host()?;
            let from = self.find_tree(&wanted.container)?;
            refuse_view(&from)?;
            let image_id = self.container_of(&from)?.image_id;
            let parent = self.image_config_bytes(&image_id)?;
            let commit = Commit { message: &wanted.message, author: &wanted.author, changes: &wanted.changes };
            let config = |diff_id| ImageConfig::with_layer(&parent, diff_id, &commit);
            // A bad instruction is found before anything is done.
            config(None)?;
            // Until the image is written down, nothing says that the layer is needed.
            let loading = self.store.lock_loads(Lock::Shared)?;
            let mut warnings = Vec::new();
            let layer = self.with_room(|| self.commit_layer(&from, &mut warnings))?;
            let diff_id = layer.as_ref().and_then(Record::layer).map(|layer| layer.diff_id.parse()).transpose()?;
            let config = config(diff_id)?;
            let names: Vec<_> = wanted.image.iter().cloned().collect();
            let base = self.store.images()?.into_iter().find(|image| image.id == image_id);
            let image = self.put_image(&NewImage {
                id: Digest::of(&config),
                config: &config,
                manifest: None,
                top: layer.map_or(from.parent, |layer| Some(layer.uuid)),
                names: &names,
                index: None,
                // Its base's layers are where they were.
                blobs: base.map_or_else(Vec::new, |base| base.blobs),
            })?;
            drop(loading);
            Ok(Committed { image, warnings })
        })()
        .inspect_err(|_| self.collect_now())
        .context(|| format!("cannot commit container {}", wanted.container))
    }

    /// The layer of what a tree has changed; `None` if that is nothing.
    fn commit_layer(&self, from: &Record, warnings: &mut Vec<String>) -> Result<Option<Record>> {
        let mut held = self.store.hold(from.uuid)?;
        let new = NewFork { owner: Owner::cli(), own_group: false, content: Content::Work };
        let mut draft = self.store.begin_fork(&mut held, new)?;
        let work = tree_at(draft.place().to_path_buf(), draft.record());
        let made = self.backend.fork(&self.tree(held.record()), &work, Access::ReadOnly, None).and_then(|()| {
            // Others may have the container again.
            drop(held);
            self.make_committed(&mut draft, warnings)
        });
        match made {
            Ok(true) => {}
            Ok(false) => {
                self.discard(draft);
                return Ok(None);
            }
            Err(e) => {
                self.discard(draft);
                return Err(e);
            }
        }
        match self.store.publish_or_yield(draft)? {
            Ok(record) => Ok(Some(record)),
            // The same layer is here already: ours is not needed.
            Err(draft) => self.same_layer(draft).map(Some),
        }
    }

    /// Make a draft, whose tree is a fork, the layer that its tree is of. Whether there is anything in it.
    fn make_committed(&self, draft: &mut Draft, warnings: &mut Vec<String>) -> Result<bool> {
        let (tree, parent) =
            (tree_at(draft.place().to_path_buf(), draft.record()), self.parent_tree(draft.record())?);
        let changes = self.backend.changes(&Comparison {
            parent: parent.as_ref(),
            tree: &tree,
            scratch: None,
            sizes: false,
        })?;
        let items = delta::items(&changes);
        if items.is_empty() {
            return Ok(false);
        }
        let digesting = Digesting::new(std::io::sink());
        let mut sink = (Plain(digesting), RecipeWriter::create(&store::recipe(draft.place()))?);
        let limit = self.settings.layer_limits.max_bytes;
        let packed = pack::pack(&tree.root(), &items, &IdMaps::default(), limit, &mut sink, &|| self.is_cancelled())?;
        let (Plain(digesting), recipe) = sink;
        recipe.finish()?;
        let diff_id = DiffId(digesting.into_inner().1.finish());
        if packed.left_out > 0 {
            let s = if packed.left_out == 1 { "" } else { "s" };
            warnings.push(format!("left out {} socket{s}, which an image can't hold", packed.left_out));
        }
        let mut diff_ids = Vec::new();
        for record in self.all_layers()?.chain(draft.record().parent) {
            if let Some(layer) = record.layer() {
                diff_ids.push(layer.diff_id.parse()?);
            }
        }
        diff_ids.push(diff_id);
        let chain_id = chain_ids(&diff_ids).last().map_or_else(|| diff_id.to_string(), ToString::to_string);
        draft.set_content(Content::Layer(Layer {
            diff_id: diff_id.to_string(),
            chain_id,
            size: self.own_of(draft.record())?.bytes(),
            size_method: crate::backend::SizeMethod::Extents.to_string(),
            apparent_size: packed.file_bytes,
        }));
        self.store.confirm(draft)?;
        Ok(true)
    }
}
