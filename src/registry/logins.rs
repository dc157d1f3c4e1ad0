//! Logins as Docker and podman keep them: `config.json` and `auth.json`, and the programs that keep them elsewhere.
//!
//! Both files have the same form. podman's may have a login for a part of a registry (`quay.io/team`), and the longest
//! that fits counts; Docker's know the registry of `docker.io` as `https://index.docker.io/v1/`.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use super::words;
use crate::oci::quoted;
use crate::{Context, Error, Kind, Result};

const DOCKER: &str = "docker.io";
/// The name of `docker.io` in Docker's files.
const DOCKER_KEY: &str = "https://index.docker.io/v1/";

/// What is known for a registry, and where it is from.
pub(super) enum Login {
    Password {
        user: String,
        password: String,
        from: String,
    },
    /// For the token server (OAuth 2's refresh token).
    Identity {
        token: String,
        from: String,
    },
    /// For the registry itself.
    Registry {
        token: String,
        from: String,
    },
}

impl Login {
    /// `user me of /root/.docker/config.json`
    pub(super) fn described(&self) -> String {
        match self {
            Self::Password { user, from, .. } => format!("user {} of {from}", quoted(user)),
            Self::Identity { from, .. } | Self::Registry { from, .. } => format!("the token of {from}"),
        }
    }
}

/// The files that a user has, or would have: `REGISTRY_AUTH_FILE`, else podman's two and Docker's.
#[must_use]
pub fn files_of_user() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(file) = variable("REGISTRY_AUTH_FILE") {
        return vec![file];
    }
    let mut files = vec![match variable("XDG_RUNTIME_DIR") {
        Some(runtime) => runtime.join("containers/auth.json"),
        None => format!("/run/containers/{}/auth.json", rustix::process::getuid().as_raw()).into(),
    }];
    let home = variable("HOME");
    let config = variable("XDG_CONFIG_HOME").or_else(|| home.as_ref().map(|home| home.join(".config")));
    files.extend(config.map(|config| config.join("containers/auth.json")));
    let docker = variable("DOCKER_CONFIG").or_else(|| home.map(|home| home.join(".docker")));
    files.extend(docker.map(|docker| docker.join("config.json")));
    files
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default)]
    creds_store: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

/// The login for a repository of a registry, of the first file that has one.
///
/// # Errors
/// For files that are damaged, and for helpers that fail otherwise than by not knowing the registry.
pub(super) fn find(files: &[PathBuf], registry: &str, repository: &str) -> Result<Option<Login>> {
    for path in files {
        let text = match std::fs::read(path) {
            Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
                continue;
            }
            read => read.context(|| format!("read {}", path.display()))?,
        };
        // Nothing of the file may show up in the message.
        let file: File = serde_json::from_slice(&text).map_err(|e| {
            let why = format!("{} isn't a file of logins: line {} column {}", path.display(), e.line(), e.column());
            Error::new(Kind::Invalid, why)
        })?;
        if let Some(login) = file.login(path, registry, repository)? {
            return Ok(Some(login));
        }
    }
    Ok(None)
}

impl File {
    fn login(&self, path: &Path, registry: &str, repository: &str) -> Result<Option<Login>> {
        let full = format!("{registry}/{repository}");
        let fits = |key: &&String| {
            let key = normalized(key);
            full == key || full.strip_prefix(&key).is_some_and(|rest| rest.starts_with('/'))
        };
        let longest = |key: &&String| normalized(key).len();
        if let Some(key) = self.cred_helpers.keys().filter(fits).max_by_key(longest) {
            return ask_helper(&self.cred_helpers[key], registry);
        }
        // With a store, the entries are there and empty.
        for key in sorted(self.auths.keys().filter(fits).collect(), longest) {
            let from = path.display().to_string();
            if let Some(login) = self.auths[key].login(&from).context(|| format!("{from}: {}", quoted(key)))? {
                return Ok(Some(login));
            }
        }
        if self.creds_store.is_empty() { Ok(None) } else { ask_helper(&self.creds_store, registry) }
    }
}

fn sorted(mut keys: Vec<&String>, length: impl Fn(&&String) -> usize) -> Vec<&String> {
    keys.sort_by_key(|key| std::cmp::Reverse(length(key)));
    keys
}

/// A key of these files as images are named: `https://index.docker.io/v1/` is `docker.io`, `http://a:5000/v2` is `a:5000`.
fn normalized(key: &str) -> String {
    let bare = key.split_once("://").map_or(key, |(_, rest)| rest).trim_end_matches('/');
    let bare = bare.strip_suffix("/v1").or_else(|| bare.strip_suffix("/v2")).unwrap_or(bare);
    let (host, rest) = bare.split_once('/').map_or((bare, ""), |(host, rest)| (host, rest));
    let host = if matches!(host, "index.docker.io" | "registry-1.docker.io") { DOCKER } else { host };
    if rest.is_empty() { host.to_string() } else { format!("{host}/{rest}") }
}

impl Entry {
    fn login(&self, from: &str) -> Result<Option<Login>> {
        let from = from.to_string();
        if !self.registrytoken.is_empty() {
            return Ok(Some(Login::Registry { token: self.registrytoken.clone(), from }));
        }
        if !self.identitytoken.is_empty() {
            return Ok(Some(Login::Identity { token: self.identitytoken.clone(), from }));
        }
        if self.auth.is_empty() {
            let (user, password) = (self.username.clone(), self.password.clone());
            return Ok((!user.is_empty()).then_some(Login::Password { user, password, from }));
        }
        let decoded = BASE64_STANDARD.decode(self.auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = decoded.as_deref().and_then(|text| text.trim_end_matches('\0').split_once(':'));
        let Some((user, password)) = pair else {
            return Err(Error::new(Kind::Invalid, "its auth isn't user:password in base64"));
        };
        Ok(Some(Login::Password { user: user.into(), password: password.into(), from }))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Helped {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// Ask `docker-credential-NAME get`, as Docker does.
fn ask_helper(name: &str, registry: &str) -> Result<Option<Login>> {
    let program = format!("docker-credential-{name}");
    let failed = |why: String| Error::new(Kind::System, format!("the login helper {}: {why}", quoted(&program)));
    // A name, and no path: it is looked up where programs are.
    if name.contains('/') {
        return Err(failed("its name has a slash".into()));
    }
    let spawn = Command::new(&program).arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = spawn.map_err(|e| failed(e.to_string()))?;
    let key = if registry == DOCKER { DOCKER_KEY } else { registry };
    if let Some(mut stdin) = child.stdin.take() {
        // One that doesn't read has its own way of failing.
        let _ = stdin.write_all(key.as_bytes());
    }
    let output = child.wait_with_output().map_err(|e| failed(e.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout);
        if said.contains("credentials not found") {
            return Ok(None);
        }
        return Err(failed(format!("{}: {}", output.status, words::of(&output.stdout))));
    }
    let helped: Helped =
        serde_json::from_slice(&output.stdout).map_err(|_| failed("its answer isn't a login".into()))?;
    let from = program.clone();
    Ok(Some(match helped.username.as_str() {
        "<token>" => Login::Identity { token: helped.secret, from },
        user => Login::Password { user: user.into(), password: helped.secret, from },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(json: &str, registry: &str, repository: &str) -> String {
        let file = tempfile::NamedTempFile::new().expect("a scratch file");
        std::fs::write(file.path(), json).expect("write");
        let files = ["/nonexistent/auth.json".into(), file.path().to_path_buf()];
        match find(&files, registry, repository) {
            Ok(Some(Login::Password { user, password, .. })) => format!("{user}:{password}"),
            Ok(Some(Login::Identity { token, .. })) => format!("identity {token}"),
            Ok(Some(Login::Registry { token, .. })) => format!("registry {token}"),
            Ok(None) => "nothing".into(),
            Err(e) => format!("error {}", e.to_string().replace(&file.path().display().to_string(), "FILE")),
        }
    }

    #[test]
    fn logins_are_found_as_docker_and_podman_find_them() {
        let auth = |text: &str| BASE64_STANDARD.encode(text);
        let docker =
            format!(r#"{{"auths":{{"https://index.docker.io/v1/":{{"auth":"{}"}}}}}}"#, auth("me:pass:word"));
        assert_eq!(found(&docker, "docker.io", "library/nginx"), "me:pass:word");
        assert_eq!(found(&docker, "ghcr.io", "a/b"), "nothing");
        let podman = format!(
            r#"{{"auths":{{"quay.io":{{"auth":"{}"}},"quay.io/team":{{"auth":"{}"}},"quay.io/te":{{"auth":"{}"}}}}}}"#,
            auth("all:1"),
            auth("team:2"),
            auth("te:3")
        );
        assert_eq!(found(&podman, "quay.io", "team/app"), "team:2");
        assert_eq!(found(&podman, "quay.io", "tea/app"), "all:1");
        for (entry, login) in [
            (r#""localhost:5000":{"username":"u","password":"p"}"#, "u:p"),
            (r#""http://localhost:5000/v2/":{"identitytoken":"t","auth":"YTo="}"#, "identity t"),
            (r#""localhost:5000":{"registrytoken":"t"}"#, "registry t"),
            (r#""localhost:5000":{}"#, "nothing"),
            (r#""localhost":{"auth":"YTpi"}"#, "nothing"),
        ] {
            assert_eq!(found(&format!(r#"{{"auths":{{{entry}}}}}"#), "localhost:5000", "a"), login, "{entry}");
        }
        assert_eq!(found("{}", "a.b", "c"), "nothing");
    }

    #[test]
    fn damaged_files_are_named_and_not_shown() {
        let error = found(r#"{"auths":{"a.b":{"auth":"c2VjcmV0"}}}"#, "a.b", "c");
        assert_eq!(error, "error FILE: \"a.b\": its auth isn't user:password in base64");
        assert_eq!(found(r#"{"auths":"secret"}"#, "a.b", "c"), "error FILE isn't a file of logins: line 1 column 17");
        let error = found(r#"{"credsStore":"../x"}"#, "a.b", "c");
        assert!(error.contains("its name has a slash"), "{error}");
        let error = found(r#"{"credHelpers":{"a.b":"reflinkd-has-none"}}"#, "a.b", "c");
        assert!(error.contains("docker-credential-reflinkd-has-none"), "{error}");
    }
}
