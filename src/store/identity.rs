//! What a store is: its schema and identity, in `store.json`.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::files;
use crate::{Context, Error, Kind, Result};

/// The on-disk format that this program reads and writes.
pub const SCHEMA: u32 = 1;

/// Identity of one store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub schema: u32,
    pub uuid: Uuid,
    /// The backend that made it: `btrfs`.
    pub backend: String,
    /// Upper 16 bits of the ids of this store's charge groups, so that two stores on one filesystem don't meet. Not 0.
    pub group_prefix: u16,
}

/// Only the part that every schema has.
#[derive(Deserialize)]
struct AnySchema {
    schema: u32,
}

impl Identity {
    /// The identity of the store at `root`; `None` if there is no store.
    ///
    /// # Errors
    /// `Unsupported` for a schema that this program doesn't know; `Damaged`.
    pub fn read(root: &Path) -> Result<Option<Self>> {
        let path = root.join("store.json");
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(e) => return Err(e).context(|| format!("read {}", path.display())),
        };
        let damaged = |e: serde_json::Error| Error::new(Kind::Damaged, format!("{} is damaged: {e}", path.display()));
        let any: AnySchema = serde_json::from_slice(&text).map_err(damaged)?;
        if any.schema != SCHEMA {
            return Err(Error::new(
                Kind::Unsupported,
                format!(
                    "the store at {} has schema {}, this reflinkd knows schema {SCHEMA}",
                    root.display(),
                    any.schema
                ),
            )
            .with_hint("use the reflinkd that made it, or a newer one"));
        }
        serde_json::from_slice(&text).map(Some).map_err(damaged)
    }

    /// Make the directories of a new store at `root`, which exists and is empty, and write its identity last.
    pub fn create(root: &Path, backend: &str) -> Result<Self> {
        for directory in ["snapshots", "images", "blobs", "blobs/sha256"] {
            let path = root.join(directory);
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(e).context(|| format!("mkdir {}", path.display()));
                }
                _ => {}
            }
        }
        let uuid = Uuid::new_v4();
        let [high, low, ..] = *uuid.as_bytes();
        let identity = Self {
            schema: SCHEMA,
            uuid,
            backend: backend.to_string(),
            group_prefix: u16::from_be_bytes([high, low]).max(1),
        };
        let json = serde_json::to_vec_pretty(&identity)
            .map_err(|e| Error::new(Kind::Invalid, format!("cannot write store.json: {e}")))?;
        files::replace(&root.join("store.json"), |file| file.write_all(&json))?;
        Ok(identity)
    }
}
