//! `/etc/reflinkd/config.toml`; flag over environment over file.
//!
//! All keys with their defaults are in `docs/configuration.md`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Deserializer};

use super::format::parse_size;
use super::registries::{self, RegistryTable};
use crate::daemon::{self, Containerd, Doors};
use crate::engine::Settings;
use crate::engine::containerd::Space;
use crate::engine::home::{BackendKind, Layout};
use crate::engine::pool::PoolFs;
use crate::layer;
use crate::oci::SourceLimits;
use crate::store::Owner;
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
    containerd: BTreeMap<String, ContainerdTable>,
    registry: BTreeMap<String, RegistryTable>,
    registry_timeout: Option<u64>,
    registry_certs: Option<Vec<PathBuf>>,
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

/// One containerd; its name is that of the table.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ContainerdTable {
    socket: Option<PathBuf>,
    address: Option<PathBuf>,
    #[serde(deserialize_with = "size_or_none")]
    size_limit: Option<u64>,
    remap_ids: Option<bool>,
    reuse: Option<Vec<String>>,
}

impl ContainerdTable {
    fn named(self, name: String) -> Result<Containerd> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.starts_with('-') || name.is_empty() || !name.chars().all(fits) {
            let why = format!("containerd {name:?}: its name may have a-z, 0-9 and -, and doesn't begin with -");
            return Err(Error::new(Kind::Invalid, why));
        }
        let default = || match name.as_str() {
            daemon::CONTAINERD_NAME => daemon::CONTAINERD_SOCKET.to_string(),
            other => daemon::CONTAINERD_SOCKET.replace(".sock", &format!("-{other}.sock")),
        };
        let reuse = self.reuse.unwrap_or_default().iter().map(|owner| reusable(owner)).collect::<Result<_>>();
        Ok(Containerd {
            socket: open(self.socket, &default()),
            address: self.address.unwrap_or_else(|| daemon::CONTAINERD_ADDRESS.into()),
            space: Space {
                reuse: reuse.context(|| format!("containerd {name:?}"))?,
                size_limit: self.size_limit,
                remap_ids: self.remap_ids.unwrap_or(false),
                name,
            },
        })
    }
}

/// An owner whose layers a containerd may reuse.
fn reusable(owner: &str) -> Result<Owner> {
    let cli = Owner::cli();
    if owner == cli.as_str() {
        return Ok(cli);
    }
    let why =
        format!("it can't reuse the layers of {owner:?}: the digests of none but the command line's are vouched for");
    Err(Error::new(Kind::Invalid, why).with_hint("reuse = [\"cli\"], or nothing"))
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

/// Where a door is; "" is nowhere.
fn open(path: Option<PathBuf>, default: &str) -> Option<PathBuf> {
    Some(path.unwrap_or_else(|| default.into())).filter(|path| !path.as_os_str().is_empty())
}

/// All containerds: the one without a name of its own is always there.
fn containerds(mut tables: BTreeMap<String, ContainerdTable>) -> Result<Vec<Containerd>> {
    tables.entry(daemon::CONTAINERD_NAME.to_string()).or_default();
    let all = tables.into_iter().map(|(name, table)| table.named(name)).collect::<Result<Vec<_>>>()?;
    for (at, one) in all.iter().enumerate() {
        let same = |other: &&Containerd| other.socket.is_some() && other.socket == one.socket;
        if let Some(other) = all[..at].iter().find(same) {
            let why = format!("containerds {} and {} have the same socket", other.space.name, one.space.name);
            return Err(Error::new(Kind::Invalid, why)
                .with_hint("each removes the snapshots that it doesn't know: give each a socket of its own"));
        }
    }
    Ok(all)
}

fn size_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "" => Ok(None),
        text => parse_size(text).map(Some).map_err(serde::de::Error::custom),
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
    let registries = registries::settings(file.registry, file.registry_timeout, file.registry_certs);
    settings.registries = Arc::new(registries.context(|| "cannot use the registries of the configuration")?);
    let doors = Doors {
        docker: open(file.docker_socket, daemon::DOCKER_SOCKET),
        metrics: open(file.metrics_socket, daemon::METRICS_SOCKET),
        containerds: containerds(file.containerd).context(|| "cannot use the containerds of the configuration")?,
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
        let fields = |of: &str| {
            let fields = include_str!("config.rs").split(of).nth(1).and_then(|rest| rest.split('}').next());
            fields.expect("the keys").lines().filter(|line| line.trim_end().ends_with(">,")).count()
        };
        assert_eq!(keys.len() + 1, fields("struct File {"), "{keys:?}");
        let containerd = keys["containerd"]["default"].as_table().expect("a table");
        assert_eq!(containerd.len(), fields("struct ContainerdTable {"), "{containerd:?}");
    }

    fn doors(text: &str) -> Result<Vec<(String, String, Option<u64>)>> {
        let path = tempfile::NamedTempFile::new().expect("a scratch file");
        std::fs::write(path.path(), text).expect("write");
        let (_, doors) = settings(None, Some(path.path()))?;
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let row = |one: Containerd| (one.space.name, one.socket.map(text).unwrap_or_default(), one.space.size_limit);
        Ok(doors.containerds.into_iter().map(row).collect())
    }

    #[test]
    fn each_containerd_has_a_table() {
        let row = |name: &str, socket: &str, limit| (name.to_string(), socket.to_string(), limit);
        let default = row("default", "/run/reflinkd/containerd.sock", None);
        assert_eq!(doors("").expect("none"), std::slice::from_ref(&default));
        assert_eq!(
            doors("[containerd.k3s-1]\nsize_limit = \"10G\"\n[containerd.a]\nsocket=\"/run/a\"").expect("two more"),
            [
                row("a", "/run/a", None),
                default,
                row("k3s-1", "/run/reflinkd/containerd-k3s-1.sock", Some(10_000_000_000))
            ]
        );
        assert_eq!(doors("[containerd.default]\nsocket = \"\"").expect("closed"), [row("default", "", None)]);
        for (text, why) in [
            ("[containerd.Upper]", "\"Upper\": its name"),
            ("[containerd.-a]", "\"-a\": its name"),
            ("[containerd.\"\"]", "\"\": its name"),
            ("[containerd.\"a/b\"]", "\"a/b\": its name"),
            ("[containerd.a]\nsocket = \"/run/reflinkd/containerd.sock\"", "a and default have the same socket"),
            ("[containerd.a]\nsokcet = \"\"", "unknown field"),
            ("[containerd.a]\nsize_limit = \"much\"", "much"),
            ("[containerd.a]\nreuse = [\"cli\", \"docker\"]", "reuse the layers of \"docker\""),
            ("[containerd.a]\nreuse = \"cli\"", "invalid type"),
        ] {
            let error = doors(text).expect_err(text);
            assert!(error.kind() == Kind::Invalid && error.to_string().contains(why), "{text}: {error}");
        }
        let closed = "[containerd.a]\nsocket = \"\"\n[containerd.b]\nsocket = \"\"";
        assert_eq!(doors(closed).expect("nowhere isn't the same place").len(), 3);
    }
}
