//! A recipe whose tree changed while it was written: it gets the paths that the finished tree has.
//!
//! While a layer is unpacked, a content is put down under the name of its entry. That name may lead through a symlink,
//! and later entries may replace the file, one of its names or a directory above it. The inode is the same whatever its
//! names are, so each content is looked for by that: at its path, which is one stat; else among what was set aside
//! because its last name went, which then is literal; else in the whole tree, by one walk for all.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, openat, statat};
use rustix::io::Errno;

use super::codec::{Piece, Pieces};
use super::restore::split;
use super::{RecipeWriter, damaged};
use crate::layer::dirs::Id;
use crate::layer::name::quoted;
use crate::layer::sink::Sink;
use crate::sys::rooted;
use crate::{Context, Error, Kind, Result};

/// Directories of a walk open at once.
const WINDOW: usize = 32;
/// Bytes of names read at once.
const LISTING: usize = 32 << 10;
/// Bytes of a content that are copied at once.
const BUFFER: usize = 128 << 10;

/// Where contents are that no name leads to any more: each as the file that its inode number names.
#[derive(Clone, Copy)]
pub(crate) struct Aside<'a> {
    pub(crate) directory: &'a OwnedFd,
    /// Its own name in the root.
    pub(crate) name: &'a [u8],
}

/// Give `recipe` the paths of the tree at `root`. `inodes` has that of each content, in the tar's order: pieces with
/// nothing literal between them are one.
pub(crate) fn retrace(
    recipe: &Path,
    root: &OwnedFd,
    inodes: &[u64],
    aside: Option<Aside<'_>>,
    check: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let mut lost = lost(recipe, root, inodes, check)?;
    let mut wanted = 0;
    for (&inode, found) in &mut lost {
        match aside.map(|aside| statat(aside.directory, inode.to_string(), AtFlags::SYMLINK_NOFOLLOW)) {
            Some(Ok(_)) => *found = Found::Aside,
            None | Some(Err(Errno::NOENT)) => wanted += 1,
            Some(Err(errno)) => return Err(errno).context(|| "stat what was set aside"),
        }
    }
    if lost.is_empty() {
        return Ok(());
    }
    let mut walk =
        Walk { check, wanted, lost: &mut lost, skip: aside.map(|aside| aside.name), directories: Vec::new() };
    walk.run(root)?;
    let directories = walk.directories;

    let new = recipe.with_extension("new");
    let mut writer = RecipeWriter::create(&new)?;
    let mut above: Option<(u32, Vec<u8>)> = None;
    let mut contents = Numbered::new(Pieces::open(recipe)?);
    while let Some(piece) = contents.next()? {
        check()?;
        match piece {
            Piece::Literal(mut length) => {
                while length > 0 {
                    let lent = contents.pieces.literal(length)?;
                    length -= lent.len() as u64;
                    writer.literal(&lent)?;
                }
            }
            Piece::Content { offset, length } => {
                let inode = contents.inode(inodes)?;
                match (lost.get(&inode), aside) {
                    (None, _) => writer.place(contents.pieces.path(), offset, length)?,
                    (Some(Found::In(directory, name)), _) => {
                        // Files of one directory come in runs.
                        let (_, prefix) = match above.take() {
                            Some(same) if same.0 == *directory => above.insert(same),
                            _ => above.insert((*directory, path(&directories, *directory))),
                        };
                        writer.place(&[prefix, &name[..]].concat(), offset, length)?;
                    }
                    (Some(Found::Aside), Some(aside)) => keep(&mut writer, aside, inode, offset, length)?,
                    _ => return Err(gone(contents.pieces.path())),
                }
            }
        }
    }
    writer.finish()?;
    std::fs::rename(&new, recipe).context(|| format!("rename {} to {}", new.display(), recipe.display()))
}

/// Where a content is that isn't where its entry's name leads.
enum Found {
    Nowhere,
    Aside,
    /// Under this name in the directory with this number.
    In(u32, Box<[u8]>),
}

/// Pieces with the number of the content that they are of.
struct Numbered {
    pieces: Pieces,
    contents: usize,
    goes_on: bool,
}

impl Numbered {
    fn new(pieces: Pieces) -> Self {
        Self { pieces, contents: 0, goes_on: false }
    }

    fn next(&mut self) -> Result<Option<Piece>> {
        let piece = self.pieces.next()?;
        let content = matches!(piece, Some(Piece::Content { .. }));
        self.contents += usize::from(content && !self.goes_on);
        self.goes_on = content;
        Ok(piece)
    }

    /// The inode of the content that the last piece is of.
    fn inode(&self, inodes: &[u64]) -> Result<u64> {
        inodes.get(self.contents - 1).copied().ok_or_else(|| gone(self.pieces.path()))
    }
}

/// The inodes whose contents aren't where the recipe says.
fn lost(
    recipe: &Path,
    root: &OwnedFd,
    inodes: &[u64],
    check: &dyn Fn() -> Result<()>,
) -> Result<HashMap<u64, Found>> {
    let mut lost = HashMap::new();
    let mut contents = Numbered::new(Pieces::open(recipe)?);
    let mut parent: Option<(Vec<u8>, rustix::io::Result<OwnedFd>)> = None;
    while let Some(piece) = contents.next()? {
        check()?;
        match piece {
            Piece::Literal(mut length) => {
                while length > 0 {
                    length -= contents.pieces.literal(length)?.len() as u64;
                }
            }
            Piece::Content { .. } => {
                let inode = contents.inode(inodes)?;
                let (above, name) = split(contents.pieces.path());
                if parent.as_ref().is_none_or(|(path, _)| path != above) {
                    parent = Some((above.to_vec(), rooted::beneath(root, above, OFlags::PATH)));
                }
                let Some((_, found)) = &parent else { continue };
                let stat = match found {
                    Ok(directory) => statat(directory, name, AtFlags::SYMLINK_NOFOLLOW),
                    Err(errno) => Err(*errno),
                };
                match stat {
                    Ok(stat) if Id::of(&stat).inode == inode => {}
                    Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                        lost.insert(inode, Found::Nowhere);
                    }
                    Err(errno) => return Err(errno).context(|| format!("stat {}", quoted(contents.pieces.path()))),
                }
            }
        }
    }
    if contents.contents == inodes.len() {
        Ok(lost)
    } else {
        Err(damaged(recipe, "it has not the contents that were unpacked"))
    }
}

/// Put a part of what was set aside into the recipe itself.
fn keep(writer: &mut RecipeWriter, aside: Aside<'_>, inode: u64, mut offset: u64, mut length: u64) -> Result<()> {
    let what = || "read what was set aside";
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(aside.directory, inode.to_string(), flags, Mode::empty()).context(what)?;
    let mut buffer = vec![0; BUFFER];
    while length > 0 {
        let part = buffer.len().min(usize::try_from(length).unwrap_or(usize::MAX));
        match rustix::io::pread(&file, &mut buffer[..part], offset) {
            Ok(0) => return Err(Error::new(Kind::Damaged, "what was set aside is shorter than it was")),
            Ok(read) => {
                writer.literal(&buffer[..read])?;
                (offset, length) = (offset + read as u64, length - read as u64);
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context(what),
        }
    }
    Ok(())
}

fn gone(path: &[u8]) -> Error {
    Error::new(Kind::Damaged, format!("the content of {} is in the tree no more", quoted(path)))
}

/// A directory in which something was found: the one above it, and its name in that.
type Directory = (Option<u32>, Vec<u8>);

/// The path of a directory, with a slash at its end if it isn't the root.
fn path(directories: &[Directory], directory: u32) -> Vec<u8> {
    let mut names: Vec<&[u8]> = vec![b""];
    let mut above = Some(directory);
    while let Some((next, name)) = above.and_then(|number| directories.get(number as usize)) {
        names.push(name);
        above = *next;
    }
    // The root has no name.
    names.pop();
    names.reverse();
    names.join(&b'/')
}

/// Looks for inodes in a whole tree. Iterative, with few descriptors: those further up are found again through `..`.
struct Walk<'a> {
    check: &'a dyn Fn() -> Result<()>,
    lost: &'a mut HashMap<u64, Found>,
    wanted: usize,
    /// A name in the root that isn't gone into.
    skip: Option<&'a [u8]>,
    directories: Vec<Directory>,
}

struct Frame {
    /// `None` while further up than the window.
    fd: Option<OwnedFd>,
    name: Vec<u8>,
    /// Among the directories, once something is found in it or below it.
    number: Option<u32>,
    subdirs: Vec<Vec<u8>>,
}

impl Walk<'_> {
    fn run(&mut self, root: &OwnedFd) -> Result<()> {
        let mut stack = Vec::new();
        self.enter(&mut stack, root, b".".to_vec())?;
        while self.wanted > 0
            && let Some(depth) = stack.len().checked_sub(1)
        {
            let top = &mut stack[depth];
            match (top.subdirs.pop(), top.fd.take()) {
                (Some(name), Some(fd)) => {
                    self.enter(&mut stack, &fd, name)?;
                    stack[depth].fd = Some(fd);
                    if depth >= WINDOW {
                        stack[depth - WINDOW].fd = None;
                    }
                }
                (_, fd) => {
                    stack.pop();
                    if let (Some(fd), Some(parent)) = (fd, stack.last_mut())
                        && parent.fd.is_none()
                    {
                        parent.fd = Some(open(&fd, b"..")?);
                    }
                }
            }
        }
        Ok(())
    }

    /// Look for inodes in the directory `name` of `parent`.
    fn enter(&mut self, stack: &mut Vec<Frame>, parent: &OwnedFd, name: Vec<u8>) -> Result<()> {
        (self.check)()?;
        let fd = open(parent, &name)?;
        let at = stack.len();
        stack.push(Frame { fd: None, name, number: None, subdirs: Vec::new() });
        let mut buffer = vec![MaybeUninit::uninit(); LISTING];
        let mut listing = RawDir::new(&fd, &mut buffer);
        while let Some(entry) = listing.next() {
            let entry = entry.context(|| "list a directory")?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") || (at == 0 && self.skip == Some(name)) {
                continue;
            }
            let stat = match entry.file_type() {
                FileType::Directory => {
                    stack[at].subdirs.push(name.to_vec());
                    continue;
                }
                FileType::RegularFile | FileType::Unknown => {
                    statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW).context(|| format!("stat {}", quoted(name)))?
                }
                _ => continue,
            };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                stack[at].subdirs.push(name.to_vec());
            } else if let Some(found @ Found::Nowhere) = self.lost.get_mut(&Id::of(&stat).inode) {
                *found = Found::In(number(&mut self.directories, stack)?, name.into());
                self.wanted -= 1;
            }
        }
        stack[at].fd = Some(fd);
        Ok(())
    }
}

/// The number of the directory on top of the stack, those above it numbered too.
fn number(directories: &mut Vec<Directory>, stack: &mut [Frame]) -> Result<u32> {
    let mut above = None;
    for frame in stack {
        let number = match frame.number {
            Some(number) => number,
            None => u32::try_from(directories.len())
                .map_err(|_| Error::new(Kind::Unsupported, "the tree has too many directories"))?,
        };
        if frame.number.is_none() {
            directories.push((above, frame.name.clone()));
            frame.number = Some(number);
        }
        above = Some(number);
    }
    above.ok_or_else(|| Error::new(Kind::System, "a walk has no root"))
}

/// A directory to list, without its access time changing.
fn open(at: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NOATIME | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty()).context(|| format!("open {}", quoted(name)))
}
