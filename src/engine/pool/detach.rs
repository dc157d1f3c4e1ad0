//! Taking the pool down: mounts first, then the loop device, then the files.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::lock::{self, Lock};
use super::{Pool, Volume, holders, remove_if_there};
use crate::sys::durable;
use crate::sys::{loopdev, mount};
use crate::{Context, Kind, Result};

/// How long to wait for others to notice what we did: a mount that is being torn down, a loop device that
/// udev looks at.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// How long a mount may be busy for no reason worth an error: a process just forked that hasn't yet closed what
/// it inherited, somebody's look through /proc.
const BRIEFLY: Duration = Duration::from_millis(500);

impl Pool {
    /// Unmount the pool in this namespace and wait until no loop device has it. Succeeds if there is nothing to do.
    ///
    /// # Errors
    /// `InUse`, naming processes and mounts, if something uses ROOT; if another mount namespace has the pool
    /// mounted, too, but then it is unmounted here.
    pub fn detach(&self) -> Result<()> {
        if !self.present()? && !self.is_attached()? {
            return Ok(());
        }
        Lock::exclusive(&self.lock)
            .and_then(|_lock| self.detach_locked())
            .context(|| format!("cannot detach the pool {}", self.file.display()))
    }

    /// [`Self::detach`], and remove the pool file, the lock and an empty ROOT. Succeeds if there is nothing.
    ///
    /// # Errors
    /// As [`Self::detach`]; `Exists` if the file isn't a pool. Nothing is removed then.
    pub fn destroy(&self) -> Result<()> {
        let destroy = || {
            if self.present()? {
                self.open()?;
            } else if !self.lock.try_exists().context(|| format!("stat {}", self.lock.display()))? {
                return Ok(());
            }
            let _lock = Lock::exclusive(&self.lock)?;
            self.detach_locked()?;
            remove_if_there(&self.draft)?;
            remove_if_there(&self.file)?;
            match durable::rmdir(&self.root) {
                Ok(()) => {}
                // Something else is in it or mounted there: not ours.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::ResourceBusy
                    ) => {}
                Err(error) => return Err(error).context(|| format!("remove {}", self.root.display())),
            }
            // Last: until here it keeps others from making a new pool.
            remove_if_there(&self.lock)
        };
        destroy().context(|| format!("cannot destroy the pool {}", self.file.display()))
    }

    fn detach_locked(&self) -> Result<()> {
        let file = match OpenOptions::new().read(true).open(&self.file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            file => Some(file.context(|| format!("open {}", self.file.display()))?),
        };
        let uuid = match &file {
            Some(file) => Volume::identify(file)?.map(|volume| volume.uuid),
            None => lock::recorded(&self.lock)?,
        };
        // Several mounts may lie on top of each other.
        while let Some(mounted) = mount::mounted_at(&self.root)?
            && uuid.is_some()
            && mounted.uuid == uuid
        {
            unmount_views(mounted.id)?;
            unmount(&self.root, mounted.id)?;
        }
        file.map_or(Ok(()), |file| self.wait_for_loop(&file))
    }

    /// Others may have the device for a while longer, and not only udev: whoever makes a mount namespace of its
    /// own (unshare, a service that starts) has a copy of every mount until it's done or unmounts them.
    fn wait_for_loop(&self, file: &File) -> Result<()> {
        let gone = patiently(PATIENCE, || {
            let devices = loopdev::of_file(file)?;
            for device in devices.iter().filter(|device| !device.status().autoclear) {
                // Set up by hand, and never cleared otherwise.
                device.clear()?;
            }
            // Not held open while waiting: it clears itself on last close.
            Ok(devices.is_empty().then_some(()))
        })?;
        if gone.is_some() {
            return Ok(());
        }
        loopdev::of_file(file)?.first().map_or(Ok(()), |device| Err(holders::held(device)))
    }
}

/// Read-only containers are mounts on the pool's own: they go first. `pool` is the id of that.
fn unmount_views(pool: u64) -> Result<()> {
    let on_pool =
        mount::table("self")?.into_iter().filter(|entry| entry.parent == pool && entry.target.ends_with("fs"));
    for view in on_pool.filter(|entry| entry.root.starts_with("/snapshots")) {
        unmount(&view.target, view.id)?;
    }
    Ok(())
}

/// Unmount the mount `id` at `target`, which may be busy for a moment without anybody using it: a child just forked has
/// our descriptors.
pub(super) fn unmount(target: &Path, id: u64) -> Result<()> {
    let unmounted = patiently(BRIEFLY, || match mount::unmount(target) {
        Err(error) if error.kind() == Kind::InUse => Ok(None),
        unmounted => unmounted.map(Some),
    })?;
    unmounted.ok_or_else(|| holders::busy(target, id))
}

/// Try until it gives something, for at most that long; `None` if it never does.
pub(super) fn patiently<T>(patience: Duration, mut attempt: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
    let end = Instant::now() + patience;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(result) = attempt()? {
            return Ok(Some(result));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}
