//! `/etc/reflinkd/config.toml`; flag over environment over file.
//!
//! ```toml
//! root = "/var/lib/reflinkd"
//! backend = "auto"          # of a new store: auto, btrfs or reflink
//! pool_fs = "xfs"           # a new store goes into a pool: btrfs or xfs
//! pool_size = "20G"         # apparent size of a new embedded pool
//! host_reserve = "500M"     # refuse creates and loads when the pool's host has less room
//! spares = 1                # clones kept ready of each image in use, on filesystems where a clone takes time
//! tend = true               # whether commands leave slow work to a process of its own
//!
//! # What is believed of images; past it they are refused.
//! max_layer_size = "64GiB"     # of one layer, unpacked
//! max_layer_entries = 4194304  # names in one layer
//! max_path_depth = 4096        # directories within each other in one layer
//! max_layers = 1000            # of one image
//! max_manifest_size = "4MiB"   # of a manifest or an index
//! max_config_size = "8MiB"     # of an image's configuration
//! max_metadata_size = "32MiB"  # of all of these in one input together
//! max_json_values = 100000     # in one of these
//! max_json_depth = 64          # objects and lists within each other in one of these
//! max_index_depth = 3          # indexes within indexes
//! max_images = 1000            # in one input, and names of one image
//! max_archive_entries = 65536  # files of the archive around an image
//! max_archive_size = "64GiB"   # of an archive that has to be decompressed or comes from a pipe
//! ```

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};

use super::format::parse_size;
use crate::engine::Settings;
use crate::engine::home::{BackendKind, Layout};
use crate::engine::pool::PoolFs;
use crate::layer;
use crate::oci::SourceLimits;
use crate::{Context, Error, Kind, Result};

const DEFAULT_FILE: &str = "/etc/reflinkd/config.toml";

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    root: Option<PathBuf>,
    backend: Option<BackendChoice>,
    pool_fs: Option<PoolChoice>,
    #[serde(deserialize_with = "size")]
    pool_size: Option<u64>,
    #[serde(deserialize_with = "size")]
    host_reserve: Option<u64>,
    spares: Option<usize>,
    tend: Option<bool>,
    #[serde(deserialize_with = "size")]
    max_layer_size: Option<u64>,
    max_layer_entries: Option<u64>,
    max_path_depth: Option<u32>,
    max_layers: Option<usize>,
    #[serde(deserialize_with = "size")]
    max_manifest_size: Option<u64>,
    #[serde(deserialize_with = "size")]
    max_config_size: Option<u64>,
    #[serde(deserialize_with = "size")]
    max_metadata_size: Option<u64>,
    max_json_values: Option<usize>,
    max_json_depth: Option<usize>,
    max_index_depth: Option<usize>,
    max_images: Option<usize>,
    max_archive_entries: Option<usize>,
    #[serde(deserialize_with = "size")]
    max_archive_size: Option<u64>,
}

impl File {
    fn layer_limits(&self) -> layer::Limits {
        let default = layer::Limits::default();
        let sized = self.max_layer_size.map_or(default, |bytes| default.with_bytes(bytes));
        layer::Limits {
            max_bytes: sized.max_bytes,
            max_entries: self.max_layer_entries.unwrap_or(sized.max_entries),
            max_depth: self.max_path_depth.unwrap_or(sized.max_depth),
        }
    }

    fn source_limits(&self) -> SourceLimits {
        let default = SourceLimits::default();
        SourceLimits {
            manifest_bytes: self.max_manifest_size.unwrap_or(default.manifest_bytes),
            config_bytes: self.max_config_size.unwrap_or(default.config_bytes),
            metadata_bytes: self.max_metadata_size.unwrap_or(default.metadata_bytes),
            json_values: self.max_json_values.unwrap_or(default.json_values),
            json_depth: self.max_json_depth.unwrap_or(default.json_depth),
            index_depth: self.max_index_depth.unwrap_or(default.index_depth),
            layers: self.max_layers.unwrap_or(default.layers),
            images: self.max_images.unwrap_or(default.images),
            entries: self.max_archive_entries.unwrap_or(default.entries),
            spool_bytes: self.max_archive_size.unwrap_or(default.spool_bytes),
        }
    }
}

/// How a new store keeps its trees.
#[derive(Debug, Clone, Copy, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum BackendChoice {
    /// Whatever the filesystem can: Btrfs snapshots, else reflinks
    Auto,
    /// Snapshots of Btrfs subvolumes
    Btrfs,
    /// Directories whose files share blocks
    Reflink,
}

/// The filesystem of a new pool.
#[derive(Debug, Clone, Copy, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum PoolChoice {
    Btrfs,
    Xfs,
}

/// What both mean together; `None` if nobody chose.
///
/// # Errors
/// `Invalid` for a backend that can't be in such a pool.
pub(super) fn layout(backend: Option<BackendChoice>, pool_fs: Option<PoolChoice>) -> Result<Option<Layout>> {
    let backend = backend.map(|choice| match choice {
        BackendChoice::Auto => Layout::Auto,
        BackendChoice::Btrfs => Layout::Backend(BackendKind::Btrfs),
        BackendChoice::Reflink => Layout::Backend(BackendKind::Reflink),
    });
    let Some(pool_fs) = pool_fs else { return Ok(backend) };
    let pool_fs = match pool_fs {
        PoolChoice::Btrfs => PoolFs::Btrfs,
        PoolChoice::Xfs => PoolFs::Xfs,
    };
    match backend {
        Some(Layout::Backend(kind)) if kind != pool_fs.backend() => Err(Error::new(
            Kind::Invalid,
            format!(
                "the backend {} can't be in a pool of {pool_fs}: that has the backend {}",
                kind.name(),
                pool_fs.backend().name()
            ),
        )),
        _ => Ok(Some(Layout::Pool(pool_fs))),
    }
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
    let mut settings =
        Settings { layer_limits: file.layer_limits(), source_limits: file.source_limits(), ..Settings::default() };
    if let Some(root) = root.or(file.root) {
        settings.root = std::path::absolute(&root)
            .map_err(|e| Error::new(Kind::Invalid, format!("root directory {}: {e}", root.display())))?;
    }
    let layout =
        layout(file.backend, file.pool_fs).context(|| "cannot use backend and pool_fs of the configuration")?;
    settings.layout = layout.unwrap_or_default();
    settings.pool_size = file.pool_size.unwrap_or(settings.pool_size);
    settings.host_reserve = file.host_reserve.unwrap_or(settings.host_reserve);
    settings.spares = file.spares.unwrap_or(settings.spares);
    settings.tend = file.tend.unwrap_or(settings.tend);
    Ok(settings)
}

fn read(path: &Path) -> Result<File> {
    let invalid = |why: String| Error::new(Kind::Invalid, format!("configuration {}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| invalid(e.to_string()))?;
    toml::from_str(&text).map_err(|e| invalid(e.to_string().trim_end().to_string()))
}
