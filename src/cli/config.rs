//! `/etc/reflinkd/config.toml`; flag over environment over file.
//!
//! ```toml
//! root = "/var/lib/reflinkd"
//! pool_size = "20G"         # apparent size of a new embedded pool
//! host_reserve = "500M"     # refuse creates and loads when the pool's host has less room
//! spares = 1                # clones kept ready of each image in use, on filesystems where a clone takes time
//! tend = true               # whether commands leave slow work to a process of its own
//! max_layer_size = "64GiB"  # most bytes of one layer, unpacked
//! max_layer_entries = 4000000
//! ```

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};

use super::format::parse_size;
use crate::engine::Settings;
use crate::{Error, Kind, Result};

const DEFAULT_FILE: &str = "/etc/reflinkd/config.toml";

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    root: Option<PathBuf>,
    #[serde(deserialize_with = "size")]
    pool_size: Option<u64>,
    #[serde(deserialize_with = "size")]
    host_reserve: Option<u64>,
    spares: Option<usize>,
    tend: Option<bool>,
    #[serde(deserialize_with = "size")]
    max_layer_size: Option<u64>,
    max_layer_entries: Option<u64>,
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_size(&text).map(Some).map_err(serde::de::Error::custom)
}

/// What the user and the administrator chose. `root` and `config` come from flags or environment.
pub(super) fn settings(root: Option<PathBuf>, config: Option<&Path>) -> Result<Settings> {
    let file = match config {
        Some(path) => read(path)?,
        None if Path::new(DEFAULT_FILE).exists() => read(Path::new(DEFAULT_FILE))?,
        None => File::default(),
    };
    let mut settings = Settings::default();
    if let Some(root) = root.or(file.root) {
        settings.root = std::path::absolute(&root)
            .map_err(|e| Error::new(Kind::Invalid, format!("root directory {}: {e}", root.display())))?;
    }
    settings.pool_size = file.pool_size.unwrap_or(settings.pool_size);
    settings.host_reserve = file.host_reserve.unwrap_or(settings.host_reserve);
    settings.spares = file.spares.unwrap_or(settings.spares);
    settings.tend = file.tend.unwrap_or(settings.tend);
    settings.layer_limits.max_bytes = file.max_layer_size.unwrap_or(settings.layer_limits.max_bytes);
    settings.layer_limits.max_entries = file.max_layer_entries.unwrap_or(settings.layer_limits.max_entries);
    Ok(settings)
}

fn read(path: &Path) -> Result<File> {
    let invalid = |why: String| Error::new(Kind::Invalid, format!("configuration {}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| invalid(e.to_string()))?;
    toml::from_str(&text).map_err(|e| invalid(e.to_string().trim_end().to_string()))
}
