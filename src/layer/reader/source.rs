//! The tar stream in big blocks.
//!
//! One fixed buffer stands between the stream and everything else: headers are copied out of it, file data
//! is lent straight from it. It counts what was taken, so that a limit holds before anything is allocated
//! or written on the stream's behalf.

use std::io::{self, Read};

use super::super::bad;
use super::super::sink::Sink;
use crate::error::{Error, Kind, Result};

/// Bytes of a header, and what all data is padded to.
pub(crate) const BLOCK: usize = 512;
/// Bytes read at once and lent at once. A multiple of [`BLOCK`].
pub(crate) const BUFFER: usize = 256 << 10;

pub(crate) struct Source<'a> {
    stream: &'a mut dyn Read,
    cancelled: &'a dyn Fn() -> bool,
    /// Is given all that is taken.
    tap: Option<&'a mut dyn Sink>,
    buffer: Box<[u8]>,
    /// What of the buffer is read and not yet taken: `start..end`.
    start: usize,
    end: usize,
    /// Bytes taken so far.
    position: u64,
    /// Bytes that what was taken costs beyond itself.
    charged: u64,
    max_bytes: u64,
}

impl<'a> Source<'a> {
    pub(crate) fn new(
        stream: &'a mut dyn Read,
        max_bytes: u64,
        cancelled: &'a dyn Fn() -> bool,
        tap: Option<&'a mut dyn Sink>,
    ) -> Self {
        let buffer = vec![0; BUFFER].into_boxed_slice();
        Self { stream, cancelled, tap, buffer, start: 0, end: 0, position: 0, charged: 0, max_bytes }
    }

    /// Bytes taken so far: where in the stream the next header or datum starts.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Refuse now what `more` bytes would run past the limit later.
    pub(crate) fn check_room(&self, more: u64) -> Result<()> {
        match self.position.saturating_add(self.charged).checked_add(more) {
            Some(total) if total <= self.max_bytes => Ok(()),
            _ => Err(bad(format!("the layer is larger than the limit of {} bytes", self.max_bytes))
                .with_hint("if you trust the image, raise the limit with --max-layer-size")),
        }
    }

    /// Count `bytes` towards the limit that aren't in the stream.
    pub(crate) fn charge(&mut self, bytes: u64) -> Result<()> {
        self.check_room(bytes)?;
        self.charged += bytes;
        Ok(())
    }

    pub(crate) fn check_cancelled(&self) -> Result<()> {
        if (self.cancelled)() { Err(Error::new(Kind::Interrupted, "interrupted")) } else { Ok(()) }
    }

    /// Lend up to `wanted` bytes without taking them: all of them if the buffer can hold them, a full buffer
    /// if not. Fewer only where the stream ends.
    fn peek(&mut self, wanted: u64) -> Result<&[u8]> {
        let wanted = usize::try_from(wanted).unwrap_or(BUFFER).min(BUFFER);
        if self.end - self.start < wanted {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            while self.end < wanted {
                self.check_cancelled()?;
                match self.stream.read(&mut self.buffer[self.end..]) {
                    Ok(0) => break,
                    Ok(n) => self.end += n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(read_error(e)),
                }
            }
        }
        Ok(&self.buffer[self.start..self.end.min(self.start + wanted)])
    }

    /// Take up to `wanted` bytes, not none, and lend them until the next call.
    pub(crate) fn data(&mut self, wanted: u64) -> Result<&[u8]> {
        self.lend(wanted, None)
    }

    /// The same of bytes that become those of the file `path` from `offset` on.
    pub(crate) fn content(&mut self, path: &[u8], offset: u64, wanted: u64) -> Result<&[u8]> {
        self.lend(wanted, Some((path, offset)))
    }

    /// Take all that is left of the stream.
    pub(crate) fn drain(&mut self) -> Result<()> {
        loop {
            let count = self.peek(BUFFER as u64)?.len();
            if count == 0 {
                return Ok(());
            }
            self.check_room(count as u64)?;
            self.take(count, None)?;
        }
    }

    fn lend(&mut self, wanted: u64, content: Option<(&[u8], u64)>) -> Result<&[u8]> {
        let count = self.peek(wanted)?.len();
        if count == 0 {
            return Err(truncated());
        }
        self.check_room(count as u64)?;
        self.take(count, content)?;
        Ok(&self.buffer[self.start - count..self.start])
    }

    /// Take `count` bytes that [`peek`](Self::peek) lent.
    fn take(&mut self, count: usize, content: Option<(&[u8], u64)>) -> Result<()> {
        debug_assert!(count <= self.end - self.start);
        if let Some(tap) = &mut self.tap {
            let taken = &self.buffer[self.start..self.start + count];
            match content {
                None => tap.literal(taken)?,
                Some((path, offset)) => tap.content(path, offset, taken)?,
            }
        }
        self.start += count;
        self.position += count as u64;
        Ok(())
    }

    /// The next block, or `None` where the stream ends before its first byte.
    pub(crate) fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let lent = self.peek(BLOCK as u64)?;
        if lent.is_empty() {
            return Ok(None);
        }
        let block = *lent.first_chunk().ok_or_else(truncated)?;
        self.check_room(BLOCK as u64)?;
        self.take(BLOCK, None)?;
        Ok(Some(block))
    }

    /// Pass over `count` bytes.
    pub(crate) fn skip(&mut self, mut count: u64) -> Result<()> {
        self.check_room(count)?;
        while count > 0 {
            count -= self.data(count)?.len() as u64;
        }
        Ok(())
    }
}

/// The stream ends inside an entry.
pub(crate) fn truncated() -> Error {
    bad("the tar ends in the middle of an entry: it is truncated")
}

/// A failed read. A decompressor that met damage, or a caller's reader that wraps one of our own errors,
/// must not come out as a failed system call.
fn read_error(error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(ours) => ours,
        Err(error) => {
            use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
            if matches!(error.kind(), InvalidData | InvalidInput | UnexpectedEof) {
                bad(format!("read the layer: {error}"))
            } else {
                Error::system("read the layer", &error)
            }
        }
    }
}

/// `size` rounded up to whole blocks.
pub(crate) fn padded(size: u64) -> Result<u64> {
    size.checked_next_multiple_of(BLOCK as u64).ok_or_else(|| bad(format!("a size of {size} bytes is absurd")))
}
