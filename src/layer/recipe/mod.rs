//! What a layer's tar has besides the contents of files: enough to write the tar again, byte for byte.
//!
//! A layer is known by its diff ID, the digest of its tar. The tree keeps what the tar means, not how it was written:
//! its order, its padding, the spelling of its numbers. A *recipe* is a file with all of that. [`RecipeWriter`] makes
//! one while a tar goes by ([`Sink`](super::sink::Sink)); [`restore`] puts recipe and tree together again.
//!
//! ```text
//! unpack ──> tree                    reflinkd save
//!    └─────> RecipeWriter ──> recipe ──┐
//!               tree ──────────────────┴─> restore ──> the same tar
//! ```
//!
//! It relies on the tree being as it was when the recipe was finished, which its caller checks by the digest of what
//! comes out. It must never follow a link out of the tree or in it, never need memory in proportion to a tar, and takes
//! a recipe for what may be damaged: that is an error of [`Kind::Damaged`] with the recipe's path.
//!
//! ```no_run
//! use reflinkd::layer::recipe::{RecipeWriter, restore};
//! use reflinkd::layer::sink::Sink;
//! # fn main() -> reflinkd::Result<()> {
//! let mut recipe = RecipeWriter::create("/place/recipe".as_ref())?;
//! recipe.literal(b"a header")?;
//! recipe.content(b"etc/passwd", 0, b"root:x:0:0::/root:/bin/sh\n")?;
//! let length = recipe.finish()?; // durable
//! restore("/place/recipe".as_ref(), "/place/fs".as_ref(), &mut std::io::stdout(), &|| false)?;
//! # Ok(())
//! # }
//! ```
//!
//! # Format
//!
//! ```text
//! 0   7   "RFLKRCP"
//! 7   1   number of the format: 1
//! 8   8   length of the tar in bytes, little endian
//! 16  4   CRC-32C of the bytes before, little endian
//! 20      one zstd frame with a checksum (RFC 8878), window at most 8 MiB: pieces, one after the other
//! ```
//!
//! A piece begins with a number, `length << 2 | kind`. Numbers are LEB128: seven bits a byte, the lowest first, the top
//! bit set on all but the last.
//!
//! ```text
//! 0  literal   `length` bytes of the tar follow
//! 1  content   the next `length` bytes of the tar are those of a regular file of the tree. Follow: how many bytes its
//!              path has in common with that of the content before, how many more there are, these, the offset in it
//! 2  more      the same of the file that the content before was of. Follows: the offset
//! 3  end       the tar has `length` bytes; nothing follows
//! ```
//!
//! For example, `hello` in `a/b` with a header before it and padding after it:
//!
//! ```text
//! 80 10 <512 bytes>   15 00 03 "a/b" 00   ec 0f <507 bytes>   83 20
//! ```
//!
//! Content of one file that continues is one piece. A path has at most [`LONGEST_PATH`] bytes, no leading slash, no `.`
//! and no `..`.

mod codec;
mod restore;
mod retrace;
mod writer;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::path::Path;

use crate::{Error, Kind, Result};

pub use restore::restore;
pub(crate) use retrace::{Aside, retrace};
pub use writer::RecipeWriter;

/// Longest path of a content in bytes. What is content of a longer one has to be literal.
pub const LONGEST_PATH: usize = 2 << 20;

/// The length in bytes of the tar that a recipe is of.
///
/// # Errors
/// `NotFound` if there is no recipe, [`Kind::Damaged`] if its head is damaged.
pub fn plain_size(recipe: &Path) -> Result<u64> {
    codec::Pieces::open(recipe).map(|pieces| pieces.plain_size())
}

/// Read all of a recipe, without a tree.
///
/// # Errors
/// `NotFound` if there is no recipe, [`Kind::Damaged`] if any of it is damaged.
pub fn verify(recipe: &Path) -> Result<()> {
    let mut pieces = codec::Pieces::open(recipe)?;
    while let Some(piece) = pieces.next()? {
        if let codec::Piece::Literal(mut length) = piece {
            while length > 0 {
                length -= pieces.literal(length)?.len() as u64;
            }
        }
    }
    Ok(())
}

fn damaged(recipe: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(Kind::Damaged, format!("the recipe {} is damaged: {why}", recipe.display()))
}
