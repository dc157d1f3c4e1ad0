//! The image config: what to run, and which layers and steps the image is made of.
//!
//! Read as Docker writes it, not only as the OCI spec has it: lists that are `null` (Go's nil slices),
//! a command as one string (very old images), fields the spec doesn't know. The config's digest is
//! the image's ID, so its bytes are kept as they are; this is a view of them, never written back.
//!
//! Whether a step of the history made a layer is said by its `empty_layer` alone. A step that made a
//! layer without content is still a layer, and a size tells nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::digest::DiffId;
use super::json::{self, null_default, words};
use super::platform::Platform;
use crate::{Error, Kind, Result};

/// What a config says (OCI image spec, config.md).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// What machine its programs are for.
    pub platform: Platform,
    /// When it was made (RFC 3339), as written.
    pub created: Option<String>,
    /// Who made it.
    pub author: Option<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Arguments, or the whole command where there is no entrypoint.
    pub cmd: Vec<String>,
    /// The command that `cmd` is appended to.
    pub entrypoint: Vec<String>,
    /// Empty for `/`.
    pub working_dir: String,
    /// `user[:group]`, by name or number; empty for root.
    pub user: String,
    /// `80/tcp`.
    pub exposed_ports: BTreeSet<String>,
    /// Directories meant to be mounts.
    pub volumes: BTreeSet<String>,
    /// Free text by key.
    pub labels: BTreeMap<String, String>,
    /// `SIGQUIT`, or a number.
    pub stop_signal: Option<String>,
    /// The layers, the lowest first.
    pub diff_ids: Vec<DiffId>,
    /// The steps, the first first. May be missing, or know of fewer layers than there are.
    pub history: Vec<HistoryStep>,
}

/// One step of an image's making.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct HistoryStep {
    /// RFC 3339, as written.
    pub created: Option<String>,
    /// The step's command.
    #[serde(deserialize_with = "null_default")]
    pub created_by: String,
    /// Who made it.
    #[serde(deserialize_with = "null_default")]
    pub author: String,
    /// Free text.
    #[serde(deserialize_with = "null_default")]
    pub comment: String,
    /// Whether the step made no layer (ENV, LABEL, CMD, ...).
    #[serde(deserialize_with = "null_default")]
    pub empty_layer: bool,
}

/// A step of the history with the layer it made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step<'a> {
    /// `None` for a layer that the history doesn't mention.
    pub history: Option<&'a HistoryStep>,
    /// `None` for a step that only configures.
    pub diff_id: Option<DiffId>,
}

impl ImageConfig {
    /// Read a config.
    ///
    /// # Errors
    /// [`Kind::BadInput`] for what isn't JSON or has fields of other types.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let raw: Raw = json::parse_object(bytes)?;
        let config = raw.config;
        Ok(Self {
            platform: Platform { os: raw.os, architecture: raw.architecture, variant: raw.variant },
            created: raw.created,
            author: raw.author,
            env: config.env,
            cmd: config.cmd,
            entrypoint: config.entrypoint,
            working_dir: config.working_dir,
            user: config.user,
            exposed_ports: config.exposed_ports.into_keys().collect(),
            volumes: config.volumes.into_keys().collect(),
            labels: config.labels,
            stop_signal: config.stop_signal.filter(|signal| !signal.is_empty()),
            diff_ids: raw.rootfs.diff_ids,
            history: raw.history,
        })
    }

    /// Each step with the layer it made, the first first, then the layers without a step.
    ///
    /// As Docker has it, a history that is missing or too short is no fault.
    ///
    /// # Errors
    /// [`Kind::BadInput`] where the history claims more layers than there are.
    pub fn history_layers(&self) -> Result<Vec<Step<'_>>> {
        let claimed = self.history.iter().filter(|step| !step.empty_layer).count();
        if claimed > self.diff_ids.len() {
            return Err(Error::new(
                Kind::BadInput,
                format!("its history claims {claimed} layers, its rootfs has {}", self.diff_ids.len()),
            ));
        }
        let mut layers = self.diff_ids.iter().copied();
        let mut steps: Vec<Step<'_>> = Vec::with_capacity(self.history.len());
        for step in &self.history {
            let diff_id = if step.empty_layer { None } else { layers.next() };
            steps.push(Step { history: Some(step), diff_id });
        }
        steps.extend(layers.map(|layer| Step { history: None, diff_id: Some(layer) }));
        Ok(steps)
    }

    /// Bytes of memory that the lists take beyond their text, roughly.
    pub(super) fn overhead(&self) -> u64 {
        let strings = self.env.len() + self.cmd.len() + self.entrypoint.len();
        let keyed = self.exposed_ports.len() + self.volumes.len() + self.labels.len() * 2;
        let size = self.history.len() * size_of::<HistoryStep>() + (strings + keyed) * 40 + self.diff_ids.len() * 32;
        size as u64
    }
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default, deserialize_with = "null_default")]
    os: String,
    #[serde(default, deserialize_with = "null_default")]
    architecture: String,
    #[serde(default, deserialize_with = "null_default")]
    variant: String,
    #[serde(default)]
    created: Option<String>,
    #[serde(default)]
    author: Option<String>,
    #[serde(default, deserialize_with = "null_default")]
    config: RawConfig,
    #[serde(default, deserialize_with = "null_default")]
    rootfs: RawRootfs,
    #[serde(default, deserialize_with = "null_default")]
    history: Vec<HistoryStep>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawRootfs {
    #[serde(deserialize_with = "null_default")]
    diff_ids: Vec<DiffId>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct RawConfig {
    #[serde(deserialize_with = "null_default")]
    env: Vec<String>,
    #[serde(deserialize_with = "words")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "words")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "null_default")]
    working_dir: String,
    #[serde(deserialize_with = "null_default")]
    user: String,
    #[serde(deserialize_with = "null_default")]
    exposed_ports: BTreeMap<String, IgnoredAny>,
    #[serde(deserialize_with = "null_default")]
    volumes: BTreeMap<String, IgnoredAny>,
    #[serde(deserialize_with = "null_default")]
    labels: BTreeMap<String, String>,
    stop_signal: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    fn diff(text: &str) -> DiffId {
        DiffId(Digest::of(text.as_bytes()))
    }

    #[test]
    fn a_config_as_docker_writes_it() {
        let json = format!(
            r##"{{"architecture":"amd64","os":"linux","docker_version":"20.10","created":"2024-01-02T03:04:05.678Z",
            "container_config":{{"Cmd":["/bin/sh","-c","#(nop)"]}},
            "config":{{"Hostname":"","User":"nginx:nginx","ExposedPorts":{{"80/tcp":{{}}}},"Env":["PATH=/bin","A=b=c"],
              "Cmd":["nginx","-g","daemon off;"],"Entrypoint":["/entry"],"WorkingDir":"/srv","Volumes":{{"/data":{{}}}},
              "Healthcheck":{{"Test":["CMD","x"],"Interval":1}},"OnBuild":null,"ArgsEscaped":true,
              "Labels":{{"maintainer":"me"}},"StopSignal":"SIGQUIT"}},
            "rootfs":{{"type":"layers","diff_ids":["{}"]}},
            "history":[{{"created":"2024-01-01T00:00:00Z","created_by":"ADD"}},{{"created_by":"CMD","empty_layer":true}}]}}"##,
            diff("0")
        );
        let config = ImageConfig::parse(json.as_bytes()).unwrap();
        assert_eq!(config.platform.to_string(), "linux/amd64");
        assert_eq!(config.env, ["PATH=/bin", "A=b=c"]);
        assert_eq!(config.cmd, ["nginx", "-g", "daemon off;"]);
        assert_eq!(config.entrypoint, ["/entry"]);
        assert_eq!((&*config.user, &*config.working_dir), ("nginx:nginx", "/srv"));
        assert_eq!(config.exposed_ports, BTreeSet::from(["80/tcp".to_string()]));
        assert_eq!(config.volumes, BTreeSet::from(["/data".to_string()]));
        assert_eq!(config.labels["maintainer"], "me");
        assert_eq!(config.stop_signal.as_deref(), Some("SIGQUIT"));
        assert_eq!(config.diff_ids, [diff("0")]);
        let steps = config.history_layers().unwrap();
        assert_eq!(steps[0].diff_id, Some(diff("0")));
        assert_eq!((steps[1].diff_id, steps[1].history.unwrap().created_by.as_str()), (None, "CMD"));
    }

    #[test]
    fn null_and_missing_are_empty_and_a_command_may_be_one_string() {
        let nulls = br#"{"architecture":"amd64","os":"linux","variant":null,"created":null,"author":null,
            "config":{"User":null,"ExposedPorts":null,"Env":null,"Cmd":null,"Entrypoint":null,"WorkingDir":null,
            "Volumes":null,"Labels":null,"StopSignal":null},"rootfs":{"type":"layers","diff_ids":null},"history":null}"#;
        let config = ImageConfig::parse(nulls).unwrap();
        let bare = ImageConfig::parse(br#"{"architecture":"amd64","os":"linux"}"#).unwrap();
        assert_eq!(config, bare);
        assert_eq!(
            config,
            ImageConfig::parse(br#"{"architecture":"amd64","os":"linux","config":null,"rootfs":null}"#).unwrap()
        );
        assert!(config.history_layers().unwrap().is_empty());
        let old = ImageConfig::parse(br#"{"config":{"Cmd":"/bin/sh","Entrypoint":""}}"#).unwrap();
        assert_eq!((old.cmd, old.entrypoint), (vec!["/bin/sh".to_string()], vec![String::new()]));
    }

    #[test]
    fn steps_pair_by_empty_layer_alone() {
        let step =
            |name: &str, empty_layer| HistoryStep { created_by: name.into(), empty_layer, ..Default::default() };
        let mut config = ImageConfig {
            diff_ids: vec![diff("a"), diff("b"), diff("c")],
            history: vec![step("ENV", true), step("ADD", false), step("RUN true", false), step("CMD", true)],
            ..Default::default()
        };
        let layers: Vec<Option<DiffId>> = config.history_layers().unwrap().iter().map(|s| s.diff_id).collect();
        assert_eq!(layers, [None, Some(diff("a")), Some(diff("b")), None, Some(diff("c"))]);
        assert!(config.history_layers().unwrap()[4].history.is_none());
        config.diff_ids.truncate(1);
        assert_eq!(config.history_layers().unwrap_err().kind(), Kind::BadInput);
        config.history.clear();
        assert_eq!(config.history_layers().unwrap(), [Step { history: None, diff_id: Some(diff("a")) }]);
    }

    #[test]
    fn damaged_and_absurd_configs_are_refused() {
        let deep = format!(r#"{{"config":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        for json in [
            "",
            "{",
            "[]",
            "null",
            r#"{"rootfs":{"diff_ids":["sha256:../../x"]}}"#,
            r#"{"rootfs":{"diff_ids":"x"}}"#,
            r#"{"config":{"Env":"A=b"}}"#,
            r#"{"config":{"Env":[1]}}"#,
            r#"{"history":{}}"#,
            &deep,
        ] {
            let error = ImageConfig::parse(json.as_bytes()).expect_err(&json[..json.len().min(80)]);
            assert_eq!(error.kind(), Kind::BadInput);
        }
    }
}
