//! The embedded pool: a file that holds a Btrfs or an XFS, for machines whose ROOT is on any other filesystem.
//!
//! Three names stand beside ROOT, which is only the mount point:
//!
//! ```text
//! /var/lib/reflinkd            ROOT: an empty directory until the pool is attached
//! /var/lib/reflinkd.pool       the filesystem: a sparse file, 0600, behind a loop device while attached
//! /var/lib/reflinkd.lock       whoever attaches, grows, detaches holds an exclusive flock on it
//! /var/lib/reflinkd.pool.new   a pool being made; one that is found under the lock is a crash's, and re-made
//! ```
//!
//! # From nothing to nothing
//!
//! ```no_run
//! # fn main() -> reflinkd::Result<()> {
//! use reflinkd::engine::pool::{Pool, PoolFs};
//! let pool = Pool::at("/var/lib/reflinkd".as_ref());
//! pool.create(PoolFs::Btrfs, 20_000_000_000)?; // a sparse file; again: Unchanged
//! pool.attach()?;                              // a loop device, a mount; again: microseconds, no lock
//! pool.guard(1_000_000_000)?;                  // before anything that writes much: has the host 1 GB left?
//! pool.grow(40_000_000_000)?;                  // while it is in use
//! pool.detach()?;                              // unmounted, and no loop device left
//! pool.destroy()?;                             // no file left
//! # Ok(())
//! # }
//! ```
//!
//! # What must never happen
//!
//! - **Two loop devices for one file.** Two mounts of them are two filesystems that write over each other, and
//!   nothing in the kernel objects. So a loop device is looked for, by the file's device and inode number, and
//!   made only under the lock; a second mount namespace mounts the same device again.
//! - **An unrelated file overwritten.** A pool is made under another name and takes its own only if that's free;
//!   a file there that holds neither filesystem is refused by every verb, and so is a ROOT with something in it.
//! - **A pool without room below it.** A write that the host can't store is lost after it was acknowledged to
//!   the writer; then Btrfs turns read-only, and XFS waits until there is room (see [`Pool::is_read_only`]).
//!   [`Pool::guard`] refuses early.
//!
//! The lock file's content is the uuid of the filesystem that was last attached. It lets [`Pool::attach`] see
//! that what is mounted at ROOT is the pool without reading the pool: with direct I/O going on below, the
//! page of the file that holds the uuid would come from the disk each time.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::IFlags;

use crate::sys::durable;
use crate::sys::loopdev::{self, LoopDevice};
use crate::sys::mount::{self, Health, MountedAt};
use crate::{Context, Error, Kind, Result};

mod detach;
mod filesystem;
mod holders;
mod host;
mod lock;

pub use filesystem::PoolFs;
use filesystem::{SECTOR, Volume};
pub use host::HostSpace;
use lock::Lock;

/// Whether a verb had anything to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Creation {
    Created,
    /// There was a pool; its size is what it was.
    Unchanged,
}

/// The pool of one ROOT. Holds nothing open: any number of values, threads and processes may use one pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    root: PathBuf,
    file: PathBuf,
    draft: PathBuf,
    lock: PathBuf,
}

impl Pool {
    /// The pool whose mount point is `root`, an absolute path. Touches nothing.
    #[must_use]
    pub fn at(root: &Path) -> Self {
        // Without a slash at its end, so that the suffixes end up beside the directory, not in it.
        let root: PathBuf = root.components().collect();
        let beside = |suffix: &str| {
            let mut name = root.clone().into_os_string();
            name.push(suffix);
            PathBuf::from(name)
        };
        Self { file: beside(".pool"), draft: beside(".pool.new"), lock: beside(".lock"), root }
    }

    /// The mount point.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The file that holds the filesystem.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Whether there is something where the pool file belongs. What it is, the other verbs find out, which
    /// also fail where this can't be told.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.file.exists()
    }

    fn present(&self) -> Result<bool> {
        self.file.try_exists().context(|| format!("stat {}", self.file.display()))
    }

    /// Whether the pool is mounted at ROOT in this process's mount namespace. Takes no lock.
    pub fn is_attached(&self) -> Result<bool> {
        Ok(self.mounted()?.is_some())
    }

    /// The filesystem in the pool file.
    ///
    /// # Errors
    /// `NotFound` without a pool; `Exists` for a file that is none.
    pub fn filesystem(&self) -> Result<PoolFs> {
        self.open().map(|(_, volume)| volume.fs)
    }

    /// Make the pool file, `size` bytes long (rounded down to 4096), with an empty `fs` in it. Durable when it returns.
    /// A pool that is there stays as it is, whatever filesystem it holds.
    ///
    /// # Errors
    /// `Invalid` for a size below [`PoolFs::smallest`]; `Exists` for a file there that is no pool, and for a ROOT that
    /// isn't empty; `NoSpace`; `Unsupported` without the program that makes an XFS; `System` where the host's
    /// filesystem has no files of that length.
    pub fn create(&self, fs: PoolFs, size: u64) -> Result<Creation> {
        self.make(fs, size).context(|| format!("cannot create the pool {}", self.file.display()))
    }

    fn make(&self, fs: PoolFs, size: u64) -> Result<Creation> {
        fs.check_size(size)?;
        let directory = self.directory();
        durable::mkdir_all(directory, 0o755).context(|| format!("create {}", directory.display()))?;
        let _lock = Lock::exclusive(&self.lock)?;
        if self.present()? {
            self.open()?;
            return Ok(Creation::Unchanged);
        }
        self.refuse_occupied_root()?;
        remove_if_there(&self.draft)?;
        let made = self.draft(fs, size).and_then(|()| self.publish());
        if made.is_err() {
            // Best effort: the next create removes it too.
            let _ = durable::unlink(&self.draft);
        }
        made.map(|()| Creation::Created)
    }

    fn draft(&self, fs: PoolFs, size: u64) -> Result<()> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.draft)
            .context(|| format!("create {}", self.draft.display()))?;
        forgo_copy_on_write(&file);
        fs.format(&file, &self.draft, size - size % SECTOR)?;
        durable::fsync(&file, &self.draft).context(|| format!("fsync {}", self.draft.display()))
    }

    fn publish(&self) -> Result<()> {
        let what = || format!("rename {} to {}", self.draft.display(), self.file.display());
        match durable::rename_new(&self.draft, &self.file) {
            // Older ZFS and network filesystems don't know the flag. Nobody who takes the lock is in between.
            Err(rustix::io::Errno::INVAL) => durable::rename(&self.draft, &self.file).context(what)?,
            renamed => renamed.context(what)?,
        }
        let directory = self.directory();
        File::open(directory)
            .and_then(|file| Ok(durable::fsync(file, directory)?))
            .context(|| format!("fsync {}", directory.display()))
    }

    /// Mount the pool at ROOT in this process's mount namespace. Costs microseconds if it is; otherwise uses the
    /// loop device that has the pool, or makes one. ROOT is made if it's missing.
    ///
    /// # Errors
    /// `NotFound` without a pool; `Exists` for a file that is none, and for a ROOT that isn't empty or has
    /// something else mounted; `InUse` if the file has several loop devices or only a part of it has one;
    /// `Unsupported` without the filesystem or loop devices in the kernel; `Denied` if not root; `System` if it is
    /// attached but has shut down.
    pub fn attach(&self) -> Result<()> {
        let attach = || {
            if let Some(mounted) = self.mounted()? {
                return self.check_health(mounted);
            }
            if !self.present()? {
                return Err(missing(&self.file));
            }
            self.attach_locked(&Lock::exclusive(&self.lock)?)
        };
        attach().context(|| format!("cannot attach the pool {}", self.file.display()))
    }

    fn attach_locked(&self, lock: &Lock) -> Result<()> {
        let (file, volume) = self.open()?;
        match mount::mounted_at(&self.root)?.filter(|mounted| mounted.uuid == Some(volume.uuid)) {
            Some(mounted) => self.check_health(mounted)?,
            None => {
                self.refuse_occupied_root()?;
                durable::mkdir_all(&self.root, 0o700).context(|| format!("create {}", self.root.display()))?;
                let device = match self.device(&file)? {
                    Some(device) => device,
                    None => loopdev::configure(&file, &self.file)?,
                };
                self.mount(&device, volume)?;
            }
        }
        lock.record(volume.uuid)
    }

    fn mount(&self, device: &LoopDevice, volume: Volume) -> Result<()> {
        // EBUSY: the last mount in another namespace ended with its last process and is being torn down.
        detach::patiently(detach::PATIENCE, || match volume.mount(device.path(), &self.root) {
            Err(error) if error.kind() == Kind::InUse => Ok(None),
            mounted => mounted.map(Some),
        })?
        .ok_or_else(|| Error::new(Kind::InUse, format!("{} stays busy", device.path().display())))?;
        match mount::mounted_at(&self.root)? {
            Some(mounted) if mounted.uuid == Some(volume.uuid) => return self.keep_others_out(&mounted),
            // Since Linux 6.7 a copy of a mounted Btrfs gets a uuid for the time being.
            Some(mounted) => detach::unmount(&self.root, mounted.id)?,
            None => {}
        }
        Err(volume.copy_of_a_mounted_one())
    }

    /// What is mounted has a mode of its own, which whoever makes filesystems makes 0755: everybody could read the index.
    fn keep_others_out(&self, mounted: &MountedAt) -> Result<()> {
        if mounted.health != Health::Writable {
            return Ok(());
        }
        durable::chmod(&self.root, 0o700).context(|| format!("chmod {}", self.root.display()))
    }

    /// Refuse a filesystem that has shut down.
    fn check_health(&self, mounted: MountedAt) -> Result<()> {
        match mounted.health {
            Health::Writable | Health::ReadOnly => Ok(()),
            Health::ShutDown => Err(Error::new(Kind::System, "its filesystem met an error and has shut down")
                .with_hint(format!(
                    "what was synced is there: see that the host has room (dmesg has the cause), end what runs in the \
                     pool, then: umount {}; the next reflinkd command mounts it again",
                    self.root.display()
                ))),
        }
    }

    /// Make the pool `size` bytes long (rounded down to 4096) and let the filesystem have them, while it is in
    /// use; attaches it first. With the size it has, finishes what a crash left undone. XFS keeps the size
    /// of the allocation groups that it was made with: many times larger, it has many.
    ///
    /// # Errors
    /// `Invalid` for a smaller size than it has; as [`Self::attach`]; `InUse` during a balance.
    pub fn grow(&self, size: u64) -> Result<()> {
        let size = size - size % SECTOR;
        let grow = || {
            if !self.present()? {
                return Err(missing(&self.file));
            }
            let lock = Lock::exclusive(&self.lock)?;
            self.attach_locked(&lock)?;
            let (file, volume) = self.open()?;
            let now = file.metadata().context(|| format!("stat {}", self.file.display()))?.len();
            if size < now {
                return Err(Error::new(Kind::Invalid, format!("it has {} and cannot shrink", host::bytes(now)))
                    .with_hint("to use less of the disk, remove containers and images, and run: reflinkd gc"));
            }
            file.set_len(size).context(|| format!("set the length of {} to {size} bytes", self.file.display()))?;
            let device = self.device(&file)?.ok_or_else(|| {
                Error::new(
                    Kind::Damaged,
                    format!("{} is mounted, but no loop device has the file", self.root.display()),
                )
            })?;
            device.set_capacity()?;
            volume.fs.grow(&self.root, size)
        };
        grow().context(|| format!("cannot grow the pool {} to {}", self.file.display(), host::bytes(size)))
    }

    /// The pool's mount at ROOT, by the uuid in the lock file.
    fn mounted(&self) -> Result<Option<MountedAt>> {
        let Some(uuid) = lock::recorded(&self.lock)? else { return Ok(None) };
        Ok(mount::mounted_at(&self.root)?.filter(|mounted| mounted.uuid == Some(uuid)))
    }

    /// The pool file, open for writing, and the filesystem in it.
    fn open(&self) -> Result<(File, Volume)> {
        let about = match fs::metadata(&self.file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing(&self.file)),
            about => about.context(|| format!("stat {}", self.file.display()))?,
        };
        if !about.is_file() {
            return Err(self.foreign("is not a regular file"));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&self.file)
            .context(|| format!("open {}", self.file.display()))?;
        match Volume::identify(&file)? {
            Some(volume) => Ok((file, volume)),
            None => Err(self.foreign("holds neither Btrfs nor XFS")),
        }
    }

    fn foreign(&self, why: &str) -> Error {
        Error::new(Kind::Exists, format!("{} {why}", self.file.display()))
            .with_hint("it isn't a pool of reflinkd's: move it away, or choose another root")
    }

    /// The loop device that has the whole file, writable; `None` if none has any of it.
    fn device(&self, file: &File) -> Result<Option<LoopDevice>> {
        let mut devices = loopdev::of_file(file)?;
        if devices.len() > 1 {
            let names: Vec<String> = devices.iter().map(|device| device.path().display().to_string()).collect();
            return Err(Error::new(Kind::InUse, format!("several loop devices have it: {}", names.join(", ")))
                .with_hint("mounts of two of them destroy the filesystem: unmount all, detach all (losetup -d)"));
        }
        let device = devices.pop();
        if let Some(device) = &device
            && (device.status().partial || device.status().read_only)
        {
            return Err(Error::new(
                Kind::InUse,
                format!("{} has only a part of it, or read-only", device.path().display()),
            )
            .with_hint(format!("whoever set that up must let it go: losetup -d {}", device.path().display())));
        }
        Ok(device)
    }

    /// A mount would hide what is in ROOT, or what somebody else mounted there.
    fn refuse_occupied_root(&self) -> Result<()> {
        let list = || format!("list {}", self.root.display());
        let occupied = if mount::mounted_at(&self.root)?.is_some() {
            "has another filesystem mounted"
        } else {
            match fs::read_dir(&self.root) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                entries => match entries.context(list)?.next().transpose().context(list)? {
                    Some(_) => "is not empty",
                    None => return Ok(()),
                },
            }
        };
        Err(Error::new(Kind::Exists, format!("{} {occupied}", self.root.display()))
            .with_hint("the pool is mounted over it: empty it, or choose another root"))
    }

    /// Where the pool file is, or will be.
    fn directory(&self) -> &Path {
        match self.file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        }
    }
}

/// On a host that copies on write itself, every block of the pool would be copied twice (`chattr +C`). Only an
/// empty file can be told; a filesystem without the flag has nothing to forgo, and the pool works with it too.
fn forgo_copy_on_write(file: &File) {
    if let Ok(flags) = rustix::fs::ioctl_getflags(file)
        && let Err(errno) = rustix::fs::ioctl_setflags(file, flags | IFlags::NOCOW)
    {
        tracing::debug!(%errno, "the host's filesystem has no NOCOW flag");
    }
}

fn missing(file: &Path) -> Error {
    Error::new(Kind::NotFound, format!("there is no {}", file.display())).with_hint("make it: reflinkd init")
}

/// Remove a file; succeeds if there is none.
fn remove_if_there(path: &Path) -> Result<()> {
    match durable::unlink(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.context(|| format!("remove {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_stand_beside_the_root() {
        for root in ["/var/lib/reflinkd", "/var/lib/reflinkd/", "/var/lib//reflinkd/."] {
            let pool = Pool::at(Path::new(root));
            assert_eq!(pool.root(), Path::new("/var/lib/reflinkd"));
            assert_eq!(pool.file(), Path::new("/var/lib/reflinkd.pool"));
            assert_eq!(pool.directory(), Path::new("/var/lib"));
        }
    }
}
