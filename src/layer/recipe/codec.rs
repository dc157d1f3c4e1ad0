//! Pieces to bytes and back; the format is described in the head of [`super`].

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use zstd::stream::read::Decoder;

use super::{LONGEST_PATH, damaged};
use crate::{Context, Error, Result};

const MAGIC: &[u8; 7] = b"RFLKRCP";
const FORMAT: u8 = 1;
pub(super) const HEAD: usize = 20;

const LITERAL: u64 = 0;
const CONTENT: u64 = 1;
const MORE: u64 = 2;
const END: u64 = 3;

/// Logarithm of the largest window that a reader takes.
const WINDOW: u32 = 23;
/// Bytes lent at once.
const BUFFER: usize = 128 << 10;

pub(super) fn head(plain_size: u64) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..7].copy_from_slice(MAGIC);
    head[7] = FORMAT;
    head[8..16].copy_from_slice(&plain_size.to_le_bytes());
    let sum = crc32c::crc32c(&head[..16]);
    head[16..].copy_from_slice(&sum.to_le_bytes());
    head
}

fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Puts pieces into words.
#[derive(Debug)]
pub(super) struct Encoder<W> {
    out: W,
    /// The path of the content before.
    path: Vec<u8>,
    scratch: Vec<u8>,
}

impl<W: Write> Encoder<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, path: Vec::new(), scratch: Vec::new() }
    }

    fn begin(&mut self, kind: u64, length: u64) {
        self.scratch.clear();
        put_number(&mut self.scratch, length << 2 | kind);
    }

    pub(super) fn literal(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.begin(LITERAL, bytes.len() as u64);
        self.out.write_all(&self.scratch)?;
        self.out.write_all(bytes)
    }

    pub(super) fn content(&mut self, path: &[u8], offset: u64, length: u64) -> io::Result<()> {
        if !self.path.is_empty() && path == self.path {
            self.begin(MORE, length);
        } else {
            self.begin(CONTENT, length);
            let shared = path.iter().zip(&self.path).take_while(|(a, b)| a == b).count();
            put_number(&mut self.scratch, shared as u64);
            put_number(&mut self.scratch, (path.len() - shared) as u64);
            self.scratch.extend_from_slice(&path[shared..]);
            self.path.truncate(shared);
            self.path.extend_from_slice(&path[shared..]);
        }
        put_number(&mut self.scratch, offset);
        self.out.write_all(&self.scratch)
    }

    pub(super) fn end(mut self, plain_size: u64) -> io::Result<W> {
        self.begin(END, plain_size);
        self.out.write_all(&self.scratch)?;
        Ok(self.out)
    }
}

/// A piece of a tar.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// To be taken with [`Pieces::literal`] before the next piece.
    Literal(u64),
    /// Of the file at [`Pieces::path`].
    Content { offset: u64, length: u64 },
}

/// Reads a recipe, and believes nothing of it.
pub(super) struct Pieces {
    recipe: PathBuf,
    input: BufReader<Decoder<'static, BufReader<File>>>,
    plain_size: u64,
    /// Bytes of the tar that the pieces so far are of.
    position: u64,
    path: Vec<u8>,
}

impl Pieces {
    pub(super) fn open(recipe: &Path) -> Result<Self> {
        let mut file = File::open(recipe).context(|| format!("open {}", recipe.display()))?;
        let mut found = [0; HEAD];
        file.read_exact(&mut found).map_err(|e| unreadable(recipe, e))?;
        let mut size = [0; 8];
        size.copy_from_slice(&found[8..16]);
        let plain_size = u64::from_le_bytes(size);
        if found[..7] == *MAGIC && found[7] != FORMAT {
            return Err(damaged(recipe, format!("its format {} is unknown", found[7])));
        }
        if found != head(plain_size) {
            return Err(damaged(recipe, "its head is wrong"));
        }
        let mut frame = Decoder::new(file).map_err(|e| unreadable(recipe, e))?.single_frame();
        frame.window_log_max(WINDOW).map_err(|e| unreadable(recipe, e))?;
        let input = BufReader::with_capacity(BUFFER, frame);
        Ok(Self { recipe: recipe.to_path_buf(), input, plain_size, position: 0, path: Vec::new() })
    }

    pub(super) fn plain_size(&self) -> u64 {
        self.plain_size
    }

    /// The path of the last content.
    pub(super) fn path(&self) -> &[u8] {
        &self.path
    }

    /// The next piece, or `None` at the end, all having been checked.
    pub(super) fn next(&mut self) -> Result<Option<Piece>> {
        let number = self.number()?;
        let (kind, length) = (number & 3, number >> 2);
        if kind == END {
            return self.end(length).map(|()| None);
        }
        match self.position.checked_add(length) {
            Some(position) if position <= self.plain_size => self.position = position,
            _ => return Err(self.damaged("its pieces are more than the tar")),
        }
        match kind {
            LITERAL => return Ok(Some(Piece::Literal(length))),
            CONTENT => self.next_path()?,
            _ if self.path.is_empty() => return Err(self.damaged("content of no file")),
            _ => {}
        }
        let offset = self.number()?;
        if offset.checked_add(length).is_none_or(|end| i64::try_from(end).is_err()) {
            return Err(self.damaged("content past the end of every file"));
        }
        Ok(Some(Piece::Content { offset, length }))
    }

    /// Lend up to `wanted` bytes of a literal, not none, until the next call.
    pub(super) fn literal(&mut self, wanted: u64) -> Result<Lent<'_>> {
        let recipe = &self.recipe;
        let bytes = self.input.fill_buf().map_err(|e| unreadable(recipe, e))?.len();
        if bytes == 0 {
            return Err(self.damaged("it ends in a literal"));
        }
        let taken = usize::try_from(wanted).unwrap_or(bytes).min(bytes);
        Ok(Lent { input: &mut self.input, taken })
    }

    fn next_path(&mut self) -> Result<()> {
        let (shared, own) = (self.number()?, self.number()?);
        if shared > self.path.len() as u64 || own > LONGEST_PATH as u64 - shared {
            return Err(self.damaged("a path is longer than it can be"));
        }
        self.path.truncate(shared as usize);
        let before = self.path.len();
        // Grows with what is there, not with what is claimed.
        (&mut self.input).take(own).read_to_end(&mut self.path).map_err(|e| unreadable(&self.recipe, e))?;
        if (self.path.len() - before) as u64 != own {
            return Err(self.damaged("it ends in a path"));
        }
        let plain = |name: &[u8]| !matches!(name, b"" | b"." | b"..") && !name.contains(&0);
        if !self.path.split(|&b| b == b'/').all(plain) {
            return Err(self.damaged("a path is none"));
        }
        Ok(())
    }

    fn end(&mut self, length: u64) -> Result<()> {
        if length != self.plain_size || self.position != length {
            return Err(self.damaged("its pieces are not all of the tar"));
        }
        // Only at the frame's end is its checksum compared.
        let behind = self.input.fill_buf().map_err(|e| unreadable(&self.recipe, e))?;
        if !behind.is_empty() || !self.rest()?.is_empty() {
            return Err(self.damaged("something stands behind its end"));
        }
        Ok(())
    }

    /// What stands behind the frame.
    fn rest(&mut self) -> Result<&[u8]> {
        self.input.get_mut().get_mut().fill_buf().map_err(|e| unreadable(&self.recipe, e))
    }

    fn number(&mut self) -> Result<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let mut byte = [0];
            self.input.read_exact(&mut byte).map_err(|e| unreadable(&self.recipe, e))?;
            let bits = u64::from(byte[0] & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            number |= bits << shift;
            if byte[0] & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(self.damaged("a number is too large"))
    }

    fn damaged(&self, why: &str) -> Error {
        damaged(&self.recipe, why)
    }
}

/// Bytes of a literal, taken when this is dropped.
pub(super) struct Lent<'a> {
    input: &'a mut BufReader<Decoder<'static, BufReader<File>>>,
    taken: usize,
}

impl std::ops::Deref for Lent<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.input.buffer()[..self.taken]
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.input.consume(self.taken);
    }
}

/// A failed read: the disk's fault if the system says so, else the bytes'.
fn unreadable(recipe: &Path, error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(_) => Error::system(format!("read {}", recipe.display()), &error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => damaged(recipe, "it is truncated"),
        None => damaged(recipe, error),
    }
}
