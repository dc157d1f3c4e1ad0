//! Bringing a store of an older schema up to this one, in place.
//!
//! | Schema | What it brought |
//! |---|---|
//! | 1 | the first |
//! | 2 | a record says itself that its tree is being replaced, by `replacing`. In schema 1 only a second tree at `fs.new` said so, which was gone before the record had the group of the tree that stayed |
//! | 3 | a tree can be a spare, and a container read-only, with the tree of its layer mounted in the place of one of its own. Schema 2 knew neither; its records mean the same in schema 3 |
//! | 4 | a tree can be a snapshot of a container, and share its own data with relatives. A layer has beside it what its tar is made of again; layers of schema 3 don't, and can't be saved |
//! | 5 | a tree can be one that the client of a front door knows by a key |
//! | 6 | such a tree can show its parent's, and has labels |
//! | 7 | an image can say what registries have of its layers, and the index it was pulled through, whose bytes are a blob; a tree can say which one it takes the place of under their key. A program of schema 6 would forget the one, remove the other, and have two trees with one key |
//!
//! ```text
//! ROOT/backup-schema-1/store.json      what is changed, as it was: kept until the store is destroyed
//! ROOT/backup-schema-1/images/         the files of all images
//! ROOT/backup-schema-1/records.json    the records of all trees by UUID, as text
//! ```
//!
//! Nobody else works in the store meanwhile: ROOT is locked exclusively. First the copy is made, then each step is
//! applied, and `store.json` is written last, so that an upgrade cut short anywhere is begun anew by the next command.
//! So a step must come to the same when it is applied to what it has changed already, and an existing copy
//! is never written again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::files::{self, Lock};
use super::identity::{self, Identity, SCHEMA};
use super::record::Record;
use super::scan;
use crate::sys::durable;
use crate::{Context, Error, Kind, Result};

/// A change of the format.
struct Step {
    from: u32,
    apply: fn(&Path) -> Result<()>,
}

/// In order and without gaps: the last one leads to [`SCHEMA`].
const STEPS: [Step; 6] = [
    Step { from: 1, apply: mark_replaced },
    Step { from: 2, apply: nothing },
    Step { from: 3, apply: nothing },
    Step { from: 4, apply: nothing },
    Step { from: 5, apply: nothing },
    Step { from: 6, apply: nothing },
];

/// Bring the store at `root` up to [`SCHEMA`] if it has an older one; that older one. `None` if nothing was to be done:
/// also without a store, or with one of a newer schema, which [`Identity::read`] refuses.
///
/// # Errors
/// `Unsupported` for a schema older than all that can be upgraded. After any other failure, the next attempt goes on.
pub fn upgrade(root: &Path) -> Result<Option<u32>> {
    if identity::schema(root)?.is_none_or(|(schema, _)| schema >= SCHEMA) {
        return Ok(None);
    }
    let _asked = super::ask_to_stop(root)?;
    let _alone = super::lock_root(root, Lock::Exclusive)?;
    // Another process may have done it while we waited.
    match identity::schema(root)? {
        Some((from, text)) if from < SCHEMA => apply(root, from, &text)
            .map(|()| Some(from))
            .context(|| format!("cannot upgrade the store from schema {from} to {SCHEMA}")),
        _ => Ok(None),
    }
}

fn apply(root: &Path, from: u32, text: &[u8]) -> Result<()> {
    let first = STEPS.iter().position(|step| step.from == from).ok_or_else(|| {
        Error::new(Kind::Unsupported, "it is older than all that can be upgraded")
            .with_hint("use the reflinkd that made it")
    })?;
    back_up(root, from, text)?;
    for step in &STEPS[first..] {
        (step.apply)(root)?;
    }
    finish(root, text)
}

/// `store.json`, its number changed and the rest as it was. All steps are durable before.
fn finish(root: &Path, text: &[u8]) -> Result<()> {
    durable::syncfs(&open(root)?, root).context(|| format!("syncfs {}", root.display()))?;
    let identity: Identity = serde_json::from_slice(text)
        .map_err(|e| Error::new(Kind::Damaged, format!("{} is damaged: {e}", identity::path(root).display())))?;
    Identity { schema: SCHEMA, ..identity }.write(root)
}

/// Where the copy of a store of schema `from` is kept.
pub(super) fn backup(root: &Path, from: u32) -> PathBuf {
    root.join(format!("backup-schema-{from}"))
}

/// Copy what steps may change. Made aside and renamed when it is whole and durable; one that is there is of an attempt
/// cut short after that, and holds what was before it.
fn back_up(root: &Path, from: u32, text: &[u8]) -> Result<()> {
    let backup = backup(root, from);
    if backup.exists() {
        return Ok(());
    }
    let aside = backup.with_extension("new");
    match durable::remove_all(&aside) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).context(|| format!("remove {}", aside.display()));
        }
        _ => {}
    }
    let images = aside.join("images");
    for directory in [&aside, &images] {
        durable::mkdir(directory, 0o777).context(|| format!("mkdir {}", directory.display()))?;
    }
    write(&aside.join("store.json"), text)?;
    let directory = root.join("images");
    for entry in std::fs::read_dir(&directory).context(|| format!("read {}", directory.display()))? {
        let path = entry.context(|| format!("read {}", directory.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let bytes = std::fs::read(&path).context(|| format!("read {}", path.display()))?;
            write(&images.join(path.file_name().unwrap_or_default()), &bytes)?;
        }
    }
    let mut records = BTreeMap::new();
    for (uuid, place) in scan::places(root)? {
        match Record::read_bytes(&open(&place)?, &place) {
            Ok(Some(bytes)) => drop(records.insert(uuid, String::from_utf8_lossy(&bytes).into_owned())),
            Ok(None) => {}
            Err(e) if e.kind() == Kind::Damaged => tracing::warn!("{e}"),
            Err(e) => return Err(e),
        }
    }
    let records = serde_json::to_vec_pretty(&records)
        .map_err(|e| Error::new(Kind::Invalid, format!("cannot write the copy of the records: {e}")))?;
    write(&aside.join("records.json"), &records)?;
    files::sync(&images)?;
    files::sync(&aside)?;
    durable::rename(&aside, &backup).context(|| format!("rename {} to {}", aside.display(), backup.display()))?;
    files::sync(root)
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    durable::create(path)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| Ok(durable::fsync(file, path)?)))
        .context(|| format!("write {}", path.display()))
}

fn open(path: &Path) -> Result<File> {
    File::open(path).context(|| format!("open {}", path.display()))
}

/// 1 to 2. What can't be read stays as it is: it means nothing to either.
fn mark_replaced(root: &Path) -> Result<()> {
    for (_, place) in scan::places(root)? {
        if !place.join("fs.new").exists() || !place.join("fs").exists() {
            continue;
        }
        let directory = open(&place)?;
        match Record::read(&directory, &place) {
            Ok(Some(record)) => Record { replacing: true, ..record }.write(&directory, &place)?,
            Ok(None) => {}
            Err(e) if e.kind() == Kind::Damaged => tracing::warn!("{e}"),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// 2 to 6: the number alone keeps out programs that would take a spare for damage, a view for a tree, or the
/// groups of snapshots for leftovers.
fn nothing(_: &Path) -> Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_lead_here_without_gaps() {
        let from: Vec<u32> = STEPS.iter().map(|step| step.from).collect();
        assert_eq!(from, (SCHEMA - STEPS.len() as u32..SCHEMA).collect::<Vec<_>>());
    }
}
