//! Layers: tar streams into trees.
//!
//! [`unpack`] applies one layer's uncompressed tar to a tree that already holds the layers below it, as
//! the OCI image specification says ("Applying Changesets" in `layer.md`). It relies on being the only
//! writer of the tree while it works, and on root's rights (owners, devices, `trusted.*` attributes). It
//! must never touch anything outside the tree, whatever the tar says, and must never need memory in
//! proportion to a file's or the layer's size. A failed unpack leaves the tree half done: the caller
//! throws the whole tree away.
//!
//! ```text
//! reader/      bytes into entries: ustar, old v7, GNU, PAX, sparse maps; touches no filesystem
//! name         a tar name into components; what is a whiteout
//! apply        one entry after the other onto the tree
//! extract      any tar into a tree that others may be using
//! whiteout     what markers hide
//! dirs         directory descriptors: the only place that resolves a path
//! create       new inodes in a directory
//! holes        file content, blocks of zeros left out
//! attributes   owner, mode, extended attributes, times
//! ids          whose ids a tar has, and whose a tree
//! remove       subtrees, with a bounded number of descriptors
//! pack/        trees into layers: the way back
//! label        the label of SELinux, on all of a tree
//! made         which names this layer made, in eight bytes each
//! trace        where the contents of its files are, while names change
//! sink         a tar's bytes, those of files apart from all others
//! recipe/      what a tar has besides the contents of files, and the tar from it again
//! ```
//!
//! # What the tree looks like afterwards
//! - **Whiteouts** (`.wh.NAME`) and **opaque markers** (`.wh..wh..opq`) hide what lower layers have, never
//!   what this layer adds, wherever in the tar they stand: the tree is as if all of them stood first. Other
//!   names that start with `.wh..wh.` belong to AUFS and are ignored.
//! - **Names** are bytes. A leading `/` or `./` means nothing; `..` is refused. Parents that are symlinks
//!   are followed inside the tree, as they are when their entry is read (`bin -> usr/bin`); a last
//!   component never is. A symlink's own target is written as it stands.
//! - **Missing parents** are directories 0755, owned by root, without attributes, with mtime 0, so that an
//!   image gives the same tree on every machine. For the same reason a directory of a lower layer keeps its
//!   mtime when only its children change, and access times are set to the mtime.
//! - **A name twice**: the last entry wins. A directory over a directory merges and takes mode, owner, times
//!   and attributes of the new entry; everything else is replaced by a new inode, never written in place.
//! - **Hard links** are names for an inode that exists when their entry is read; the rest of their header
//!   says nothing new and is ignored.
//! - **Zeros**: where a file has 64 KiB of them, aligned, it gets a hole.
//! - **Attributes** that are the host's (`security.selinux`, `btrfs.*`) survive on a merged directory.
//!   Those of other systems (`com.apple.*`) are left out and counted, and so are settings of one filesystem
//!   (`btrfs.*`), so that an image gives the same tree on each. A label (`security.selinux`) is no layer's: it is neither
//!   taken from a tar nor written to one; [`relabel`] sets it.
//!
//! # Where the tar ends
//! At two zero blocks, or one that is the stream's last, or, as GNU tar and Docker accept it, where the
//! stream ends on the boundary before a header. Anything after the end is left to the caller.
//!
//! ```no_run
//! use reflinkd::layer::{Limits, unpack};
//! # fn main() -> reflinkd::Result<()> {
//! let mut tar = std::io::stdin().lock();
//! let summary = unpack(&mut tar, "/var/lib/tree".as_ref(), &Limits::default(), &|| false)?;
//! assert!(summary.entries < Limits::default().max_entries);
//! # Ok(())
//! # }
//! ```

mod apply;
mod attributes;
mod create;
mod dirs;
mod extract;
mod holes;
mod ids;
mod label;
mod made;
mod name;
pub mod pack;
pub mod reader;
pub mod recipe;
mod remove;
pub mod sink;
mod trace;
mod whiteout;

use std::fmt::Display;
use std::io::Read;
use std::path::Path;

use rustix::io::Errno;

use crate::error::{Error, Kind, Result};
pub use extract::extract;
pub use ids::{IdMaps, IdRange};
pub use label::{check_label, label_of, relabel};
pub(crate) use name::WHITEOUT;

/// What a layer may cost at most. A layer past a limit is refused with [`Kind::BadInput`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the uncompressed tar stream, and so of file data written: holes are free, and a sparse file's parts
    /// count as the 4 KiB blocks that they take.
    pub max_bytes: u64,
    /// Entries, directories made for missing parents included.
    pub max_entries: u64,
    /// Components in an entry's name or a hard link's target.
    pub max_depth: u32,
}

impl Limits {
    /// Bytes that one entry is taken to need at least, when the limit on entries follows from that on bytes.
    const BYTES_PER_ENTRY: u64 = 16 << 10;

    /// The same for streams of at most `max_bytes`, with as many entries as go with so many bytes if that is more.
    #[must_use]
    pub fn with_bytes(self, max_bytes: u64) -> Self {
        Self { max_bytes, max_entries: self.max_entries.max(max_bytes / Self::BYTES_PER_ENTRY), ..self }
    }
}

impl Default for Limits {
    /// 64 GiB, 4 Mi entries, 4096 components.
    fn default() -> Self {
        Self { max_bytes: 64 << 30, max_entries: 4 << 20, max_depth: 4096 }
    }
}

/// What a layer held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Entries of the tar, markers included, and directories made for missing parents.
    pub entries: u64,
    /// Sum of the lengths of the regular files in the tar, holes included, in bytes.
    pub bytes: u64,
    /// Extended attributes that were left out: of other systems, or a filesystem's own settings.
    pub foreign_attributes: u64,
}

/// Apply one layer's plain (uncompressed) tar to the tree at `root`.
///
/// Reads up to the end of the archive, in blocks of 256 KiB, so perhaps some way past it; the caller drains
/// the rest if it takes a digest. `cancelled` is asked at every entry and every block of data. Nothing is
/// synced: that is for the caller's filesystem to do.
///
/// # Errors
/// Messages name the entry. [`Kind::BadInput`] for a malformed, hostile or oversized tar;
/// [`Kind::NoSpace`] for a full filesystem or quota; [`Kind::Interrupted`] when `cancelled` says so;
/// [`Kind::Unsupported`] for an extended attribute or device that the filesystem can't hold; an error from
/// `tar` that wraps a [`crate::Error`] comes out as that error.
pub fn unpack(tar: &mut dyn Read, root: &Path, limits: &Limits, cancelled: &dyn Fn() -> bool) -> Result<Summary> {
    let archive = reader::Archive::new(tar, limits.max_bytes, cancelled);
    apply::Unpacker::new(archive, root, limits, &IdMaps::default(), None)?.run()?.settle()
}

/// [`unpack`] a layer's tar, and write its [`recipe`] to a new file outside of the tree. Reads the stream to its end, as
/// that is part of the diff ID. If it fails there is no recipe. The tree gets the host's ids for those of the tar, which
/// are the container's; the recipe has the tar as it is.
///
/// # Errors
/// Those of [`unpack`], and of writing the recipe; [`Kind::BadInput`] for an id that the maps don't have,
/// [`Kind::Invalid`] for maps without the container's root.
pub fn record(
    tar: &mut dyn Read,
    root: &Path,
    recipe: &Path,
    limits: &Limits,
    ids: &IdMaps,
    cancelled: &dyn Fn() -> bool,
) -> Result<Summary> {
    let mut writer = recipe::RecipeWriter::create(recipe)?;
    let archive = reader::Archive::tapped(tar, limits.max_bytes, cancelled, &mut writer);
    let mut unpacked = apply::Unpacker::new(archive, root, limits, ids, Some(trace::Trace::default()))?.run()?;
    writer.finish()?;
    let check = || match cancelled() {
        true => Err(Error::new(Kind::Interrupted, "interrupted")),
        false => Ok(()),
    };
    let settled = unpacked.trace(recipe, &check).and_then(|()| unpacked.settle());
    if settled.is_err() {
        let _ = std::fs::remove_file(recipe);
    }
    settled
}

/// An archive that is damaged, lies or tries to escape.
fn bad(why: impl Into<String>) -> Error {
    Error::new(Kind::BadInput, why)
}

/// A system call that failed, told apart: what the archive asked for can't be, or the system couldn't.
fn refused(call: impl Display, errno: Errno) -> Error {
    let error = Error::system(call, &errno.into());
    match errno {
        Errno::INVAL
        | Errno::NAMETOOLONG
        | Errno::LOOP
        | Errno::NOTDIR
        | Errno::ISDIR
        | Errno::RANGE
        | Errno::TOOBIG
        | Errno::FBIG
        | Errno::MLINK
        | Errno::XDEV
        | Errno::NOENT
        | Errno::EXIST => bad(error.to_string()),
        _ => error,
    }
}

/// What a directory has that no entry describes, being root's.
fn implied((uid, gid): (u32, u32)) -> reader::Attributes {
    reader::Attributes { mode: 0o755, uid, gid, ..Default::default() }
}
