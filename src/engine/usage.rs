//! Who holds how many bytes: `ps -s` and `df`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::fs::MetadataExt;

use uuid::Uuid;

use super::Engine;
use super::image::ImageInfo;
use crate::backend::{GroupId, SizeMethod, Space, Tree, TreeSize, Want};
use crate::store::{self, Record, TreeKind};
use crate::{Context, Error, Kind, Result};

/// How often to measure anew because a container was removed meanwhile.
const ATTEMPTS: u32 = 8;

/// A container's sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// What is charged on disk for its own data: 0 if it was never touched.
    pub size: u64,
    /// Lengths of the files it made or changed.
    pub apparent_size: Option<u64>,
    /// Its image and its own data.
    pub virtual_size: u64,
    pub method: SizeMethod,
}

/// What the store holds, in bytes.
#[derive(Debug, Clone)]
pub struct Usage {
    pub images: Vec<ImageUsage>,
    pub containers: Vec<(Record, Sizes)>,
    /// All layers, each once, whether an image includes it or not.
    pub layers_size: u64,
    /// Layers that `gc` or removing an unused image would give back.
    pub reclaimable: u64,
    pub containers_size: u64,
    pub spares: usize,
    /// What spares take: all of it would come back with them.
    pub spares_size: u64,
    /// What layers and containers take besides their data: recipes, and where each tree has them of its own, inodes and
    /// directories.
    pub metadata: u64,
    /// Still charged to trees that are removed but not cleaned up yet.
    pub pending: u64,
    /// Layers, containers, spares, metadata and what is pending.
    pub total: u64,
    pub space: Space,
}

/// One image's part.
#[derive(Debug, Clone)]
pub struct ImageUsage {
    pub info: ImageInfo,
    /// Of its layers, those that another image includes too.
    pub shared: u64,
    /// Of its layers, those that no other image includes.
    pub unique: u64,
    pub containers: usize,
}

impl Engine {
    /// Sizes of containers, in their order, without those that were removed since they were listed. `want.sync` commits
    /// the filesystem first, so that the numbers are exact.
    pub fn sizes(&self, mut containers: Vec<Record>, want: Want) -> Result<Vec<(Record, Sizes)>> {
        for _ in 1..ATTEMPTS {
            match self.measure(containers.clone(), want) {
                Err(e) if e.kind() == Kind::NotFound => {
                    let there = containers.iter().map(|record| self.store.get(record.uuid));
                    containers = there.filter_map(Result::transpose).collect::<Result<_>>()?;
                }
                Err(e) if e.kind() == Kind::Damaged => return Err(self.whose(e, &containers)),
                measured => return measured,
            }
        }
        self.measure(containers, want)
    }

    /// Which container an error about all of them is of, and the way out.
    fn whose(&self, error: Error, containers: &[Record]) -> Error {
        let asked = Want { sync: false, apparent: false };
        for record in containers.iter().filter(|record| !record.is_view()) {
            let tree = self.tree(record);
            if let (Some(container), Err(e)) = (record.container(), self.backend.measure(&[&tree], asked))
                && e.kind() == Kind::Damaged
            {
                let name = &container.name;
                return Error::new(Kind::Damaged, format!("cannot tell what container {name} holds: {e}")).with_hint(
                    format!("what it wrote is in {}; when you have it: reflinkd rm {name}", tree.root().display()),
                );
            }
        }
        error
    }

    fn measure(&self, containers: Vec<Record>, want: Want) -> Result<Vec<(Record, Sizes)>> {
        let layers = self.all_layers()?;
        let trees = self.own_trees(&containers);
        let measured = self.backend.measure(&trees.iter().collect::<Vec<_>>(), want)?;
        if measured.sizes.len() != trees.len() {
            return Err(Error::new(Kind::System, "the filesystem measured another number of trees than asked"));
        }
        let mut own = measured.sizes.into_iter();
        // A read-only container has nothing of its own.
        let nothing = TreeSize { charged: 0, apparent: want.apparent.then_some(0) };
        let size_of = |container: Record| {
            let own = if container.is_view() { nothing } else { own.next().unwrap_or(nothing) };
            let virtual_size = layers.size(container.parent) + own.charged;
            let (size, apparent_size, method) = (own.charged, own.apparent, measured.method);
            (container, Sizes { size, apparent_size, virtual_size, method })
        };
        Ok(containers.into_iter().map(size_of).collect())
    }

    /// The trees of records, without those that have none.
    fn own_trees(&self, records: &[Record]) -> Vec<Tree> {
        records.iter().filter(|record| !record.is_view()).map(|record| self.tree(record)).collect()
    }

    /// How many trees of a kind there are, and what they take besides their data.
    fn overhead(&self, kind: TreeKind) -> Result<(usize, u64)> {
        let attempt = || {
            let trees = self.own_trees(&self.store.list(kind)?);
            Ok((trees.len(), self.backend.overhead(&trees.iter().collect::<Vec<_>>())?))
        };
        for _ in 1..ATTEMPTS {
            match attempt() {
                // One was removed meanwhile.
                Err(e) if Error::kind(&e) == Kind::NotFound => {}
                counted => return counted,
            }
        }
        attempt()
    }

    /// What a layer's recipe takes on disk.
    fn recipe_size(&self, layer: &Record) -> Result<u64> {
        let recipe = store::recipe(&self.store.place(layer.uuid));
        match std::fs::metadata(&recipe) {
            Ok(file) => Ok(file.blocks() * 512),
            // One of an older version, or removed meanwhile.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(0),
            Err(e) => Err(e).context(|| format!("stat {}", recipe.display())),
        }
    }

    /// What the whole store holds.
    pub fn usage(&self, sync: bool) -> Result<Usage> {
        let sized = self.sizes(self.containers()?, Want { sync, apparent: false })?;
        let (containers, sizes): (Vec<_>, Vec<_>) = sized.into_iter().unzip();
        let images = self.images()?;
        let layers = self.store.list(TreeKind::Layer)?;
        let size_of = |record: &Record| record.layer().map_or(0, |layer| layer.size);

        let mut included: HashMap<Uuid, usize> = HashMap::new();
        for layer in images.iter().flat_map(|image| &image.layers) {
            *included.entry(layer.uuid).or_default() += 1;
        }
        let mut based: BTreeMap<&str, usize> = BTreeMap::new();
        for container in containers.iter().filter_map(Record::container) {
            *based.entry(&container.image_id).or_default() += 1;
        }
        let chains = self.all_layers()?;
        let used: BTreeSet<Uuid> =
            containers.iter().flat_map(|container| chains.chain(container.parent)).map(|layer| layer.uuid).collect();

        let images = images
            .iter()
            .map(|info| {
                let shared = info.layers.iter().filter(|layer| included.get(&layer.uuid).is_some_and(|n| *n > 1));
                let shared = shared.map(size_of).sum();
                ImageUsage {
                    shared,
                    unique: info.size - shared,
                    containers: based.get(info.image.id.as_str()).copied().unwrap_or(0),
                    info: info.clone(),
                }
            })
            .collect();
        let layers_size = layers.iter().map(size_of).sum();
        let containers_size = sizes.iter().map(|sizes| sizes.size).sum();
        let (spares, spares_size) = self.overhead(TreeKind::Spare)?;
        let recipes: u64 = layers.iter().map(|layer| self.recipe_size(layer)).sum::<Result<_>>()?;
        let metadata = self.overhead(TreeKind::Layer)?.1 + self.overhead(TreeKind::Container)?.1 + recipes;
        let pending: u64 =
            self.backend.leftovers(&self.live_groups()?)?.iter().map(|leftover| leftover.charged).sum();
        Ok(Usage {
            images,
            containers: containers.into_iter().zip(sizes).collect(),
            layers_size,
            reclaimable: layers.iter().filter(|layer| !used.contains(&layer.uuid)).map(size_of).sum(),
            containers_size,
            spares,
            spares_size,
            metadata,
            pending,
            total: layers_size + containers_size + spares_size + metadata + pending,
            space: self.backend.space()?,
        })
    }

    /// The charge groups that records name.
    pub(super) fn live_groups(&self) -> Result<BTreeSet<GroupId>> {
        Ok(self.store.groups()?.into_iter().map(GroupId).collect())
    }
}
