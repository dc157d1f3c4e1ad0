//! PAX extended headers: `LENGTH KEY=VALUE\n` records (POSIX.1-2001, "pax Extended Header").
//!
//! A record overrides the header's field for one entry (`x`), or for all that follow (`g`). Only keys that
//! say something about the tree are kept. A global header may not speak of names, sizes, sparse maps or
//! extended attributes: they belong to one entry each, no tool writes them, readers disagree about what they
//! would mean, and a megabyte of attributes given to each of a million empty files is a bomb.

use std::collections::BTreeMap;

use super::super::attributes::{is_label, is_layers};
use super::super::bad;
use super::super::name::quoted;
pub(crate) use super::sparse::PaxSparse;
use crate::error::Result;

/// Bytes that one PAX header or GNU long name may have. Go's `archive/tar` has the same limit.
pub(crate) const MAX_PAYLOAD: u64 = 1 << 20;
/// Bytes that the names of an entry's attributes may have, each with a NUL (`XATTR_LIST_MAX` in
/// linux/limits.h). Filesystems take more than that, and then nobody can list them any more.
const MAX_ATTRIBUTE_NAMES: usize = 65536;

/// Records of extended attributes: star's, which everybody writes, and libarchive's.
pub(crate) const SCHILY: &[u8] = b"SCHILY.xattr.";
pub(crate) const LIBARCHIVE: &[u8] = b"LIBARCHIVE.xattr.";

/// A point in time: seconds since 1970, and nanoseconds after that second (0 to 999,999,999).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Time {
    pub seconds: i64,
    pub nanoseconds: u32,
}

/// What PAX records say, the last of a key winning.
#[derive(Debug, Clone, Default)]
pub(crate) struct Records {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) linkpath: Option<Vec<u8>>,
    pub(crate) size: Option<i64>,
    pub(crate) uid: Option<i64>,
    pub(crate) gid: Option<i64>,
    pub(crate) mtime: Option<Time>,
    /// Extended attributes by name.
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Records of attributes that Linux has no place for.
    pub(crate) foreign: u64,
    pub(crate) sparse: PaxSparse,
}

impl Records {
    /// Read the records of an `x` header over what `g` headers said before.
    pub(crate) fn extend(&mut self, payload: &[u8]) -> Result<()> {
        each(payload, |key, value| self.set(key, value))?;
        let names: usize = self.xattrs.keys().map(|name| name.len() + 1).sum();
        if names > MAX_ATTRIBUTE_NAMES {
            return Err(bad(format!(
                "the names of its attributes take {names} bytes, more than the {MAX_ATTRIBUTE_NAMES} that Linux can list"
            )));
        }
        Ok(())
    }

    /// Read the records of a `g` header.
    pub(crate) fn extend_global(&mut self, payload: &[u8]) -> Result<()> {
        each(payload, |key, value| {
            let one_entrys = matches!(key, b"path" | b"linkpath" | b"size")
                || [&b"GNU.sparse."[..], SCHILY, LIBARCHIVE].iter().any(|prefix| key.starts_with(prefix));
            if one_entrys {
                return Err(bad(format!("a global PAX header sets {} for all entries", quoted(key))));
            }
            self.set(key, value)
        })
    }

    /// An empty value takes back what was said before, except of an attribute, which may be empty.
    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let some = (!value.is_empty()).then_some(value);
        match key {
            b"path" => self.path = some.map(|v| whole(key, v)).transpose()?,
            b"linkpath" => self.linkpath = some.map(|v| whole(key, v)).transpose()?,
            b"size" => self.size = some.map(|v| decimal(key, v)).transpose()?,
            b"uid" => self.uid = some.map(|v| decimal(key, v)).transpose()?,
            b"gid" => self.gid = some.map(|v| decimal(key, v)).transpose()?,
            b"mtime" => self.mtime = some.map(time).transpose()?,
            _ => {
                if let Some(name) = key.strip_prefix(SCHILY) {
                    if let Some(name) = self.attribute(whole(key, name)?) {
                        self.xattrs.insert(name, value.to_vec());
                    }
                } else if let Some(name) = key.strip_prefix(LIBARCHIVE) {
                    // bsdtar writes both forms; SCHILY's is the binary one and wins.
                    if let Some(name) = self.attribute(whole(key, &percent_decoded(key, name)?)?) {
                        let value = base64_decoded(key, value)?;
                        self.xattrs.entry(name).or_insert(value);
                    }
                } else if let Some(rest) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.set(rest, value)?;
                }
            }
        }
        Ok(())
    }

    /// The name of an attribute, unless it is one that is left out: of another system (`com.apple.provenance`), or
    /// a filesystem's own (`btrfs.compression`, XFS's second name of an ACL), which would mean something on one
    /// backend only. The label of the host where it was packed isn't even counted: there is another one here.
    fn attribute(&mut self, name: Vec<u8>) -> Option<Vec<u8>> {
        let ours = is_layers(&name);
        self.foreign += u64::from(!ours && !is_label(&name));
        ours.then_some(name)
    }
}

/// Call `f` with each record's key and value.
fn each(mut payload: &[u8], mut f: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
    while !payload.is_empty() {
        let malformed = || bad("a PAX header has a malformed record");
        let space = payload.iter().take(20).position(|&b| b == b' ').ok_or_else(malformed)?;
        let length = usize::try_from(decimal(b"length", &payload[..space])?).map_err(|_| malformed())?;
        // At least "k=" and the newline after the space.
        if length < space + 4 || length > payload.len() || payload[length - 1] != b'\n' {
            return Err(malformed());
        }
        let record = &payload[space + 1..length - 1];
        let equals = record.iter().position(|&b| b == b'=').filter(|&at| at > 0).ok_or_else(malformed)?;
        f(&record[..equals], &record[equals + 1..])?;
        payload = &payload[length..];
    }
    Ok(())
}

/// A name: anything but NUL, which the kernel would take for its end.
fn whole(key: &[u8], value: &[u8]) -> Result<Vec<u8>> {
    if value.is_empty() || value.contains(&0) {
        return Err(bad(format!("the PAX record {} is empty or holds a NUL", quoted(key))));
    }
    Ok(value.to_vec())
}

/// A decimal number without sign that fits in 63 bits.
pub(crate) fn decimal(key: &[u8], value: &[u8]) -> Result<i64> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    digits
        .then(|| str::from_utf8(value).ok()?.parse().ok())
        .flatten()
        .ok_or_else(|| bad(format!("the PAX record {} is not a number: {}", quoted(key), quoted(value))))
}

/// `[-]SECONDS[.FRACTION]`; what is finer than a nanosecond is cut off.
fn time(value: &[u8]) -> Result<Time> {
    let (negative, rest) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let mut halves = rest.splitn(2, |&b| b == b'.');
    let seconds = decimal(b"mtime", halves.next().unwrap_or_default())?;
    let fraction = halves.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(bad(format!("the PAX record \"mtime\" is not a time: {}", quoted(value))));
    }
    let nanoseconds = (0..9).fold(0, |ns, at| ns * 10 + u32::from(fraction.get(at).map_or(0, |digit| digit - b'0')));
    Ok(match (negative, nanoseconds) {
        (false, _) => Time { seconds, nanoseconds },
        (true, 0) => Time { seconds: -seconds, nanoseconds },
        (true, _) => Time { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

/// libarchive's encoding of attribute names: `%` and two hexadecimal digits for what isn't plain.
fn percent_decoded(key: &[u8], name: &[u8]) -> Result<Vec<u8>> {
    let mut decoded = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let hex = rest.first_chunk::<2>().and_then(|hex| u8::from_str_radix(str::from_utf8(hex).ok()?, 16).ok());
        let Some(byte) = hex else {
            return Err(bad(format!("the PAX record {} is badly encoded", quoted(key))));
        };
        decoded.push(byte);
        rest = &rest[2..];
    }
    Ok(decoded)
}

/// Base 64 (RFC 4648, section 4) with or without its padding.
fn base64_decoded(key: &[u8], value: &[u8]) -> Result<Vec<u8>> {
    let (mut decoded, mut bits, mut count) = (Vec::with_capacity(value.len() * 3 / 4), 0_u32, 0);
    for &byte in value.trim_ascii_end().iter().filter(|&&b| b != b'=') {
        let six = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return Err(bad(format!("the PAX record {} is badly encoded", quoted(key)))),
        };
        bits = bits << 6 | u32::from(six);
        count += 6;
        if count >= 8 {
            count -= 8;
            decoded.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Ok(decoded)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(payload: &[u8]) -> Result<Records> {
        let mut records = Records::default();
        records.extend(payload).map(|()| records)
    }

    /// `KEY=VALUE` with its length, which counts itself.
    fn record(text: &str) -> Vec<u8> {
        let length = (text.len()..).find(|n| *n == format!("{n} {text}\n").len()).unwrap();
        format!("{length} {text}\n").into_bytes()
    }

    #[test]
    fn records_override_and_take_back() {
        let records = read(b"9 path=a\n9 path=b\n12 size=123\n9 uid=70\n7 uid=\n13 comment=x\n").unwrap();
        assert_eq!(records.path.as_deref(), Some(&b"b"[..]));
        assert_eq!(records.size, Some(123));
        assert_eq!(records.uid, None);
    }

    #[test]
    fn values_may_hold_anything() {
        let records = read(b"28 SCHILY.xattr.user.k=\0\n=\xff\n24 SCHILY.xattr.user.e=\n").unwrap();
        assert_eq!(records.xattrs[&b"user.k"[..]], b"\0\n=\xff");
        assert_eq!(records.xattrs[&b"user.e"[..]], b"");
        let records = read(b"36 LIBARCHIVE.xattr.user.a%3Db=aGk=\n").unwrap();
        assert_eq!(records.xattrs[&b"user.a=b"[..]], b"hi");
    }

    #[test]
    fn attributes_of_other_systems_are_counted_and_left_out() {
        let payload = ["com.apple.provenance=x", "btrfs.compression=y", "user.ok=y"]
            .map(|attribute| record(&format!("SCHILY.xattr.{attribute}")))
            .concat();
        let records = read(&payload).unwrap();
        assert_eq!((records.foreign, records.xattrs.len()), (2, 1));
        assert_eq!(records.xattrs[&b"user.ok"[..]], b"y");
    }

    #[test]
    fn no_entry_has_more_attributes_than_can_be_listed() {
        let names = |count: usize| -> Vec<u8> {
            (0..count).flat_map(|n| record(&format!("SCHILY.xattr.user.{n:0250}="))).collect()
        };
        // Each takes "user.", 250 digits and a NUL.
        assert_eq!(read(&names(256)).unwrap().xattrs.len(), 256);
        let error = read(&names(257)).unwrap_err().to_string();
        assert!(error.contains("more than the 65536 that Linux can list"), "{error}");
    }

    #[test]
    fn messages_stay_short() {
        let long = "k".repeat(100_000);
        for text in [format!("SCHILY.xattr.{long}\0="), format!("mtime={long}"), format!("uid={long}")] {
            let error = read(&record(&text)).unwrap_err().to_string();
            assert!(error.len() < 1000 && !error.contains("malformed"), "{error}");
        }
    }

    #[test]
    fn times_of_both_signs() {
        let time = |text: &str| super::time(text.as_bytes()).map(|t| (t.seconds, t.nanoseconds));
        assert_eq!(time("12").unwrap(), (12, 0));
        assert_eq!(time("12.5").unwrap(), (12, 500_000_000));
        assert_eq!(time("12.0000000019").unwrap(), (12, 1));
        assert_eq!(time("-1.25").unwrap(), (-2, 750_000_000));
        assert_eq!(time("-0.5").unwrap(), (-1, 500_000_000));
        assert_eq!(time("-3").unwrap(), (-3, 0));
        for text in ["", "-", "1.-5", "1e3", "99999999999999999999", "--1"] {
            assert!(time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn malformed_records_are_refused() {
        for payload in [
            &b"9 path=a"[..], // no newline
            b"8 path=a\n",    // too short
            b"11 path=a\n",   // past the end
            b"999999999999 path=a\n",
            b"-9 path=a\n",
            b"path=a\n",
            b"6 =ab\n",    // no key
            b"9 pathab\n", // no equals sign
            b"3 \n",
            b"0 path=a\n",
            b"12 path=a\0b\n", // NUL in a name
            b"18446744073709551616 a=\n",
        ] {
            assert!(read(payload).is_err(), "{}", payload.escape_ascii());
        }
    }

    #[test]
    fn global_headers_speak_of_no_single_entry() {
        let mut global = Records::default();
        global.extend_global(b"52 comment=0123456789012345678901234567890123456789\n").unwrap();
        global.extend_global(b"9 uid=70\n").unwrap();
        assert_eq!(global.uid, Some(70));
        for payload in [
            &b"9 path=a\n"[..],
            b"9 size=1\n",
            b"14 linkpath=a\n",
            b"21 GNU.sparse.size=1\n",
            b"24 SCHILY.xattr.user.a=b\n",
            b"32 LIBARCHIVE.xattr.user.a=YQ==\n",
        ] {
            assert!(global.extend_global(payload).is_err(), "{}", payload.escape_ascii());
        }
    }
}
