//! Making image configurations: for an import, from Dockerfile instructions.
//!
//! ```
//! # use reflinkd::oci::{Digest, DiffId, ImageConfig};
//! let diff_id = DiffId(Digest::of(b"a tar"));
//! let changes = ["CMD [\"/bin/sh\"]".to_string(), "ENV A=1".to_string()];
//! let config = ImageConfig::for_root_filesystem(diff_id, "imported", &changes)?;
//! let config = ImageConfig::parse(&config)?;
//! assert_eq!((config.cmd, config.env), (vec!["/bin/sh".into()], vec!["A=1".into()]));
//! # Ok::<(), reflinkd::Error>(())
//! ```

use serde_json::{Map, Value, json};

use super::{DiffId, ImageConfig, Platform};
use crate::{Context, Error, Kind, Result};

/// What a commit says of itself.
#[derive(Debug, Clone, Copy)]
pub struct Commit<'a> {
    /// Empty for none.
    pub message: &'a str,
    /// Empty for that of the parent.
    pub author: &'a str,
    /// Dockerfile instructions.
    pub changes: &'a [String],
}

impl ImageConfig {
    /// The bytes of the configuration of `parent`, with a further layer and a step of history that made it, made now.
    /// Without a layer the step is an empty one. What else the parent says stays, fields that nobody here knows among it.
    ///
    /// # Errors
    /// [`Kind::Invalid`] naming the instruction that can't be applied; [`Kind::BadInput`] for a parent that is none.
    pub fn with_layer(parent: &[u8], layer: Option<DiffId>, commit: &Commit<'_>) -> Result<Vec<u8>> {
        let known = Self::parse(parent)?;
        let mut image: Map<String, Value> = super::json::parse_object(parent)?;
        let now = jiff::Timestamp::now().to_string();
        let mut config = object(image.remove("config"));
        for change in commit.changes {
            apply(&mut config, change).context(|| format!("change {change:?}"))?;
        }
        // Of the container that Docker made the parent in.
        for stale in ["container", "container_config", "id", "parent", "parent_id", "docker_version"] {
            image.remove(stale);
        }
        let mut diff_ids = known.diff_ids.clone();
        let mut history = list_of(image.remove("history"));
        // A history that knows of fewer layers than there are would give the new step another's.
        let told = known.history.iter().filter(|step| !step.empty_layer).count();
        history.extend((told..diff_ids.len()).map(|_| json!({ "created_by": "" })));
        let mut step = json!({ "created": now, "created_by": "reflinkd commit" });
        for (key, text) in [("author", commit.author), ("comment", commit.message)] {
            if !text.is_empty() {
                step[key] = text.into();
            }
        }
        match layer {
            Some(layer) => diff_ids.push(layer),
            None => step["empty_layer"] = true.into(),
        }
        history.push(step);
        image.insert("created".into(), now.into());
        if !commit.author.is_empty() {
            image.insert("author".into(), commit.author.into());
        }
        image.insert("config".into(), config.into());
        image.insert("rootfs".into(), json!({ "type": "layers", "diff_ids": diff_ids }));
        image.insert("history".into(), history.into());
        to_bytes(&Value::Object(image))
    }

    /// The bytes of a configuration for an image of one layer, for this machine's platform, made now.
    ///
    /// `changes` are the instructions that `docker import --change` takes.
    ///
    /// # Errors
    /// [`Kind::Invalid`] naming the instruction that can't be applied.
    pub fn for_root_filesystem(diff_id: DiffId, comment: &str, changes: &[String]) -> Result<Vec<u8>> {
        let now = jiff::Timestamp::now().to_string();
        let mut config = Map::new();
        for change in changes {
            apply(&mut config, change).context(|| format!("change {change:?}"))?;
        }
        let platform = Platform::host();
        let mut image = json!({
            "created": now,
            "architecture": platform.architecture,
            "os": platform.os,
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": [diff_id] },
            "history": [{ "created": now, "created_by": "reflinkd import", "comment": comment }],
        });
        if !platform.variant.is_empty() {
            image["variant"] = platform.variant.into();
        }
        to_bytes(&image)
    }
}

fn to_bytes(image: &Value) -> Result<Vec<u8>> {
    serde_json::to_vec(image).map_err(|e| Error::new(Kind::Invalid, format!("cannot write configuration: {e}")))
}

/// What Go writes as null is empty.
fn object(value: Option<Value>) -> Map<String, Value> {
    if let Some(Value::Object(object)) = value { object } else { Map::new() }
}

fn list_of(value: Option<Value>) -> Vec<Value> {
    if let Some(Value::Array(list)) = value { list } else { Vec::new() }
}

/// Apply one Dockerfile instruction (Dockerfile reference) to the `config` object of an image configuration.
fn apply(config: &mut Map<String, Value>, instruction: &str) -> Result<()> {
    let invalid = |why: &str| Error::new(Kind::Invalid, why.to_string());
    let (name, rest) =
        instruction.trim().split_once(char::is_whitespace).ok_or_else(|| invalid("it has no argument"))?;
    let rest = rest.trim();
    match name.to_ascii_uppercase().as_str() {
        "CMD" => set(config, "Cmd", command(rest)?),
        "ENTRYPOINT" => set(config, "Entrypoint", command(rest)?),
        "ENV" => {
            for (key, value) in pairs(rest)? {
                let mut list = list_of(config.remove("Env"));
                list.retain(|old| old.as_str().is_none_or(|old| old.split('=').next() != Some(key.as_str())));
                list.push(format!("{key}={value}").into());
                config.insert("Env".into(), list.into());
            }
        }
        "LABEL" => {
            for (key, value) in pairs(rest)? {
                insert(config, "Labels", key, value.into());
            }
        }
        "EXPOSE" => {
            for port in rest.split_whitespace() {
                let port = if port.contains('/') { port.to_string() } else { format!("{port}/tcp") };
                let number = port.split('/').next().unwrap_or_default();
                if number.split('-').any(|n| n.parse::<u16>().is_err()) {
                    return Err(invalid(&format!("{number} is not a port")));
                }
                insert(config, "ExposedPorts", port, json!({}));
            }
        }
        "VOLUME" => {
            let paths = if rest.starts_with('[') { list(rest)? } else { words(rest)? };
            for path in paths {
                insert(config, "Volumes", path, json!({}));
            }
        }
        "USER" => set(config, "User", rest.into()),
        "WORKDIR" => set(config, "WorkingDir", rest.into()),
        "STOPSIGNAL" => set(config, "StopSignal", rest.into()),
        _ => {
            return Err(invalid("no such instruction").with_hint(
                "CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME and WORKDIR can be changed",
            ));
        }
    }
    Ok(())
}

fn set(config: &mut Map<String, Value>, key: &str, value: Value) {
    config.insert(key.to_string(), value);
}

fn insert(config: &mut Map<String, Value>, map: &str, key: String, value: Value) {
    let mut object = object(config.remove(map));
    object.insert(key, value);
    config.insert(map.to_string(), object.into());
}

/// The exec form is a JSON list, the shell form a line for `/bin/sh -c`.
fn command(text: &str) -> Result<Value> {
    Ok(if text.starts_with('[') { list(text)?.into() } else { json!(["/bin/sh", "-c", text]) })
}

fn list(text: &str) -> Result<Vec<String>> {
    serde_json::from_str(text)
        .map_err(|e| Error::new(Kind::Invalid, format!("{text} is not a JSON list of strings: {e}")))
}

/// `key=value ...` with quotes, or the old form `key value with blanks`.
fn pairs(text: &str) -> Result<Vec<(String, String)>> {
    let words = words(text)?;
    if !words.first().is_some_and(|word| word.contains('=')) {
        let (key, value) = text
            .split_once(char::is_whitespace)
            .ok_or_else(|| Error::new(Kind::Invalid, format!("{text:?} is not key=value")))?;
        return Ok(vec![(key.to_string(), value.trim().to_string())]);
    }
    words
        .iter()
        .map(|word| {
            let pair = word.split_once('=').filter(|(key, _)| !key.is_empty());
            pair.map(|(key, value)| (key.to_string(), value.to_string()))
                .ok_or_else(|| Error::new(Kind::Invalid, format!("{word:?} is not key=value")))
        })
        .collect()
}

/// Words parted by blanks, with double and single quotes and backslashes as a shell has them.
fn words(text: &str) -> Result<Vec<String>> {
    let (mut words, mut word, mut quote, mut begun) = (Vec::new(), String::new(), None, false);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', None | Some('"')) => {
                word.extend(chars.next());
                begun = true;
            }
            ('"' | '\'', None) => (quote, begun) = (Some(c), true),
            (c, Some(q)) if c == q => quote = None,
            (c, None) if c.is_whitespace() => {
                if std::mem::take(&mut begun) {
                    words.push(std::mem::take(&mut word));
                }
            }
            (c, _) => {
                word.push(c);
                begun = true;
            }
        }
    }
    if quote.is_some() {
        return Err(Error::new(Kind::Invalid, format!("{text:?} has a quote that doesn't end")));
    }
    if begun {
        words.push(word);
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(changes: &[&str]) -> Result<ImageConfig> {
        let changes: Vec<_> = changes.iter().map(ToString::to_string).collect();
        ImageConfig::parse(&ImageConfig::for_root_filesystem(DiffId(super::super::Digest::of(b"x")), "", &changes)?)
    }

    #[test]
    fn instructions_change_what_they_name() {
        let config = config(&[
            "ENTRYPOINT [\"/x\", \"-v\"]",
            "cmd echo hello",
            "ENV A=1 B=\"two words\"",
            "ENV A=2",
            "ENV OLD form with blanks",
            "LABEL k=v",
            "EXPOSE 80 53/udp",
            "VOLUME /data",
            "USER www-data",
            "WORKDIR /srv",
            "STOPSIGNAL SIGQUIT",
        ])
        .expect("valid");
        assert_eq!(config.entrypoint, ["/x", "-v"]);
        assert_eq!(config.cmd, ["/bin/sh", "-c", "echo hello"]);
        assert_eq!(config.env, ["B=two words", "A=2", "OLD=form with blanks"]);
        assert_eq!(config.labels.get("k").map(String::as_str), Some("v"));
        assert_eq!(config.exposed_ports.iter().collect::<Vec<_>>(), ["53/udp", "80/tcp"]);
        assert!(config.volumes.contains("/data"));
        assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("www-data", "/srv"));
        assert_eq!(config.stop_signal.as_deref(), Some("SIGQUIT"));
        assert_eq!(config.diff_ids.len(), 1);
    }

    #[test]
    fn a_commit_keeps_what_its_parent_says_and_adds_a_step() {
        let one = DiffId(super::super::Digest::of(b"1"));
        let two = DiffId(super::super::Digest::of(b"2"));
        let parent = format!(
            r#"{{"architecture":"arm64","os":"linux","variant":"v8","x-unknown":[1],"container":"c","author":"they",
                "config":{{"Env":null,"Labels":null,"Cmd":["old"],"Healthcheck":{{"Test":["NONE"]}}}},
                "rootfs":{{"type":"layers","diff_ids":["{one}"]}},"history":[{{"created_by":"ENV","empty_layer":true}}]}}"#
        );
        let changes = ["CMD new".to_string(), "ENV A=1".to_string(), "LABEL k=v".to_string()];
        let commit = Commit { message: "why", author: "me", changes: &changes };
        let bytes = ImageConfig::with_layer(parent.as_bytes(), Some(two), &commit).expect("valid");
        let raw: Value = serde_json::from_slice(&bytes).expect("JSON");
        assert_eq!(
            (&raw["x-unknown"], &raw["variant"], &raw["container"]),
            (&json!([1]), &json!("v8"), &Value::Null)
        );
        assert_eq!(raw["config"]["Healthcheck"], json!({ "Test": ["NONE"] }));
        let image = ImageConfig::parse(&bytes).expect("valid");
        assert_eq!((image.diff_ids.as_slice(), image.author.as_deref()), ([one, two].as_slice(), Some("me")));
        assert_eq!((image.cmd[2].as_str(), image.env[0].as_str(), image.labels["k"].as_str()), ("new", "A=1", "v"));
        let steps = image.history_layers().expect("steps");
        assert_eq!(steps.iter().map(|step| step.diff_id).collect::<Vec<_>>(), [None, Some(one), Some(two)]);
        assert_eq!(steps[2].history.map(|step| step.comment.as_str()), Some("why"));

        let nothing = Commit { message: "", author: "", changes: &[] };
        let image =
            ImageConfig::parse(&ImageConfig::with_layer(&bytes, None, &nothing).expect("valid")).expect("valid");
        assert_eq!((image.diff_ids.len(), image.author.as_deref()), (2, Some("me")));
        assert!(image.history.last().expect("a step").empty_layer);
        assert!(ImageConfig::with_layer(b"[]", None, &nothing).is_err());
    }

    #[test]
    fn what_cannot_be_applied_is_refused() {
        for bad in ["RUN x", "CMD", "CMD [\"x\"", "ENV =x", "EXPOSE http", "LABEL a=\"b", ""] {
            assert!(config(&[bad]).is_err(), "{bad}");
        }
    }
}
