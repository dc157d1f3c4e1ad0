//! Bytes of regular files, read by position, and the holes between them, which aren't read.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};

use super::super::reader::Segment;
use super::super::reader::source::BLOCK;
use super::Tar;
use crate::error::{Context, Result};
use crate::sys::holes::next_data;

/// Bytes that are read at once. A file of at most so many is read as it is, holes and all.
const CHUNK: usize = 256 << 10;
static ZEROS: [u8; CHUNK] = [0; CHUNK];
/// Holes that make an entry sparse, in bytes.
const WORTH_A_MAP: u64 = 1 << 30;
/// Where parts in a map begin and end, at first: filesystems with other blocks, and files that were written in another
/// order, as a rule give the same map.
const GRAIN: u64 = 64 << 10;
/// Parts in a map at most.
const MOST_PARTS: usize = 1 << 16;

/// Reads files through one buffer.
pub(super) struct Reader {
    buffer: Box<[u8]>,
}

impl Default for Reader {
    fn default() -> Self {
        Self { buffer: vec![0; CHUNK].into_boxed_slice() }
    }
}

impl Reader {
    /// Write a part of the file that is at `path`; zeros for what it doesn't have any more.
    pub(super) fn copy(&mut self, tar: &mut Tar<'_>, path: &[u8], file: &File, part: Range<u64>) -> Result<()> {
        let Range { start: mut at, end } = part;
        while at < end {
            if end - part.start > CHUNK as u64 {
                let data = next_data(file, at, end).context(|| "find data")?;
                while at < data {
                    let zeros = &ZEROS[..chunk(data - at)];
                    tar.content(path, at, zeros)?;
                    at += zeros.len() as u64;
                }
            }
            let want = chunk(end - at);
            let got = read(file, &mut self.buffer[..want], at)?;
            tar.content(path, at, &self.buffer[..got])?;
            at += got as u64;
            if got < want {
                break;
            }
        }
        while at < end {
            let zeros = &ZEROS[..chunk(end - at)];
            tar.check_cancelled()?;
            tar.literal(zeros)?;
            at += zeros.len() as u64;
        }
        Ok(())
    }
}

fn chunk(left: u64) -> usize {
    usize::try_from(left).unwrap_or(CHUNK).min(CHUNK)
}

/// Fill the buffer, as far as the file goes.
fn read(file: &File, buffer: &mut [u8], at: u64) -> Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(got) => filled += got,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e).context(|| "read"),
        }
    }
    Ok(filled)
}

/// The parts of a file of `length` bytes that hold data, if the rest is worth a map.
pub(super) fn sparse_map(file: &File, length: u64) -> Result<Option<Vec<Segment>>> {
    if length < WORTH_A_MAP {
        return Ok(None);
    }
    let mut grain = GRAIN;
    let map = loop {
        match data_parts(file, length, grain).context(|| "find data")? {
            Some(map) => break map,
            None => grain *= 2,
        }
    };
    let data: u64 = map.iter().map(|part| part.length).sum();
    Ok((length - data >= WORTH_A_MAP).then_some(map))
}

/// `None` if there are too many. A part of no length says where a hole at the end ends.
fn data_parts(file: &File, length: u64, grain: u64) -> rustix::io::Result<Option<Vec<Segment>>> {
    let mut map: Vec<Segment> = Vec::new();
    let mut at = 0;
    while at < length {
        let data = next_data(file, at, length)?;
        if data == length {
            map.push(Segment { offset: length, length: 0 });
            break;
        }
        let end = seek(file, SeekFrom::Hole(data))?.max(data + 1);
        let offset = data / grain * grain;
        at = end.checked_next_multiple_of(grain).map_or(length, |end| end.min(length));
        match map.last_mut() {
            Some(last) if last.offset + last.length == offset => last.length = at - last.offset,
            _ => map.push(Segment { offset, length: at - offset }),
        }
        if map.len() == MOST_PARTS {
            return Ok(None);
        }
    }
    Ok(Some(map))
}

/// The map as it stands before the data: a count, then offset and length of each part, padded to a block.
pub(super) fn map_text(map: &[Segment]) -> Vec<u8> {
    let mut text = format!("{}\n", map.len()).into_bytes();
    for Segment { offset, length } in map {
        text.extend(format!("{offset}\n{length}\n").into_bytes());
    }
    text.resize(text.len().next_multiple_of(BLOCK), 0);
    text
}
