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

impl ImageConfig {
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
        serde_json::to_vec(&image).map_err(|e| Error::new(Kind::Invalid, format!("cannot write configuration: {e}")))
    }
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
                let env = config.entry("Env").or_insert_with(|| json!([]));
                if let Some(list) = env.as_array_mut() {
                    list.retain(|old| old.as_str().is_none_or(|old| old.split('=').next() != Some(key.as_str())));
                    list.push(format!("{key}={value}").into());
                }
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
    if let Some(map) = config.entry(map).or_insert_with(|| json!({})).as_object_mut() {
        map.insert(key, value);
    }
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
    fn what_cannot_be_applied_is_refused() {
        for bad in ["RUN x", "CMD", "CMD [\"x\"", "ENV =x", "EXPOSE http", "LABEL a=\"b", ""] {
            assert!(config(&[bad]).is_err(), "{bad}");
        }
    }
}
