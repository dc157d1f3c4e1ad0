//! Making the index from the records.

use std::fs::File;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::files::{self, Lock};
use super::index::{Index, Opened, State};
use super::record::{Content, Record};
use crate::{Context, Error, Kind, Result};

/// The index of `root`, rebuilt first if it is missing, damaged, behind, or of another boot or mount.
pub(super) fn open_index(
    root: &Path,
    instance: &str,
    highest_group: &dyn Fn() -> Result<Option<u32>>,
) -> Result<Index> {
    if let Some(index) = usable(root, instance)? {
        return Ok(index);
    }
    let _lock = match files::lock_file(&root.join("index.lock"), Lock::Exclusive) {
        Ok(lock) => lock,
        Err(e) if matches!(e.kind(), Kind::NoSpace | Kind::Denied) => return in_memory(root),
        Err(e) => return Err(e),
    };
    // Another process may have rebuilt it while we waited.
    if let Some(index) = usable(root, instance)? {
        return Ok(index);
    }
    rebuild(root, instance, highest_group)
}

/// Go on without the index on disk: whoever opens the store next rebuilds it.
pub(super) fn give_up_index(root: &Path) -> Result<Index> {
    let _ = std::fs::remove_file(marker(root));
    in_memory(root)
}

/// All places below `root`, with the tree they are named after.
pub(super) fn places(root: &Path) -> Result<Vec<(Uuid, PathBuf)>> {
    let directory = root.join("snapshots");
    let mut places = Vec::new();
    for entry in std::fs::read_dir(&directory).context(|| format!("read {}", directory.display()))? {
        let entry = entry.context(|| format!("read {}", directory.display()))?;
        if let Some(uuid) = entry.file_name().to_str().and_then(|name| Uuid::try_parse(name).ok()) {
            places.push((uuid, entry.path()));
        }
    }
    Ok(places)
}

fn marker(root: &Path) -> PathBuf {
    root.join("index.current")
}

fn usable(root: &Path, instance: &str) -> Result<Option<Index>> {
    if !marker(root).exists() {
        return Ok(None);
    }
    match Index::open(&root.join("index.db"))? {
        Opened::Usable(index) => {
            let made_under: Option<String> = index.fact("instance")?;
            Ok((made_under.as_deref() == Some(instance)).then_some(index))
        }
        Opened::Unusable => Ok(None),
        Opened::Unwritable => in_memory(root).map(Some),
    }
}

fn in_memory(root: &Path) -> Result<Index> {
    let mut index = Index::in_memory()?;
    fill(root, &mut index, None, None)?;
    Ok(index)
}

fn rebuild(root: &Path, instance: &str, highest_group: &dyn Fn() -> Result<Option<u32>>) -> Result<Index> {
    let path = root.join("index.db");
    let index = match Index::open(&path)? {
        Opened::Usable(index) => Some(index),
        Opened::Unusable => Index::create(&path)?,
        Opened::Unwritable => None,
    };
    let Some(mut index) = index else { return in_memory(root) };
    match fill(root, &mut index, Some(instance), highest_group()?) {
        Ok(()) => {}
        Err(e) if matches!(e.kind(), Kind::NoSpace | Kind::Denied) => return in_memory(root),
        Err(e) => return Err(e),
    }
    // Without the marker the next opener rebuilds again: slower, never wrong.
    let _ = File::create(marker(root));
    Ok(index)
}

fn fill(root: &Path, index: &mut Index, instance: Option<&str>, highest_group: Option<u32>) -> Result<()> {
    index.change(|change| {
        // Read after the transaction began: who wrote a row before it had its record on disk by then or holds its lock.
        let found = read_places(root)?;
        change.clear()?;
        let mut next_group = change.fact::<u32>("next_group")?.unwrap_or(1);
        next_group = next_group.max(highest_group.map_or(1, |g| g.saturating_add(1)));
        for (record, state) in &found {
            next_group = next_group.max(record.group.map_or(1, |g| g.saturating_add(1)));
            match change.put(record, *state) {
                Err(e) if e.kind() == Kind::Exists => {
                    tracing::warn!(uuid = %record.uuid, "left out of the index: its name is another's");
                }
                other => other?,
            }
        }
        change.set_fact("next_group", &next_group)?;
        instance.map_or(Ok(()), |instance| change.set_fact("instance", &instance))
    })
}

fn read_places(root: &Path) -> Result<Vec<(Record, State)>> {
    let mut found = Vec::new();
    for (uuid, place) in places(root)? {
        let directory = match File::open(&place) {
            Ok(directory) => directory,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e).context(|| format!("open {}", place.display())),
        };
        let record = match Record::read(&directory, &place) {
            Ok(Some(record)) => record,
            Ok(None) => continue,
            Err(e) if e.kind() == Kind::Damaged => {
                tracing::warn!("{e}");
                continue;
            }
            Err(e) => return Err(e),
        };
        if record.uuid != uuid {
            return Err(Error::new(
                Kind::Damaged,
                format!("{} holds the record of {}", place.display(), record.uuid),
            ));
        }
        // A tree appears by one atomic and durable step, so a record with a tree is whole, whoever works on it now.
        let state = match record.content {
            Content::Work => State::Making,
            _ if !place.join("fs").exists() => State::Making,
            _ if place.join("fs.new").exists() => State::Replacing,
            _ => State::Ready,
        };
        found.push((record, state));
    }
    // Oldest first: of two records with one name the older keeps it.
    found.sort_by_key(|(record, _)| (record.created, record.uuid));
    Ok(found)
}
