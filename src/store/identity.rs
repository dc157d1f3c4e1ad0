//! What a store is: its schema and identity, in `store.json`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::files;
use crate::sys::durable;
use crate::{Context, Error, Kind, Result};

/// The on-disk format that this program reads and writes. What each number brought is told in `upgrade`.
pub const SCHEMA: u32 = 7;

/// Below ROOT.
pub(super) const DIRECTORIES: [&str; 4] = ["snapshots", "images", "blobs", "blobs/sha256"];
/// Below ROOT. Their contents are empty, and stay so.
pub(super) const LOCK_FILES: [&str; 8] = {
    let [next, working, stop] = super::tending::FILES;
    ["images/lock", "images/load.lock", "index.lock", "index.turn", super::places::FILE, next, working, stop]
};

/// Identity of one store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub schema: u32,
    pub uuid: Uuid,
    /// The backend that made it: `btrfs` or `reflink`.
    pub backend: String,
    /// Upper 16 bits of the ids of this store's charge groups, so that two stores on one filesystem don't meet. Not 0.
    pub group_prefix: u16,
}

/// Only the part that every schema has.
#[derive(Deserialize)]
struct AnySchema {
    schema: u32,
}

pub(super) fn path(root: &Path) -> PathBuf {
    root.join("store.json")
}

/// The schema of the store at `root`, known to us or not, with the text that says so; `None` if there is no store.
pub(super) fn schema(root: &Path) -> Result<Option<(u32, Vec<u8>)>> {
    let path = path(root);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(e) => return Err(e).context(|| format!("read {}", path.display())),
    };
    let any: AnySchema = serde_json::from_slice(&text).map_err(|e| damaged(&path, &e))?;
    Ok(Some((any.schema, text)))
}

fn damaged(path: &Path, error: &serde_json::Error) -> Error {
    Error::new(Kind::Damaged, format!("{} is damaged: {error}", path.display()))
}

/// Make the directories and lock files of the store at `root` that aren't there.
pub(super) fn make_parts(root: &Path) -> Result<()> {
    for directory in DIRECTORIES {
        let path = root.join(directory);
        match durable::mkdir(&path, 0o700) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(e).context(|| format!("mkdir {}", path.display()));
            }
            _ => {}
        }
    }
    // Now rather than when they are first needed: the disk may be full then.
    for file in LOCK_FILES {
        let path = root.join(file);
        files::make_lock_file(&path).context(|| format!("create {}", path.display()))?;
    }
    Ok(())
}

impl Identity {
    /// The identity of the store at `root`; `None` if there is no store.
    ///
    /// # Errors
    /// `Unsupported` for a schema that this program doesn't know; `Damaged`.
    pub fn read(root: &Path) -> Result<Option<Self>> {
        let Some((schema, text)) = schema(root)? else { return Ok(None) };
        if schema != SCHEMA {
            return Err(Error::new(
                Kind::Unsupported,
                format!("the store at {} has schema {schema}, this reflinkd knows schema {SCHEMA}", root.display()),
            )
            .with_hint("use the reflinkd that made it, or a newer one"));
        }
        serde_json::from_slice(&text).map(Some).map_err(|e| damaged(&path(root), &e))
    }

    /// Make the directories of a new store at `root`, which exists and is empty, and write its identity last.
    ///
    /// Of several processes that make the same store at once, one makes it and the others find it.
    pub fn create(root: &Path, backend: &str) -> Result<Self> {
        let _lock = files::lock_directory(root, files::Lock::Exclusive)?;
        if let Some(identity) = Self::read(root)? {
            return Ok(identity);
        }
        make_parts(root)?;
        let uuid = Uuid::new_v4();
        let [high, low, ..] = *uuid.as_bytes();
        let identity = Self {
            schema: SCHEMA,
            uuid,
            backend: backend.to_string(),
            group_prefix: u16::from_be_bytes([high, low]).max(1),
        };
        identity.write(root)?;
        Ok(identity)
    }

    pub(super) fn write(&self, root: &Path) -> Result<()> {
        let json = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::new(Kind::Invalid, format!("cannot write store.json: {e}")))?;
        files::replace(&path(root), |file| file.write_all(&json))
    }

    /// Whether `root` holds nothing but what a process left that died while it made a store there.
    pub fn is_unfinished(root: &Path) -> Result<bool> {
        let read = |path: &Path| std::fs::read_dir(path).context(|| format!("read {}", path.display()));
        for entry in read(root)? {
            let entry = entry.context(|| format!("read {}", root.display()))?;
            let name = entry.file_name();
            let ours = match name.to_str() {
                Some("snapshots" | "trash") => read(&entry.path())?.next().is_none(),
                Some("images" | "blobs" | "store.new") => true,
                Some(name) if LOCK_FILES.contains(&name) => true,
                _ => false,
            };
            if !ours {
                return Ok(false);
            }
        }
        Ok(!root.join("images").exists() || !super::images::any(root)?)
    }
}
