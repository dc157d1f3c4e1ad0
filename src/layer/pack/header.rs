//! An entry as POSIX's pax has it: a ustar block, before it PAX records for what that can't hold.
//!
//! Fields that a record stands for are as Go's `archive/tar` and Python's `tarfile` write them: names cut off, numbers 0.
//! Names are bytes, in records too. POSIX wants UTF-8 there; of others libarchive wants to be told.

use std::collections::BTreeMap;
use std::ops::Range;

use super::super::reader::header::{
    CHECKSUM, GID, LINK, MAGIC, MAJOR, MINOR, MODE, MTIME, NAME, PREFIX, SIZE, TYPE, UID,
};
use super::super::reader::pax::{LIBARCHIVE, MAX_PAYLOAD, SCHILY};
use super::super::reader::source::BLOCK;
use super::super::reader::{Attributes, Time};
use super::split;
use crate::error::{Error, Kind, Result};

const VERSION: Range<usize> = 263..265;

/// What an entry says of itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header<'a> {
    pub(super) kind: u8,
    pub(super) path: &'a [u8],
    /// Of a symlink its target, of a hard link the first name.
    pub(super) link: &'a [u8],
    pub(super) attributes: &'a Attributes,
    /// Bytes behind the header.
    pub(super) size: u64,
    /// The length of a file of which only parts are behind the header, and a map.
    pub(super) sparse: Option<u64>,
    /// Major and minor number.
    pub(super) device: (u32, u32),
}

impl<'a> Header<'a> {
    /// The header of something at `path` without anything behind it.
    pub(super) fn new(path: &'a [u8], attributes: &'a Attributes) -> Self {
        Self { kind: 0, path, link: b"", attributes, size: 0, sparse: None, device: (0, 0) }
    }

    /// The header with all that stands before it.
    ///
    /// # Errors
    /// `Unsupported` if its records take more than a reader has to believe.
    pub(super) fn encoded(&self) -> Result<Vec<u8>> {
        let mut records = Records::default();
        let block = self.block(&mut records);
        let records = records.encoded();
        if records.is_empty() {
            return Ok(block.to_vec());
        }
        if records.len() as u64 > MAX_PAYLOAD {
            let why = format!(
                "its attributes take {} bytes, more than the {MAX_PAYLOAD} that a tar's readers accept",
                records.len()
            );
            return Err(Error::new(Kind::Unsupported, why));
        }
        let path = aside(b"PaxHeaders.0", self.path);
        let attributes = Attributes { mode: 0o644, ..Attributes::default() };
        let size = records.len() as u64;
        let pax = Header { kind: b'x', size, ..Header::new(&path, &attributes) };
        let mut encoded = pax.block(&mut Records::default()).to_vec();
        encoded.extend(&records);
        encoded.resize(encoded.len().next_multiple_of(BLOCK), 0);
        encoded.extend(block);
        Ok(encoded)
    }

    /// The ustar block; what doesn't fit goes into the records.
    fn block(&self, records: &mut Records) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let attributes = self.attributes;
        match self.sparse {
            None => name(&mut block, self.path, records),
            Some(length) => {
                records.set(b"GNU.sparse.major", b"1");
                records.set(b"GNU.sparse.minor", b"0");
                records.set_name(b"GNU.sparse.name", self.path);
                records.set(b"GNU.sparse.realsize", length.to_string().as_bytes());
                name(&mut block, &aside(b"GNUSparseFile.0", self.path), records);
            }
        }
        let target = &self.link[..self.link.len().min(LINK.len())];
        block[LINK][..target.len()].copy_from_slice(target);
        if target.len() < self.link.len() {
            records.set_name(b"linkpath", self.link);
        }
        let mut number = |field: Range<usize>, value: u64, key: &[u8]| {
            if !octal(&mut block[field], value) {
                records.set(key, value.to_string().as_bytes());
            }
        };
        number(MODE, attributes.mode.into(), b"mode");
        number(UID, attributes.uid.into(), b"uid");
        number(GID, attributes.gid.into(), b"gid");
        number(SIZE, self.size, b"size");
        number(MAJOR, self.device.0.into(), b"SCHILY.devmajor");
        number(MINOR, self.device.1.into(), b"SCHILY.devminor");
        let Time { seconds, nanoseconds } = attributes.mtime;
        let fits = octal(&mut block[MTIME], u64::try_from(seconds).unwrap_or(u64::MAX));
        if !fits || nanoseconds != 0 {
            records.set(b"mtime", decimal(attributes.mtime).as_bytes());
        }
        for (name, value) in &attributes.xattrs {
            records.set_xattr(name, value);
        }
        block[TYPE] = self.kind;
        block[MAGIC].copy_from_slice(b"ustar\0");
        block[VERSION].copy_from_slice(b"00");
        block[CHECKSUM].fill(b' ');
        let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
        // Six digits, a NUL and the space that is there.
        octal(&mut block[CHECKSUM.start..CHECKSUM.end - 1], sum);
        block
    }
}

/// A name where it fits, cut in two at a slash if it has to be.
fn name(block: &mut [u8; BLOCK], path: &[u8], records: &mut Records) {
    if path.len() <= NAME.len() {
        block[NAME][..path.len()].copy_from_slice(path);
        return;
    }
    let from = path.len() - NAME.len() - 1;
    // A directory's last slash is part of its name.
    let slash = path[from..path.len() - 1].iter().position(|&b| b == b'/').map(|at| from + at);
    if let Some(slash) = slash.filter(|slash| (1..=PREFIX.len()).contains(slash)) {
        let (prefix, rest) = (&path[..slash], &path[slash + 1..]);
        block[PREFIX][..prefix.len()].copy_from_slice(prefix);
        block[NAME][..rest.len()].copy_from_slice(rest);
    } else {
        block[NAME].copy_from_slice(&path[..NAME.len()]);
        records.set_name(b"path", path);
    }
}

/// A made-up name that readers see who don't know what the entry is.
fn aside(directory: &[u8], path: &[u8]) -> Vec<u8> {
    let (_, name) = split(path.strip_suffix(b"/").unwrap_or(path));
    let mut aside = [directory, name].join(&b'/');
    aside.truncate(NAME.len());
    aside
}

/// Digits up to the last byte, which stays NUL. All 0 and false if they aren't enough.
fn octal(field: &mut [u8], value: u64) -> bool {
    let digits = field.len() - 1;
    let fits = value >> (3 * digits) == 0;
    let text = format!("{:0digits$o}", if fits { value } else { 0 });
    field[..digits].copy_from_slice(text.as_bytes());
    field[digits] = 0;
    fits
}

/// `[-]SECONDS[.FRACTION]`.
fn decimal(time: Time) -> String {
    let ns = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanoseconds);
    let (sign, ns) = (if ns < 0 { "-" } else { "" }, ns.unsigned_abs());
    let text = format!("{sign}{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// PAX records, in the order of their keys.
#[derive(Default)]
struct Records(BTreeMap<Vec<u8>, Vec<u8>>);

impl Records {
    fn set(&mut self, key: &[u8], value: &[u8]) {
        self.0.insert(key.to_vec(), value.to_vec());
    }

    fn set_name(&mut self, key: &[u8], name: &[u8]) {
        if str::from_utf8(name).is_err() {
            self.set(b"hdrcharset", b"BINARY");
        }
        self.set(key, name);
    }

    /// As star writes it, which everybody reads; a name with the sign that ends a key as libarchive does.
    fn set_xattr(&mut self, name: &[u8], value: &[u8]) {
        if name.contains(&b'=') {
            self.set(&[LIBARCHIVE, &percent_encoded(name)].concat(), &base64(value));
        } else {
            self.set(&[SCHILY, name].concat(), value);
        }
    }

    fn encoded(&self) -> Vec<u8> {
        let mut encoded = Vec::new();
        for (key, value) in &self.0 {
            // The length counts its own digits, a space, an equals sign and a newline.
            let rest = key.len() + value.len() + 3;
            let length = (1..).map(|digits| rest + digits).find(|n| n.to_string().len() + rest == *n);
            encoded.extend(length.unwrap_or_default().to_string().as_bytes());
            encoded.push(b' ');
            encoded.extend(key);
            encoded.push(b'=');
            encoded.extend(value);
            encoded.push(b'\n');
        }
        encoded
    }
}

fn percent_encoded(name: &[u8]) -> Vec<u8> {
    let mut encoded = Vec::with_capacity(name.len());
    for &byte in name {
        match byte {
            b'=' | b'%' | b'\n' | 0x7f.. | ..=b' ' => encoded.extend(format!("%{byte:02X}").as_bytes()),
            _ => encoded.push(byte),
        }
    }
    encoded
}

/// RFC 4648, section 4, without padding, as libarchive has it.
fn base64(value: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = |group: &[u8]| {
        let bits = (0..3).fold(0_usize, |bits, at| bits << 8 | usize::from(group.get(at).copied().unwrap_or(0)));
        let all = [18, 12, 6, 0].map(|shift| DIGITS[bits >> shift & 63]);
        all.into_iter().take(group.len() + 1)
    };
    value.chunks(3).flat_map(digits).collect()
}
