//! How much of an input is believed to be meant.
//!
//! Each limit is far above what images have, and an administrator can raise it: what is refused says which limit
//! it hit, its value, and its key in the configuration.

use std::fmt::Display;

use crate::{Error, Kind};

/// What one input may hold at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceLimits {
    /// Bytes of a manifest, an index or a docker archive's `manifest.json`.
    pub manifest_bytes: u64,
    /// Bytes of a config.
    pub config_bytes: u64,
    /// Bytes of memory for all manifests and configs together.
    pub metadata_bytes: u64,
    /// Values in one of these documents: members of its objects, elements of its lists.
    pub json_values: usize,
    /// Objects and lists within each other in one of them. Real ones have five or so.
    pub json_depth: usize,
    /// Indexes within indexes below `index.json`.
    pub index_depth: usize,
    /// Layers of one image.
    pub layers: usize,
    /// Images in one input; also manifests and indexes looked at, and names of one image.
    pub images: usize,
    /// Entries of the archive.
    pub entries: usize,
    /// Bytes of an archive that has to be copied (decompressed) before it can be read, and of a pulled image's layers as they
    /// are stored.
    pub spool_bytes: u64,
}

impl Default for SourceLimits {
    fn default() -> Self {
        Self {
            manifest_bytes: 4 << 20,
            config_bytes: 8 << 20,
            metadata_bytes: 32 << 20,
            json_values: 100_000,
            json_depth: 64,
            index_depth: 3,
            layers: 1000,
            images: 1000,
            entries: 65_536,
            spool_bytes: 64 << 30,
        }
    }
}

/// Input past a limit, which the configuration has under `key`.
pub(crate) fn beyond(why: impl Display, key: &str) -> Error {
    Error::new(Kind::BadInput, why.to_string())
        .with_hint(format!("if you trust the image, raise {key} in /etc/reflinkd/config.toml"))
}
