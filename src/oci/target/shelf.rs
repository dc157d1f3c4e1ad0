//! What files are put on: an archive, or a directory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::{Context, Error, Kind, Result};

/// Takes files, one after the other.
pub(super) trait Shelf {
    /// A file of exactly `size` bytes, which `fill` writes.
    fn file(&mut self, name: &str, size: u64, fill: &mut dyn FnMut(&mut dyn Write) -> Result<()>) -> Result<()>;
}

/// Bytes of a tar's blocks.
const BLOCK: u64 = 512;

/// A tar whose bytes depend on nothing but its files.
pub(super) struct Archive<W> {
    out: W,
}

impl<W: Write> Archive<W> {
    pub(super) fn begin(out: W) -> Result<Self> {
        let mut archive = Self { out };
        for directory in ["blobs/", "blobs/sha256/"] {
            archive.header(directory, tar::EntryType::Directory, 0o755, 0)?;
        }
        Ok(archive)
    }

    pub(super) fn end(mut self) -> Result<()> {
        self.out.write_all(&[0; 2 * BLOCK as usize]).and_then(|()| self.out.flush()).context(|| "write the archive")
    }

    fn header(&mut self, name: &str, kind: tar::EntryType, mode: u32, size: u64) -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).context(|| format!("name {name} in the archive"))?;
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        header.set_cksum();
        self.out.write_all(header.as_bytes()).context(|| "write the archive")
    }
}

impl<W: Write> Shelf for Archive<W> {
    fn file(&mut self, name: &str, size: u64, fill: &mut dyn FnMut(&mut dyn Write) -> Result<()>) -> Result<()> {
        self.header(name, tar::EntryType::Regular, 0o644, size)?;
        let mut counted = Counted { out: &mut self.out, left: size };
        fill(&mut counted)?;
        counted.end(name)?;
        let padding = size.next_multiple_of(BLOCK) - size;
        self.out.write_all(&[0; BLOCK as usize][..padding as usize]).context(|| "write the archive")
    }
}

/// A file as long as its header says.
struct Counted<W> {
    out: W,
    left: u64,
}

impl<W> Counted<W> {
    fn end(&self, name: &str) -> Result<()> {
        match self.left {
            0 => Ok(()),
            left => Err(Error::new(Kind::Damaged, format!("{name} is {left} bytes shorter than it was to be"))),
        }
    }
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            return Err(io::Error::other("it is longer than it was to be"));
        }
        let count = self.out.write(bytes)?;
        self.left -= count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A directory that was empty or not there, and is so again if it isn't kept.
pub(super) struct Directory {
    path: PathBuf,
    made: bool,
    kept: bool,
    names: Vec<String>,
}

impl Directory {
    pub(super) fn make(path: &Path) -> Result<Self> {
        let made = match fs::create_dir(path) {
            Ok(()) => true,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => false,
            Err(e) => return Err(e).context(|| format!("mkdir {}", path.display())),
        };
        if !made {
            let mut names = fs::read_dir(path).context(|| format!("list {}", path.display()))?;
            if names.next().is_some() {
                return Err(Error::new(Kind::Exists, format!("the directory {} isn't empty", path.display()))
                    .with_hint("name one that is empty or doesn't exist"));
            }
        }
        let directory = Self { path: path.to_path_buf(), made, kept: false, names: vec!["blobs".into()] };
        let blobs = path.join("blobs/sha256");
        fs::create_dir_all(&blobs).context(|| format!("mkdir {}", blobs.display()))?;
        Ok(directory)
    }

    /// Everything is in it: make it durable.
    pub(super) fn keep(mut self) -> Result<()> {
        for directory in ["blobs/sha256", "blobs", ""] {
            sync(&self.path.join(directory))?;
        }
        self.kept = true;
        match self.path.canonicalize() {
            Ok(path) => sync(path.parent().unwrap_or(&path)),
            Err(e) => Err(e).context(|| format!("find {}", self.path.display())),
        }
    }
}

fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).context(|| format!("fsync {}", path.display()))
}

impl Shelf for Directory {
    fn file(&mut self, name: &str, size: u64, fill: &mut dyn FnMut(&mut dyn Write) -> Result<()>) -> Result<()> {
        let path = self.path.join(name);
        let file = OpenOptions::new().write(true).create_new(true).open(&path);
        let file = file.context(|| format!("create {}", path.display()))?;
        if !name.contains('/') {
            self.names.push(name.to_string());
        }
        let mut counted = Counted { out: BufWriter::with_capacity(256 << 10, file), left: size };
        fill(&mut counted)?;
        counted.end(name)?;
        let written = counted.out.into_inner().map_err(io::IntoInnerError::into_error);
        written.and_then(|file| file.sync_all()).context(|| format!("write {}", path.display()))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // Why it failed is what the caller is told; what can't be removed stays.
        for name in &self.names {
            let path = self.path.join(name);
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
        if self.made {
            let _ = fs::remove_dir(&self.path);
        }
    }
}
