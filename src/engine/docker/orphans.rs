//! Trees that dockerd doesn't know: it was killed between two calls, or before it wrote down what it had asked for. It never
//! asks for them again, nor removes them.
//!
//! What it knows stands in its data root, beside its home. A key is written down after its tree is made, and at the latest
//! in the same run of dockerd; of what an earlier run made, what isn't written down never will be.
//!
//! ```text
//! <data-root>/reflinkd/                                        the home, which dockerd names to us
//! <data-root>/image/reflinkd/layerdb/sha256/<chain ID>/cache-id    a layer's key
//!                                    sha256/<chain ID>-<..>-removing/  one that is on its way out: not known any more
//!                                    tmp/write-set-<..>/cache-id   one that is being unpacked: not known yet
//!                                    mounts/<container>/mount-id, init-id  a container's keys
//! <data-root>/buildkit/snapshots.db                            BuildKit's keys, among others (a bbolt file)
//! ```
//!
//! Where any of it can't be read nothing is an orphan, as the database of another data root, of one that isn't mounted, or
//! of another Docker would make orphans of all.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::Client;
use crate::backend::Want;
use crate::engine::Engine;
use crate::store::{Keyed, Owner, Record, Stage, TreeKind};
use crate::{Context, Error, Kind, Result};

/// How often to read a file anew that changes while it is read.
const ATTEMPTS: u32 = 8;

/// What was found.
#[derive(Debug, Default)]
pub struct Orphans {
    /// Children before their parents.
    pub trees: Vec<Record>,
    /// Why nothing can be told of the trees of some homes.
    pub unknown: Vec<Error>,
}

impl Engine {
    /// The trees that no dockerd knows, and nothing that one knows is based on. Reads only.
    pub fn docker_orphans(&self) -> Result<Orphans> {
        let client = self.docker_client()?;
        let mut known: BTreeMap<u32, Option<Known>> = BTreeMap::new();
        let mut orphans = Orphans::default();
        let mut lost = HashSet::new();
        for record in self.store.list(TreeKind::Keyed)? {
            let Some(keyed) = record.keyed().filter(|_| record.owner == Owner::docker()) else { continue };
            if keyed.session >= client.session {
                continue;
            }
            let known = known.entry(keyed.home).or_insert_with(|| match known_at(&client, keyed.home) {
                Ok(known) => Some(known),
                Err(e) => {
                    orphans.unknown.push(e);
                    None
                }
            });
            if known.as_ref().is_some_and(|known| !known.has(keyed)) {
                lost.insert(record.uuid);
            }
        }
        // Also what is being made on them.
        orphans.trees = upwards(&self.store.list_begun(TreeKind::Keyed)?, &lost);
        Ok(orphans)
    }

    /// Remove them; those that were. Of one that somebody uses it is said who.
    pub fn remove_orphans(&self, orphans: Vec<Record>) -> Result<Vec<Record>> {
        let mut removed = Vec::new();
        for record in orphans {
            // Whoever tends the store may have made one since.
            let spares = || self.drop_spares(|spare| spare.parent == Some(record.uuid));
            match self.check_unused(&record).and_then(|()| spares()).and_then(|_| self.remove_tree(&record)) {
                Ok(()) => removed.push(record),
                Err(e) if e.kind() == Kind::NotFound => {}
                Err(e) if e.kind() == Kind::InUse => {
                    tracing::warn!("cannot remove {}, which dockerd doesn't know: {e}", key_of(&record));
                }
                Err(e) => return Err(e).context(|| format!("cannot remove {}", key_of(&record))),
            }
        }
        Ok(removed)
    }

    /// What an orphan takes, in bytes; `None` if nobody can tell.
    pub(in crate::engine) fn orphan_size(&self, record: &Record) -> Option<u64> {
        match record.keyed().map(|keyed| &keyed.stage) {
            Some(Stage::Committed { size, .. }) => Some(*size),
            Some(Stage::Reserved | Stage::View) => Some(0),
            Some(Stage::Active) | None => {
                let wanted = Want { sync: false, apparent: false };
                let measured = self.backend.measure(&[&self.tree(record)], wanted).ok()?;
                measured.sizes.first().map(|size| size.charged)
            }
        }
    }
}

pub(in crate::engine) fn key_of(record: &Record) -> String {
    record.key().unwrap_or_default().into_owned()
}

/// Those of `lost` that nothing else is based on, from the top down.
fn upwards(all: &[Record], lost: &HashSet<Uuid>) -> Vec<Record> {
    let by_uuid: HashMap<_, _> = all.iter().map(|record| (record.uuid, record)).collect();
    let parents = |record| {
        std::iter::successors(Some(record), |record: &&Record| record.parent.and_then(|p| by_uuid.get(&p).copied()))
    };
    let kept = all.iter().filter(|record| !lost.contains(&record.uuid));
    let needed: HashSet<_> = kept.flat_map(|record| parents(record).map(|record| record.uuid)).collect();
    let mut orphans: Vec<_> = all.iter().filter(|record| !needed.contains(&record.uuid)).collect();
    orphans.sort_by_cached_key(|record| std::cmp::Reverse(parents(record).count()));
    orphans.into_iter().cloned().collect()
}

/// The keys that a dockerd has written down.
#[derive(Debug, Default)]
struct Known {
    keys: BTreeSet<String>,
    /// BuildKit's file, in which keys are found as they are.
    buildkit: Vec<u8>,
}

impl Known {
    /// A container's tree stands for that of its init layer, too.
    fn has(&self, keyed: &Keyed) -> bool {
        let init = keyed.init.as_ref().filter(|init| init.stands).map(|init| init.key.as_str());
        [Some(keyed.key.as_str()), init].into_iter().flatten().any(|key| self.has_key(key))
    }

    fn has_key(&self, key: &str) -> bool {
        self.keys.contains(key) || self.buildkit.windows(key.len()).any(|bytes| bytes == key.as_bytes())
    }
}

/// What is known to the dockerd whose home has this number.
fn known_at(client: &Client, home: u32) -> Result<Known> {
    let homes = client.homes.get(home as usize);
    let home = homes.ok_or_else(|| Error::new(Kind::Damaged, format!("nothing is kept of dockerd's home {home}")))?;
    (|| -> Result<_> {
        let (root, database) = places_of(&home.path)?;
        if home.filesystem != 0 && super::filesystem_of(&home.path) != home.filesystem {
            let why = format!("another filesystem is at {} than when it was made", root.display());
            return Err(Error::new(Kind::NotFound, why).with_hint("mount what was there"));
        }
        let mut known = Known { buildkit: unchanged(&root.join("buildkit/snapshots.db"))?, ..Known::default() };
        // Never there without the rest: dockerd makes it when it begins.
        read_keys(&database, "sha256", &["cache-id"], &mut known.keys)?;
        read_keys(&database, "mounts", &["mount-id", "init-id"], &mut known.keys)?;
        Ok(known)
    })()
    .context(|| format!("cannot tell which layers the dockerd with home {} knows", home.path.display()))
}

/// The data root, and the layer database in it.
fn places_of(home: &Path) -> Result<(PathBuf, PathBuf)> {
    let (Some(root), Some(name), true) = (home.parent(), home.file_name(), home.is_absolute()) else {
        return Err(Error::new(Kind::Invalid, "it is none: a home is <data-root>/<name of the driver>"));
    };
    let database = root.join("image").join(name).join("layerdb");
    let looked = std::fs::read_dir(&database).context(|| format!("read {}", database.display()));
    looked.map(drop).map_err(|e| {
        e.with_hint(format!(
            "mount what it is on; if that data root is gone for good, an empty one says so: mkdir -p {}",
            database.display()
        ))
    })?;
    Ok((root.to_path_buf(), database))
}

/// Read the files of these names in all directories of `database/part`, but those that are on their way out. One that comes
/// or goes meanwhile is of dockerd's present run, or of none.
fn read_keys(database: &Path, part: &str, files: &[&str], keys: &mut BTreeSet<String>) -> Result<()> {
    let directory = database.join(part);
    let entries = match std::fs::read_dir(&directory) {
        // Before the first layer, or container.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.context(|| format!("read {}", directory.display()))?,
    };
    for entry in entries {
        let entry = entry.context(|| format!("read {}", directory.display()))?;
        if entry.file_name().to_string_lossy().ends_with("-removing") {
            continue;
        }
        for file in files {
            let path = entry.path().join(file);
            match std::fs::read_to_string(&path) {
                Ok(key) => drop(keys.insert(key.trim().to_string())),
                Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {}
                Err(e) => return Err(e).context(|| format!("read {}", path.display())),
            }
        }
    }
    Ok(())
}

/// The content of a file that pages are written to in place, as it was at one moment. Nothing if it isn't there.
fn unchanged(path: &Path) -> Result<Vec<u8>> {
    let facts = || match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        facts => facts.and_then(|facts| facts.modified()).map(Some).context(|| format!("stat {}", path.display())),
    };
    for _ in 0..ATTEMPTS {
        let before = facts()?;
        if before.is_none() {
            return Ok(Vec::new());
        }
        let bytes = std::fs::read(path).context(|| format!("read {}", path.display()))?;
        if facts()? == before {
            return Ok(bytes);
        }
    }
    Err(Error::new(Kind::InUse, format!("{} changes all the time", path.display()))
        .with_hint("try again when no image is being built"))
}
