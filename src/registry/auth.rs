//! Getting past a registry's login: what it asks for (RFC 9110, 11.6.1), and what it is shown.
//!
//! ```text
//! GET manifest ─ 401, WWW-Authenticate: Basic ──────────────────────────── user and password
//!              └ 401, WWW-Authenticate: Bearer realm="https://..." ─ GET realm ─ token
//! ```
//!
//! The scopes asked of a token server are what is to be done, whatever the registry suggests: reading one repository, or
//! writing to it, and reading another where a blob is to be mounted from there.

use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use super::endpoint::{Endpoint, Origin, Url};
use super::http::{Content, Http, Request};
use super::logins::{self, Login};
use crate::oci::quoted;
use crate::{Context, Error, Kind, Result};

/// Most bytes of a token server's answer.
const MOST: u64 = 1 << 20;

/// What one endpoint is shown for some scopes.
pub(super) struct Auth {
    /// What a token is to be good for.
    scopes: Vec<String>,
    shown: Mutex<Option<Shown>>,
}

/// What is shown from when it was asked for on.
#[derive(Clone)]
pub(super) struct Shown {
    /// The value of `Authorization`.
    pub(super) value: String,
    /// Whose it is, for messages; nobody's for a token that everyone gets.
    pub(super) whose: Option<String>,
}

/// Nothing of it in logs.
impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Auth")
    }
}

impl Auth {
    pub(super) fn for_scopes(scopes: Vec<String>) -> Self {
        Self { scopes, shown: Mutex::default() }
    }

    pub(super) fn shown(&self) -> Option<Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Find what satisfies an endpoint that refused `before` and asks for one of `challenges`.
    ///
    /// # Errors
    /// [`Kind::Denied`] if nothing that is known does, with what to do about it.
    pub(super) fn answer(
        &self,
        http: &Http,
        endpoint: &Endpoint,
        origin: &Origin,
        challenges: &[Challenge],
        before: Option<&str>,
    ) -> Result<()> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        // Another thread was sooner.
        if shown.as_ref().map(|shown| shown.value.as_str()) != before {
            return Ok(());
        }
        let login = logins::find(&http.settings.logins, &endpoint.name, &endpoint.repository)?;
        let find = |scheme: &str| challenges.iter().find(|challenge| challenge.scheme == scheme);
        let value = if let Some(bearer) = find("bearer") {
            format!("Bearer {}", token(http, (&endpoint.name, origin), &self.scopes, bearer, login.as_ref())?)
        } else if find("basic").is_some() {
            match &login {
                Some(Login::Password { user, password, .. }) => basic(user, password),
                _ => {
                    let why = "it asks for a login, and none is known";
                    return Err(Error::new(Kind::Denied, why).with_hint(how_to_log_in(&endpoint.name)));
                }
            }
        } else {
            let asked: Vec<_> = challenges.iter().map(|challenge| quoted(&challenge.scheme)).collect();
            let why = format!("it asks for a login of an unknown kind ({})", asked.join(", "));
            return Err(Error::new(Kind::Unsupported, why));
        };
        if value.bytes().any(|byte| byte.is_ascii_control()) {
            return Err(Error::new(
                Kind::BadInput,
                "the login or token for it has characters that no header may have",
            ));
        }
        *shown = Some(Shown { value, whose: login.as_ref().map(Login::described) });
        Ok(())
    }
}

/// A way out where there is no login.
pub(super) fn how_to_log_in(name: &str) -> String {
    format!("docker login {name}, podman login {name} and skopeo login {name} write a login that is used here")
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

/// A token for these scopes, from where the registry says.
fn token(
    http: &Http,
    (name, origin): (&str, &Origin),
    scopes: &[String],
    asked: &Challenge,
    login: Option<&Login>,
) -> Result<String> {
    if let Some(Login::Registry { token, .. }) = login {
        return Ok(token.clone());
    }
    let realm = asked.parameter("realm").ok_or_else(|| Error::new(Kind::BadInput, "it names no token server"))?;
    let realm = Url::parse(realm).map_err(|e| Error::new(Kind::BadInput, format!("its token server {e}")))?;
    let server = realm.origin.clone();
    // Where the registry itself is spoken to without TLS, so may be its token server.
    if !server.tls && origin.tls && !server.may_be_plain(&http.settings) {
        let why = format!("its token server {server} is to be spoken to without TLS");
        return Err(Error::new(Kind::Denied, why));
    }
    let service = asked.parameter("service").unwrap_or_default();
    let service = if service.is_empty() { String::new() } else { format!("service={}&", encoded(service)) };
    let scope = |scopes: &str| format!("scope={}", encoded(scopes));
    let query = scopes.iter().map(|one| scope(one)).collect::<Vec<_>>().join("&");
    let query = format!("{service}{query}");
    let form = match login {
        Some(Login::Identity { token, .. }) => {
            // RFC 6749, 3.3: one parameter for all scopes.
            let (token, scope) = (encoded(token), scope(&scopes.join(" ")));
            Some(format!("grant_type=refresh_token&client_id=reflinkd&{service}{scope}&refresh_token={token}"))
        }
        _ => None,
    };
    let authorization = match login {
        Some(Login::Password { user, password, .. }) => Some(basic(user, password)),
        _ => None,
    };
    let joint = if realm.path.contains('?') { '&' } else { '?' };
    let path = if form.is_some() { realm.path.clone() } else { format!("{}{joint}{query}", realm.path) };
    let url = Url { path, origin: realm.origin };
    let content = form.as_deref().map_or(Content::Nothing, Content::Form);
    let method = if form.is_some() { "POST" } else { "GET" };
    let request = Request {
        accept: "application/json",
        authorization: authorization.as_deref(),
        content,
        ..Request::new(method)
    };
    let answer = http.steady(|| http.request(&url, &request)).map_err(|failure| failure.error);
    let answer = answer.context(|| format!("its token server {server}"))?;
    if answer.status() != 200 {
        let denied = matches!(answer.status(), 400 | 401 | 403);
        let whom = login.map_or_else(|| "us without a login".into(), Login::described);
        let why = format!("its token server {server} refuses {whom}: {}", answer.complaint());
        let error = Error::new(if denied { Kind::Denied } else { Kind::System }, why);
        return Err(if denied && login.is_none() { error.with_hint(how_to_log_in(name)) } else { error });
    }
    let read = answer.read(MOST).context(|| format!("its token server {server}"))?;
    let parsed: Option<Token> = serde_json::from_slice(&read).ok();
    let token = parsed.and_then(|parsed| parsed.token.filter(|token| !token.is_empty()).or(parsed.access_token));
    token.filter(|token| !token.is_empty()).ok_or_else(|| {
        let why = format!("its token server {server} answers {} in place of a token", super::words::of(&read));
        Error::new(Kind::BadInput, why)
    })
}

/// Text as a part of a query or form.
pub(super) fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// One way of logging in that a server offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    /// In lower case.
    pub(super) scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// All that a value of `WWW-Authenticate` lists. What isn't understood is left out.
    pub(super) fn all(value: &str) -> Vec<Self> {
        let mut found: Vec<Self> = Vec::new();
        let mut rest = value;
        loop {
            rest = rest.trim_start_matches([' ', '\t', ',']);
            let length = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
            if length == 0 {
                return found;
            }
            let word = rest[..length].to_ascii_lowercase();
            rest = rest[length..].trim_start_matches([' ', '\t']);
            match (rest.strip_prefix('='), found.last_mut()) {
                (Some(after), Some(challenge)) => {
                    let (value, after) = parameter_value(after.trim_start_matches([' ', '\t']));
                    challenge.parameters.push((word, value));
                    rest = after;
                }
                (Some(_), None) => return found,
                (None, _) => found.push(Self { scheme: word, parameters: Vec::new() }),
            }
        }
    }
}

/// A token or a quoted string, and what comes behind it.
fn parameter_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let length = text.find([' ', '\t', ',']).unwrap_or(text.len());
        return (text[..length].to_string(), &text[length..]);
    };
    let (mut value, mut escaped) = (String::new(), false);
    for (at, c) in quoted.char_indices() {
        match c {
            _ if escaped => (value, escaped) = (value + &c.to_string(), false),
            '\\' => escaped = true,
            '"' => return (value, &quoted[at + 1..]),
            _ => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_told_apart() {
        let shown = |value: &str| -> Vec<String> {
            let one = |c: Challenge| {
                let parameters: Vec<_> = c.parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
                format!("{}[{}]", c.scheme, parameters.join("|"))
            };
            Challenge::all(value).into_iter().map(one).collect()
        };
        for (value, expected) in [
            (r#"Basic realm="a, b""#, vec!["basic[realm=a, b]"]),
            (
                r#"Bearer realm="https://a/t",service="r",scope="repository:a/b:pull,push""#,
                vec!["bearer[realm=https://a/t|service=r|scope=repository:a/b:pull,push]"],
            ),
            (
                r#"Negotiate, basic Realm = x , Bearer realm="q\"q""#,
                vec!["negotiate[]", "basic[realm=x]", "bearer[realm=q\"q]"],
            ),
            (r#"Bearer realm="unfinished"#, vec!["bearer[realm=unfinished]"]),
            ("=x", vec![]),
            ("", vec![]),
        ] {
            assert_eq!(shown(value), expected, "{value}");
        }
    }

    #[test]
    fn queries_are_encoded() {
        assert_eq!(encoded("repository:a/b:pull é"), "repository%3Aa%2Fb%3Apull%20%C3%A9");
    }
}
