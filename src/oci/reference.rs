//! Image names as everyone writes them.
//!
//! The rules are those of distribution/reference (grammar in `reference.go` and `regexp.go`, short
//! names in `normalize.go`), which Docker, containerd and podman share. A [`Reference`] is always
//! complete: a domain, a path, and a tag or a digest or both.
//!
//! ```
//! # use reflinkd::oci::Reference;
//! let nginx: Reference = "nginx".parse()?;
//! assert_eq!(nginx.canonical(), "docker.io/library/nginx:latest");
//! assert_eq!(nginx.to_string(), "nginx:latest");
//! let own: Reference = "localhost:5000/team/app:v1".parse()?;
//! assert_eq!((own.domain(), own.path(), own.tag()), ("localhost:5000", "team/app", Some("v1")));
//! # Ok::<(), reflinkd::Error>(())
//! ```

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::digest::{Digest, quoted};
use crate::{Context, Error, Kind, Result};

/// Longest path in bytes (distribution/reference, `RepositoryNameTotalLengthMax`).
const MAX_PATH: usize = 255;
/// Longest tag in bytes.
const MAX_TAG: usize = 128;
const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DOMAIN: &str = "index.docker.io";
const OFFICIAL: &str = "library/";
const DEFAULT_TAG: &str = "latest";

/// The full name of an image: `domain/path[:tag][@digest]`, with at least one of tag and digest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry with its port: `docker.io`, `localhost:5000`.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry: `library/nginx`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The repository with its registry: `docker.io/library/nginx`. It is a name itself, with the default tag.
    #[must_use]
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The tag. Not made up where the name has a digest.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The manifest's digest, where the name has one.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The repository as people write it, without tag and digest: `nginx`, `ghcr.io/a/b`.
    #[must_use]
    pub fn familiar_name(&self) -> String {
        // Without its domain, `docker.io/a.b/c` would mean `c` at the registry `a.b`.
        if self.domain != DEFAULT_DOMAIN || split_domain(&self.path) != (DEFAULT_DOMAIN, &*self.path) {
            return format!("{}/{}", self.domain, self.path);
        }
        match self.path.strip_prefix(OFFICIAL) {
            Some(name) if !name.contains('/') => name.to_string(),
            _ => self.path.clone(),
        }
    }

    /// The name that an image of this digest is kept by: where a name has both, the digest decides and the tag says nothing.
    #[must_use]
    pub fn kept(&self) -> Self {
        Self { tag: self.tag.clone().filter(|_| self.digest.is_none()), ..self.clone() }
    }

    /// The unabridged form: `docker.io/library/nginx:latest`. One image name has exactly one.
    #[must_use]
    pub fn canonical(&self) -> String {
        format!("{}/{}{}", self.domain, self.path, self.suffix())
    }

    fn suffix(&self) -> String {
        let tag = self.tag.as_ref().map(|tag| format!(":{tag}"));
        let digest = self.digest.map(|digest| format!("@{digest}"));
        tag.unwrap_or_default() + &digest.unwrap_or_default()
    }
}

/// The familiar form: `nginx:latest`, `localhost/x:1`.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.familiar_name(), self.suffix())
    }
}

/// # Errors
/// [`Kind::Invalid`] for anything that distribution/reference refuses too, and for digests other
/// than sha256.
impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse(text).context(|| format!("image name {}", quoted(text)))
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.canonical())
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

fn invalid(why: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, why)
}

fn parse(text: &str) -> Result<Reference> {
    if text.is_empty() {
        return Err(invalid("it is empty"));
    }
    if is_identifier(text) {
        return Err(invalid("64 hex digits are an ID, not a name"));
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => {
            let digest: Digest = digest.parse().map_err(|e: Error| invalid(e.to_string()))?;
            (rest, Some(digest))
        }
        None => (text, None),
    };
    let (domain, rest) = split_domain(rest);
    let (path, tag) = match rest.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (rest, None),
    };
    check_domain(domain)?;
    let path =
        if domain == DEFAULT_DOMAIN && !path.contains('/') { format!("{OFFICIAL}{path}") } else { path.to_string() };
    check_path(&path)?;
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let tag = tag.or_else(|| digest.is_none().then_some(DEFAULT_TAG)).map(str::to_string);
    Ok(Reference { domain: domain.to_string(), path, tag, digest })
}

/// Split off the first part where it can only be a registry: it has a dot, a colon or an upper-case
/// letter, or is `localhost`; and only before a slash, since `nginx:1` is a name and a tag.
fn split_domain(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((LEGACY_DOMAIN, rest)) => (DEFAULT_DOMAIN, rest),
        Some((first, rest))
            if first == "localhost" || first.contains(['.', ':']) || first.contains(char::is_uppercase) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, name),
    }
}

/// Whether the text has the form of a full image ID, and so can't be a name.
fn is_identifier(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}

/// `host[:port]`, where host is a dotted name, an IPv4 address or an IPv6 address in brackets.
fn check_domain(domain: &str) -> Result<()> {
    let bad = || invalid(format!("{} isn't a registry's address", quoted(domain)));
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or_else(bad)?;
            let valid = !address.is_empty() && address.bytes().all(|c| c.is_ascii_hexdigit() || c == b':');
            (valid, port)
        }
        None => {
            let end = domain.find(':').unwrap_or(domain.len());
            let valid = domain[..end].split('.').all(|label| {
                !label.is_empty()
                    && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
                    && !label.starts_with('-')
                    && !label.ends_with('-')
            });
            (valid, &domain[end..])
        }
    };
    let port = match port.strip_prefix(':') {
        Some(digits) => !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit()),
        None => port.is_empty(),
    };
    if host && port { Ok(()) } else { Err(bad()) }
}

fn check_path(path: &str) -> Result<()> {
    if path.len() > MAX_PATH {
        return Err(invalid(format!("the repository name is longer than {MAX_PATH} bytes")));
    }
    if path.contains(char::is_uppercase) {
        return Err(invalid("the repository name must be in lower case"));
    }
    match path.split('/').find(|component| !is_component(component)) {
        None => Ok(()),
        Some("") => Err(invalid("a part of the repository name is empty")),
        Some(component) => Err(invalid(format!(
            "{} isn't a repository name: lower-case letters and digits, joined by '.', '_', '__' or dashes",
            quoted(component)
        ))),
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let mut rest = text;
    loop {
        let word = rest.trim_start_matches(alphanumeric);
        if word.len() == rest.len() {
            return false;
        }
        let next = word.trim_start_matches(|c| !alphanumeric(c));
        let separator = &word[..word.len() - next.len()];
        match separator {
            "" => return true,
            "." | "_" | "__" => {}
            dashes if dashes.bytes().all(|c| c == b'-') => {}
            _ => return false,
        }
        rest = next;
    }
}

/// `[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}`
fn check_tag(tag: &str) -> Result<()> {
    let word = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    let mut bytes = tag.bytes();
    let valid = bytes.next().is_some_and(word) && bytes.all(|c| word(c) || c == b'.' || c == b'-');
    if valid && tag.len() <= MAX_TAG {
        Ok(())
    } else {
        Err(invalid(format!(
            "{} isn't a tag: at most {MAX_TAG} letters, digits, '_', '.' and '-', not beginning with '.' or '-'",
            quoted(tag)
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff";

    #[test]
    fn every_form_has_one_canonical_and_one_familiar_form() {
        for (text, canonical, familiar) in [
            ("nginx", "docker.io/library/nginx:latest", "nginx:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27", "nginx:1.27"),
            ("docker.io/nginx", "docker.io/library/nginx:latest", "nginx:latest"),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest", "nginx:latest"),
            ("library/nginx", "docker.io/library/nginx:latest", "nginx:latest"),
            ("library/foo/bar", "docker.io/library/foo/bar:latest", "library/foo/bar:latest"),
            ("a/b", "docker.io/a/b:latest", "a/b:latest"),
            ("test_com", "docker.io/library/test_com:latest", "test_com:latest"),
            // Without a slash there is no registry: these are names with tags.
            ("test.com:5000", "docker.io/library/test.com:5000", "test.com:5000"),
            ("192.168.1.1:tag", "docker.io/library/192.168.1.1:tag", "192.168.1.1:tag"),
            ("localhost", "docker.io/library/localhost:latest", "localhost:latest"),
            ("lowercase:Uppercase", "docker.io/library/lowercase:Uppercase", "lowercase:Uppercase"),
            ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
            ("test:5000/repo:tag", "test:5000/repo:tag", "test:5000/repo:tag"),
            ("LOCALDOMAIN/debian", "LOCALDOMAIN/debian:latest", "LOCALDOMAIN/debian:latest"),
            ("xn--n3h.com/myimage:xn--n3h.com", "xn--n3h.com/myimage:xn--n3h.com", "xn--n3h.com/myimage:xn--n3h.com"),
            ("[2001:db8::1]:5000/repo:tag", "[2001:db8::1]:5000/repo:tag", "[2001:db8::1]:5000/repo:tag"),
            ("[2001:db8::1]/repo", "[2001:db8::1]/repo:latest", "[2001:db8::1]/repo:latest"),
            ("foo/foo_bar.com:8080", "docker.io/foo/foo_bar.com:8080", "foo/foo_bar.com:8080"),
            ("docker.io/a.b/c", "docker.io/a.b/c:latest", "docker.io/a.b/c:latest"),
            ("docker.io/localhost/c", "docker.io/localhost/c:latest", "docker.io/localhost/c:latest"),
            ("docker---rules/dock__er", "docker.io/docker---rules/dock__er:latest", "docker---rules/dock__er:latest"),
        ] {
            let reference: Reference = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(reference.canonical(), canonical, "{text}");
            assert_eq!(reference.to_string(), familiar, "{text}");
            assert_eq!(canonical.parse::<Reference>().unwrap(), reference, "{text}");
            assert_eq!(familiar.parse::<Reference>().unwrap(), reference, "{text}");
        }
    }

    #[test]
    fn a_digest_takes_the_place_of_the_made_up_tag() {
        let reference: Reference = format!("host:5000/a/b@sha256:{HEX}").parse().unwrap();
        assert_eq!(reference.tag(), None);
        assert_eq!(reference.digest().unwrap().hex(), HEX);
        assert_eq!(reference.canonical(), format!("host:5000/a/b@sha256:{HEX}"));
        let both: Reference = format!("host:5000/a/b:tag@sha256:{HEX}").parse().unwrap();
        assert_eq!((both.tag(), both.path(), both.domain()), (Some("tag"), "a/b", "host:5000"));
        assert_eq!(both.to_string(), format!("host:5000/a/b:tag@sha256:{HEX}"));
        assert_eq!((both.kept(), reference.kept()), (reference.clone(), reference));
    }

    #[test]
    fn what_distribution_refuses_is_refused() {
        let long = "this_is_not_a_valid_namespace".repeat(9);
        for text in [
            "",
            ":justtag",
            "@sha256:ffff",
            "https://github.com/docker/docker",
            "docker/Docker",
            "Uppercase:tag",
            "test:5000/Uppercase/lowercase:tag",
            "-docker",
            "-docker/docker",
            "-docker.io/docker/docker",
            "docker-/docker",
            "docker///docker",
            "docker/",
            "/docker",
            "docker.io/",
            "____/____",
            "_docker/_docker",
            "dock..er/docker",
            "dock_.er/docker",
            "dock-.er/docker",
            "dock___er",
            "aa/asdf$$^/aa",
            "[fc00::1]",
            "[fc00::1]:5000",
            "[fc00::1/x",
            "fc00::1:5000/debian",
            "[fe80::1%eth0]:5000/debian",
            "[2001:db8:3:4::192.0.2.33]:5000/debian",
            "host:/x",
            "host:port/x",
            "host..com/x",
            "../etc/passwd",
            "a/../b",
            "./a",
            "nginx:",
            "nginx:.tag",
            "nginx:-tag",
            "nginx:a b",
            "nginx:a:b",
            "nginx:ta/g",
            "nginx\n",
            "ngïnx",
            "nginx\u{1b}[2J",
            "nginx@sha256:ffff",
            "1a3f5e7d9c1b3a5f7e9d1c3b5a7f9e1d3c5b7a9f1e3d5d7c9b1a3f5e7d9c1b3a",
            &format!("{long}/docker"),
            &format!("domain.io/{}", "a".repeat(256)),
            &format!("nginx:{}", "a".repeat(129)),
            &format!("nginx@sha512:{HEX}{HEX}"),
            &format!("nginx@sha256:{}", HEX.to_uppercase()),
            &format!("nginx@sha256:{HEX}@sha256:{HEX}"),
        ] {
            let error = text.parse::<Reference>().map(|r| r.canonical()).expect_err(text);
            assert_eq!(error.kind(), Kind::Invalid, "{text}");
            assert!(!error.to_string().contains('\u{1b}'));
        }
    }

    #[test]
    fn the_longest_names_fit() {
        let path = "a".repeat(255);
        let tag = "t".repeat(128);
        let reference: Reference = format!("example.com/{path}:{tag}").parse().unwrap();
        assert_eq!((reference.path(), reference.tag()), (&*path, Some(&*tag)));
        // 64 hex digits after a registry can't be taken for an ID.
        assert!(format!("docker.io/{}", &HEX[..64]).parse::<Reference>().is_ok());
    }
}
