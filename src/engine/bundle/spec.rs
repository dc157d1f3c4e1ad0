//! The runtime configuration (OCI runtime spec, config.md) of a bundle.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Capabilities, Capability, LinuxDeviceCgroupBuilder, LinuxNamespaceType, LinuxResources, LinuxResourcesBuilder,
    Mount, MountBuilder, RootBuilder, Spec, UserBuilder,
};

use super::user::Identity;
use super::{BundleOptions, Volume};
use crate::oci::ImageConfig;
use crate::store::Container;
use crate::{Error, Kind, Result};

/// The container's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Network {
    /// A namespace of its own with a loopback device.
    #[default]
    None,
    /// The host's.
    Host,
}

/// What Docker sets when an image doesn't.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What Docker and podman give a container by default.
const CAPABILITIES: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// What a configuration is made of.
pub(super) struct Parts<'a> {
    pub root: &'a Path,
    pub hostname: &'a str,
    pub annotations: HashMap<String, String>,
    pub config: &'a ImageConfig,
    pub user: &'a Identity,
    pub volumes: &'a [Volume],
    pub read_only: bool,
    pub options: &'a BundleOptions,
}

/// The bytes of `config.json`.
pub(super) fn build(parts: &Parts<'_>) -> Result<Vec<u8>> {
    let invalid = |e: oci_spec::OciSpecError| Error::new(Kind::Invalid, format!("runtime configuration: {e}"));
    let mut spec = Spec::default();
    let root = RootBuilder::default().path(parts.root).readonly(parts.read_only).build().map_err(invalid)?;
    spec.set_root(Some(root));
    spec.set_hostname(Some(parts.hostname.to_string()));
    spec.set_annotations(Some(parts.annotations.clone()));

    let mut process = spec.process().clone().unwrap_or_default();
    process.set_terminal(Some(parts.options.terminal));
    process.set_args(Some(command(parts)?));
    process.set_env(Some(environment(parts)));
    process.set_cwd(PathBuf::from(if parts.config.working_dir.is_empty() { "/" } else { &parts.config.working_dir }));
    let user = UserBuilder::default()
        .uid(parts.user.uid)
        .gid(parts.user.gid)
        .additional_gids(parts.user.supplementary.clone())
        .build()
        .map_err(invalid)?;
    process.set_user(user);
    process.set_no_new_privileges(Some(false));
    process.set_capabilities(Some(capabilities(parts.user.uid)));
    spec.set_process(Some(process));

    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for volume in parts.volumes {
        mounts.push(bind(volume).map_err(invalid)?);
    }
    spec.set_mounts(Some(mounts));

    if let Some(linux) = spec.linux_mut() {
        linux.set_resources(Some(no_devices().map_err(invalid)?));
    }
    if parts.options.network == Network::Host
        && let Some(linux) = spec.linux_mut()
    {
        let namespaces = linux.namespaces().clone().unwrap_or_default();
        let others = namespaces.into_iter().filter(|namespace| namespace.typ() != LinuxNamespaceType::Network);
        linux.set_namespaces(Some(others.collect()));
    }
    serde_json::to_vec_pretty(&spec).map_err(|e| Error::new(Kind::Invalid, format!("runtime configuration: {e}")))
}

/// The entrypoint with the command behind it; a given command takes the place of the image's.
fn command(parts: &Parts<'_>) -> Result<Vec<String>> {
    let arguments = if parts.options.command.is_empty() { &parts.config.cmd } else { &parts.options.command };
    let command: Vec<_> = parts.config.entrypoint.iter().chain(arguments).cloned().collect();
    if command.is_empty() {
        return Err(Error::new(Kind::Invalid, "its image names no command")
            .with_hint("give one: reflinkd bundle NAME DIR -- COMMAND [ARGUMENT...]"));
    }
    Ok(command)
}

fn environment(parts: &Parts<'_>) -> Vec<String> {
    let mut environment: BTreeMap<String, String> = BTreeMap::new();
    let home = format!("HOME={}", parts.user.home);
    let defaults = [DEFAULT_PATH.to_string(), home];
    for variable in defaults.iter().chain(&parts.config.env).chain(&parts.options.env) {
        let (key, _) = variable.split_once('=').unwrap_or((variable, ""));
        environment.insert(key.to_string(), variable.clone());
    }
    environment.into_values().collect()
}

/// Root gets them for real; another user only keeps what a set-uid program may regain, as Docker has it.
fn capabilities(uid: u32) -> oci_spec::runtime::LinuxCapabilities {
    let all: Capabilities = CAPABILITIES.into_iter().collect();
    let held = if uid == 0 { all.clone() } else { Capabilities::new() };
    let mut set = oci_spec::runtime::LinuxCapabilities::default();
    set.set_bounding(Some(all));
    set.set_effective(Some(held.clone()));
    set.set_permitted(Some(held));
    set.set_inheritable(Some(Capabilities::new()));
    set.set_ambient(Some(Capabilities::new()));
    set
}

/// Runtimes add the devices of each container (/dev/null and so on) to what is allowed. Without a rule all devices are:
/// with `CAP_MKNOD`, which it has, a container would read and write the host's disks.
fn no_devices() -> oci_spec::Result<LinuxResources> {
    let rule = LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build()?;
    LinuxResourcesBuilder::default().devices([rule]).build()
}

fn bind(volume: &Volume) -> oci_spec::Result<Mount> {
    MountBuilder::default()
        .destination(&volume.destination)
        .source(&volume.source)
        .typ("bind")
        .options(["rbind", "rw"].map(String::from))
        .build()
}

/// OCI image spec, conversion.md: what a runtime's configuration has no field for.
pub(super) fn annotations(container: &Container, config: &ImageConfig) -> HashMap<String, String> {
    let mut annotations: HashMap<String, String> = config.labels.clone().into_iter().collect();
    annotations.extend(container.labels.clone());
    let mut set = |key: &str, value: String| annotations.insert(format!("org.opencontainers.image.{key}"), value);
    set("os", config.platform.os.clone());
    set("architecture", config.platform.architecture.clone());
    if let Some(signal) = &config.stop_signal {
        set("stopSignal", signal.clone());
    }
    if !config.exposed_ports.is_empty() {
        set("exposedPorts", config.exposed_ports.iter().cloned().collect::<Vec<_>>().join(","));
    }
    annotations
}
