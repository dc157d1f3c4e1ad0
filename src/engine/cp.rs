//! Copying into containers, out of them, and from one to another: `cp`.
//!
//! Where a path leads and what is copied is for [`crate::copy`] to say, also what is believed of a container; a tar stream
//! goes in by [`crate::layer::extract`], and out by [`pack_open`]. Here is who owns the copies, and which containers can be written to.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::Engine;
use crate::copy::place::{Side, Spec, Target};
use crate::copy::{Copied, tree};
use crate::layer::pack::{Packed, pack_open};
use crate::layer::sink::Plain;
use crate::layer::{Summary, extract};
use crate::{Context, Error, Kind, Result, oci};

/// One end of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    Container {
        /// Or ID; of a snapshot `NAME@LABEL`.
        name: String,
        /// From its root, wherever it starts.
        path: PathBuf,
    },
    Host(PathBuf),
}

/// How to copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CopyOptions {
    /// Keep owners. Else what is copied into a container is root's there, and what is copied out is the caller's.
    pub owners: bool,
    /// Copy what a link leads to, if the source is one.
    pub follow: bool,
}

impl End {
    fn path(&self) -> &Path {
        match self {
            Self::Container { path, .. } | Self::Host(path) => path,
        }
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = self.path().as_os_str().as_bytes().escape_ascii();
        match self {
            Self::Container { name, .. } => write!(f, "{name}:{path}"),
            Self::Host(_) => write!(f, "{path}"),
        }
    }
}

impl Engine {
    /// Copy a file or a tree. What fails in the middle of a tree leaves what was copied so far.
    ///
    /// # Errors
    /// Those of [`tree::copy`], and `Denied` for a read-only container as the destination.
    pub fn copy(&self, from: &End, to: &End, options: CopyOptions) -> Result<Copied> {
        (|| {
            let (source_side, source_spec) = self.side(from)?;
            let source = source_side
                .source(&source_spec, options.follow)
                .context(|| format!("/{}", source_spec.path().escape_ascii()))?;
            let (target_side, target_spec) = self.side(to)?;
            let owner = match to {
                End::Container { name, .. } => {
                    self.check_writable(name)?;
                    (0, 0)
                }
                End::Host(_) => (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
            };
            let target = target_side.target(&target_spec)?;
            let owner = (!options.owners).then_some(owner);
            let copy = |stop: &dyn Fn() -> bool| tree::copy(&source, target, &target_side, owner, stop);
            match to {
                End::Container { .. } => self.while_room(copy),
                End::Host(_) => copy(&|| self.is_cancelled()),
            }
        })()
        .context(|| format!("cannot copy {from} to {to}"))
    }

    /// Extract a tar, plain or compressed, below a directory of a container. Owners are the tar's.
    ///
    /// # Errors
    /// Those of [`extract`]; `Denied` for a read-only container; `Invalid` for a path that is no directory.
    pub fn copy_tar_in(&self, tar: impl Read, name: &str, path: &Path) -> Result<Summary> {
        let to = End::Container { name: name.to_string(), path: path.to_path_buf() };
        (|| {
            let (side, spec) = self.side(&to)?;
            self.check_writable(name)?;
            if !matches!(side.target(&spec)?, Target::Directory(_)) {
                return Err(Error::new(Kind::Invalid, "a tar is extracted to a directory, and that is none")
                    .with_hint("name a directory that is there"));
            }
            let root = self.container_root(name)?;
            let mut tar = oci::plain(tar)?;
            self.while_room(|stop| extract(&mut tar, &root, spec.path(), stop))
        })()
        .context(|| format!("cannot extract a tar to {to}"))
    }

    /// Write a tar of a file or tree of a container, all of it with its owners. Names in it begin with the last one of
    /// `path`, or with `./` if only what is in a directory is meant.
    pub fn copy_tar_out(&self, name: &str, path: &Path, follow: bool, tar: &mut dyn Write) -> Result<Packed> {
        let from = End::Container { name: name.to_string(), path: path.to_path_buf() };
        (|| {
            let (side, spec) = self.side(&from)?;
            let (open, name) = side.source(&spec, follow)?.into_open();
            let mut sink = Plain(tar);
            pack_open(open, &name, u64::MAX, &mut sink, &|| self.is_cancelled())
        })()
        .context(|| format!("cannot write a tar of {from}"))
    }

    fn side(&self, end: &End) -> Result<(Side, Spec)> {
        let path = end.path().as_os_str().as_bytes();
        match end {
            End::Container { name, .. } => {
                if path.is_empty() {
                    return Err(Error::new(Kind::Invalid, format!("there is no path after {name}:"))
                        .with_hint(format!("{name}:/ is the container's root directory")));
                }
                Ok((Side::container(&self.root_of(&self.find_tree(name)?)?)?, Spec::new(b"/", path)))
            }
            End::Host(_) => {
                let here = std::env::current_dir().context(|| "find the working directory")?;
                Ok((Side::host()?, Spec::new(OsStr::as_bytes(here.as_os_str()), path)))
            }
        }
    }

    fn check_writable(&self, name: &str) -> Result<()> {
        let record = self.find_tree(name)?;
        if record.snapshot().is_some() {
            return Err(Error::new(Kind::Denied, "snapshots stay as they are")
                .with_hint(format!("copy to a clone of it: reflinkd clone {name}")));
        }
        if record.is_view() {
            return Err(Error::new(Kind::Denied, format!("container {name} is read-only"))
                .with_hint("make one that can be written to: reflinkd create without --read-only"));
        }
        self.guard_host()
    }
}
