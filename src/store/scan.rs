//! Making the index from the records.

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::files::{self, Lock};
use super::index::{Index, Opened, State, is_unwritten};
use super::record::{Content, Record};
use crate::sys::durable;
use crate::{Context, Error, Kind, Result};

/// The index of `root`, rebuilt first if it is missing, damaged, behind, or of another boot or mount. One in memory if there is
/// none that can be written.
pub(super) fn open_index(
    root: &Path,
    instance: &str,
    highest_group: &dyn Fn() -> Result<Option<u32>>,
) -> Result<Index> {
    shared_index(root, instance, highest_group)?.or_else(|why| in_memory(root, why))
}

/// [`open_index`], or why that is one in memory.
fn shared_index(
    root: &Path,
    instance: &str,
    highest_group: &dyn Fn() -> Result<Option<u32>>,
) -> Result<Result<Index, Error>> {
    if let Some(index) = usable(root, instance)? {
        return Ok(index);
    }
    let _lock = match files::lock_file(&root.join("index.lock"), Lock::Exclusive) {
        Ok(lock) => lock,
        Err(e) if is_unwritten(e.kind()) || e.kind() == Kind::Denied => return Ok(Err(e)),
        Err(e) => return Err(e),
    };
    // Another process may have rebuilt it while we waited.
    usable(root, instance)?.map_or_else(|| rebuild(root, instance, highest_group), Ok)
}

/// Whoever opens the store next makes the index anew.
///
/// # Errors
/// Those of unlink(2), after which the index is what it was to everyone.
pub(super) fn distrust_index(root: &Path) -> Result<()> {
    files::remove(&marker(root))
}

/// All places below `root`, with the tree they are named after. None in a store that is half destroyed.
pub(super) fn places(root: &Path) -> Result<Vec<(Uuid, PathBuf)>> {
    let directory = root.join("snapshots");
    let mut places = Vec::new();
    let entries = match std::fs::read_dir(&directory) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(places),
        entries => entries.context(|| format!("read {}", directory.display()))?,
    };
    for entry in entries {
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

/// Whether the index is as good as the records, for all that anybody has said.
pub(super) fn is_current(root: &Path) -> bool {
    marker(root).exists()
}

/// Which mount of which boot the index is said to be good for. `None` if nobody says so; empty text by older versions.
pub(super) fn marked(root: &Path) -> Option<String> {
    std::fs::read_to_string(marker(root)).ok()
}

/// Make the index anew from the records, and in a new file if the one there can't be trusted. Whoever has that open is told
/// to try again.
pub(super) fn make_anew(root: &Path, trusted: bool) -> Result<()> {
    let _lock = files::lock_file(&root.join("index.lock"), Lock::Exclusive)?;
    distrust_index(root)?;
    if !trusted {
        for name in ["index.db", "index.db-journal"] {
            files::remove(&root.join(name))?;
        }
    }
    Ok(())
}

/// The index on disk, or why none can be used. `None` if it has to be made anew.
fn usable(root: &Path, instance: &str) -> Result<Option<Result<Index, Error>>> {
    if !is_current(root) {
        return Ok(None);
    }
    Ok(match Index::open(&root.join("index.db"))? {
        Opened::Usable(index) => made_under(&index, instance)?.then_some(Ok(index)),
        Opened::Unusable => None,
        Opened::Unwritable(why) => Some(Err(why)),
    })
}

/// Whether an index was made on this mount of this boot. One that is damaged was not.
fn made_under(index: &Index, instance: &str) -> Result<bool> {
    match index.fact::<String>("instance") {
        Ok(found) => Ok(found.as_deref() == Some(instance)),
        Err(e) if e.kind() == Kind::Damaged => Ok(false),
        Err(e) => Err(e),
    }
}

/// An index for this process alone, of what the records say now.
pub(super) fn in_memory(root: &Path, why: Error) -> Result<Index> {
    let mut index = Index::in_memory(why)?;
    fill(root, &mut index, None, None)?;
    Ok(index)
}

/// The index made anew, or why it can't be.
fn rebuild(
    root: &Path,
    instance: &str,
    highest_group: &dyn Fn() -> Result<Option<u32>>,
) -> Result<Result<Index, Error>> {
    let path = root.join("index.db");
    let index = match Index::open(&path)? {
        // Other processes may have it open: a new file would part us from them.
        Opened::Usable(index) if made_under(&index, instance)? => Ok(index),
        // From before a reboot or remount. Nobody has it open, and without fsync it may be torn in ways that don't show.
        Opened::Usable(_) | Opened::Unusable => Index::create(&path)?,
        Opened::Unwritable(why) => Err(why),
    };
    let mut index = match index {
        Ok(index) => index,
        Err(why) => return Ok(Err(why)),
    };
    let mut filled = fill(root, &mut index, Some(instance), highest_group()?);
    if filled.as_ref().is_err_and(|e| e.kind() == Kind::Damaged) {
        // Damaged since this boot: whoever has it open can do nothing with it either.
        index = match Index::create(&path)? {
            Ok(index) => index,
            Err(why) => return Ok(Err(why)),
        };
        filled = fill(root, &mut index, Some(instance), highest_group()?);
    }
    match filled {
        Ok(()) => {}
        Err(e) if is_unwritten(e.kind()) || e.kind() == Kind::Denied => return Ok(Err(e)),
        Err(e) => return Err(e),
    }
    // Without the marker the next opener rebuilds again: slower, never wrong.
    if durable::write(&marker(root), instance.as_bytes()).is_err() {
        index.set_unmarked();
    }
    Ok(Ok(index))
}

fn fill(root: &Path, index: &mut Index, instance: Option<&str>, highest_group: Option<u32>) -> Result<()> {
    index.change(|change| {
        // Read after the transaction began: who committed a row before had its record on disk by then.
        let found = read_places(root)?;
        change.clear()?;
        let mut next_group = change.fact::<u32>("next_group")?.unwrap_or(1);
        next_group = next_group.max(highest_group.map_or(1, |g| g.saturating_add(1)));
        for (record, state) in found {
            next_group = next_group.max(record.group.map_or(1, |g| g.saturating_add(1)));
            change.adopt(record, state)?;
        }
        change.set_fact("next_group", &next_group)?;
        instance.map_or(Ok(()), |instance| change.set_fact("instance", &instance))
    })
}

/// What a record says together with what is at `fs` and `fs.new` beside it.
pub(super) fn state_of(record: &Record, tree: bool, second: bool) -> State {
    // A tree appears by one atomic and durable step, so a record with a tree is whole, whoever works on it now.
    match record.content {
        Content::Work => State::Making,
        _ if record.is_without_tree() => State::Ready,
        _ if !tree => State::Making,
        // The record says so before there is a second tree; the tree alone would be named by nobody.
        _ if record.replacing || second => State::Replacing,
        _ => State::Ready,
    }
}

/// The trees in whose place whole ones are: nobody's, whatever their records say.
pub(super) fn replaced<'a>(found: impl Iterator<Item = (&'a Record, State)>) -> HashSet<Uuid> {
    found.filter(|(_, state)| *state == State::Ready).filter_map(|(record, _)| record.instead_of).collect()
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
            tracing::warn!("{} is damaged: it holds the record of {}", place.display(), record.uuid);
            continue;
        }
        let state = state_of(&record, place.join("fs").exists(), place.join("fs.new").exists());
        found.push((record, state));
    }
    let replaced = replaced(found.iter().map(|(record, state)| (record, *state)));
    for (record, state) in found.iter_mut().filter(|(record, _)| replaced.contains(&record.uuid)) {
        (record.content, *state) = (Content::Work, State::Making);
    }
    // Of two records with one name the older keeps it; but not one without a tree: a key that was only reserved, or what a
    // power cut brings back when it was on its way out. Its name may be another's since.
    found.sort_by_key(|(record, state)| (*state == State::Making, record.created, record.uuid));
    Ok(found)
}
