//! `/etc/reflinkd/config.toml`; flag over environment over file.
//!
//! All keys with their defaults are in `docs/configuration.md`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};

use super::format::parse_size;
use crate::daemon::{self, Doors};
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
    docker_socket: Option<PathBuf>,
    metrics_socket: Option<PathBuf>,
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

/// What the user and the administrator chose, and the doors of `serve`. `root` and `config` come from flags or environment.
pub(super) fn settings(root: Option<PathBuf>, config: Option<&Path>) -> Result<(Settings, Doors)> {
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
    let open = |path: Option<PathBuf>, default: &str| {
        Some(path.unwrap_or_else(|| default.into())).filter(|path| !path.as_os_str().is_empty())
    };
    let doors = Doors {
        docker: open(file.docker_socket, daemon::DOCKER_SOCKET),
        metrics: open(file.metrics_socket, daemon::METRICS_SOCKET),
    };
    Ok((settings, doors))
}

fn read(path: &Path) -> Result<File> {
    let invalid = |why: String| Error::new(Kind::Invalid, format!("configuration {}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| invalid(e.to_string()))?;
    toml::from_str(&text).map_err(|e| invalid(e.to_string().trim_end().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `docs/configuration.md` shows is every key with its default.
    #[test]
    fn the_documented_file_is_the_default() {
        let text = include_str!("../../docs/configuration.md");
        let shown = text.split("```toml").nth(1).and_then(|rest| rest.split("```").next()).expect("a block of toml");
        let path = tempfile::NamedTempFile::new().expect("a scratch file");
        std::fs::write(path.path(), shown).expect("write");
        let none = tempfile::NamedTempFile::new().expect("a scratch file");
        let read = |path: &Path| settings(None, Some(path)).expect("it is valid");
        let (shown, default) = (read(path.path()), read(none.path()));
        assert_eq!(format!("{shown:?}"), format!("{default:?}"));
        let keys = toml::from_str::<toml::Table>(&std::fs::read_to_string(path.path()).expect("read")).expect("toml");
        // All but pool_fs, which has no default.
        let fields = include_str!("config.rs").split("struct File {").nth(1).and_then(|rest| rest.split('}').next());
        let fields = fields.expect("the keys").lines().filter(|line| line.trim_end().ends_with(">,")).count();
        assert_eq!(keys.len() + 1, fields, "{keys:?}");
    }
}
