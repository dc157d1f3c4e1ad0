//! Makes a recipe of a tar that goes by.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use zstd::stream::write::Encoder as Frame;

use super::LONGEST_PATH;
use super::codec::{Encoder, HEAD, head};
use crate::layer::sink::Sink;
use crate::sys::durable;
use crate::{Context, Error, Kind, Result};

/// Headers of similar files compress well whatever the level is.
const LEVEL: i32 = 1;
/// Literal bytes that become one piece at most.
const LONGEST_LITERAL: usize = 64 << 10;

/// Writes the recipe of the tar that it is given. Dropped before [`finish`](Self::finish), it removes the file.
#[must_use = "there is no recipe before finish()"]
pub struct RecipeWriter {
    path: PathBuf,
    /// Gone when finished.
    pieces: Option<Encoder<Frame<'static, BufWriter<File>>>>,
    plain_size: u64,
    /// At most one of the two holds something: what the next bytes may continue.
    literal: Vec<u8>,
    content: Option<Content>,
}

/// Content that may still go on.
#[derive(Debug)]
struct Content {
    path: Vec<u8>,
    offset: u64,
    length: u64,
}

impl RecipeWriter {
    /// Begin a recipe at `path`, in place of whatever file is there.
    pub fn create(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
        let mut writer = Self {
            path: path.to_path_buf(),
            pieces: None,
            plain_size: 0,
            literal: Vec::with_capacity(LONGEST_LITERAL),
            content: None,
        };
        let pieces = file.and_then(|file| {
            let mut file = BufWriter::new(file);
            // No head yet: what was cut short is no recipe.
            file.write_all(&[0; HEAD])?;
            let mut frame = Frame::new(file, LEVEL)?;
            frame.include_checksum(true)?;
            Ok(Encoder::new(frame))
        });
        writer.pieces = Some(pieces.context(|| format!("write {}", path.display()))?);
        Ok(writer)
    }

    /// The tar has ended: make the recipe whole and durable. Its length in bytes.
    pub fn finish(mut self) -> Result<u64> {
        self.flush()?;
        let pieces = self.pieces.take().ok_or_else(|| Error::new(Kind::System, "the recipe is finished already"))?;
        let finished = (|| {
            let file = pieces.end(self.plain_size)?.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.write_all_at(&head(self.plain_size), 0)?;
            durable::fsync(&file, &self.path)?;
            Ok(file.metadata()?.len())
        })();
        if finished.is_err() {
            remove(&self.path);
        }
        finished.map_err(|e: io::Error| self.failed(&e))
    }

    /// Content of this place and length. The path is one that a recipe can have.
    pub(super) fn place(&mut self, path: &[u8], offset: u64, length: u64) -> Result<()> {
        if length == 0 {
            return Ok(());
        }
        self.plain_size += length;
        match &mut self.content {
            Some(content) if content.path == path && content.offset + content.length == offset => {
                content.length += length;
                Ok(())
            }
            _ => {
                self.flush()?;
                self.content = Some(Content { path: path.to_vec(), offset, length });
                Ok(())
            }
        }
    }

    /// Write down what waits for its continuation.
    fn flush(&mut self) -> Result<()> {
        let Some(pieces) = &mut self.pieces else { return Ok(()) };
        let mut written = Ok(());
        if let Some(Content { path, offset, length }) = self.content.take() {
            written = pieces.content(&path, offset, length);
        } else if !self.literal.is_empty() {
            written = pieces.literal(&self.literal);
            self.literal.clear();
        }
        written.map_err(|e| self.failed(&e))
    }

    fn failed(&self, error: &io::Error) -> Error {
        Error::system(format!("write {}", self.path.display()), error)
    }
}

impl Sink for RecipeWriter {
    fn literal(&mut self, mut bytes: &[u8]) -> Result<()> {
        self.plain_size += bytes.len() as u64;
        if self.content.is_some() {
            self.flush()?;
        }
        while !bytes.is_empty() {
            let fits = bytes.len().min(LONGEST_LITERAL - self.literal.len());
            self.literal.extend_from_slice(&bytes[..fits]);
            bytes = &bytes[fits..];
            if self.literal.len() == LONGEST_LITERAL {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn content(&mut self, path: &[u8], offset: u64, bytes: &[u8]) -> Result<()> {
        if path.is_empty() || path.len() > LONGEST_PATH {
            return self.literal(bytes);
        }
        self.place(path, offset, bytes.len() as u64)
    }
}

impl Drop for RecipeWriter {
    fn drop(&mut self) {
        if self.pieces.take().is_some() {
            remove(&self.path);
        }
    }
}

/// Of what failed nothing is to be left; why it failed is what the caller is told.
fn remove(path: &Path) {
    let _ = std::fs::remove_file(path);
}

impl std::fmt::Debug for RecipeWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecipeWriter").field("path", &self.path).field("plain_size", &self.plain_size).finish()
    }
}
