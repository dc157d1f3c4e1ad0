//! The snapshots of a containerd: trees by keys of its own, as its snapshotter interface wants them
//! (`core/snapshots/snapshotter.go` of containerd has the contract).
//!
//! ```text
//! prepare("x")                 an active snapshot on nothing: an empty tree, which the client writes to
//! commit("base", "x")          "x" is gone, "base" is committed: a tree that stays as it is
//! prepare("c", on "base")      a clone of it
//! view("v", on "base")         no tree: its mount is a read-only one of "base"'s
//! usage("c")                   what it has beyond "base"
//! remove("c"), remove("v"), remove("base")
//! ```
//!
//! A key or name is one snapshot's at a time, whatever its kind. What is committed has none of the labels of what it was
//! made of. A snapshot stays where it is when it is committed, so that the source of its mount tells which it is
//! ([`Snapshots::key_at`]): the differ is told nothing else.
//!
//! # Errors
//! | | |
//! |---|---|
//! | no such key or parent | `NotFound` |
//! | key or name taken | `Exists` |
//! | a parent that isn't committed, a key that is none | `Invalid` |
//! | the wrong kind of snapshot, or one that others are based on | `InUse` |
//!
//! # Limits
//! `containerd.io/snapshot/max-size` is how many bytes a snapshot may have beyond its parent. What a layer is unpacked in
//! (`containerd.io/snapshot.ref` says so) has no limit unless it has this label.
//!
//! # Layers of others
//! With owners in [`Space::reuse`], a layer that one of them has needn't be unpacked again: see `reuse`.
//!
//! # Ids
//! With `containerd.io/snapshot/uidmapping` and `.../gidmapping` the mount is to be an id-mapped one, if the client relies on that
//! (`remap-ids` among the capabilities that it was told of): on disk are the ids of the image, whoever's container it is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Engine;
use super::keyed::Keyspace;
use crate::layer::IdMaps;
use crate::store::{Content, Held, Keyed, Owner, Record, Stage, State};
use crate::{Context, Error, Kind, Result};

mod changes;
mod claims;
mod ids;
mod reuse;
mod usage;

pub(super) use claims::Claims;
pub use usage::Usage;
pub(super) use usage::Usages;

/// How often to look again while others are at work on a snapshot.
const ATTEMPTS: u32 = 16;
/// Bytes that a limit is given in, as text.
const MAX_SIZE: &str = "containerd.io/snapshot/max-size";
/// What a snapshot is to become once it is committed: the layers of an image by their chain ID.
const TARGET: &str = "containerd.io/snapshot.ref";
/// Most bytes of a label, its key included.
const LONGEST_LABEL: usize = 4096;
/// The same of all labels of a snapshot: its record has them, which is read with each look at it.
const MOST_LABEL_BYTES: usize = 256 << 10;

pub type Labels = BTreeMap<String, String>;

/// Where the snapshots of one containerd are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Space {
    /// Its name here. No two share a snapshot.
    pub name: String,
    /// Most bytes that a container may add for which no label says anything.
    pub size_limit: Option<u64>,
    /// Whether mounts are to be id-mapped as labels say: only where the client relies on it, as one that doesn't has changed
    /// the owners itself.
    pub remap_ids: bool,
    /// Whose layers may be cloned in place of being unpacked again. Only the command line's are known by their digests.
    pub reuse: Vec<Owner>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotKind {
    View,
    Active,
    Committed,
}

/// What is known of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its key, or once it is committed its name.
    pub name: String,
    pub parent: Option<String>,
    pub kind: SnapshotKind,
    pub created: jiff::Timestamp,
    pub updated: jiff::Timestamp,
    pub labels: Labels,
}

/// What a mount is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    pub root: PathBuf,
    pub read_only: bool,
    /// `CONTAINER:HOST:COUNT`, for an id-mapped mount; several are joined by commas.
    pub uid_map: Option<String>,
    pub gid_map: Option<String>,
}

/// What becomes of labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LabelChange {
    /// These are all.
    All(Labels),
    /// These are set, or with `None` removed.
    Some(BTreeMap<String, Option<String>>),
}

/// The snapshots of one containerd.
#[derive(Debug)]
pub struct Snapshots<'e> {
    engine: &'e Engine,
    keys: Keyspace<'e>,
    owner: Owner,
    space: Space,
}

impl Engine {
    #[must_use]
    pub fn snapshots_of(&self, space: &Space) -> Snapshots<'_> {
        let owner = Owner::containerd(&space.name);
        let keys = self.keyspace(owner.clone(), 0, IdMaps::default());
        Snapshots { engine: self, keys, owner, space: space.clone() }
    }
}

impl Snapshots<'_> {
    /// Make an active snapshot. Durable on return.
    ///
    /// # Errors
    /// As the module says; `Unsupported` for a limit that can't be held here.
    pub fn prepare(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Shown> {
        self.make(key, parent, Stage::Active, labels).context(|| format!("cannot prepare {key}"))
    }

    /// Make a snapshot that shows another one. Durable on return.
    pub fn view(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Shown> {
        self.make(key, parent, Stage::View, labels).context(|| format!("cannot make the view {key}"))
    }

    fn make(&self, key: &str, parent: Option<&str>, stage: Stage, labels: Labels) -> Result<Shown> {
        let engine = self.engine;
        check_labels(&labels)?;
        if self.space.remap_ids {
            ids::check(&labels)?;
        }
        let size_limit = if stage == Stage::Active { self.limit(&labels)? } else { None };
        engine.tidy()?;
        engine.make_room(None)?;
        engine.guard_host()?;
        for warning in engine.check_limit(size_limit)? {
            tracing::warn!("{key}: {warning}");
        }
        let _claim = self.claim(key)?;
        let parent = parent.map(|parent| self.parent(parent)).transpose()?;
        let keyed = Keyed { size_limit, labels, ..Keyed::new(key, stage) };
        let record = self.keys.make_new(parent.as_ref(), &keyed)?;
        self.shown(&record)
    }

    fn limit(&self, labels: &Labels) -> Result<Option<u64>> {
        let Some(text) = labels.get(MAX_SIZE) else {
            return Ok(self.space.size_limit.filter(|_| !labels.contains_key(TARGET)));
        };
        let bytes = text.parse().ok().filter(|bytes| *bytes > 0);
        bytes.map(Some).ok_or_else(|| Error::new(Kind::Invalid, format!("{MAX_SIZE}={text} is no number of bytes")))
    }

    /// The record of what something is to be based on.
    fn parent(&self, name: &str) -> Result<Record> {
        let record = self.record(name).context(|| format!("no parent {name}"))?;
        match stage_of(&record)? {
            Stage::Committed { .. } => Ok(record),
            _ => Err(Error::new(Kind::Invalid, format!("its parent {name} is not committed"))),
        }
    }

    /// What the mount of an active snapshot or a view is made of.
    pub fn mounts(&self, key: &str) -> Result<Shown> {
        let mounted = || -> Result<_> {
            let record = self.record(key)?;
            let shown = self.shown(&record)?;
            // Somebody may have removed it since.
            if !shown.root.exists() && self.engine.store.get(record.uuid)?.is_some() {
                return Err(Error::new(Kind::Damaged, format!("its tree is missing at {}", shown.root.display())));
            }
            Ok(shown)
        };
        mounted().context(|| format!("cannot mount {key}"))
    }

    fn shown(&self, record: &Record) -> Result<Shown> {
        let read_only = match stage_of(record)? {
            Stage::Active => false,
            Stage::View => true,
            Stage::Committed { .. } | Stage::Reserved => {
                return Err(Error::new(Kind::InUse, "it is committed: what is based on it has a mount"));
            }
        };
        let tree = match record.has_tree() {
            true => Some(self.engine.tree(record)),
            false => self.engine.parent_tree(record)?,
        };
        let root = tree.ok_or_else(|| Error::new(Kind::Damaged, "it shows nothing"))?.root();
        let labels = record.keyed().map(|keyed| &keyed.labels).filter(|_| self.space.remap_ids);
        let (uid_map, gid_map) = ids::of(labels);
        Ok(Shown { root, read_only, uid_map, gid_map })
    }

    /// Make an active snapshot one that stays as it is, by another name. Durable on return, with all that was written to it.
    ///
    /// # Errors
    /// `Unsupported` for another parent than it was prepared on.
    pub fn commit(&self, name: &str, key: &str, parent: Option<&str>, labels: Labels) -> Result<()> {
        let committed = || -> Result<()> {
            check_labels(&labels)?;
            self.engine.tidy()?;
            self.record(key)?;
            // Nobody takes the name meanwhile, as there is no way back from a sealed tree.
            let _claim = self.claim(name)?;
            let held = self.hold(key)?;
            if *stage_of(held.record())? != Stage::Active {
                return Err(Error::new(Kind::InUse, "only an active snapshot can be committed"));
            }
            self.check_base(held.record(), parent)?;
            self.engine.usages.forget(held.record().uuid);
            let becomes = |record: &Record, stage| {
                let (stage, reused) = self.kept_as(record, stage);
                Keyed { labels: labels.clone(), reused, ..Keyed::new(name, stage) }
            };
            // Counted when somebody asks: most never do, and it is as it stays.
            self.keys.seal_as(held, becomes, None, jiff::Timestamp::now()).map(drop)
        };
        committed().context(|| format!("cannot commit {key} as {name}"))
    }

    fn check_base(&self, record: &Record, parent: Option<&str>) -> Result<()> {
        let (Some(wanted), own) = (parent, self.keys.parent_key(record)?) else { return Ok(()) };
        if own.as_deref() == Some(wanted) {
            return Ok(());
        }
        let own = own.unwrap_or_else(|| "nothing".into());
        Err(Error::new(Kind::Unsupported, format!("it is based on {own}, and can't be put on {wanted}")))
    }

    /// Remove a snapshot. Its key can be used again at once.
    pub fn remove(&self, key: &str) -> Result<()> {
        self.record(key).context(|| format!("cannot remove {key}"))?;
        self.keys.remove(key)
    }

    pub fn stat(&self, key: &str) -> Result<SnapshotInfo> {
        self.record(key).and_then(|record| self.info(&record)).context(|| format!("cannot tell about {key}"))
    }

    /// Change labels. Durable on return.
    pub fn update(&self, key: &str, change: LabelChange) -> Result<SnapshotInfo> {
        let updated = || -> Result<_> {
            self.engine.tidy()?;
            let mut held = self.hold(key)?;
            let mut record = held.record().clone();
            if let Content::Keyed(keyed) = &mut record.content {
                match change {
                    LabelChange::All(labels) => keyed.labels = labels,
                    LabelChange::Some(changes) => {
                        for (key, value) in changes {
                            match value {
                                Some(value) => drop(keyed.labels.insert(key, value)),
                                None => drop(keyed.labels.remove(&key)),
                            }
                        }
                    }
                }
                keyed.updated = Some(jiff::Timestamp::now());
                check_labels(&keyed.labels)?;
            }
            self.engine.store.amend(&mut held, record)?;
            self.info(held.record())
        };
        updated().context(|| format!("cannot change the labels of {key}"))
    }

    /// All snapshots, oldest first.
    pub fn list(&self) -> Result<Vec<SnapshotInfo>> {
        let records = self.keys.list()?;
        let names: BTreeMap<_, _> = records.iter().map(|record| (record.uuid, record.key())).collect();
        let name_of = |uuid| names.get(&uuid).cloned().flatten().map(std::borrow::Cow::into_owned);
        records.iter().map(|record| info(record, record.parent.and_then(name_of))).collect()
    }

    fn info(&self, record: &Record) -> Result<SnapshotInfo> {
        info(record, self.keys.parent_key(record)?)
    }

    /// Do what [`Snapshots::remove`] left for later: take removed trees apart, and give their groups back. Where somebody tends the
    /// store ([`Engine::tend`]), that is left to him: it takes commits, and the collector of a containerd waits for it.
    pub fn clean_up(&self) -> Result<()> {
        let cleaned = || -> Result<_> {
            self.engine.tidy()?;
            if self.engine.tends() {
                return Ok(0);
            }
            self.engine.backend.reclaim(&self.engine.live_groups()?, std::time::Duration::ZERO)
        };
        cleaned().map(drop).context(|| "cannot clean up after removed snapshots")
    }

    /// The snapshot whose tree a mount shows that has this source.
    pub fn key_at(&self, source: &Path) -> Result<Option<String>> {
        let place = source.strip_prefix(self.engine.root().join("snapshots")).ok().and_then(Path::parent);
        let uuid = place.and_then(Path::to_str).and_then(|name| uuid::Uuid::try_parse(name).ok());
        let Some(record) = uuid.map(|uuid| self.engine.store.get(uuid)).transpose()?.flatten() else {
            return Ok(None);
        };
        let own = record.owner == self.owner && self.engine.tree(&record).root() == source;
        Ok(record.keyed().filter(|_| own).map(|keyed| keyed.key.clone()))
    }

    fn record(&self, key: &str) -> Result<Record> {
        self.keys.get(key)?.ok_or_else(|| Error::new(Kind::NotFound, format!("there is no snapshot {key}")))
    }

    /// Take a snapshot away from everyone else. Others may commit or remove it, which is waited for.
    fn hold(&self, key: &str) -> Result<Held> {
        for _ in 0..ATTEMPTS {
            match self.engine.store.hold(self.record(key)?.uuid) {
                Ok(held) if held.state() == State::Ready && held.record().key().as_deref() == Some(key) => {
                    return Ok(held);
                }
                Err(e) if !matches!(e.kind(), Kind::InUse | Kind::NotFound) => return Err(e),
                Ok(_) | Err(_) => {}
            }
        }
        Err(Error::new(Kind::InUse, "others are at work on it"))
    }

    /// Take a key or name that nobody has.
    fn claim(&self, key: &str) -> Result<claims::Claim<'_>> {
        super::keyed::check_key(key)?;
        let exists = || Error::new(Kind::Exists, format!("there is a snapshot {key} already"));
        let claim = self.engine.claims.take(&self.owner, key).ok_or_else(exists)?;
        match self.keys.get(key)? {
            Some(_) => Err(exists()),
            None => Ok(claim),
        }
    }
}

fn stage_of(record: &Record) -> Result<&Stage> {
    let stage = record.keyed().map(|keyed| &keyed.stage);
    stage.ok_or_else(|| Error::new(Kind::Damaged, "its record is of another kind"))
}

fn info(record: &Record, parent: Option<String>) -> Result<SnapshotInfo> {
    let kind = match stage_of(record)? {
        Stage::View => SnapshotKind::View,
        Stage::Active | Stage::Reserved => SnapshotKind::Active,
        Stage::Committed { .. } => SnapshotKind::Committed,
    };
    let keyed = record.keyed();
    Ok(SnapshotInfo {
        name: keyed.map_or_else(String::new, |keyed| keyed.key.clone()),
        parent,
        kind,
        created: record.created,
        updated: keyed.and_then(|keyed| keyed.updated).unwrap_or(record.created),
        labels: keyed.map(|keyed| keyed.labels.clone()).unwrap_or_default(),
    })
}

fn check_labels(labels: &Labels) -> Result<()> {
    let length = |(key, value): (&String, &String)| key.len() + value.len();
    if let Some((key, _)) = labels.iter().find(|label| length(*label) > LONGEST_LABEL) {
        let begins: String = key.chars().take(64).collect();
        return Err(Error::new(Kind::Invalid, format!("the label {begins} is longer than {LONGEST_LABEL} bytes")));
    }
    let all: usize = labels.iter().map(length).sum();
    if all > MOST_LABEL_BYTES {
        let why = format!("labels of {all} bytes, and a snapshot has at most {MOST_LABEL_BYTES}");
        return Err(Error::new(Kind::Invalid, why));
    }
    Ok(())
}
