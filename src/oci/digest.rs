//! sha256 digests and the identities made of them.
//!
//! A digest from outside becomes part of file names and of queries, so a [`Digest`] can only hold 32
//! bytes: whatever else the text was (slashes, `..`, upper case, another algorithm) is refused by the
//! parser and can't be represented. The newtypes keep apart what is easily confused: the digest of a
//! *blob* (compressed), a layer's [`DiffId`] (its plain tar), a [`ChainId`] (the layer on its parents)
//! and an [`ImageId`] (the config).
//!
//! ```
//! # use reflinkd::oci::{DiffId, Digest, chain_ids};
//! let base = DiffId(Digest::of(b"base"));
//! let top = DiffId(Digest::of(b"top"));
//! let chain = chain_ids(&[base, top]);
//! assert_eq!(chain[0].0, base.0);
//! assert_eq!(chain[1].0, Digest::of(format!("{base} {top}").as_bytes()));
//! ```

use std::fmt;
use std::io::{self, Write};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use crate::{Error, Kind, Result};

const HEX: &[u8; 16] = b"0123456789abcdef";

/// A sha256, written `sha256:` and 64 lower-case hex digits (OCI image spec, descriptor.md).
///
/// Other algorithms are refused: the registered sha512 is written by no tool that makes images.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The 64 hex digits, without the algorithm.
    #[must_use]
    pub fn hex(&self) -> String {
        self.0
            .iter()
            .flat_map(|byte| [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]])
            .map(char::from)
            .collect()
    }

    /// The first 12 hex digits, as people write ids.
    #[must_use]
    pub fn short(&self) -> String {
        let mut hex = self.hex();
        hex.truncate(12);
        hex
    }

    /// The digest with these 64 lower-case hex digits.
    ///
    /// # Errors
    /// [`Kind::BadInput`] for any other length or character.
    pub fn from_hex(hex: &str) -> Result<Self> {
        let bad = || Error::new(Kind::BadInput, "not 64 lower-case hex digits");
        let digit = |c: u8| match c {
            b'0'..=b'9' => Some(c - b'0'),
            b'a'..=b'f' => Some(c - b'a' + 10),
            _ => None,
        };
        let digits: &[u8; 64] = hex.as_bytes().try_into().map_err(|_| bad())?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = digit(pair[0]).zip(digit(pair[1])).map(|(high, low)| high << 4 | low).ok_or_else(bad)?;
        }
        Ok(Self(bytes))
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once(':') {
            Some(("sha256", hex)) => Self::from_hex(hex).map_err(|e| e.context(format!("digest {}", quoted(text)))),
            Some(("sha384" | "sha512" | "blake3", _)) => {
                Err(Error::new(Kind::Unsupported, format!("digest {}: only sha256 is supported", quoted(text))))
            }
            _ => Err(Error::new(Kind::BadInput, format!("digest {}: it doesn't start with sha256:", quoted(text)))),
        }
    }
}

/// Text from outside for an error message: escaped, and cut where it gets absurd.
pub(crate) fn quoted(text: &str) -> String {
    const LONGEST: usize = 200;
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{:?}...", &text[..at]),
        None => format!("{text:?}"),
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Digest);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                text.parse().map($name)
            }
        }
    };
}

identity! {
    /// One layer's change: the digest of its plain (uncompressed) tar.
    DiffId
}
identity! {
    /// A layer with all its parents: the name of the tree that unpacking them in order makes.
    ChainId
}
identity! {
    /// An image: the digest of its config's bytes.
    ImageId
}

/// The chain ID of every layer, the lowest first.
///
/// OCI image spec, config.md: `ChainID(L0) = DiffID(L0)`, and
/// `ChainID(L0|...|Ln) = sha256(ChainID(L0|...|Ln-1) + " " + DiffID(Ln))`.
#[must_use]
pub fn chain_ids(layers: &[DiffId]) -> Vec<ChainId> {
    let mut chain: Vec<ChainId> = Vec::with_capacity(layers.len());
    for layer in layers {
        chain.push(match chain.last() {
            None => ChainId(layer.0),
            Some(parents) => ChainId(Digest::of(format!("{parents} {layer}").as_bytes())),
        });
    }
    chain
}

/// A running sha256 that counts what went through it.
#[derive(Clone, Debug, Default)]
pub struct Hasher {
    sha: Sha256,
    bytes: u64,
}

impl Hasher {
    /// A hasher that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Take in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.sha.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// Bytes seen so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The digest of all bytes seen.
    #[must_use]
    pub fn finish(self) -> Digest {
        Digest(self.sha.finalize().into())
    }
}

/// Passes bytes on to a writer and digests them.
#[derive(Debug)]
pub struct Digesting<W> {
    out: W,
    hasher: Hasher,
}

impl<W: Write> Digesting<W> {
    #[must_use]
    pub fn new(out: W) -> Self {
        Self { out, hasher: Hasher::new() }
    }

    /// The writer, and the hasher that has seen what was written.
    pub fn into_inner(self) -> (W, Hasher) {
        (self.out, self.hasher)
    }
}

impl<W: Write> Write for Digesting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn digest_is_the_known_one_and_round_trips() {
        let digest = Digest::of(b"");
        assert_eq!(digest.to_string(), EMPTY);
        assert_eq!(digest, EMPTY.parse().unwrap());
        assert_eq!(digest.hex(), &EMPTY[7..]);
        assert_eq!(digest.short(), "e3b0c44298fc");
        let json = serde_json::to_string(&digest).unwrap();
        assert_eq!(json, format!("\"{EMPTY}\""));
        assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), digest);
        // An escape makes serde hand over an owned string; it must parse just as well.
        assert_eq!(serde_json::from_str::<Digest>(&json.replace("sha", "\\u0073ha")).unwrap(), digest);
    }

    #[test]
    fn hasher_agrees_and_counts() {
        let mut hasher = Hasher::new();
        hasher.update(b"hello ");
        hasher.update(b"world");
        assert_eq!(hasher.bytes(), 11);
        assert_eq!(hasher.finish(), Digest::of(b"hello world"));
    }

    #[test]
    fn anything_but_sha256_and_64_lower_case_hex_is_refused() {
        let hex = &EMPTY[7..];
        for text in [
            String::new(),
            ":".into(),
            "sha256:".into(),
            hex.into(),
            format!("SHA256:{hex}"),
            format!("sha256:{}", hex.to_uppercase()),
            format!("sha256:{}", &hex[1..]),
            format!("sha256:{hex}0"),
            format!("sha256: {}", &hex[1..]),
            format!("sha256:{hex}\n"),
            format!("sha256:{}/../../{}", &hex[..20], &hex[28..]),
            "sha256:../../../../../../../../etc/shadow".into(),
            format!("sha256:{}é", &hex[2..]),
            format!("../sha256:{hex}"),
            format!("md5:{}", &hex[..32]),
        ] {
            let error = text.parse::<Digest>().expect_err(&text);
            assert_eq!(error.kind(), Kind::BadInput, "{text:?}");
        }
        let error = format!("sha512:{hex}{hex}").parse::<Digest>().unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
    }

    #[test]
    fn messages_stay_short_and_free_of_control_characters() {
        let text = format!("sha256:\u{1b}[2J{}", "a".repeat(100_000));
        let message = text.parse::<Digest>().unwrap_err().to_string();
        assert!(!message.contains('\u{1b}'), "{message}");
        assert!(message.len() < 400, "{}", message.len());
    }

    #[test]
    fn chain_ids_follow_the_spec() {
        // Computed with sha256sum: printf '%s' "sha256:<diff 0> sha256:<diff 1>" | sha256sum, and so on.
        let layers: Vec<DiffId> = [b"0", b"1", b"2"].iter().map(|b| DiffId(Digest::of(*b))).collect();
        let chain: Vec<String> = chain_ids(&layers).iter().map(ToString::to_string).collect();
        assert_eq!(chain, CHAIN);
        assert!(chain_ids(&[]).is_empty());
    }

    const CHAIN: [&str; 3] = [
        "sha256:5feceb66ffc86f38d952786c6d696c79c2dbc239dd4e91b46729d73a27fb57e9",
        "sha256:a72e64608956cd487901320075c59449b1823370de1056601196ceb9e1c3d872",
        "sha256:324b6e4bd79d7fb008871c6b59073b6075f5fed44eb5c84c361432ad5d280b6b",
    ];
}
