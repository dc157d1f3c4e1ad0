//! One 512-byte header block, without what PAX or GNU records say about it.
//!
//! Layouts: POSIX.1-1988 `ustar`, GNU's variant (`tar.h` of GNU tar: magic `ustar  `, no name prefix, times
//! and sparse map in its place), star's (a shorter prefix, marked `tar` at the end), and the v7 header that
//! none of them marks.

use std::ops::Range;

use super::super::bad;
use super::source::BLOCK;
use crate::error::Result;

pub(crate) const NAME: Range<usize> = 0..100;
pub(crate) const MODE: Range<usize> = 100..108;
pub(crate) const UID: Range<usize> = 108..116;
pub(crate) const GID: Range<usize> = 116..124;
pub(crate) const SIZE: Range<usize> = 124..136;
pub(crate) const MTIME: Range<usize> = 136..148;
pub(crate) const CHECKSUM: Range<usize> = 148..156;
pub(crate) const TYPE: usize = 156;
pub(crate) const LINK: Range<usize> = 157..257;
pub(crate) const MAGIC: Range<usize> = 257..263;
pub(crate) const MAJOR: Range<usize> = 329..337;
pub(crate) const MINOR: Range<usize> = 337..345;
pub(crate) const PREFIX: Range<usize> = 345..500;
const STAR_PREFIX: Range<usize> = 345..476;
const STAR_TRAILER: Range<usize> = 508..512;

/// The fields of a header, numbers decoded, nothing judged.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) kind: u8,
    pub(crate) name: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: i64,
    pub(crate) gid: i64,
    pub(crate) size: i64,
    pub(crate) mtime: i64,
    pub(crate) major: i64,
    pub(crate) minor: i64,
}

impl Header {
    /// Decode a block whose checksum is right.
    pub(crate) fn parse(block: &[u8; BLOCK]) -> Result<Self> {
        check_sum(block)?;
        let posix = &block[MAGIC] == b"ustar\0";
        let gnu = &block[MAGIC] == b"ustar ";
        let prefix = match posix {
            true if &block[STAR_TRAILER] == b"tar\0" => text(&block[STAR_PREFIX]),
            true => text(&block[PREFIX]),
            false => b"",
        };
        let mut name = prefix.to_vec();
        if !name.is_empty() {
            name.push(b'/');
        }
        name.extend_from_slice(text(&block[NAME]));

        let kind = block[TYPE];
        // v7 has no device numbers, and other types may hold anything there.
        let device = matches!(kind, b'3' | b'4') && (posix || gnu);
        let (major, minor) = match device {
            true => (number("device major", &block[MAJOR])?, number("device minor", &block[MINOR])?),
            false => (0, 0),
        };
        Ok(Self {
            kind,
            name,
            link: text(&block[LINK]).to_vec(),
            // Some writers put the file type's bits there too.
            mode: (number("mode", &block[MODE])? & 0o7777) as u32,
            uid: number("uid", &block[UID])?,
            gid: number("gid", &block[GID])?,
            size: number("size", &block[SIZE])?,
            mtime: number("mtime", &block[MTIME])?,
            major,
            minor,
        })
    }
}

/// The sum of all bytes, the checksum's own taken as spaces. Some historic writers summed signed bytes.
fn check_sum(block: &[u8; BLOCK]) -> Result<()> {
    let stored = number("checksum", &block[CHECKSUM]).ok();
    let (mut unsigned, mut signed) = (0_i64, 0_i64);
    for (at, &byte) in block.iter().enumerate() {
        let byte = if CHECKSUM.contains(&at) { b' ' } else { byte };
        unsigned += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    match stored {
        Some(sum) if sum == unsigned || sum == signed => Ok(()),
        _ => Err(bad("this is no tar header: its checksum is wrong")),
    }
}

/// Up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or(field)
}

/// A number: octal digits among spaces and NULs, or base 256 (two's complement, big endian, marked by the
/// top bit of the first byte: GNU tar's extension for what octal can't hold). An empty field is 0.
pub(crate) fn number(what: &str, field: &[u8]) -> Result<i64> {
    if let Some((&first, rest)) = field.split_first()
        && first & 0x80 != 0
    {
        // The mark is dropped and the next bit is the sign.
        let head = i128::from((first << 1).cast_signed() >> 1);
        let value = rest.iter().fold(head, |value, &byte| value << 8 | i128::from(byte));
        return i64::try_from(value).map_err(|_| bad(format!("its {what} doesn't fit in 64 bits")));
    }
    let digits = text(field.trim_ascii_start()).trim_ascii();
    // A field may be padded with NULs in front as well; those came out as nothing above.
    let digits = if digits.is_empty() { trim_nul_and_space(field) } else { digits };
    let mut value = 0_i64;
    for &digit in digits {
        if !(b'0'..=b'7').contains(&digit) {
            return Err(bad(format!("its {what} is not a number: \"{}\"", field.escape_ascii())));
        }
        value = value << 3 | i64::from(digit - b'0'); // at most 12 digits: 36 bits
    }
    Ok(value)
}

fn trim_nul_and_space(field: &[u8]) -> &[u8] {
    let blank = |b: &u8| *b == 0 || *b == b' ';
    let start = field.iter().position(|b| !blank(b)).unwrap_or(field.len());
    let end = field.iter().rposition(|b| !blank(b)).map_or(start, |at| at + 1);
    &field[start..end]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn octal_numbers_among_padding() {
        for (field, value) in [
            (&b"0000644\0"[..], 0o644),
            (b"   644 \0", 0o644),
            (b"\0\0\0\x30644\0", 0o644),
            (b"        ", 0),
            (b"\0\0\0\0\0\0\0\0", 0),
            (b"777777777777", 0o777_777_777_777),
            (b"12\0garbage!", 0o12),
        ] {
            assert_eq!(number("x", field).unwrap(), value, "{}", field.escape_ascii());
        }
        for field in [&b"0000648\0"[..], b"-1      ", b"0x10\0\0\0\0", b"1 2     "] {
            let error = number("size", field).unwrap_err().to_string();
            assert!(error.contains("size is not a number"), "{error}");
        }
    }

    #[test]
    fn base_256_numbers_of_both_signs() {
        assert_eq!(number("x", &[0x80, 0, 0, 0, 0x80, 0, 0, 0]).unwrap(), 1 << 31);
        assert_eq!(number("x", &[0xff; 12]).unwrap(), -1);
        assert_eq!(number("x", &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]).unwrap(), -256);
        let mut most = [0; 12];
        most[0] = 0x80;
        most[4..].copy_from_slice(&i64::MAX.to_be_bytes());
        assert_eq!(number("x", &most).unwrap(), i64::MAX);
        most[4] = 0x80;
        assert!(number("x", &most).unwrap_err().to_string().contains("64 bits"));
        let mut least = [0xff; 12];
        least[4..].copy_from_slice(&i64::MIN.to_be_bytes());
        assert_eq!(number("x", &least).unwrap(), i64::MIN);
        least[3] = 0xfe;
        assert!(number("x", &least).is_err());
    }
}
