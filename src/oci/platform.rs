//! Which of an index's manifests is for this machine.
//!
//! Platforms are named as Go names them (OCI image spec, image-index.md): `linux/amd64`,
//! `linux/arm/v7`. An index also lists manifests that aren't images for any machine, such as BuildKit's
//! attestations with platform `unknown/unknown`; those are never picked and never shown as a choice.

use std::fmt;

use serde::Deserialize;

use super::json::null_default;

/// An operating system on an architecture.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default)]
pub struct Platform {
    /// `linux`
    #[serde(deserialize_with = "null_default")]
    pub os: String,
    /// `amd64`, `arm64`, `arm`, ...
    #[serde(deserialize_with = "null_default")]
    pub architecture: String,
    /// `v7` on arm, `v8` on arm64; mostly empty elsewhere.
    #[serde(deserialize_with = "null_default")]
    pub variant: String,
}

impl Platform {
    /// The platform of the machine this runs on.
    #[must_use]
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "x86" => ("386", ""),
            "aarch64" => ("arm64", "v8"),
            // The oldest machine a Debian armhf system runs on.
            "arm" => ("arm", "v7"),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", ""),
            "powerpc64" => ("ppc64", ""),
            "loongarch64" => ("loong64", ""),
            same => (same, ""), // riscv64, s390x, ...
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: variant.into() }
    }

    /// Whether a program for this platform runs on `host`: 0 for the best fit, more for an older
    /// variant, `None` for not at all.
    #[must_use]
    pub fn distance(&self, host: &Self) -> Option<u8> {
        if self.os != host.os || self.architecture != host.architecture {
            return None;
        }
        match (host.architecture.as_str(), self.variant.as_str()) {
            ("arm", variant) => {
                let level = |variant: &str| match variant {
                    "" | "v7" => Some(7_u8),
                    "v8" => Some(8),
                    "v6" => Some(6),
                    "v5" => Some(5),
                    _ => None,
                };
                level(&host.variant)?.checked_sub(level(variant)?)
            }
            ("arm64", "" | "v8") | ("amd64", "" | "v1") => Some(0),
            ("arm64" | "amd64", _) => None,
            _ => (self.variant == host.variant).then_some(0),
        }
    }

    /// Whether this stands for "no machine", as BuildKit's attestations have it.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.os == "unknown" && self.architecture == "unknown"
    }
}

/// Escaped and each part cut where it gets absurd: it comes from outside and goes into messages.
impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: usize = 40;
        let parts = [&self.os, &self.architecture, &self.variant];
        let known = if self.variant.is_empty() { 2 } else { 3 };
        for (at, part) in parts[..known].iter().enumerate() {
            let cut = part.char_indices().nth(LONGEST).map_or(part.len(), |(end, _)| end);
            let dots = if cut < part.len() { "..." } else { "" };
            write!(f, "{}{}{dots}", if at == 0 { "" } else { "/" }, part[..cut].escape_debug())?;
        }
        Ok(())
    }
}

/// A few platforms for a message: `linux/arm64, linux/s390x`.
pub(super) fn listed<'a>(platforms: impl IntoIterator<Item = &'a Platform>) -> String {
    const SHOWN: usize = 12;
    let mut names: Vec<String> = platforms.into_iter().filter(|p| !p.is_unknown()).map(Platform::to_string).collect();
    names.dedup();
    let more = names.len().saturating_sub(SHOWN);
    names.truncate(SHOWN);
    match (names.is_empty(), more) {
        (true, _) => "nothing for any platform".into(),
        (false, 0) => names.join(", "),
        (false, _) => format!("{} and {more} more", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_string);
        let mut next = || parts.next().unwrap_or_default();
        Platform { os: next(), architecture: next(), variant: next() }
    }

    #[test]
    fn variants_fit_downwards_only() {
        for (host, image, distance) in [
            ("linux/amd64", "linux/amd64", Some(0)),
            ("linux/amd64", "linux/amd64/v1", Some(0)),
            ("linux/amd64", "linux/amd64/v3", None),
            ("linux/amd64", "linux/386", None),
            ("linux/amd64", "windows/amd64", None),
            ("linux/arm64/v8", "linux/arm64", Some(0)),
            ("linux/arm64/v8", "linux/arm64/v8", Some(0)),
            ("linux/arm64/v8", "linux/arm/v7", None),
            ("linux/arm/v7", "linux/arm/v7", Some(0)),
            ("linux/arm/v7", "linux/arm", Some(0)),
            ("linux/arm/v7", "linux/arm/v6", Some(1)),
            ("linux/arm/v7", "linux/arm/v5", Some(2)),
            ("linux/arm/v6", "linux/arm/v7", None),
            ("linux/arm/v7", "linux/arm/odd", None),
            ("linux/s390x", "linux/s390x", Some(0)),
            ("linux/s390x", "unknown/unknown", None),
        ] {
            assert_eq!(platform(image).distance(&platform(host)), distance, "{image} on {host}");
        }
    }

    #[test]
    fn host_fits_itself() {
        assert_eq!(Platform::host().distance(&Platform::host()), Some(0));
    }

    #[test]
    fn a_list_is_short_and_without_attestations() {
        let many: Vec<Platform> = (0..20).map(|i| platform(&format!("linux/cpu{i}"))).collect();
        assert!(listed(&many).ends_with("linux/cpu11 and 8 more"));
        assert_eq!(listed(&[platform("unknown/unknown"), platform("linux/arm/v7")]), "linux/arm/v7");
        assert_eq!(listed(&[]), "nothing for any platform");
    }
}
