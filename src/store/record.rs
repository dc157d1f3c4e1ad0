//! What the store knows of one tree: the record beside it.
//!
//! A record is written before its tree exists, into an extended attribute of the place around the
//! tree (`trusted.reflinkd`, JSON). Being metadata made before the snapshot, it is made durable by the
//! snapshot's own commit. A record too long for an attribute stands in the file `record.json` in the place,
//! fsync'd, and the attribute says so.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::fgetxattr;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::sys::durable;
use crate::{Context, Error, Kind, Result};

const ATTRIBUTE: &str = "trusted.reflinkd";
const SPILL_FILE: &str = "record.json";
const SPILLED: &[u8] = b"record.json";
/// ext4 keeps an attribute within a block of 4 KiB, headers included; Btrfs and XFS take more. One bound for all.
const LONGEST_ATTRIBUTE: usize = 3800;

/// The front door that made a tree. No door's clean-up takes another's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Owner(String);

impl Owner {
    /// The command line.
    #[must_use]
    pub fn cli() -> Self {
        Self("cli".into())
    }

    /// Docker, by the graph-driver protocol.
    #[must_use]
    pub fn docker() -> Self {
        Self("docker".into())
    }

    /// The containerd that has this name here.
    #[must_use]
    pub fn containerd(name: &str) -> Self {
        Self(match name {
            Self::FIRST_CONTAINERD => "containerd".into(),
            name => format!("containerd/{name}"),
        })
    }

    /// The name of the one that most hosts have.
    pub const FIRST_CONTAINERD: &'static str = "default";

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub uuid: Uuid,
    pub owner: Owner,
    /// The tree that this one was cloned from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Uuid>,
    /// Number of the charge group, from the store's sequence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<u32>,
    pub created: jiff::Timestamp,
    /// Its tree, or its limit, is being exchanged for another: which of the two is there, and which group is charged, only the
    /// filesystem knows. Since schema 2.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replacing: bool,
    /// Whether it was made of a relative (a container of a snapshot, a snapshot or layer of a container), or a relative of
    /// it: then it may share its own data with others, and what its group holds need not be its alone. Since schema 4.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub related: bool,
    /// Groups of other trees that what it shares with relatives was first charged to. Since schema 4.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inherits: Vec<u32>,
    /// The tree that had its key before: nobody's, as soon as this one is whole. So the one takes the other's place by one durable
    /// step, and of two trees with a key this is the one. Since schema 6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instead_of: Option<Uuid>,
    pub content: Content,
}

/// What a tree is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// A committed layer with all its parents below it.
    Layer(Layer),
    /// A tree that a layer is being unpacked in; nobody's, once its maker is gone.
    Work,
    /// A clone of its parent made ahead: what the next container of it is made of. Since schema 3.
    Spare,
    Container(Container),
    /// A container as it was. Since schema 4.
    Snapshot(Snapshot),
    /// A tree that the client of a front door knows by a key of its own. Since schema 5.
    Keyed(Keyed),
}

/// The kinds of [`Content`], to ask by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TreeKind {
    Layer,
    Work,
    Spare,
    Container,
    Snapshot,
    Keyed,
}

impl TreeKind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Layer => "layer",
            Self::Work => "work",
            Self::Spare => "spare",
            Self::Container => "container",
            Self::Snapshot => "snapshot",
            Self::Keyed => "keyed",
        }
    }
}

impl Content {
    #[must_use]
    pub fn kind(&self) -> TreeKind {
        match self {
            Self::Layer(_) => TreeKind::Layer,
            Self::Work => TreeKind::Work,
            Self::Spare => TreeKind::Spare,
            Self::Container(_) => TreeKind::Container,
            Self::Snapshot(_) => TreeKind::Snapshot,
            Self::Keyed(_) => TreeKind::Keyed,
        }
    }
}

/// A committed layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Digest of the layer's plain tar.
    pub diff_id: String,
    /// Digest of the chain of diff IDs up to this one: the name of the whole tree.
    pub chain_id: String,
    /// Bytes that the filesystem charged for it when it was committed, and how they were counted.
    pub size: u64,
    pub size_method: String,
    /// Sum of the lengths of the regular files in its tar.
    pub apparent_size: u64,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// 64 hexadecimal digits.
    pub id: String,
    pub name: String,
    /// ID of the image's configuration.
    pub image_id: String,
    /// The image's name as it was asked for, in canonical form.
    pub image: String,
    /// Most bytes its writers may add.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_limit: Option<u64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// It has no tree of its own: its root is a read-only mount of its parent's, and `fs` the mount point. Since schema 3.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Bytes of its own data that it has from the container it was cloned from and that its group isn't charged for, so that
    /// its limit has to be so much smaller. Since schema 4.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub inherited: u64,
}

impl Container {
    /// What of its limit is left for what its own group is charged for.
    #[must_use]
    pub fn own_limit(&self) -> Option<u64> {
        self.size_limit.map(|limit| limit.saturating_sub(self.inherited).max(1))
    }
}

fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}

/// A container as it was at one moment. It is removed with its container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The record of its container.
    pub container: Uuid,
    /// Unique among the container's.
    pub label: String,
    pub origin: SnapshotOrigin,
}

/// How a snapshot came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotOrigin {
    /// Somebody asked for it.
    Manual,
    /// A rule asked for it, and may remove it (`snapshot --keep`).
    Automatic,
    /// A rollback put another tree in its place.
    Replaced,
}

impl Snapshot {
    /// What the record of a snapshot is found by.
    #[must_use]
    pub fn key(container: Uuid, label: &str) -> String {
        format!("{container}/{label}")
    }
}

/// A tree that a client of ours knows by a key: a layer of Docker's, say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keyed {
    /// Unique among its owner's.
    pub key: String,
    pub stage: Stage,
    /// Most bytes that may be added to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_limit: Option<u64>,
    /// The SELinux label that all of its files have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Which run of its client it was made in.
    #[serde(default, skip_serializing_if = "is_none")]
    pub session: u32,
    /// Which of its clients' homes that one had, by number.
    #[serde(default, skip_serializing_if = "is_none")]
    pub home: u32,
    /// The layer between it and its parent that has no tree of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<Init>,
    /// Its client's, by key. Since schema 6.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// When its client last changed what is said here; `None` if that was when it was made. Since schema 6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated: Option<jiff::Timestamp>,
    /// The layer whose tree it was made a clone of, in place of unpacking the same layer. Other programs of schema 6 may not
    /// know it, and lose nothing but that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reused: Option<Reused>,
}

/// A layer of another owner. It may be gone: its clone needs nothing of it but the numbers that are here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reused {
    pub origin: Uuid,
    /// Its sizes, as a [`Layer`]'s.
    pub size: u64,
    pub size_method: String,
    pub apparent_size: u64,
    /// What its tar has, but for hard links and whiteouts: where clones aren't constant, comparing its clone with another
    /// layer's would be a look at each file's bytes.
    pub inodes: u64,
    /// Whether somebody wrote to the clone, or may have, before it was committed: then it is no such layer any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub altered: bool,
}

impl Keyed {
    /// With nothing but a key.
    #[must_use]
    pub fn new(key: impl Into<String>, stage: Stage) -> Self {
        Self {
            key: key.into(),
            stage,
            size_limit: None,
            label: None,
            session: 0,
            home: 0,
            init: None,
            labels: BTreeMap::new(),
            updated: None,
            reused: None,
        }
    }
}

/// How far a keyed tree has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// It has no tree yet, and gets one when it is needed.
    Reserved,
    /// It is written to.
    Active,
    /// It is as it stays: it has been unpacked, or something is based on it. Sizes as a [`Layer`]'s, and `inodes` that it has
    /// beyond its parent: what nobody wanted to know yet is `None` (since schema 6).
    Committed {
        size: u64,
        size_method: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        apparent_size: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        inodes: Option<u64>,
    },
    /// It shows its parent's tree, and has one only if it is based on nothing: an empty one. Since schema 6.
    View,
}

/// What the client did in a tree that became another one's: Docker's `<container>-init`, whose tree goes on as the container's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Init {
    pub key: String,
    /// Whether the record stands for that key, too. Not any more once the key was removed, or has a tree again.
    pub stands: bool,
    /// When that was, in ns since 1970: from the making of the tree until it became another one's. What has a change time in
    /// between, and was there when it was made, hasn't been changed since.
    pub begun: i64,
    pub taken: i64,
    /// What had been made, or removed, by then. What had been changed is among it only where a clone has other inodes.
    pub entries: Vec<InitEntry>,
    /// A layer of what had been made: its tar, compressed by zstd, in hexadecimal digits.
    pub layer: String,
}

/// A name that was made or removed before the tree became another one's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitEntry {
    /// Below the root, which itself is the empty path.
    pub path: String,
    /// Removed, and not made.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub removed: bool,
    /// What tells whether it was changed again: number, and change time in ns since 1970. 0 of what was removed.
    pub inode: u64,
    pub ctime: i64,
}

fn is_none(number: &u32) -> bool {
    *number == 0
}

impl Record {
    /// The groups that what it holds may be charged to.
    pub fn groups(&self) -> impl Iterator<Item = u32> {
        self.group.into_iter().chain(self.inherits.iter().copied())
    }

    /// The unique name of the content among its owner's: chain ID, container ID, container and label, key, or none.
    #[must_use]
    pub fn key(&self) -> Option<Cow<'_, str>> {
        match &self.content {
            Content::Layer(layer) => Some(Cow::Borrowed(&layer.chain_id)),
            Content::Container(container) => Some(Cow::Borrowed(&container.id)),
            Content::Snapshot(snapshot) => Some(Cow::Owned(Snapshot::key(snapshot.container, &snapshot.label))),
            Content::Keyed(keyed) => Some(Cow::Borrowed(&keyed.key)),
            Content::Work | Content::Spare => None,
        }
    }

    /// A second unique name: containers have one, and trees that stand for another key as well.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match &self.content {
            Content::Container(container) => Some(&container.name),
            Content::Keyed(keyed) => keyed.init.as_ref().filter(|init| init.stands).map(|init| init.key.as_str()),
            Content::Layer(_) | Content::Work | Content::Spare | Content::Snapshot(_) => None,
        }
    }

    #[must_use]
    pub fn layer(&self) -> Option<&Layer> {
        match &self.content {
            Content::Layer(layer) => Some(layer),
            _ => None,
        }
    }

    #[must_use]
    pub fn container(&self) -> Option<&Container> {
        match &self.content {
            Content::Container(container) => Some(container),
            _ => None,
        }
    }

    #[must_use]
    pub fn keyed(&self) -> Option<&Keyed> {
        match &self.content {
            Content::Keyed(keyed) => Some(keyed),
            _ => None,
        }
    }

    #[must_use]
    pub fn snapshot(&self) -> Option<&Snapshot> {
        match &self.content {
            Content::Snapshot(snapshot) => Some(snapshot),
            _ => None,
        }
    }

    /// Whether it shows its parent's tree instead of having one.
    #[must_use]
    pub fn is_view(&self) -> bool {
        self.container().is_some_and(|container| container.read_only)
    }

    /// Whether its record is all there ever is of it.
    pub(super) fn is_without_tree(&self) -> bool {
        self.parent.is_some() && self.keyed().is_some_and(|keyed| keyed.stage == Stage::View)
    }

    /// Whether it has a tree of its own.
    #[must_use]
    pub fn has_tree(&self) -> bool {
        match self.keyed().map(|keyed| &keyed.stage) {
            Some(Stage::Reserved) => false,
            Some(Stage::View) => self.parent.is_none(),
            Some(Stage::Active | Stage::Committed { .. }) | None => !self.is_view(),
        }
    }

    /// Write the record beside the tree. Durable with the next commit of the filesystem.
    pub(super) fn write(&self, place: &File, path: &Path) -> Result<()> {
        let json = serde_json::to_vec(self)
            .map_err(|e| Error::new(Kind::Invalid, format!("cannot write record of {}: {e}", self.uuid)))?;
        let value = if json.len() > LONGEST_ATTRIBUTE {
            super::files::replace(&path.join(SPILL_FILE), |file| file.write_all(&json))?;
            SPILLED
        } else {
            &json
        };
        durable::set_xattr(place, path, ATTRIBUTE, value)
            .context(|| format!("fsetxattr {} {ATTRIBUTE}", path.display()))
    }

    /// Read the record beside a tree; `None` if there is none yet.
    pub(super) fn read(place: &File, path: &Path) -> Result<Option<Self>> {
        let Some(json) = Self::read_bytes(place, path)? else { return Ok(None) };
        serde_json::from_slice(&json)
            .map(Some)
            .map_err(|e| Error::new(Kind::Damaged, format!("record of {} is damaged: {e}", path.display())))
    }

    /// The record as it is written; `None` if there is none yet.
    ///
    /// # Errors
    /// `Damaged` if it should stand in a file that isn't there, or is no record of ours.
    pub(super) fn read_bytes(place: &File, path: &Path) -> Result<Option<Vec<u8>>> {
        let mut value = vec![0; LONGEST_ATTRIBUTE];
        let damaged =
            |why: &str| Error::new(Kind::Damaged, format!("record of {} is damaged: {why}", path.display()));
        match fgetxattr(place.as_fd(), ATTRIBUTE, &mut value[..]) {
            Ok(length) if value[..length] == *SPILLED => {
                let spill = path.join(SPILL_FILE);
                match std::fs::read(&spill) {
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(damaged("record.json is missing")),
                    read => read.map(Some).context(|| format!("read {}", spill.display())),
                }
            }
            Ok(length) => Ok(Some(value[..length].to_vec())),
            Err(rustix::io::Errno::NODATA) => Ok(None),
            Err(rustix::io::Errno::RANGE) => Err(damaged("it is too long")),
            Err(e) => Err(e).context(|| format!("fgetxattr {} {ATTRIBUTE}", path.display())),
        }
    }
}

/// Whether a name in a place is that of a record's spill file, or of one being written.
pub(super) fn is_spill(name: &str) -> bool {
    name == SPILL_FILE || Path::new(SPILL_FILE).with_extension("new") == Path::new(name)
}

/// Remove the spill file of a record, if it has one, and what a crash while it was written left.
pub(super) fn remove_spill(place: &Path) -> Result<()> {
    let spill = place.join(SPILL_FILE);
    for path in [super::files::aside(&spill), spill] {
        super::files::remove(&path)?;
    }
    Ok(())
}
