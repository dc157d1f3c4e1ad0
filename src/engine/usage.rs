//! Who holds how many bytes: `ps -s` and `df`.
//!
//! What a container holds is its own data, compared with its image. As long as nobody else has any of it, that is what its
//! group is charged, or what the backend counts ([`Backend::measure`]): a number to look up. Relatives (containers and their
//! snapshots, clones, layers committed of them) share data that only one of them was charged for. Of those each is asked
//! where its data lies ([`Backend::own`]), which costs what it has changed: so each has its whole size, and what several have
//! is told from what one has alone.
//!
//! [`Backend::measure`]: crate::backend::Backend::measure
//! [`Backend::own`]: crate::backend::Backend::own

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::fs::MetadataExt;

use uuid::Uuid;

use super::Engine;
use super::image::ImageInfo;
use crate::backend::{GroupId, Own, SizeMethod, Space, Tree, TreeSize, Want};
use crate::store::{self, Owner, Record, TreeKind};
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
    pub containers: Vec<Relative>,
    pub snapshots: Vec<Relative>,
    /// All layers, each once, whether an image includes it or not.
    pub layers_size: u64,
    /// Layers that `gc` or removing an unused image would give back.
    pub reclaimable: u64,
    pub containers_size: u64,
    pub snapshots_size: u64,
    /// The trees of front doors' clients.
    pub keyed: Vec<KeyedUsage>,
    /// What several containers, snapshots and layers hold, those of other owners among them, as often as it is counted
    /// beyond the first time.
    pub shared: u64,
    pub spares: usize,
    /// What spares take: all of it would come back with them.
    pub spares_size: u64,
    /// What layers and containers take besides their data: recipes, and where each tree has them of its own, inodes and
    /// directories.
    pub metadata: u64,
    /// Still charged to trees that are removed but not cleaned up yet.
    pub pending: u64,
    /// Layers, containers, snapshots, spares, metadata and what is pending, each byte once.
    pub total: u64,
    pub space: Space,
}

/// The trees of one owner that its client knows by keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyedUsage {
    pub owner: Owner,
    /// Committed ones, and those that are written to.
    pub layers: usize,
    pub containers: usize,
    /// Bytes of both.
    pub layers_size: u64,
    pub containers_size: u64,
}

/// A container or snapshot, with what it holds.
#[derive(Debug, Clone)]
pub struct Relative {
    pub record: Record,
    pub sizes: Sizes,
    /// Of its own data, what no container, snapshot or layer besides it holds: what removing it gives back.
    pub unique: u64,
}

/// A record with its sizes; and where its own data lies, if it has relatives.
type Measured = (Record, Sizes, Option<Own>);

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
    pub fn sizes(&self, containers: Vec<Record>, want: Want) -> Result<Vec<(Record, Sizes)>> {
        let measured = self.measured(containers, want)?;
        Ok(measured.into_iter().map(|(record, sizes, _)| (record, sizes)).collect())
    }

    fn measured(&self, mut containers: Vec<Record>, want: Want) -> Result<Vec<Measured>> {
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
        for record in containers.iter().filter(|record| record.has_tree()) {
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

    fn measure(&self, records: Vec<Record>, want: Want) -> Result<Vec<Measured>> {
        let layers = self.all_layers()?;
        let alone: Vec<Tree> = self.own_trees(records.iter().filter(|record| !record.related));
        let measured = self.backend.measure(&alone.iter().collect::<Vec<_>>(), want)?;
        if measured.sizes.len() != alone.len() {
            return Err(Error::new(Kind::System, "the filesystem measured another number of trees than asked"));
        }
        let mut alone = measured.sizes.into_iter();
        // A read-only container has nothing of its own.
        let nothing = TreeSize { charged: 0, apparent: want.apparent.then_some(0) };
        let mut measure_one = |record: Record| -> Result<Option<Measured>> {
            let own = if record.related { self.own_if_there(&record)? } else { None };
            if record.related && own.is_none() {
                return Ok(None);
            }
            let (TreeSize { charged, apparent }, method) = match &own {
                Some(own) => {
                    let apparent = want.apparent.then_some(own.apparent);
                    (TreeSize { charged: own.bytes(), apparent }, SizeMethod::Extents)
                }
                None if !record.has_tree() => (nothing, measured.method),
                None => (alone.next().unwrap_or(nothing), measured.method),
            };
            let virtual_size = layers.size(record.parent) + charged;
            Ok(Some((record, Sizes { size: charged, apparent_size: apparent, virtual_size, method }, own)))
        };
        records.into_iter().filter_map(|record| measure_one(record).transpose()).collect()
    }

    /// [`Engine::own_of`] a tree that may be exchanged or removed while it is read: `None` if it is gone.
    fn own_if_there(&self, record: &Record) -> Result<Option<Own>> {
        for _ in 1..ATTEMPTS {
            match self.own_of(record) {
                Err(_) if self.store.get(record.uuid)?.is_none() => return Ok(None),
                Err(e) if e.kind() == Kind::NotFound => {}
                own => return own.map(Some),
            }
        }
        self.own_of(record).map(Some)
    }

    /// Bytes that a container's group is charged: what counts against its limit, of what its snapshots and commits keep, too.
    /// `None` where the filesystem doesn't keep that.
    pub fn charged(&self, container: &Record) -> Result<Option<u64>> {
        match container.group {
            Some(group) => self.backend.charged(&BTreeSet::from([GroupId(group)])),
            None => Ok(None),
        }
    }

    /// Where a tree's own data lies.
    pub(super) fn own_of(&self, record: &Record) -> Result<Own> {
        self.backend.own(&self.tree(record), self.parent_tree(record)?.as_ref())
    }

    /// Snapshots, with what each holds alone.
    pub fn snapshot_sizes(&self, snapshots: Vec<Record>) -> Result<Vec<Relative>> {
        let wanted: BTreeSet<Uuid> = snapshots.iter().map(|record| record.uuid).collect();
        let want = Want { sync: true, apparent: false };
        let containers = self.measured(self.containers()?, want)?;
        let all = self.measured(self.store.list(TreeKind::Snapshot)?, want)?;
        let layers = self.related_layers(&self.store.list(TreeKind::Layer)?)?;
        let family: Vec<_> =
            containers.iter().chain(&all).filter_map(|(_, _, own)| own.as_ref()).chain(&layers).collect();
        let unique = unique(&family);
        let first = containers.iter().filter(|(_, _, own)| own.is_some()).count();
        let sized = all.iter().zip(&unique[first..]).map(|((record, sizes, _), unique)| Relative {
            record: record.clone(),
            sizes: *sizes,
            unique: *unique,
        });
        Ok(sized.filter(|snapshot| wanted.contains(&snapshot.record.uuid)).collect())
    }

    /// Where the own data of the layers lies that were committed of containers.
    fn related_layers(&self, layers: &[Record]) -> Result<Vec<Own>> {
        let related = layers.iter().filter(|layer| layer.related);
        related.filter_map(|layer| self.own_if_there(layer).transpose()).collect()
    }

    /// The trees of records, without those that have none.
    fn own_trees<'a>(&self, records: impl IntoIterator<Item = &'a Record>) -> Vec<Tree> {
        records.into_iter().filter(|record| record.has_tree()).map(|record| self.tree(record)).collect()
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
        let containers = self.measured(self.containers()?, Want { sync, apparent: false })?;
        let snapshots = self.measured(self.store.list(TreeKind::Snapshot)?, Want { sync: false, apparent: false })?;
        let keyed = self.keyed_usage()?;
        let images = self.images()?;
        let layers = self.store.list(TreeKind::Layer)?;
        let size_of = |record: &Record| record.layer().map_or(0, |layer| layer.size);

        let mut included: HashMap<Uuid, usize> = HashMap::new();
        for layer in images.iter().flat_map(|image| &image.layers) {
            *included.entry(layer.uuid).or_default() += 1;
        }
        let mut based: BTreeMap<&str, usize> = BTreeMap::new();
        for container in containers.iter().filter_map(|(record, ..)| record.container()) {
            *based.entry(&container.image_id).or_default() += 1;
        }
        let chains = self.all_layers()?;
        let used: BTreeSet<Uuid> = containers
            .iter()
            .flat_map(|(container, ..)| chains.chain(container.parent))
            .map(|layer| layer.uuid)
            .collect();

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
        let size = |measured: &[Measured]| measured.iter().map(|(_, sizes, _)| sizes.size).sum();
        let (containers_size, snapshots_size) = (size(&containers), size(&snapshots));

        let committed = self.related_layers(&layers)?;
        let all = || containers.iter().chain(&snapshots);
        let family: Vec<&Own> = all().filter_map(|(_, _, own)| own.as_ref()).chain(&committed).collect();
        let records = all().filter(|(_, _, own)| own.is_some()).map(|(record, ..)| record);
        let records = records.chain(layers.iter().filter(|layer| layer.related));
        let groups: BTreeSet<GroupId> = records.flat_map(Record::groups).map(GroupId).collect();
        let each: u64 = family.iter().map(|own| own.bytes()).sum();
        let together = union(&family);
        let charged = self.backend.charged(&groups)?;
        let mut unique = unique(&family).into_iter();
        let relatives = |measured: Vec<Measured>, unique: &mut dyn Iterator<Item = u64>| -> Vec<Relative> {
            let relative = |(record, sizes, own): Measured| {
                let unique = own.and_then(|_| unique.next()).unwrap_or(sizes.size);
                Relative { record, sizes, unique }
            };
            measured.into_iter().map(relative).collect()
        };
        let containers = relatives(containers, &mut unique);
        let snapshots = relatives(snapshots, &mut unique);
        let shared = each.saturating_sub(together) + keyed.counted_again;

        let (spares, spares_size) = self.overhead(TreeKind::Spare)?;
        let with_recipes = layers.iter().chain(&keyed.trees);
        let recipes: u64 = with_recipes.map(|layer| self.recipe_size(layer)).sum::<Result<_>>()?;
        let keyed_size: u64 = keyed.owners.iter().map(|owner| owner.layers_size + owner.containers_size).sum();
        // What relatives are charged for beyond their data is metadata that they have written.
        let metadata = self.overhead(TreeKind::Layer)?.1
            + self.overhead(TreeKind::Container)?.1
            + self.overhead(TreeKind::Snapshot)?.1
            + self.overhead(TreeKind::Keyed)?.1
            + recipes
            + charged.map_or(0, |charged| charged.saturating_sub(together));
        let pending: u64 =
            self.backend.leftovers(&self.live_groups()?)?.iter().map(|leftover| leftover.charged).sum();
        let summed: u64 =
            layers_size + containers_size + snapshots_size + keyed_size + spares_size + metadata + pending;
        Ok(Usage {
            images,
            containers,
            snapshots,
            layers_size,
            reclaimable: layers.iter().filter(|layer| !used.contains(&layer.uuid)).map(size_of).sum(),
            containers_size,
            snapshots_size,
            keyed: keyed.owners,
            shared,
            spares,
            spares_size,
            metadata,
            pending,
            total: summed.saturating_sub(shared),
            space: self.backend.space()?,
        })
    }

    /// The charge groups that records name.
    pub(super) fn live_groups(&self) -> Result<BTreeSet<GroupId>> {
        Ok(self.store.groups()?.into_iter().map(GroupId).collect())
    }
}

/// Bytes that trees hold together.
fn union(family: &[&Own]) -> u64 {
    let mut blocks = rangemap::RangeSet::new();
    for own in family {
        blocks.extend(own.blocks.iter().cloned());
    }
    let elsewhere = family.iter().map(|own| own.elsewhere).sum();
    Own { blocks, elsewhere, apparent: 0 }.bytes()
}

/// Bytes that each of the trees holds alone.
fn unique(family: &[&Own]) -> Vec<u64> {
    let mut alone: Vec<u64> = family.iter().map(|own| own.elsewhere).collect();
    // Where a range of a tree begins or ends, in the order of addresses.
    let mut edges: Vec<(u64, bool, usize)> = Vec::new();
    for (tree, own) in family.iter().enumerate() {
        edges.extend(own.blocks.iter().flat_map(|range| [(range.start, true, tree), (range.end, false, tree)]));
    }
    edges.sort_unstable();
    let (mut holders, mut last) = (BTreeSet::new(), 0);
    for (at, begins, tree) in edges {
        if let (1, Some(holder)) = (holders.len(), holders.first()) {
            let holder: usize = *holder;
            alone[holder] += at - last;
        }
        if begins {
            holders.insert(tree);
        } else {
            holders.remove(&tree);
        }
        last = at;
    }
    alone
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(ranges: &[(u64, u64)], elsewhere: u64) -> Own {
        Own { blocks: ranges.iter().map(|(start, end)| *start..*end).collect(), elsewhere, apparent: 0 }
    }

    #[test]
    fn what_several_hold_is_nobodys_alone_and_counts_once() {
        let (a, b, c) = (own(&[(0, 10), (20, 30)], 1), own(&[(5, 25)], 2), own(&[(8, 9), (40, 44)], 0));
        assert_eq!(unique(&[&a, &b, &c]), [5 + 5 + 1, 10 + 2, 4]);
        assert_eq!(union(&[&a, &b, &c]), 30 + 4 + 3);
        assert_eq!(unique(&[&a, &a]), [1, 1]);
        assert_eq!(unique(&[&a]), [21]);
        assert!(unique(&[]).is_empty());
    }
}
