//! The named files of an input, be it a directory or a tar, or a repository that knows digests only.
//!
//! Nothing outside of the input is ever opened: below a layout's directory no symlink is followed and
//! nothing but regular files is read; in a tar, links lead to other entries of it or nowhere.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use super::Remote;
use super::tar_index::TarIndex;
use crate::oci::digest::quoted;
use crate::{Context, Error, Kind, Result};

/// Where names are looked up.
#[derive(Debug)]
pub(super) enum Files {
    Directory(OwnedFd),
    Archive(TarIndex),
    Remote(Arc<dyn Remote>),
}

/// Some bytes of a file.
#[derive(Clone, Debug)]
pub(super) struct Extent {
    pub(super) file: Arc<File>,
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl Files {
    /// The file with this name, if there is one.
    ///
    /// # Errors
    /// [`Kind::BadInput`] for a name or link that leads outside, and for what isn't a regular file.
    pub(super) fn find(&self, name: &str) -> Result<Option<Extent>> {
        let name = normalized(name)?;
        match self {
            Self::Directory(root) => find_below(root, &name),
            Self::Archive(index) => index.find(&name),
            // Its blobs are asked for by their descriptors.
            Self::Remote(_) => Ok(None),
        }
    }

    /// What the input is, for messages.
    pub(super) fn noun(&self) -> &'static str {
        match self {
            Self::Directory(_) => "directory",
            Self::Archive(_) => "archive",
            Self::Remote(_) => "repository",
        }
    }
}

fn find_below(root: &OwnedFd, name: &str) -> Result<Option<Extent>> {
    // NONBLOCK: a fifo in place of a blob must not hang us.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let file = match openat2(root, name, flags, Mode::empty(), resolve) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(Errno::LOOP) => {
            return Err(Error::new(Kind::BadInput, format!("{} is or lies behind a symlink", quoted(name))));
        }
        // No device behind a node, or a socket.
        Err(Errno::NXIO | Errno::NODEV) => return Err(not_regular(name)),
        Err(e) => return Err(e).context(|| format!("open {}", quoted(name))),
    };
    let metadata = file.metadata().context(|| format!("stat {}", quoted(name)))?;
    if !metadata.is_file() {
        return Err(not_regular(name));
    }
    Ok(Some(Extent { file: Arc::new(file), offset: 0, len: metadata.len() }))
}

fn not_regular(name: &str) -> Error {
    Error::new(Kind::BadInput, format!("{} isn't a regular file", quoted(name)))
}

/// A name without `.` and doubled slashes.
///
/// # Errors
/// [`Kind::BadInput`] if it is absolute or has a `..`, or is empty.
pub(super) fn normalized(name: &str) -> Result<String> {
    let bad = |why| Error::new(Kind::BadInput, format!("{} {why}", quoted(name)));
    if name.starts_with('/') {
        return Err(bad("is an absolute name"));
    }
    let parts: Vec<&str> = name.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") {
        return Err(bad("leads out of its directory"));
    }
    if parts.is_empty() || name.contains('\0') {
        return Err(bad("isn't a file's name"));
    }
    Ok(parts.join("/"))
}

impl Extent {
    /// Its bytes from the front.
    pub(super) fn reader(self) -> impl Read + Send + use<> {
        ExtentReader { at: self.offset, end: self.offset.saturating_add(self.len), file: self.file }
    }
}

struct ExtentReader {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for ExtentReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let want = into.len().min(left);
        let n = self.file.read_at(&mut into[..want], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_form_and_stay_inside() {
        for (name, expected) in [("a", "a"), ("./a", "a"), ("a//b/./c", "a/b/c"), ("a/", "a"), ("..a/b..", "..a/b..")]
        {
            assert_eq!(normalized(name).unwrap(), expected);
        }
        for name in ["", ".", "./", "/a", "//a", "..", "a/..", "a/../b", "./../b", "a\0b"] {
            assert_eq!(normalized(name).unwrap_err().kind(), Kind::BadInput, "{name:?}");
        }
    }
}
