//! Recipe and tree to the tar that they came from.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;

use super::codec::{Piece, Pieces};
use crate::layer::name::quoted;
use crate::sys::rooted;
use crate::{Context, Error, Kind, Result};

/// Bytes read and written at once.
const BUFFER: usize = 256 << 10;

/// Write the tar that `recipe` is of to `out`, with the contents of the tree at `root`. `cancelled` is asked at every
/// piece and every block of data.
///
/// What was written is worth nothing if this fails, and only what the digest of it says if not: a file whose content
/// was changed in place isn't noticed here.
///
/// # Errors
/// [`Kind::Damaged`] for a recipe that is damaged, and for a file that is missing from the tree, isn't a regular one or
/// is too short; [`Kind::Interrupted`] when `cancelled` says so.
pub fn restore(recipe: &Path, root: &Path, out: &mut dyn Write, cancelled: &dyn Fn() -> bool) -> Result<()> {
    let mut pieces = Pieces::open(recipe)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root_fd = openat(CWD, root, flags, Mode::empty()).context(|| format!("open {}", root.display()))?;
    let mut tree = Contents::new(root_fd, root);
    let mut buffer = vec![0; BUFFER];
    let check = || match cancelled() {
        true => Err(Error::new(Kind::Interrupted, "interrupted")),
        false => Ok(()),
    };
    while let Some(piece) = pieces.next()? {
        match piece {
            Piece::Literal(mut length) => {
                while length > 0 {
                    check()?;
                    let lent = pieces.literal(length)?;
                    length -= lent.len() as u64;
                    out.write_all(&lent).context(|| "write the tar")?;
                }
            }
            Piece::Content { mut offset, mut length } => {
                tree.open(pieces.path(), offset + length)?;
                while length > 0 {
                    check()?;
                    let wanted = buffer.len().min(usize::try_from(length).unwrap_or(usize::MAX));
                    let read = tree.read(pieces.path(), &mut buffer[..wanted], offset)?;
                    (offset, length) = (offset + read as u64, length - read as u64);
                    out.write_all(&buffer[..read]).context(|| "write the tar")?;
                }
            }
        }
    }
    Ok(())
}

/// The directory that a path is in, and its name there.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// Contents of the files of a tree. One directory and one file are kept open, as they come in runs.
struct Contents<'a> {
    root: OwnedFd,
    shown: &'a Path,
    parent: Vec<u8>,
    directory: Option<OwnedFd>,
    path: Vec<u8>,
    file: Option<OwnedFd>,
}

impl<'a> Contents<'a> {
    fn new(root: OwnedFd, shown: &'a Path) -> Self {
        Self { root, shown, parent: Vec::new(), directory: None, path: Vec::new(), file: None }
    }

    /// Open the file at `path`, through no link and no mount. It must have `least` bytes.
    fn open(&mut self, path: &[u8], least: u64) -> Result<()> {
        if self.file.is_none() || self.path != path {
            self.file = None;
            let file = self.find(path)?;
            self.path.clear();
            self.path.extend_from_slice(path);
            self.file = Some(file);
        }
        let Some(file) = &self.file else { return Ok(()) };
        let stat = fstat(file).context(|| self.named("stat", path))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(self.changed(path, "is no regular file any more"));
        }
        match u64::try_from(stat.st_size) {
            Ok(size) if size >= least => Ok(()),
            _ => Err(self.changed(path, "is shorter than it was")),
        }
    }

    fn find(&mut self, path: &[u8]) -> Result<OwnedFd> {
        let (parent, name) = split(path);
        if self.directory.is_none() || self.parent != parent {
            self.directory = None;
            let found = rooted::beneath(&self.root, parent, OFlags::PATH);
            self.directory = Some(found.map_err(|errno| self.missing(path, errno))?);
            self.parent.clear();
            self.parent.extend_from_slice(parent);
        }
        let Some(directory) = &self.directory else { return Err(self.missing(path, Errno::NOENT)) };
        // A FIFO in the file's place must not keep us waiting.
        let flags = OFlags::RDONLY | OFlags::NOATIME | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        openat2(directory, name, flags, Mode::empty(), resolve).map_err(|errno| self.missing(path, errno))
    }

    /// Bytes of the file that was opened last, not none.
    fn read(&self, path: &[u8], into: &mut [u8], offset: u64) -> Result<usize> {
        let Some(file) = &self.file else { return Err(self.missing(path, Errno::NOENT)) };
        loop {
            match rustix::io::pread(file, &mut *into, offset) {
                Ok(0) => return Err(self.changed(path, "is shorter than it was")),
                Err(Errno::INTR) => {}
                read => return read.context(|| self.named("read", path)),
            }
        }
    }

    fn named(&self, call: &str, path: &[u8]) -> String {
        format!("{call} {} in {}", quoted(path), self.shown.display())
    }

    fn changed(&self, path: &[u8], how: &str) -> Error {
        Error::new(Kind::Damaged, format!("{} in {} {how}", quoted(path), self.shown.display()))
    }

    fn missing(&self, path: &[u8], errno: Errno) -> Error {
        match errno {
            Errno::NOENT => self.changed(path, "is missing"),
            Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::NXIO | Errno::NODEV | Errno::NAMETOOLONG => {
                self.changed(path, "is no regular file any more")
            }
            errno => Error::system(self.named("open", path), &errno.into()),
        }
    }
}
