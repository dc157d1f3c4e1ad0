//! What the pool file may hold: all that differs between a pool of Btrfs and one of XFS.

use std::env;
use std::ffi::CStr;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use uuid::Uuid;

use super::host;
use crate::backend::btrfs::format;
use crate::sys::btrfs::{BtrfsFd, space};
use crate::sys::mount;
use crate::sys::xfs::{self, XfsFd, geometry};
use crate::{Context, Error, Kind, Result};

/// The logical block size of the pool's loop device: what its length is a multiple of, and XFS's sector size. XFS isn't
/// mounted on a device whose blocks are larger than its sectors.
pub(super) const SECTOR: u64 = format::SECTOR;

/// The filesystem of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolFs {
    /// Written by ourselves; a new one takes a few hundred KB on the disk.
    Btrfs,
    /// Made by `mkfs.xfs`; its log takes 67 MB on the disk from the first moment, and more in pools of 200 GB.
    Xfs,
}

/// The filesystem that a pool file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Volume {
    pub(super) fs: PoolFs,
    pub(super) uuid: Uuid,
}

impl Volume {
    /// By its superblock; `None` if there is neither.
    pub(super) fn identify(file: &File) -> Result<Option<Self>> {
        // XFS first: Btrfs leaves the first 64 KiB alone, but XFS may have data, which looks like anything, where Btrfs has
        // its superblock.
        if let Some(uuid) = xfs::superblock_uuid(file).context(|| "read the superblock")? {
            return Ok(Some(Self { fs: PoolFs::Xfs, uuid }));
        }
        Ok(format::identify(file)?.map(|uuid| Self { fs: PoolFs::Btrfs, uuid }))
    }

    /// Mount it.
    ///
    /// # Errors
    /// `InUse` while another mount of the device is going away; `Exists` if a copy of it is mounted.
    pub(super) fn mount(&self, device: &Path, root: &Path) -> Result<()> {
        let mounted = mount::mount(device, root, self.fs.name(), self.fs.mount_options());
        match mounted {
            // Btrfs before Linux 6.7 says EEXIST, XFS EINVAL, as it does to much else.
            Err(error) if error.kind() != Kind::InUse && self.is_mounted_from_elsewhere(device) => {
                Err(self.copy_of_a_mounted_one())
            }
            mounted => mounted,
        }
    }

    fn is_mounted_from_elsewhere(&self, device: &Path) -> bool {
        let table = mount::table("self").unwrap_or_default();
        table.iter().filter(|entry| entry.source != device).any(
            |entry| matches!(mount::mounted_at(&entry.target), Ok(Some(mounted)) if mounted.uuid == Some(self.uuid)),
        )
    }

    /// Nobody could tell which of two filesystems with one uuid is the pool.
    pub(super) fn copy_of_a_mounted_one(&self) -> Error {
        let new_uuid = match self.fs {
            PoolFs::Btrfs => "btrfstune -u",
            PoolFs::Xfs => "xfs_admin -U generate",
        };
        Error::new(Kind::Exists, format!("another filesystem with its uuid, {}, is mounted", self.uuid)).with_hint(
            format!("one of them is a copy of the other: unmount it, or give the copy another uuid ({new_uuid})"),
        )
    }
}

impl PoolFs {
    /// As mount(8) knows it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Btrfs => "btrfs",
            Self::Xfs => "xfs",
        }
    }

    /// The smallest pool, in bytes.
    #[must_use]
    pub fn smallest(self) -> u64 {
        match self {
            // Below it, Btrfs has no room for a metadata chunk beside the data of any image.
            Self::Btrfs => 256 << 20,
            // mkfs.xfs makes none smaller.
            Self::Xfs => 300 << 20,
        }
    }

    /// Refuse a size that it can't have.
    pub(super) fn check_size(self, size: u64) -> Result<()> {
        let smallest = self.smallest();
        if size >= smallest {
            return Ok(());
        }
        let (size, smallest) = (host::bytes(size), host::bytes(smallest));
        Err(Error::new(Kind::Invalid, format!("{size} is too small: the smallest pool of {self} has {smallest}")))
    }

    /// Freed blocks go back to the host when the collector trims (FITRIM): `discard` would do it later and at every commit.
    fn mount_options(self) -> &'static [&'static CStr] {
        match self {
            // The top of the filesystem whatever its default subvolume is.
            Self::Btrfs => &[c"subvolid=5,nodiscard"],
            // Project quotas can only be had at the first mount; some kernels have none.
            Self::Xfs => &[c"nodiscard,prjquota", c"nodiscard"],
        }
    }

    /// Make an empty filesystem of `size` bytes in `file`, which is empty and stands at `path`. Not durable by itself.
    pub(super) fn format(self, file: &File, path: &Path, size: u64) -> Result<()> {
        match self {
            Self::Btrfs => format::format(file, size).map(drop),
            Self::Xfs => {
                file.set_len(size).context(|| format!("set the length of the file to {size} bytes"))?;
                mkfs_xfs(path)
            }
        }
    }

    /// Let the filesystem mounted at `root` have `size` bytes of its device, which has them.
    pub(super) fn grow(self, root: &Path, size: u64) -> Result<()> {
        let open = || format!("open {}", root.display());
        match self {
            Self::Btrfs => {
                let resized = space::resize_max(&BtrfsFd::open(root).context(open)?);
                resized.context(|| format!("BTRFS_IOC_RESIZE {}", root.display())).map_err(|error| {
                    match error.kind() {
                        Kind::InUse => {
                            error.with_hint("a balance or another resize is going on: btrfs balance status")
                        }
                        _ => error,
                    }
                })
            }
            Self::Xfs => geometry::growfs_data(&XfsFd::open(root).context(open)?, size)
                .context(|| format!("XFS_IOC_FSGROWFSDATA {}", root.display())),
        }
    }
}

impl fmt::Display for PoolFs {
    /// As people write it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Btrfs => "Btrfs",
            Self::Xfs => "XFS",
        })
    }
}

/// The only program that anything here runs.
fn mkfs_xfs(path: &Path) -> Result<()> {
    // Root's own PATH has the last two; sudo and su may have left them out.
    let searched = env::var_os("PATH").unwrap_or_default();
    let listed = env::split_paths(&searched).filter(|directory| directory.is_absolute());
    let directories = env::join_paths(listed.chain(["/usr/sbin", "/sbin"].map(PathBuf::from))).unwrap_or_default();
    let mut mkfs = Command::new("mkfs.xfs");
    mkfs.args(["-q", "-L", "reflinkd", "-m", "reflink=1", "-s"]).arg(format!("size={SECTOR}")).arg(path);
    mkfs.env("PATH", directories).env("LC_ALL", "C").stdin(Stdio::null());
    let output = match mkfs.output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::new(Kind::Unsupported, "there is no mkfs.xfs on this machine")
                .with_hint("it comes with xfsprogs: apt-get install xfsprogs"));
        }
        output => output.context(|| "run mkfs.xfs")?,
    };
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    // Its words are all that it gives; in the C locale they are the C library's.
    let kind = if said.contains("No space left on device") { Kind::NoSpace } else { Kind::System };
    let first = said.lines().next().unwrap_or("it said nothing");
    Err(Error::new(kind, format!("mkfs.xfs failed ({}): {first}", output.status)))
}
