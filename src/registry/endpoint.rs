//! Addresses, and which of them a name leads to.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use ureq::http::Uri;

use super::auth::{self, Auth, Challenge, Shown};
use super::http::{Answer, Content, Failure, Http, Request};
use super::{Host, Settings};
use crate::oci::{Reference, quoted};
use crate::{Context, Error, Kind, Result};

const DOCKER: &str = "docker.io";
/// Where the images of `docker.io` are, which is a website.
const DOCKER_HOST: &str = "registry-1.docker.io";

/// What may be done in a repository, as token servers are asked for it.
pub(super) const PULL: &str = "pull";
pub(super) const PUSH: &str = "pull,push";

/// What a token server is asked for, to do these things in a repository.
pub(super) fn scope(repository: &str, actions: &str) -> String {
    format!("repository:{repository}:{actions}")
}

/// Whether a host is this machine's loopback, by its name or address.
pub(super) fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Who is spoken to, and so who may see what was meant for whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Origin {
    pub(super) tls: bool,
    /// In lower case; an IPv6 address without brackets.
    pub(super) host: String,
    pub(super) port: u16,
}

impl Origin {
    /// What the administrator says of it, under its own name or that of the images there.
    pub(super) fn settings<'s>(&self, settings: &'s Settings) -> Option<&'s Host> {
        let name = self.to_string();
        let known_as = if name == DOCKER_HOST { DOCKER } else { &name };
        settings.hosts.get(&name).or_else(|| settings.hosts.get(known_as))
    }

    /// Whether it may be spoken to without TLS.
    pub(super) fn may_be_plain(&self, settings: &Settings) -> bool {
        is_loopback(&self.host) || self.settings(settings).is_some_and(|host| host.insecure)
    }
}

/// `HOST` or `HOST:PORT`, as registries are named.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let default = if self.tls { 443 } else { 80 };
        match self.host.contains(':') {
            true => write!(f, "[{}]", self.host)?,
            false => f.write_str(&self.host)?,
        }
        if self.port == default { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

/// An address of HTTP, without a login in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) origin: Origin,
    /// From the first slash on, with the query.
    pub(super) path: String,
}

impl Url {
    /// # Errors
    /// [`Kind::Invalid`] for anything but `http://` and `https://` with a host.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let invalid = |why: &str| Error::new(Kind::Invalid, format!("{}: {why}", quoted(text)));
        let uri: Uri = text.split('#').next().unwrap_or_default().parse().map_err(|_| invalid("it isn't a URL"))?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(invalid("it begins neither with https:// nor with http://")),
        };
        let authority = uri.authority().ok_or_else(|| invalid("it has no host"))?;
        if authority.as_str().contains('@') {
            return Err(invalid("it has a login in it"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        if host.is_empty() {
            return Err(invalid("it has no host"));
        }
        let is_number = |port: &str| port.is_empty() || authority.port_u16().is_some();
        if !authority.as_str().rsplit_once(':').is_none_or(|(_, port)| port.ends_with(']') || is_number(port)) {
            return Err(invalid("its port is none"));
        }
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self { origin: Origin { tls, host, port }, path: if path.is_empty() { "/".into() } else { path.into() } })
    }

    /// Where a `Location` in an answer from here leads (RFC 3986, 5.2, without dot segments).
    pub(super) fn join(&self, location: &str) -> Result<Self> {
        let scheme = if self.origin.tls { "https" } else { "http" };
        if location.contains("://") {
            return Self::parse(location);
        }
        if location.starts_with("//") {
            return Self::parse(&format!("{scheme}:{location}"));
        }
        let directory = |path: &str| path.rfind('/').map_or(0, |at| at + 1);
        let before_query = self.path.split('?').next().unwrap_or_default();
        let path = match location.chars().next() {
            Some('/') => location.to_string(),
            Some('?') => format!("{before_query}{location}"),
            _ => format!("{}{location}", &before_query[..directory(before_query)]),
        };
        Self::parse(&format!("{scheme}://{}{path}", self.origin))
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", if self.origin.tls { "https" } else { "http" }, self.origin, self.path)
    }
}

/// A registry, or a mirror of it.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// As users and login files know it: `docker.io`, `localhost:5000`.
    pub(super) name: String,
    /// Where it may be, the better one first.
    bases: Vec<Url>,
    /// Which of them it is, once it has answered.
    settled: Mutex<Option<Url>>,
    /// The repository there: `library/nginx`.
    pub(super) repository: String,
    /// What is shown for that repository.
    auth: Auth,
}

/// Whom of an endpoint to ask.
#[derive(Clone, Copy)]
pub(super) enum Place<'a> {
    /// Below the repository: `manifests/latest`.
    Below(&'a str),
    /// Where an earlier answer led. Another host isn't shown anything.
    At(&'a Url),
}

/// What an endpoint said, whatever that is, and what it was shown.
pub(super) struct Answered {
    pub(super) answer: Answer,
    shown: Option<Shown>,
}

impl Endpoint {
    fn new(name: &str, bases: Vec<Url>, repository: &str, actions: &str) -> Self {
        let auth = Auth::for_scopes(vec![scope(repository, actions)]);
        Self { name: name.to_string(), bases, settled: Mutex::default(), repository: repository.to_string(), auth }
    }

    /// Where to ask for an image: mirrors first.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for mirrors that make no sense.
    pub(super) fn all(name: &Reference, settings: &Settings) -> Result<Vec<Self>> {
        let domain = name.domain();
        let mut endpoints = Vec::new();
        for mirror in settings.hosts.get(domain).map_or(&[][..], |host| &host.mirrors) {
            let url = Url::parse(mirror).context(|| format!("mirror of {domain}"))?;
            endpoints.push(Self::new(&url.origin.to_string(), vec![url], name.path(), PULL));
        }
        endpoints.push(Self::registry(name, settings, PULL)?);
        Ok(endpoints)
    }

    /// The registry itself, for what may be done in the repository: [`PULL`] or [`PUSH`].
    pub(super) fn registry(name: &Reference, settings: &Settings, actions: &str) -> Result<Self> {
        let domain = name.domain();
        let host = if domain == DOCKER { DOCKER_HOST } else { domain };
        let secure = Url::parse(&format!("https://{host}"))?;
        let mut bases = vec![secure.clone()];
        if secure.origin.may_be_plain(settings) || settings.hosts.get(domain).is_some_and(|host| host.insecure) {
            bases.push(Url::parse(&format!("http://{host}"))?);
        }
        Ok(Self::new(domain, bases, name.path(), actions))
    }

    /// Whether an answer from there is this endpoint's own.
    pub(super) fn is_at(&self, origin: &Origin) -> bool {
        self.bases.iter().any(|base| base.origin == *origin)
    }

    /// What the endpoint itself is shown there.
    pub(super) fn shown_at(&self, url: &Url) -> Option<Shown> {
        self.auth.shown().filter(|_| self.is_at(&url.origin))
    }

    /// [`Endpoint::ask_as`], with what is shown for the repository alone.
    pub(super) fn ask(&self, http: &Http, place: Place<'_>, request: Request<'_>) -> Result<Answered, Failure> {
        self.ask_as(&self.auth, http, place, request)
    }

    /// Ask it, and log in if it wants that. What has a reader for its content is asked once, and the caller sees to another
    /// try; all else is [`Http::steady`].
    pub(super) fn ask_as(
        &self,
        auth: &Auth,
        http: &Http,
        place: Place<'_>,
        request: Request<'_>,
    ) -> Result<Answered, Failure> {
        let is_once = matches!(request.content, Content::Stream { .. });
        let mut challenged = false;
        loop {
            let shown = auth.shown().filter(|_| match place {
                Place::At(url) => self.is_at(&url.origin),
                Place::Below(_) => true,
            });
            let value = shown.as_ref().map(|shown| shown.value.clone());
            let ask = |request: &Request<'_>| match place {
                Place::At(url) => http.request(url, request),
                Place::Below(what) => self.ask_below(http, what, request),
            };
            let answer = {
                let request = Request { authorization: value.as_deref(), ..request };
                if is_once { ask(&request)? } else { http.steady(|| ask(&request))? }
            };
            // What another host asks for, to which we were redirected, is not for it to have.
            if answer.status() != 401 || challenged || !self.is_at(&answer.url.origin) {
                return Ok(Answered { answer, shown });
            }
            challenged = true;
            let challenges: Vec<_> = answer.headers("www-authenticate").flat_map(Challenge::all).collect();
            if challenges.is_empty() {
                return Ok(Answered { answer, shown });
            }
            let origin = answer.url.origin.clone();
            // Its connection is free for another request then.
            drop(answer);
            auth.answer(http, self, &origin, &challenges, value.as_deref())?;
        }
    }

    fn ask_below(&self, http: &Http, what: &str, request: &Request<'_>) -> Result<Answer, Failure> {
        let settled = self.settled.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let bases = settled.as_ref().map_or(&self.bases[..], std::slice::from_ref);
        let mut left = bases.len();
        for base in bases {
            left -= 1;
            let path = format!("{}/v2/{}/{what}", base.path.trim_end_matches('/'), self.repository);
            match http.request(&Url { origin: base.origin.clone(), path }, request) {
                Err(failure) if left > 0 && failure.plain => {
                    tracing::debug!("{} doesn't speak TLS, so it is asked without: {}", self.name, failure.error);
                }
                Err(failure) => return Err(failure),
                Ok(answer) => {
                    *self.settled.lock().unwrap_or_else(PoisonError::into_inner) = Some(base.clone());
                    return Ok(answer);
                }
            }
        }
        unreachable!("an endpoint has an address")
    }
}

impl Answered {
    pub(super) fn status(&self) -> u16 {
        self.answer.status()
    }

    /// A status that isn't what was hoped for, in the registry's own words.
    pub(super) fn refusal(self, endpoint: &Endpoint) -> Error {
        let Self { answer, shown } = self;
        let (status, wait) = (answer.status(), answer.header("retry-after").to_string());
        let kind = match status {
            401 | 403 => Kind::Denied,
            404 => Kind::NotFound,
            _ => Kind::System,
        };
        let error = Error::new(kind, answer.complaint());
        match (status, shown.and_then(|shown| shown.whose)) {
            (401 | 403, Some(whose)) => error.with_hint(format!("it was shown {whose}")),
            (401 | 403, None) => error.with_hint(auth::how_to_log_in(&endpoint.name)),
            (429, _) if !wait.is_empty() && wait.bytes().all(|c| c.is_ascii_digit()) => {
                error.with_hint(format!("it asks to wait {wait} s"))
            }
            (429, _) => error.with_hint("it has had too many requests from here: try again later, or log in there"),
            _ => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn locations_lead_where_the_rfc_says() {
        let from = url("https://a:5000/v2/x/blobs/1?y=/z");
        for (location, to) in [
            ("https://b/c?d", "https://b/c?d"),
            ("http://B:80", "http://b/"),
            ("http://b:/", "http://b/"),
            ("http://[::1]/", "http://[::1]/"),
            ("//b:1/c#d", "https://b:1/c"),
            ("/c", "https://a:5000/c"),
            ("c", "https://a:5000/v2/x/blobs/c"),
            ("?c=1", "https://a:5000/v2/x/blobs/1?c=1"),
        ] {
            assert_eq!(from.join(location).expect(location).to_string(), to);
        }
        for location in [
            "ftp://b/",
            "https://user:word@b/",
            "https://",
            "http://[::1/",
            "https://a b/",
            "https://b:65536/",
            "//b:x/",
        ] {
            assert!(from.join(location).is_err(), "{location}");
        }
    }

    #[test]
    fn a_name_leads_to_its_registry_and_mirrors() {
        let mut settings = Settings::default();
        let bases = |name: &str, settings: &Settings| -> Vec<String> {
            let endpoints = Endpoint::all(&name.parse().expect(name), settings).expect(name);
            endpoints.iter().flat_map(|endpoint| endpoint.bases.iter().map(Url::to_string)).collect()
        };
        assert_eq!(bases("nginx", &settings), ["https://registry-1.docker.io/"]);
        assert_eq!(bases("ghcr.io/a/b", &settings), ["https://ghcr.io/"]);
        for local in ["localhost:5000", "127.0.0.2:5000", "[::1]:5000"] {
            let (tls, plain) = (format!("https://{local}/"), format!("http://{local}/"));
            assert_eq!(bases(&format!("{local}/a"), &settings), [tls, plain]);
        }
        let mirrors = vec!["https://m.example".to_string(), "http://10.0.0.1:5000".to_string()];
        settings.hosts.insert("docker.io".into(), Host { mirrors, insecure: false });
        settings.hosts.insert("ghcr.io".into(), Host { mirrors: Vec::new(), insecure: true });
        let docker = ["https://m.example/", "http://10.0.0.1:5000/", "https://registry-1.docker.io/"];
        assert_eq!(bases("nginx", &settings), docker);
        assert_eq!(bases("ghcr.io/a/b", &settings), ["https://ghcr.io/", "http://ghcr.io/"]);
        settings.hosts.insert("a.b".into(), Host { mirrors: vec!["m.example".into()], insecure: false });
        let error = Endpoint::all(&"a.b/c".parse().expect("a name"), &settings).expect_err("no scheme");
        assert!(error.to_string().contains("mirror of a.b"), "{error}");
    }
}
