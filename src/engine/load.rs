//! Loading images: layers from a source into trees.
//!
//! For each layer that isn't here yet: reserve its chain ID, unpack into a work tree cloned from its parent while
//! three threads read, decompress and digest, and the recipe of its tar is written (`layer::recipe`), verify, then commit the work tree as a read-only snapshot. An image is
//! written down only when all its layers are durable. When a load ends, layers that nothing is based on are collected.
//! If it is killed, the next verb that writes clears up the layer it was at; those it had made wait for the next
//! attempt, and go with the end of the next load, an `rmi` or a `gc`.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use uuid::Uuid;

use super::image::NewImage;
use super::{Engine, tree_at};
use crate::backend::Access;
use crate::layer::{self, IdMaps};
use crate::oci::{
    ChainId, DiffId, Expected, Input, LayerStream, NamedDocument, Reference, Source, SourceImage, Verified, chain_ids,
};
use crate::store::{
    self, Content, Draft, Image, Layer, LayerBlob, Lock, New, NewGroup, Owner, Record, State, TreeKind,
};
use crate::{Context, Error, Kind, Result};

/// How often to try to clear up what a dead process left of a layer. Others may be at it.
const ATTEMPTS: u32 = 16;

/// Told how a load or a pull goes on. Layers are named by the first digits of their diff ID.
pub trait Progress: Sync {
    /// A layer has to be fetched, and isn't yet.
    fn waiting(&self, _layer: &str) {}
    /// A layer is being fetched; the counter rises to `total` bytes.
    fn fetching(&self, _layer: &str, _total: u64, _fetched: &Arc<AtomicU64>) {}
    fn fetched(&self, _layer: &str) {}
    /// A layer is being unpacked; the counter rises to `total` bytes read from the source, if that is known.
    fn started(&self, layer: &str, total: Option<u64>, read: &Arc<AtomicU64>);
    /// The layer was here already.
    fn exists(&self, layer: &str);
    fn finished(&self, layer: &str);
}

/// For callers that don't want to know.
#[derive(Debug)]
pub struct Silent;

impl Progress for Silent {
    fn started(&self, _: &str, _: Option<u64>, _: &Arc<AtomicU64>) {}
    fn exists(&self, _: &str) {}
    fn finished(&self, _: &str) {}
}

/// Reads the blob of an image's layer, by its number; again if need be.
pub(super) type OpenLayer<'a> = dyn Fn(usize) -> Result<Box<dyn Read + Send>> + 'a;

/// A stream for one layer, with what it must turn out to be.
pub(super) struct Incoming<'a> {
    pub(super) raw: Box<dyn Read + Send>,
    pub(super) expected: Expected,
    pub(super) total: Option<u64>,
    pub(super) label: String,
    pub(super) progress: &'a dyn Progress,
}

/// Where an image is fetched from.
pub(super) struct Origin<'a> {
    /// With its registry: `localhost:5000/team/app`.
    pub(super) repository: String,
    /// What it has under the name that was asked for.
    pub(super) named: &'a NamedDocument,
}

impl Origin<'_> {
    /// What it has of an image's layers.
    fn blobs(&self, image: &SourceImage) -> Vec<LayerBlob> {
        let known = image.layers.iter().filter_map(|layer| Some((layer.diff_id, layer.blob.as_ref()?)));
        known
            .map(|(diff_id, blob)| LayerBlob {
                diff_id: diff_id.to_string(),
                digest: blob.digest.to_string(),
                media_type: blob.media_type.clone(),
                size: blob.size,
                repositories: vec![self.repository.clone()],
            })
            .collect()
    }
}

impl Engine {
    /// Where an input that can't seek may be kept while it is read: on the store's own filesystem.
    #[must_use]
    pub fn spool_directory(&self) -> std::path::PathBuf {
        self.root().join("images")
    }

    /// Open what images are to come from. What can't be sought is copied into the store first, as long as there is room.
    ///
    /// # Errors
    /// Those of [`Source::open`].
    pub fn open_source(&self, input: Input) -> Result<Source> {
        let limits = &self.settings.source_limits;
        Source::open_while(input, &self.spool_directory(), limits, &|| self.guard_host())
    }

    /// Load all images of a source.
    pub fn load(&self, source: &Source, progress: &dyn Progress) -> Result<Vec<Image>> {
        let one = |image: &SourceImage| {
            self.load_image(image, &|at| source.layer_reader(&image.layers[at]), None, progress)
                .context(|| format!("cannot load image {}", describe(image)))
        };
        self.while_loading(|| source.images().iter().map(one).collect())
    }

    /// Do what adds layers: with room for them, and with no collector of layers at work; what it leaves is collected.
    pub(super) fn while_loading<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.tidy()?;
        self.make_room(None)?;
        self.guard_host()?;
        let loading = self.store.lock_loads(Lock::Shared)?;
        let done = work();
        drop(loading);
        self.collect_now();
        done
    }

    /// One image, the blobs of whose layers (0 is the lowest) `open` reads.
    pub(super) fn load_image(
        &self,
        image: &SourceImage,
        open: &OpenLayer<'_>,
        origin: Option<&Origin<'_>>,
        progress: &dyn Progress,
    ) -> Result<Image> {
        // The kernel takes its time over a tree whose files are in memory: the next layer needn't wait for it.
        let top = std::thread::scope(|scope| {
            self.load_layers(image, open, progress, &mut |work| drop(scope.spawn(|| self.discard(work))))
        })?;
        self.put_image(&NewImage {
            id: image.id.0,
            config: &image.config_bytes,
            manifest: image.manifest.as_ref().map(|(digest, bytes)| (*digest, bytes.as_slice())),
            top,
            names: &image.names,
            index: origin.and_then(|origin| {
                Some((origin.named.digest, origin.named.index.as_deref()?, origin.repository.clone()))
            }),
            blobs: origin.map_or_else(Vec::new, |origin| origin.blobs(image)),
        })
    }

    /// All layers of an image, from the base up; the topmost one's tree. Each work tree that has served goes to `used`.
    fn load_layers(
        &self,
        image: &SourceImage,
        open: &OpenLayer<'_>,
        progress: &dyn Progress,
        used: &mut dyn FnMut(Draft),
    ) -> Result<Option<Uuid>> {
        let mut parent = None;
        let diff_ids: Vec<_> = image.layers.iter().map(|layer| layer.diff_id).collect();
        for (at, (layer, chain_id)) in image.layers.iter().zip(chain_ids(&diff_ids)).enumerate() {
            let open = || {
                Ok(Incoming {
                    raw: open(at)?,
                    expected: Expected::of(layer, self.settings.layer_limits.max_bytes),
                    total: Some(layer.size()),
                    label: layer.diff_id.0.short(),
                    progress,
                })
            };
            let record = self
                .ensure_layer(chain_id, layer.diff_id, parent, progress, &open, used)
                .context(|| format!("layer {}", layer.diff_id.0.short()))?;
            parent = Some(record.uuid);
        }
        Ok(parent)
    }

    /// The tree of a layer on its parent: found, waited for while another process makes it, or made.
    fn ensure_layer<'a>(
        &self,
        chain_id: ChainId,
        diff_id: DiffId,
        parent: Option<Uuid>,
        progress: &dyn Progress,
        open: &dyn Fn() -> Result<Incoming<'a>>,
        used: &mut dyn FnMut(Draft),
    ) -> Result<Record> {
        let owner = Owner::cli();
        let key = chain_id.to_string();
        let mut half_made = None;
        let mut seen = 0;
        loop {
            match self.store.by_key(&owner, TreeKind::Layer, &key)? {
                Some((record, State::Ready)) => {
                    progress.exists(&diff_id.0.short());
                    return Ok(record);
                }
                Some((record, _)) => {
                    seen = if half_made == Some(record.uuid) { seen + 1 } else { 0 };
                    half_made = Some(record.uuid);
                    if seen == ATTEMPTS {
                        return Err(Error::new(Kind::InUse, "what a dead process left of it can't be cleared up")
                            .with_hint("reflinkd gc says why"));
                    }
                    self.store.wait_for(record.uuid)?;
                    self.tidy()?;
                    self.check_cancelled()?;
                    continue;
                }
                None => {}
            }
            let draft = self.store.begin(New {
                owner: owner.clone(),
                parent,
                group: NewGroup::Fresh,
                content: Content::Layer(Layer {
                    diff_id: diff_id.to_string(),
                    chain_id: key.clone(),
                    size: 0,
                    size_method: String::new(),
                    apparent_size: 0,
                }),
            });
            match draft {
                Err(e) if e.kind() == Kind::Exists => {}
                Err(e) => return Err(e),
                Ok(draft) => return self.make_layer(draft, open, used),
            }
        }
    }

    /// Unpack a layer into the tree of a draft and publish it.
    fn make_layer<'a>(
        &self,
        mut draft: Draft,
        open: &dyn Fn() -> Result<Incoming<'a>>,
        used: &mut dyn FnMut(Draft),
    ) -> Result<Record> {
        match self.with_room(|| open().and_then(|incoming| self.unpack(&mut draft, incoming))) {
            Ok((_, work)) => {
                used(work);
                self.store.publish(draft)
            }
            Err(e) => {
                self.discard(draft);
                Err(e)
            }
        }
    }

    /// Unpack into a work tree, then commit that as the draft's tree. The work tree has served then, but is still there.
    fn unpack(&self, draft: &mut Draft, incoming: Incoming<'_>) -> Result<(Verified, Draft)> {
        let work = self.store.begin(New {
            owner: draft.record().owner.clone(),
            parent: draft.record().parent,
            group: NewGroup::Same(draft.record().group),
            content: Content::Work,
        })?;
        let work_tree = tree_at(work.place().to_path_buf(), work.record());
        let unpacked = (|| {
            let (summary, verified) = self.unpack_into(&work, &store::recipe(draft.place()), incoming)?;
            // Before the commit: a clone shares everything with it, and what is shared is nobody's own to full qgroups.
            let (method, size) = self.backend.measure_for_good(&work_tree)?;
            if let Content::Layer(layer) = &draft.record().content {
                let mut layer = layer.clone();
                layer.diff_id = verified.diff_id.to_string();
                if draft.record().parent.is_none() {
                    // OCI image spec, config.md: the chain ID of a base layer is its diff ID. An import learns it here.
                    layer.chain_id.clone_from(&layer.diff_id);
                }
                layer.size = size;
                layer.size_method = method.to_string();
                layer.apparent_size = summary.bytes;
                draft.set_content(Content::Layer(layer));
            }
            self.store.rewrite(draft)?;
            let tree = tree_at(draft.place().to_path_buf(), draft.record());
            self.backend.clone_tree(&work_tree, &tree, Access::ReadOnly, None)?;
            Ok(verified)
        })();
        match unpacked {
            Ok(verified) => Ok((verified, work)),
            Err(e) => {
                self.discard(work);
                Err(e)
            }
        }
    }

    /// Unpack a layer onto its parent, in the place of a work tree's draft.
    pub(super) fn unpack_into(
        &self,
        work: &Draft,
        recipe: &Path,
        incoming: Incoming<'_>,
    ) -> Result<(layer::Summary, Verified)> {
        let tree = tree_at(work.place().to_path_buf(), work.record());
        match self.parent_tree(work.record())? {
            Some(parent) => self.backend.clone_tree(&parent, &tree, Access::Writable, None)?,
            None => {
                self.backend.create(&tree, None)?;
                // A tar without an entry for its root would leave the time of now there: no two loads alike.
                set_epoch(&tree.root())?;
            }
        }
        self.stream_into(&tree.root(), recipe, incoming)
    }

    fn stream_into(&self, root: &Path, recipe: &Path, incoming: Incoming<'_>) -> Result<(layer::Summary, Verified)> {
        let read = Arc::new(AtomicU64::new(0));
        incoming.progress.started(&incoming.label, incoming.total, &read);
        let mut stream = LayerStream::start(incoming.raw, incoming.expected, Arc::clone(&read))?;
        let (limits, ids) = (&self.settings.layer_limits, IdMaps::default());
        let unpacked = self.while_room(|stop| layer::record(&mut stream, root, recipe, limits, &ids, stop));
        match unpacked {
            Ok(summary) => {
                let verified = stream.finish()?;
                incoming.progress.finished(&incoming.label);
                if summary.foreign_attributes > 0 {
                    let count = summary.foreign_attributes;
                    tracing::warn!(
                        "layer {}: left out {count} extended attributes that Linux has no place for",
                        incoming.label
                    );
                }
                Ok((summary, verified))
            }
            // If the stream broke, that is the cause, and the tar's complaint only its effect.
            Err(e) => Err(stream.explain(e)),
        }
    }

    pub(super) fn check_cancelled(&self) -> Result<()> {
        if self.is_cancelled() {
            return Err(Error::new(Kind::Interrupted, "interrupted"));
        }
        Ok(())
    }

    /// Make an image of one layer from the tar of a root filesystem. `config` makes the image's configuration from the
    /// tar's diff ID.
    pub fn import(
        &self,
        raw: Box<dyn Read + Send>,
        total: Option<u64>,
        name: Option<&Reference>,
        config: &dyn Fn(&DiffId) -> Result<Vec<u8>>,
        progress: &dyn Progress,
    ) -> Result<Image> {
        let imported = || {
            let (record, diff_id) = self.import_layer(raw, total, progress)?;
            let config = config(&diff_id)?;
            let names: Vec<_> = name.cloned().into_iter().collect();
            self.put_image(&NewImage {
                id: crate::oci::Digest::of(&config),
                config: &config,
                manifest: None,
                top: Some(record.uuid),
                names: &names,
                index: None,
                blobs: Vec::new(),
            })
        };
        self.while_loading(|| imported().context(|| "cannot import"))
    }

    /// The layer's digest is known only at its end, so until then its tree goes by a name of its own.
    fn import_layer(
        &self,
        raw: Box<dyn Read + Send>,
        total: Option<u64>,
        progress: &dyn Progress,
    ) -> Result<(Record, DiffId)> {
        let unnamed = DiffId(crate::oci::Digest::of(Uuid::new_v4().as_bytes()));
        let mut draft = self.store.begin(New {
            owner: Owner::cli(),
            parent: None,
            group: NewGroup::Fresh,
            content: Content::Layer(Layer {
                diff_id: unnamed.to_string(),
                chain_id: unnamed.to_string(),
                size: 0,
                size_method: String::new(),
                apparent_size: 0,
            }),
        })?;
        let expected = Expected { blob: None, diff_id: None, max_bytes: self.settings.layer_limits.max_bytes };
        let incoming = Incoming { raw, expected, total, label: "import".into(), progress };
        let diff_id = match self.unpack(&mut draft, incoming) {
            Ok((verified, work)) => {
                self.discard(work);
                verified.diff_id
            }
            Err(e) => {
                self.discard(draft);
                return Err(e);
            }
        };
        match self.store.publish_or_yield(draft)? {
            Ok(record) => Ok((record, diff_id)),
            // The same tar is here already: ours is not needed.
            Err(draft) => self.same_layer(draft).map(|record| (record, diff_id)),
        }
    }
}

/// Set a directory's times to 0, as [`layer::unpack`] does with directories that have no entry.
pub(super) fn set_epoch(directory: &Path) -> Result<()> {
    let epoch = rustix::fs::Timespec { tv_sec: 0, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: epoch, last_modification: epoch };
    rustix::fs::utimensat(rustix::fs::CWD, directory, &times, rustix::fs::AtFlags::empty())
        .context(|| format!("utimensat {}", directory.display()))
}

fn describe(image: &SourceImage) -> String {
    match image.names.first() {
        Some(name) => name.to_string(),
        None => image.id.0.short(),
    }
}
