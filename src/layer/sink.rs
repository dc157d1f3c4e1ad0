//! A layer's tar as two kinds of bytes: those of files that a tree has, and all others.
//!
//! Who writes a tar ([`super::pack`]) and who reads one know where its content is in the tree; who keeps a recipe of it
//! ([`super::recipe`]) keeps the places and the other bytes. The concatenation of all that a sink is given, in order, is
//! the tar.

use std::io::Write;

use crate::Result;
use crate::error::Context;

/// Takes a tar in, piece by piece.
pub trait Sink {
    /// Headers, padding, the end: whatever is not the content of a file of the tree.
    fn literal(&mut self, bytes: &[u8]) -> Result<()>;

    /// Bytes that are those of the regular file `path`, from `offset` on. `path` is below the tree's root, without a
    /// leading slash, and leads there without passing a symlink.
    fn content(&mut self, path: &[u8], offset: u64, bytes: &[u8]) -> Result<()>;
}

/// A sink that only wants the tar's bytes.
#[derive(Debug)]
pub struct Plain<W>(pub W);

impl<W: Write> Sink for Plain<W> {
    fn literal(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.write_all(bytes).context(|| "write the tar")
    }

    fn content(&mut self, _: &[u8], _: u64, bytes: &[u8]) -> Result<()> {
        self.literal(bytes)
    }
}

/// Two sinks as one.
impl<A: Sink, B: Sink> Sink for (A, B) {
    fn literal(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.literal(bytes)?;
        self.1.literal(bytes)
    }

    fn content(&mut self, path: &[u8], offset: u64, bytes: &[u8]) -> Result<()> {
        self.0.content(path, offset, bytes)?;
        self.1.content(path, offset, bytes)
    }
}

impl<S: Sink + ?Sized> Sink for &mut S {
    fn literal(&mut self, bytes: &[u8]) -> Result<()> {
        (**self).literal(bytes)
    }

    fn content(&mut self, path: &[u8], offset: u64, bytes: &[u8]) -> Result<()> {
        (**self).content(path, offset, bytes)
    }
}
