//! Small files that must be whole and durable: written aside, fsync'd, renamed into place.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::{FlockOperation, flock};

use crate::sys::durable;
use crate::{Context, Error, Kind, Result};

/// Put a file with what `fill` writes in the place of `path`. After a power cut, or a failure, it is the old one or the new one.
/// One caller at a time: what it writes aside has one name, so that a crash leaves at most one.
pub(super) fn replace(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let old = match std::fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        old => Some(old.context(|| format!("read {}", path.display()))?),
    };
    exchange(path, fill)?;
    let synced = sync(path.parent().unwrap_or(Path::new("/")));
    if synced.is_err() {
        // Nobody is to find what was never acknowledged.
        let undone = match &old {
            Some(old) => exchange(path, |file| file.write_all(old)),
            None => remove(path),
        };
        if let Err(e) = undone {
            tracing::warn!("cannot put back what was there before: {e}");
        }
    }
    synced
}

/// [`replace`], without making the name durable.
fn exchange(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let aside = aside(path);
    let written = (|| {
        durable::step("create", &aside)?;
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
        fill(&mut file)?;
        durable::fsync(&file, &aside)?;
        durable::rename(&aside, path)
    })();
    if written.is_err() {
        let _ = durable::unlink(&aside);
    }
    written.context(|| format!("write {}", path.display()))
}

/// Remove a file, if it is there.
pub(super) fn remove(path: &Path) -> Result<()> {
    match durable::unlink(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).context(|| format!("unlink {}", path.display())),
        _ => Ok(()),
    }
}

/// Where [`replace`] writes what is to stand at `path`.
pub(super) fn aside(path: &Path) -> PathBuf {
    path.with_extension("new")
}

/// Make a file durable, or the names in a directory.
pub(super) fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| Ok(durable::fsync(file, path)?)).context(|| format!("fsync {}", path.display()))
}

/// Whether to wait for a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    Exclusive,
    Shared,
    /// Exclusive, or `None` at once.
    TryExclusive,
    /// Shared, or `None` at once.
    TryShared,
}

/// Lock a directory until the handle is dropped. Whoever waits for a lock may get that of a directory which has been
/// removed meanwhile, and perhaps made anew: that is `NotFound`. `None` only for a try.
pub(super) fn lock_directory(path: &Path, how: Lock) -> Result<Option<File>> {
    let open = || File::open(path).context(|| format!("open {}", path.display()));
    let Some(locked) = lock(open()?, path, how)? else { return Ok(None) };
    let stat = |file: &File| rustix::fs::fstat(file).context(|| format!("stat {}", path.display()));
    let (ours, there) = (stat(&locked)?, stat(&open()?)?);
    if (ours.st_dev, ours.st_ino) != (there.st_dev, there.st_ino) {
        return Err(Error::new(Kind::NotFound, format!("{} was replaced", path.display())));
    }
    Ok(Some(locked))
}

/// Lock a file or directory until the handle is dropped. `None` only for a try.
pub(super) fn lock<F: AsFd>(file: F, path: &Path, how: Lock) -> Result<Option<F>> {
    let operation = match how {
        Lock::Exclusive => FlockOperation::LockExclusive,
        Lock::Shared => FlockOperation::LockShared,
        Lock::TryExclusive => FlockOperation::NonBlockingLockExclusive,
        Lock::TryShared => FlockOperation::NonBlockingLockShared,
    };
    loop {
        match flock(&file, operation) {
            Ok(()) => return Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e).context(|| format!("flock {}", path.display())),
        }
    }
}

/// Open the lock file at `path` and lock it. It is made if missing, else only read, which works on a full or read-only
/// filesystem too. Lock files are never removed while others may wait for them.
pub(super) fn lock_file(path: &Path, how: Lock) -> Result<Option<File>> {
    let opened = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => make_lock_file(path),
        opened => opened,
    };
    lock(opened.context(|| format!("open {}", path.display()))?, path, how)
}

/// Lock one byte of the lock file at `path` (an open file description's lock, fcntl(2)), or `None` at once.
pub(super) fn try_lock_byte(path: &Path, byte: i64) -> Result<Option<File>> {
    let file = make_lock_file(path).context(|| format!("open {}", path.display()))?;
    let (l_type, l_whence) = (libc::F_WRLCK as libc::c_short, libc::SEEK_SET as libc::c_short);
    let range = libc::flock { l_type, l_whence, l_start: byte, l_len: 1, l_pid: 0 };
    match fcntl(&file, FcntlArg::F_OFD_SETLK(&range)) {
        Ok(_) => Ok(Some(file)),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
        Err(e) => Err(e).context(|| format!("lock {}", path.display())),
    }
}

pub(super) fn make_lock_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}
