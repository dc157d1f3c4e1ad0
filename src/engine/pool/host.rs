//! The filesystem below the pool: how much room it has, and what happens to a pool without.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use super::Pool;
use crate::sys::mount::Health;
use crate::{Context, Error, Kind, Result};

/// Room on the filesystem that the pool file is on, and the pool's share of it. All in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostSpace {
    pub total: u64,
    /// What the host can still store for an unprivileged writer: ext4 keeps 5 % of itself for root.
    pub free: u64,
    /// What the pool file really occupies.
    pub occupied: u64,
    /// How long the pool file is: what it can come to occupy.
    pub length: u64,
}

impl Pool {
    /// The host's account; a pool that isn't there occupies 0.
    pub fn host_space(&self) -> Result<HostSpace> {
        let directory = self.directory();
        let host = rustix::fs::statvfs(directory).context(|| format!("statvfs {}", directory.display()))?;
        let (occupied, length) = match fs::metadata(self.file()) {
            Ok(file) => (file.blocks() * 512, file.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (0, 0),
            Err(error) => return Err(error).context(|| format!("stat {}", self.file().display())),
        };
        Ok(HostSpace { total: host.f_blocks * host.f_frsize, free: host.f_bavail * host.f_frsize, occupied, length })
    }

    /// Refuse to go on if the host has less than `reserve` bytes free: before creates and loads.
    ///
    /// A pool whose host fills up loses what was written but not synced, and turns read-only.
    ///
    /// # Errors
    /// `NoSpace`.
    pub fn guard(&self, reserve: u64) -> Result<()> {
        let host = self.host_space()?;
        if host.free >= reserve {
            return Ok(());
        }
        Err(Error::new(
            Kind::NoSpace,
            format!(
                "only {} are free on the filesystem that {} is on, and {} are kept in reserve",
                bytes(host.free),
                self.file().display(),
                bytes(reserve)
            ),
        )
        .with_hint("make room there, or remove containers and images and run: reflinkd gc"))
    }

    /// Whether the attached pool refuses writes; `false` if it isn't attached.
    ///
    /// Btrfs does that to itself when it can't store what it promised to, as a rule because the host has no
    /// room (or its disk fails). What was synced is all there. The way back: make room on the host, stop what
    /// runs out of the pool, then [`Pool::detach`] and [`Pool::attach`].
    ///
    /// XFS goes on without room: files that can't be stored fail at their fsync, metadata waits in the log, and once
    /// that is full, so does whoever changes anything, until there is room again; nothing that was synced is lost. On
    /// other errors it shuts down: then [`Pool::attach`] says so, reads fail too, and the way back is the same.
    pub fn is_read_only(&self) -> Result<bool> {
        Ok(self.mounted()?.is_some_and(|mounted| mounted.health != Health::Writable))
    }
}

/// As Docker counts them: in powers of 1000.
pub(super) fn bytes(count: u64) -> impl std::fmt::Display {
    bytesize::ByteSize(count).display().si()
}
