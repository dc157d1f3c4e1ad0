//! Snapshots of containers: taking one, going back to one, keeping some.
//!
//! ```text
//! snapshot web1 before        web1@before is web1 as it is now: read-only, of one moment where clones are constant
//! rollback web1 before        web1 is as web1@before again; what it was is web1@replaced-1, until that is removed
//! rm web1@replaced-1          gives its space back
//! snapshot web1 --keep daily=7    a snapshot named by the time, of which the newest of each of seven days stay
//! ```
//!
//! A snapshot is charged where its container is. With simple quotas it counts against the limit for as long as it is there;
//! where it doesn't, the limit counts what a rollback brings back ([`Inherited`]). So no rollback hands out more room. It
//! goes with its container.
//!
//! # A rollback, cut short
//!
//! ```text
//! fork web1@before -> web1@replaced-1         a second copy of the snapshot, and a record like any other
//! publish web1@replaced-1                     from now on it is somebody's
//! exchange web1 with web1@replaced-1          the one step that counts
//! ```
//!
//! Whoever dies before the exchange leaves a snapshot that nobody needs, and after it what he wanted.

use std::path::PathBuf;

use uuid::Uuid;

use super::keep::Keep;
use super::{Engine, names, tree_at};
use crate::backend::{Access, Inherited};
use crate::store::{Container, Content, Draft, Held, NewFork, Owner, Record, Snapshot, SnapshotOrigin, TreeKind};
use crate::{Context, Error, Kind, Result};

/// A snapshot with its container's name.
#[derive(Debug, Clone)]
pub struct SnapshotInfo {
    pub record: Record,
    /// `NAME@LABEL`.
    pub name: String,
    pub directory: PathBuf,
}

/// What a rollback came to.
#[derive(Debug, Clone)]
pub struct RolledBack {
    /// `NAME@LABEL` of what was replaced; `None` if it wasn't to be kept.
    pub kept: Option<String>,
    pub warnings: Vec<String>,
}

/// What `snapshot --keep` came to.
#[derive(Debug, Clone)]
pub struct Kept {
    pub taken: String,
    pub removed: Vec<String>,
}

impl Engine {
    /// Keep a container as it is now, running or not, under a label that is made of the time if none is given. Durable on
    /// return; its full name.
    pub fn snapshot(&self, name: &str, label: Option<&str>) -> Result<String> {
        self.take_snapshot(name, label, SnapshotOrigin::Manual)
            .context(|| format!("cannot snapshot container {name}"))
    }

    /// Take a snapshot by a rule, and remove those taken by rules before that it doesn't keep.
    pub fn snapshot_and_keep(&self, name: &str, keep: &Keep) -> Result<Kept> {
        (|| -> Result<_> {
            let taken = self.take_snapshot(name, None, SnapshotOrigin::Automatic)?;
            let container = self.find_container(name)?;
            let mut snapshots = self.store.snapshots_of(&Owner::cli(), container.uuid)?;
            snapshots.retain(|record| record.snapshot().is_some_and(|s| s.origin == SnapshotOrigin::Automatic));
            let times: Vec<_> = snapshots.iter().map(|record| record.created).collect();
            let mut removed = Vec::new();
            for (record, _) in snapshots.iter().zip(keep.choose(&times)).filter(|(_, kept)| !kept) {
                let name = full_name(&container, record);
                match self.remove_if_there(record) {
                    Ok(true) => removed.push(name),
                    Ok(false) => {}
                    // A clone is made of it, say. The new one is taken, and the rule removes this one the next time.
                    Err(e) if e.kind() == Kind::InUse => tracing::warn!("{name} stays for now: {e}"),
                    Err(e) => return Err(e),
                }
            }
            Ok(Kept { taken, removed })
        })()
        .context(|| format!("cannot snapshot container {name}"))
    }

    fn take_snapshot(&self, name: &str, label: Option<&str>, origin: SnapshotOrigin) -> Result<String> {
        label.map_or(Ok(()), names::check_label)?;
        self.tidy()?;
        self.make_room(None)?;
        self.guard_host()?;
        let container = self.find_container(name)?;
        refuse_view(&container)?;
        self.with_room(|| self.fork_snapshot(&container, label, origin)).map(|record| full_name(&container, &record))
    }

    fn fork_snapshot(&self, container: &Record, label: Option<&str>, origin: SnapshotOrigin) -> Result<Record> {
        let mut held = self.store.hold(container.uuid)?;
        // While nobody else can take one.
        let label = label.map_or_else(|| self.label_of_now(container), |label| Ok(label.to_string()))?;
        let draft = self.begin_snapshot(&mut held, container, &label, origin)?;
        let tree = tree_at(draft.place().to_path_buf(), draft.record());
        match self.backend.fork(&self.tree(held.record()), &tree, Access::ReadOnly, None) {
            Ok(()) => self.store.publish(draft),
            Err(e) => {
                self.discard(draft);
                Err(e)
            }
        }
    }

    fn begin_snapshot(
        &self,
        held: &mut Held,
        container: &Record,
        label: &str,
        origin: SnapshotOrigin,
    ) -> Result<Draft> {
        let snapshot = Snapshot { container: container.uuid, label: label.to_string(), origin };
        let new = NewFork { owner: Owner::cli(), own_group: false, content: Content::Snapshot(snapshot) };
        self.store.begin_fork(held, new).map_err(|e| match e.kind() {
            Kind::Exists => label_taken(container, label),
            _ => e,
        })
    }

    /// Make a container as its snapshot `label` is, at the same path, in one step. What it was is kept as another snapshot,
    /// unless `discard`.
    ///
    /// # Errors
    /// `InUse` naming a process that uses the container, unless `force`: such a process goes on in what was replaced.
    pub fn roll_back(&self, name: &str, label: &str, force: bool, discard: bool) -> Result<RolledBack> {
        (|| -> Result<_> {
            names::check_label(label)?;
            self.tidy()?;
            self.make_room(None)?;
            self.guard_host()?;
            let container = self.find_container(name)?;
            refuse_view(&container)?;
            let from = self.find_snapshot(&container, label)?;
            if !force {
                self.check_unused(&container)?;
            }
            let mut warnings = self.check_limit(container.container().and_then(|c| c.size_limit))?;
            let limit = container.container().and_then(Container::own_limit);
            let limit = limit.map(|limit| self.allowance(limit, &from)).transpose()?;
            let kept = self.with_room(|| self.exchange_with_fork(&container, &from, limit))?;
            let name = full_name(&container, &kept);
            if !discard {
                return Ok(RolledBack { kept: Some(name), warnings });
            }
            // It is rolled back, whatever becomes of the other.
            let left = self.remove_if_there(&kept).err();
            warnings.extend(left.as_ref().map(|e| format!("what was replaced is kept as {name}: {e}")));
            Ok(RolledBack { kept: left.map(|_| name), warnings })
        })()
        .context(|| format!("cannot roll back container {name} to {label}"))
    }

    /// Roll back, and keep what was replaced as another snapshot.
    fn exchange_with_fork(&self, container: &Record, from: &Record, limit: Option<u64>) -> Result<Record> {
        let mut held = self.store.hold(container.uuid)?;
        let _source = self.store.hold(from.uuid)?;
        let label = self.next_label(container, "replaced-")?;
        let draft = self.begin_snapshot(&mut held, container, &label, SnapshotOrigin::Replaced)?;
        let aside = tree_at(draft.place().to_path_buf(), draft.record());
        let (mut draft, mut kept) = (Some(draft), None);
        let tree = self.tree(held.record());
        let done = self.backend.roll_back(&self.tree(from), &tree, limit, &aside, &mut || {
            // Known to everyone before it has what must not get lost, and ours until it has it.
            kept = draft.take().map(|draft| self.store.publish_held(draft)).transpose()?;
            Ok(())
        });
        match (done, draft, kept) {
            (Ok(()), _, Some(kept)) => Ok(kept.record().clone()),
            (Ok(()), ..) => Err(Error::new(Kind::System, "the exchange was not announced")),
            (Err(e), Some(draft), _) => {
                self.discard(draft);
                Err(e)
            }
            (Err(e), None, Some(kept)) if self.backend.exists(&aside).unwrap_or(true) => {
                // Either of the two may be the one or the other: nothing is removed.
                let name = full_name(container, kept.record());
                Err(e.with_hint(format!("what was to be replaced, or what was to replace it, is kept as {name}")))
            }
            (Err(e), None, Some(kept)) => {
                let name = full_name(container, kept.record());
                let forgotten = self.store.begin_removal_of(kept).and_then(|kept| self.remove_held(kept));
                if let Err(left) = forgotten {
                    tracing::warn!("cannot forget {name}: {left}");
                }
                Err(e)
            }
            (Err(e), None, None) => Err(e),
        }
    }

    /// What of a limit is left for the writers of a fork. Where the limit doesn't count what the fork has from its origin, it
    /// has to be so much smaller.
    pub(super) fn allowance(&self, limit: u64, from: &Record) -> Result<u64> {
        match self.backend.quotas().map(crate::backend::Quotas::inherited) {
            Some(Inherited::Nobody) => Ok(limit.saturating_sub(self.own_of(from)?.bytes()).max(1)),
            _ => Ok(limit),
        }
    }

    /// The snapshots of one container, or of all, oldest first.
    pub fn snapshots(&self, name: Option<&str>) -> Result<Vec<SnapshotInfo>> {
        let containers = self.containers()?;
        let records = match name {
            Some(name) => self.store.snapshots_of(&Owner::cli(), self.find_container(name)?.uuid)?,
            None => self.store.list(TreeKind::Snapshot)?,
        };
        let of = |record: &Record| {
            let snapshot = record.snapshot()?;
            let container = containers.iter().find(|container| container.uuid == snapshot.container);
            Some(
                container
                    .map_or_else(|| format!("{}@{}", snapshot.container, snapshot.label), |c| full_name(c, record)),
            )
        };
        Ok(records
            .into_iter()
            .filter_map(|record| {
                let (name, directory) = (of(&record)?, self.tree(&record).root());
                Some(SnapshotInfo { record, name, directory })
            })
            .collect())
    }

    /// A container by its name or ID, or one of its snapshots as `NAME@LABEL`. A snapshot without a container is found by
    /// the UUID that it is listed with.
    pub fn find_tree(&self, name: &str) -> Result<Record> {
        let Some((container, label)) = name.split_once('@') else { return self.find_container(name) };
        if container.is_empty() || label.is_empty() {
            return Err(Error::new(Kind::Invalid, format!("{name:?} names no snapshot"))
                .with_hint("snapshots are named NAME@LABEL; reflinkd snapshots lists them"));
        }
        match self.find_container(container) {
            Ok(container) => self.find_snapshot(&container, label),
            Err(e) => {
                let left = Uuid::try_parse(container).ok().map(|uuid| self.snapshot_of(uuid, label));
                left.transpose()?.flatten().ok_or(e)
            }
        }
    }

    /// The container that a tree is, or is a snapshot of.
    pub(super) fn container_of(&self, record: &Record) -> Result<Container> {
        let of = match record.snapshot() {
            Some(snapshot) => self.store.get(snapshot.container)?,
            None => Some(record.clone()),
        };
        if let Some(container) = of.as_ref().and_then(Record::container) {
            return Ok(container.clone());
        }
        // Who removes a container removes its snapshots first.
        Err(match self.store.get(record.uuid)? {
            None => Error::new(Kind::NotFound, "it is gone"),
            Some(_) => Error::new(Kind::Damaged, "there is no record of its container"),
        })
    }

    fn find_snapshot(&self, container: &Record, label: &str) -> Result<Record> {
        self.snapshot_of(container.uuid, label)?.ok_or_else(|| {
            let name = container.name().unwrap_or_default();
            Error::new(Kind::NotFound, format!("container {name} has no snapshot {label}"))
                .with_hint(format!("reflinkd snapshots {name} lists them"))
        })
    }

    fn snapshot_of(&self, container: Uuid, label: &str) -> Result<Option<Record>> {
        let found = self.store.by_key(&Owner::cli(), TreeKind::Snapshot, &Snapshot::key(container, label))?;
        Ok(found.filter(|(_, state)| state.is_live()).map(|(record, _)| record))
    }

    /// Whether anything has this label, be it what a dead process left.
    fn is_taken(&self, container: &Record, label: &str) -> Result<bool> {
        let key = Snapshot::key(container.uuid, label);
        Ok(self.store.by_key(&Owner::cli(), TreeKind::Snapshot, &key)?.is_some())
    }

    /// The time as a label, with a number if it is taken.
    fn label_of_now(&self, container: &Record) -> Result<String> {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H-%M-%SZ").to_string();
        if self.is_taken(container, &now)? { self.next_label(container, &format!("{now}-")) } else { Ok(now) }
    }

    /// `prefix` with a number that is higher than all there are, and at least 1.
    fn next_label(&self, container: &Record, prefix: &str) -> Result<String> {
        let snapshots = self.store.snapshots_of(&Owner::cli(), container.uuid)?;
        let number = |record: &Record| record.snapshot()?.label.strip_prefix(prefix)?.parse::<u64>().ok();
        let mut next = snapshots.iter().filter_map(number).max().unwrap_or(0).saturating_add(1);
        while self.is_taken(container, &format!("{prefix}{next}"))? {
            next = next
                .checked_add(1)
                .ok_or_else(|| Error::new(Kind::Exists, format!("all labels {prefix}N are taken")))?;
        }
        Ok(format!("{prefix}{next}"))
    }
}

fn full_name(container: &Record, snapshot: &Record) -> String {
    let label = snapshot.snapshot().map_or("", |snapshot| &snapshot.label);
    format!("{}@{label}", container.name().unwrap_or_default())
}

fn label_taken(container: &Record, label: &str) -> Error {
    let name = container.name().unwrap_or_default();
    Error::new(Kind::Exists, format!("there is a snapshot {name}@{label} already"))
        .with_hint(format!("choose another label, or remove that one: reflinkd rm {name}@{label}"))
}

/// A read-only container never changes.
pub(super) fn refuse_view(container: &Record) -> Result<()> {
    if container.is_view() {
        let image = container.container().map_or("", |c| &c.image);
        return Err(Error::new(Kind::Unsupported, "it is read-only, and has nothing but its image's files")
            .with_hint(format!(
                "make another of its image: reflinkd create --image {}",
                super::image::familiar(image)
            )));
    }
    Ok(())
}
