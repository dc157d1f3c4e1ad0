//! Trees into layers: the counterpart of [`unpack`](super::unpack).
//!
//! [`pack`] writes the tar that makes one tree of another: what is to be made, as it is in the tree, and markers for what
//! is to be hidden. [`pack_tree`] writes all of a tree, [`pack_open`] what is at one place in it. What any of them writes,
//! [`unpack`](super::unpack) turns into the same entries again, to the ns and the last attribute, and so does anybody else
//! who reads POSIX's pax.
//!
//! Relies on root's rights. Reads through descriptors below the root only: no symlink is followed, no mount crossed, no
//! device or FIFO opened. Needs memory for the names of the items and of the directories it is in, whatever the size
//! of files, and four descriptors, whatever the depth. Times of access stay as they are, but those of symlinks.
//!
//! ```text
//! tree       what is in the tree: nodes, names, attributes
//! header     a node as ustar block and PAX records
//! content    bytes of files, and where they have none
//! ```
//!
//! # What the tar looks like
//! ```text
//! echo x > etc/new                etc/ (as it is now), etc/new
//! rm usr/share/doc/a              usr/, usr/share/, usr/share/doc/, usr/share/doc/.wh.a: directories on the way are in
//!                                 it with all they have. Who unpacks onto an overlay has nothing else to make them of
//! rm d/z; echo x > d/a            d/, d/.wh.z, d/a: markers stand first in their directory
//! ln a b                          a with its content, b as a link to it: all names of the inode have to be items
//! chmod 700 .                     ./
//! ```
//!
//! Entries are in the order of their paths, component by component. The same tree gives the same bytes, on every
//! filesystem: headers hold nothing else than type, permissions, owner, time of modification, size, device, target and
//! attributes; PAX records, in the order of their keys, only what a ustar field can't hold. Attributes are left out
//! that unpacking leaves alone, as they aren't the layer's (`attributes::is_layers`).
//!
//! Holes are zeros in the tar, without being read, unless a file has 1 GiB or more of them: then it is a sparse entry
//! (GNU's PAX format 1.0). `docs/decisions/008-holes-are-zeros-in-a-tar.md` says why.
//!
//! # What can't be in it
//! Sockets: nobody can connect to one that nobody made. They are left out and counted. In a layer, names that begin with
//! `.wh.`: they would hide something. The packer refuses them by name; in a whole tree they stay as they are.
//!
//! # A tree that is written to
//! [`pack_tree`] takes each entry as it is when it comes by; what vanishes meanwhile is left out. A file that gets shorter
//! while it is read is filled up with zeros.

mod content;
mod header;
#[cfg(test)]
mod tests;
pub(super) mod tree;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::FileType;

use super::dirs::{Id, shared};
use super::ids::IdMaps;
use super::name::{WHITEOUT, quoted};
use super::reader::Attributes;
use super::reader::source::BLOCK;
use super::sink::Sink;
use crate::error::{Context, Error, Kind, Result};
use crate::sys::way::{Way, Ways};
use content::Reader;
use header::Header;
use tree::{Node, Source, Walk};

/// Something that a layer is to do. The path is below the tree's root; the root itself is the empty path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// Make it as it is in the tree. What is in a directory takes items of its own.
    Make(Vec<u8>),
    /// Hide what lower layers have there, with all below it.
    Hide(Vec<u8>),
}

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Packed {
    /// Of the tar.
    pub bytes: u64,
    /// Entries of the tar, markers and directories on the way included.
    pub entries: u64,
    /// Sum of the lengths of the regular files, holes included, each inode counted once.
    pub file_bytes: u64,
    /// Sockets.
    pub left_out: u64,
}

/// Write the layer that `items` are, sorted by path, component by component, with the container's ids for those of the
/// tree, which are the host's. At most `max_bytes` are written. `cancelled` is asked at every entry and every block of data.
///
/// # Errors
/// Messages name the entry. [`Kind::NotFound`] for an item that isn't there; [`Kind::Unsupported`] for what a layer can't
/// hold, and for an id that the maps don't have; [`Kind::Invalid`] past `max_bytes`; [`Kind::InUse`] if something is mounted on a directory;
/// [`Kind::Interrupted`] when `cancelled` says so; the sink's own.
pub fn pack(
    root: &Path,
    items: &[Item],
    ids: &IdMaps,
    max_bytes: u64,
    sink: &mut dyn Sink,
    cancelled: &dyn Fn() -> bool,
) -> Result<Packed> {
    let mut packer = Packer::new(Source::open(root)?, b"", max_bytes, sink, cancelled);
    packer.layer = true;
    packer.ids = ids.clone();
    for path in items.iter().filter_map(|item| if let Item::Hide(path) = item { Some(path) } else { None }) {
        let (parent, name) = split(path);
        packer.hidden.entry(parent.to_vec()).or_default().push(name.to_vec());
    }
    if items.first() != Some(&Item::Make(Vec::new())) {
        packer.markers(b"")?;
    }
    for item in items {
        let (Item::Make(path) | Item::Hide(path)) = item;
        packer.ancestors(path)?;
        if matches!(item, Item::Make(_)) {
            packer.required(path)?;
        }
    }
    packer.end()
}

/// What a layer would have of a tree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// What [`Packed::file_bytes`] would be.
    pub file_bytes: u64,
    /// Inodes, each once, whatever its names.
    pub inodes: u64,
}

/// Count what the layer that `items` are would have: no file is opened, and what is gone counts as nothing.
///
/// # Errors
/// Those of [`pack`] that come from the tree.
pub fn count(root: &Path, items: &[Item], cancelled: &dyn Fn() -> bool) -> Result<Count> {
    let mut source = Source::open(root)?;
    let (mut counted, mut count) = (HashSet::new(), Count::default());
    for path in items.iter().filter_map(|item| if let Item::Make(path) = item { Some(path) } else { None }) {
        check(cancelled)?;
        let Some(node) = source.node(path).map_err(|error| entry_error(path, error))? else { continue };
        if node.has_other_names() && !counted.insert(node.id) {
            continue;
        }
        count.inodes += 1;
        if node.kind == FileType::RegularFile {
            count.file_bytes = count.file_bytes.saturating_add(node.size);
        }
    }
    Ok(count)
}

/// Write everything in the tree at `root`, the root directory itself first. The rest is as for [`pack`].
pub fn pack_tree(root: &Path, max_bytes: u64, sink: &mut dyn Sink, cancelled: &dyn Fn() -> bool) -> Result<Packed> {
    Packer::new(Source::open(root)?, b"", max_bytes, sink, cancelled).all()
}

/// Write what is open, with all that is in it if it is a directory, under this name; a directory without a name as
/// [`pack_tree`] does. What is no directory is open by O_PATH. The rest is as for [`pack`].
pub fn pack_open(
    what: OwnedFd,
    name: &[u8],
    max_bytes: u64,
    sink: &mut dyn Sink,
    cancelled: &dyn Fn() -> bool,
) -> Result<Packed> {
    Packer::new(Source::of(what), name, max_bytes, sink, cancelled).all()
}

struct Packer<'a> {
    source: Source,
    /// What the root is called in the tar; empty for `./`.
    name: &'a [u8],
    reader: Reader,
    tar: Tar<'a>,
    /// Names to hide, by the paths of their directories.
    hidden: BTreeMap<Vec<u8>, Vec<Vec<u8>>>,
    /// The directory that was written last, or that holds what was.
    at: Vec<u8>,
    /// The first names of inodes that have several: the directory and the name there.
    linked: HashMap<Id, (Way, Box<[u8]>)>,
    /// To the directories of these.
    ways: Ways,
    /// Names that would hide something are refused.
    layer: bool,
    ids: IdMaps,
    packed: Packed,
}

impl<'a> Packer<'a> {
    fn new(
        source: Source,
        name: &'a [u8],
        max_bytes: u64,
        sink: &'a mut dyn Sink,
        cancelled: &'a dyn Fn() -> bool,
    ) -> Self {
        Self {
            source,
            name,
            reader: Reader::default(),
            tar: Tar { sink, bytes: 0, max_bytes, cancelled },
            hidden: BTreeMap::new(),
            at: Vec::new(),
            linked: HashMap::new(),
            ways: Ways::default(),
            layer: false,
            ids: IdMaps::default(),
            packed: Packed::default(),
        }
    }

    /// What `path` is called in the tar.
    fn named(&self, path: &[u8]) -> Vec<u8> {
        match (self.name, path) {
            (b"", path) => path.to_vec(),
            (name, b"") => name.to_vec(),
            (name, path) => [name, path].join(&b'/'),
        }
    }

    /// Write the tree's root, and everything in it.
    fn all(mut self) -> Result<Packed> {
        if self.required(b"")? != FileType::Directory {
            return self.end();
        }
        let mut walk = Walk::default();
        walk.enter(self.source.names(b"")?);
        while let Some(path) = walk.next() {
            if self.make(path)? == Some(FileType::Directory) {
                let names = self.source.names(path)?;
                walk.enter(names);
            }
        }
        self.end()
    }

    /// Write the directories that lead to `path`, as far as they haven't been yet.
    fn ancestors(&mut self, path: &[u8]) -> Result<()> {
        let (parent, _) = split(path);
        let mut end = shared(&self.at, parent);
        while end < parent.len() {
            let start = if end == 0 { 0 } else { end + 1 };
            end = parent[start..].iter().position(|&b| b == b'/').map_or(parent.len(), |length| start + length);
            if self.required(&parent[..end])? != FileType::Directory {
                return Err(entry_error(
                    &parent[..end],
                    Error::new(Kind::NotFound, "it is not a directory any more"),
                ));
            }
        }
        self.at.truncate(parent.len());
        Ok(())
    }

    fn required(&mut self, path: &[u8]) -> Result<FileType> {
        self.make(path)?
            .ok_or_else(|| entry_error(path, Error::new(Kind::NotFound, "it is not in the tree any more")))
    }

    /// Write what `path` is; a directory with the markers in it. `None` if it isn't there.
    fn make(&mut self, path: &[u8]) -> Result<Option<FileType>> {
        let kind = self.node(path).map_err(|error| entry_error(path, error))?;
        if kind == Some(FileType::Directory) {
            self.at.clear();
            self.at.extend_from_slice(path);
            self.markers(path)?;
        }
        Ok(kind)
    }

    fn node(&mut self, path: &[u8]) -> Result<Option<FileType>> {
        self.tar.check_cancelled()?;
        let (_, name) = split(path);
        if self.layer && name.starts_with(WHITEOUT) {
            let why =
                format!("a layer can't hold the name {}: it would hide a file of the layers below", quoted(name));
            return Err(Error::new(Kind::Unsupported, why).with_hint("rename it"));
        }
        let Some(node) = self.source.node(path)? else { return Ok(None) };
        if node.kind == FileType::Socket {
            self.packed.left_out += 1;
            return Ok(Some(node.kind));
        }
        let mut attributes = node.attributes()?;
        self.ids.map_out(&mut attributes)?;
        let first = match node.has_other_names() {
            true => self.linked.get(&node.id).map(|(directory, name)| directory.join(name).path()),
            false => None,
        };
        let name = self.named(path);
        let header = Header::new(&name, &attributes);
        match (first, node.kind) {
            (Some(first), _) => self.entry(&Header { kind: b'1', link: &first, ..header })?,
            (None, FileType::RegularFile) => self.file(path, &name, &node, &attributes)?,
            (None, FileType::Directory) => {
                let name = if name.is_empty() { b"./".to_vec() } else { [&name[..], b"/"].concat() };
                self.entry(&Header { kind: b'5', path: &name, ..header })?;
            }
            (None, FileType::Symlink) => {
                let target = node.target()?;
                self.entry(&Header { kind: b'2', link: &target, ..header })?;
            }
            (None, FileType::CharacterDevice) => self.entry(&Header { kind: b'3', device: node.device, ..header })?,
            (None, FileType::BlockDevice) => self.entry(&Header { kind: b'4', device: node.device, ..header })?,
            (None, FileType::Fifo) => self.entry(&Header { kind: b'6', ..header })?,
            (None, _) => return Err(Error::new(Kind::Unsupported, "it is of a type that a tar doesn't have")),
        }
        if node.has_other_names() {
            let (directory, name) = split(&name);
            let ways = &mut self.ways;
            self.linked.entry(node.id).or_insert_with(|| (ways.to(directory), name.into()));
        }
        Ok(Some(node.kind))
    }

    fn file(&mut self, path: &[u8], name: &[u8], node: &Node, attributes: &Attributes) -> Result<()> {
        let file = node.open()?;
        let length = file.metadata().context(|| "stat")?.len();
        self.packed.file_bytes = self.packed.file_bytes.saturating_add(length);
        let header = Header { kind: b'0', ..Header::new(name, attributes) };
        match content::sparse_map(&file, length)? {
            None => {
                self.tar.check_room(length)?;
                self.entry(&Header { size: length, ..header })?;
                self.reader.copy(&mut self.tar, path, &file, 0..length)?;
                self.tar.pad(length)
            }
            Some(map) => {
                let text = content::map_text(&map);
                let stored = text.len() as u64 + map.iter().map(|part| part.length).sum::<u64>();
                self.tar.check_room(stored)?;
                self.entry(&Header { size: stored, sparse: Some(length), ..header })?;
                self.tar.literal(&text)?;
                for part in map {
                    self.reader.copy(&mut self.tar, path, &file, part.offset..part.offset + part.length)?;
                }
                self.tar.pad(stored)
            }
        }
    }

    /// Write markers for what is to be hidden in a directory.
    fn markers(&mut self, directory: &[u8]) -> Result<()> {
        // The markers' own attributes mean nothing, and are always the same.
        let attributes = Attributes { mode: 0o600, ..Attributes::default() };
        for name in self.hidden.remove(directory).unwrap_or_default() {
            if name.is_empty() || name.starts_with(WHITEOUT) {
                let why = format!("a layer can't hide the name {}", quoted(&name));
                return Err(Error::new(Kind::Unsupported, why));
            }
            let name = [WHITEOUT, &name].concat();
            let path = if directory.is_empty() { name } else { [directory, &name].join(&b'/') };
            self.entry(&Header { kind: b'0', ..Header::new(&path, &attributes) })?;
        }
        Ok(())
    }

    fn entry(&mut self, header: &Header<'_>) -> Result<()> {
        self.packed.entries += 1;
        self.tar.literal(&header.encoded()?)
    }

    fn end(mut self) -> Result<Packed> {
        debug_assert!(self.hidden.is_empty(), "items are sorted");
        self.tar.literal(&[0; 2 * BLOCK])?;
        Ok(Packed { bytes: self.tar.bytes, ..self.packed })
    }
}

/// What is written, counted and held to its limit.
struct Tar<'a> {
    sink: &'a mut dyn Sink,
    bytes: u64,
    max_bytes: u64,
    cancelled: &'a dyn Fn() -> bool,
}

impl Tar<'_> {
    fn literal(&mut self, bytes: &[u8]) -> Result<()> {
        self.count(bytes)?;
        self.sink.literal(bytes)
    }

    fn content(&mut self, path: &[u8], offset: u64, bytes: &[u8]) -> Result<()> {
        self.check_cancelled()?;
        self.count(bytes)?;
        self.sink.content(path, offset, bytes)
    }

    /// Fill up to whole blocks behind data of that length.
    fn pad(&mut self, length: u64) -> Result<()> {
        let over = (length % BLOCK as u64) as usize;
        if over == 0 { Ok(()) } else { self.literal(&[0; BLOCK][over..]) }
    }

    fn count(&mut self, bytes: &[u8]) -> Result<()> {
        self.check_room(bytes.len() as u64)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Refuse now what would run past the limit later.
    fn check_room(&self, more: u64) -> Result<()> {
        match self.bytes.checked_add(more) {
            Some(total) if total <= self.max_bytes => Ok(()),
            _ => {
                let why = format!("the layer would be larger than the limit of {} bytes", self.max_bytes);
                Err(Error::new(Kind::Invalid, why))
            }
        }
    }

    fn check_cancelled(&self) -> Result<()> {
        check(self.cancelled)
    }
}

fn check(cancelled: &dyn Fn() -> bool) -> Result<()> {
    if cancelled() { Err(Error::new(Kind::Interrupted, "interrupted")) } else { Ok(()) }
}

fn entry_error(path: &[u8], error: Error) -> Error {
    error.context(format!("entry {}", quoted(if path.is_empty() { b"./" } else { path })))
}

/// The directory that a path is in, and its name there.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}
