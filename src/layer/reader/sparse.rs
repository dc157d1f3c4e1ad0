//! Sparse maps: which parts of a file the archive holds.
//!
//! Four encodings, all of GNU tar ("Storing Sparse Files" in its manual): the old one in the header (`S`)
//! and in blocks after it, PAX 0.0 as repeated records, PAX 0.1 as one record, PAX 1.0 as text before the
//! data. Whatever the encoding, a map is only believed in order, without overlap, inside the file, and
//! adding up to exactly the data that is there.

use super::super::bad;
use super::header::number;
use super::pax::decimal;
use super::source::{BLOCK, Source, truncated};
use crate::error::Result;

/// Parts that one file may have: 16 MiB of map.
const MAX_SEGMENTS: usize = 1 << 20;

/// Bytes that filesystems give to a file at least.
const DISK_BLOCK: u64 = 4096;

/// A part of a file that is data, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub offset: u64,
    pub length: u64,
}

/// Append a part, refusing what is out of order or past `i64::MAX`.
fn push(map: &mut Vec<Segment>, offset: i64, length: i64) -> Result<()> {
    let (Ok(offset), Ok(length)) = (u64::try_from(offset), u64::try_from(length)) else {
        return Err(bad("its sparse map holds a negative number"));
    };
    if map.len() == MAX_SEGMENTS {
        return Err(bad(format!("its sparse map has more than {MAX_SEGMENTS} parts")));
    }
    let fits = offset.checked_add(length).is_some_and(|end| i64::try_from(end).is_ok());
    if !fits || map.last().is_some_and(|last| last.offset + last.length > offset) {
        return Err(bad("its sparse map is out of order, overlaps or overflows"));
    }
    map.push(Segment { offset, length });
    Ok(())
}

/// Judge a whole map against the file's length and the data that the archive holds for it.
pub(crate) fn check(map: &[Segment], file: u64, stored: u64) -> Result<()> {
    if map.last().is_some_and(|last| last.offset + last.length > file) {
        return Err(bad("its sparse map reaches past the end of the file"));
    }
    let sum: u64 = map.iter().map(|part| part.length).sum(); // below i64::MAX: no overlap
    if sum != stored {
        return Err(bad(format!("its sparse map is of {sum} bytes of data, but {stored} are stored")));
    }
    Ok(())
}

/// Bytes on disk that a map's parts need beyond their own: a part of one byte takes a block.
pub(crate) fn overhead(map: &[Segment]) -> u64 {
    let (mut blocks, mut end) = (0, 0);
    for part in map.iter().filter(|part| part.length > 0) {
        let first = (part.offset / DISK_BLOCK).max(end);
        end = (part.offset + part.length).div_ceil(DISK_BLOCK);
        blocks += end - first;
    }
    blocks * DISK_BLOCK - map.iter().map(|part| part.length).sum::<u64>()
}

/// The old GNU map: four parts in the header, the file's length, then blocks of 21 parts each.
pub(crate) fn old_gnu(header: &[u8; BLOCK], source: &mut Source<'_>) -> Result<(Vec<Segment>, i64)> {
    let mut map = Vec::new();
    let real_size = number("real size", &header[483..495])?;
    parts(&mut map, &header[386..386 + 4 * 24])?;
    let mut extended = header[482] != 0;
    while extended {
        source.check_cancelled()?;
        let block = source.block()?.ok_or_else(truncated)?;
        parts(&mut map, &block[..21 * 24])?;
        extended = block[504] != 0;
    }
    Ok((map, real_size))
}

/// Pairs of 12-byte numbers, up to the first that is blank.
fn parts(map: &mut Vec<Segment>, fields: &[u8]) -> Result<()> {
    for part in fields.chunks_exact(24) {
        if part[0] == 0 || part[12] == 0 {
            break;
        }
        push(map, number("sparse offset", &part[..12])?, number("sparse length", &part[12..])?)?;
    }
    Ok(())
}

/// What `GNU.sparse.*` records say.
#[derive(Debug, Clone, Default)]
pub(crate) struct PaxSparse {
    name: Option<Vec<u8>>,
    major: i64,
    minor: i64,
    real_size: Option<i64>,
    /// An offset whose length is still to come (0.0).
    offset: Option<i64>,
    count: Option<i64>,
    map: Vec<Segment>,
    /// Any record but a name.
    present: bool,
}

impl PaxSparse {
    /// Take the record `GNU.sparse.<key>`.
    pub(crate) fn set(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.present |= key != b"name";
        match key {
            b"name" if value.is_empty() || value.contains(&0) => return Err(bad("GNU.sparse.name is malformed")),
            b"name" => self.name = Some(value.to_vec()),
            b"major" => self.major = decimal(key, value)?,
            b"minor" => self.minor = decimal(key, value)?,
            b"size" | b"realsize" => self.real_size = Some(decimal(key, value)?),
            b"numblocks" => self.count = Some(decimal(key, value)?),
            b"offset" if self.offset.is_none() => self.offset = Some(decimal(key, value)?),
            b"offset" => return Err(bad("its sparse map has an offset without a length")),
            b"numbytes" => {
                let offset =
                    self.offset.take().ok_or_else(|| bad("its sparse map has a length without an offset"))?;
                push(&mut self.map, offset, decimal(key, value)?)?;
            }
            b"map" => {
                self.map.clear();
                let mut numbers = value.split(|&b| b == b',').filter(|_| !value.is_empty());
                while let Some(offset) = numbers.next() {
                    let length = numbers.next().ok_or_else(|| bad("its sparse map has an odd count of numbers"))?;
                    push(&mut self.map, decimal(key, offset)?, decimal(key, length)?)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The name of the file, where the entry's own is made up for readers that know nothing of sparse files.
    pub(crate) fn take_name(&mut self) -> Option<Vec<u8>> {
        self.name.take()
    }

    /// The map and the file's length, if there is one. Reads a 1.0 map from the data; says how many of its
    /// bytes that took.
    pub(crate) fn map(mut self, stored: u64, source: &mut Source<'_>) -> Result<Option<(Vec<Segment>, i64, u64)>> {
        if !self.present {
            return Ok(None);
        }
        let real_size = self.real_size.ok_or_else(|| bad("its sparse map doesn't say the file's length"))?;
        let taken = match (self.major, self.minor) {
            (0, _) => {
                let count = usize::try_from(self.count.unwrap_or(0)).ok();
                if self.offset.is_some() || (self.count.is_some() && count != Some(self.map.len())) {
                    return Err(bad("its sparse map has not as many parts as it says"));
                }
                0
            }
            (1, 0) => text_map(&mut self.map, stored, source)?,
            (major, minor) => return Err(bad(format!("sparse format {major}.{minor} is unknown"))),
        };
        Ok(Some((self.map, real_size, taken)))
    }
}

/// The 1.0 map: a count, then offset and length of each part, one decimal number a line, padded to a block.
fn text_map(map: &mut Vec<Segment>, stored: u64, source: &mut Source<'_>) -> Result<u64> {
    let mut text = TextMap { block: [0; BLOCK], at: BLOCK, taken: 0, stored };
    let count = text.number(source)?;
    map.clear();
    for _ in 0..count {
        let offset = text.number(source)?;
        push(map, offset, text.number(source)?)?;
    }
    Ok(text.taken)
}

struct TextMap {
    block: [u8; BLOCK],
    at: usize,
    taken: u64,
    stored: u64,
}

impl TextMap {
    fn number(&mut self, source: &mut Source<'_>) -> Result<i64> {
        let mut digits = Vec::with_capacity(20);
        loop {
            if self.at == BLOCK {
                source.check_cancelled()?;
                if self.taken + BLOCK as u64 > self.stored {
                    return Err(bad("its sparse map runs past its data"));
                }
                self.block = source.block()?.ok_or_else(truncated)?;
                self.taken += BLOCK as u64;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            match byte {
                b'\n' => return decimal(b"sparse map", &digits),
                _ if digits.len() < 20 => digits.push(byte),
                _ => return Err(bad("its sparse map holds a number that is too long")),
            }
        }
    }
}
