//! Docker's graph-driver protocol as it goes over the socket. All fields are optional and have exactly these names
//! (`pkg/plugins` and `daemon/graphdriver/proxy.go` of Docker 20.10 to 27).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::layer::IdRange;

/// Any request but Init.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Request {
    #[serde(rename = "ID")]
    pub(super) id: String,
    #[serde(rename = "Parent")]
    pub(super) parent: String,
    #[serde(rename = "MountLabel")]
    pub(super) mount_label: String,
    #[serde(rename = "StorageOpt")]
    pub(super) storage_opt: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Init {
    #[serde(rename = "Home")]
    pub(super) home: String,
    #[serde(rename = "Opts")]
    pub(super) opts: Option<Vec<String>>,
    #[serde(rename = "UIDMaps")]
    pub(super) uid_maps: Option<Vec<IdRange>>,
    #[serde(rename = "GIDMaps")]
    pub(super) gid_maps: Option<Vec<IdRange>>,
}

/// Any response; what isn't an answer to the request is left out.
#[derive(Debug, Default, Serialize)]
pub(super) struct Response {
    #[serde(rename = "Err", skip_serializing_if = "String::is_empty")]
    pub(super) err: String,
    #[serde(rename = "Implements", skip_serializing_if = "Option::is_none")]
    pub(super) implements: Option<Vec<&'static str>>,
    #[serde(rename = "Dir", skip_serializing_if = "Option::is_none")]
    pub(super) dir: Option<String>,
    #[serde(rename = "Exists", skip_serializing_if = "Option::is_none")]
    pub(super) exists: Option<bool>,
    #[serde(rename = "Status", skip_serializing_if = "Option::is_none")]
    pub(super) status: Option<Vec<(String, String)>>,
    #[serde(rename = "Changes", skip_serializing_if = "Option::is_none")]
    pub(super) changes: Option<Vec<Change>>,
    #[serde(rename = "Size", skip_serializing_if = "Option::is_none")]
    pub(super) size: Option<u64>,
    #[serde(rename = "Metadata", skip_serializing_if = "Option::is_none")]
    pub(super) metadata: Option<BTreeMap<&'static str, String>>,
    #[serde(rename = "Capabilities", skip_serializing_if = "Option::is_none")]
    pub(super) capabilities: Option<Capabilities>,
}

#[derive(Debug, Serialize)]
pub(super) struct Capabilities {
    /// Diff of a layer that was applied gives the tar's own bytes: Docker needs no notes of its own to make them again.
    #[serde(rename = "ReproducesExactDiffs")]
    pub(super) reproduces_exact_diffs: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct Change {
    /// From the root, with a leading slash.
    #[serde(rename = "Path")]
    pub(super) path: String,
    /// 0 modified, 1 added, 2 deleted.
    #[serde(rename = "Kind")]
    pub(super) kind: u8,
}
