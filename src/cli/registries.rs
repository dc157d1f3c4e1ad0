//! What configuration and environment say of registries.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::oci::Reference;
use crate::registry::{Host, Proxies, Settings, files_of_user};
use crate::{Context, Error, Kind, Result};

/// One registry; its name is that of the table.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RegistryTable {
    mirrors: Vec<String>,
    insecure: bool,
}

/// # Errors
/// [`Kind::Invalid`] for names that no registry has.
pub(super) fn settings(
    tables: BTreeMap<String, RegistryTable>,
    timeout: Option<u64>,
    certs: Option<Vec<PathBuf>>,
) -> Result<Settings> {
    let default = Settings::default();
    let mut hosts = BTreeMap::new();
    for (name, RegistryTable { mirrors, insecure }) in tables {
        // Where an image of that name would be said to be.
        let image = format!("{name}/image").parse::<Reference>();
        if image.map_or(true, |image| image.domain() != name) {
            let why = "it isn't a registry's name: HOST or HOST:PORT, as in images' names";
            return Err(Error::new(Kind::Invalid, why)).context(|| format!("registry {name:?}"));
        }
        let host = Host { mirrors, insecure };
        if host != Host::default() {
            hosts.insert(name, host);
        }
    }
    if timeout == Some(0) {
        return Err(Error::new(Kind::Invalid, "registry_timeout is 0: nothing answers in no time"));
    }
    Ok(Settings {
        hosts,
        timeout: timeout.map_or(default.timeout, Duration::from_secs),
        certs: certs.unwrap_or(default.certs),
        logins: files_of_user(),
        proxies: Proxies::from_env(),
    })
}
