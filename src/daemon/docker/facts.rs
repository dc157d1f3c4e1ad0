//! Rows for `docker info` and `docker inspect`.

use std::collections::BTreeMap;

use crate::Result;
use crate::engine::Engine;
use crate::engine::keyed::Keyspace;

/// What `docker info` shows below the storage driver.
pub(super) fn of_store(engine: &Engine) -> Result<Vec<(String, String)>> {
    let info = engine.info()?;
    let trees = engine.docker_trees(&engine.docker_client()?).list()?.len();
    let bytes = |bytes: u64| bytesize::ByteSize::b(bytes).display().si().to_string();
    let mut rows = vec![
        ("Version", env!("CARGO_PKG_VERSION").to_string()),
        ("Root Dir", engine.root().display().to_string()),
        ("Backing Filesystem", info.filesystem),
        ("Backend", info.identity.backend),
        ("Quota Mode", info.quota.mode.to_string()),
        ("Trees", trees.to_string()),
        ("Space Used", bytes(info.space.used)),
        ("Space Available", bytes(info.space.available)),
    ];
    if let Some(pool) = info.pool {
        rows.push(("Pool", pool.file.display().to_string()));
    }
    if info.read_only {
        rows.push(("Read Only", "true".to_string()));
    }
    Ok(rows.into_iter().map(|(name, value)| (name.to_string(), value)).collect())
}

/// What `docker inspect` shows as the data of the graph driver. Sizes in bytes, as of the last commit of the filesystem.
pub(super) fn of_tree(trees: &Keyspace<'_>, key: &str) -> Result<BTreeMap<&'static str, String>> {
    let facts = trees.facts(key)?;
    let mut rows = BTreeMap::from([
        ("Directory", facts.directory.display().to_string()),
        ("UUID", facts.record.uuid.to_string()),
        ("ChargedBytes", facts.charged.to_string()),
        ("SizeMethod", facts.method),
        ("QuotaMode", facts.quota_mode.to_string()),
    ]);
    if let Some(limit) = facts.size_limit {
        rows.insert("SizeLimit", limit.to_string());
    }
    Ok(rows)
}
