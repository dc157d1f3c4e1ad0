//! The calls that decide what a crash leaves of a store, each with a failpoint before it.
//!
//! A *step* is one such call on the store's own files, directories, records, subvolumes and groups. Writing into a tree that
//! nobody finds yet (unpacking, cloning, copying) is none: what makes it found is. A debug build counts the steps of its
//! process and can end it, as `kill -9` would, before one of them, or let one fail, as a full or broken disk would:
//!
//! | variable | |
//! |---|---|
//! | `REFLINKD_STOP_BEFORE` | number of the step, from 1, before which the process aborts |
//! | `REFLINKD_FAIL_AT` | number of a step, or its name for the first of that name: it does nothing and fails, once |
//! | `REFLINKD_FAIL_FROM` | number of the step from which on each fails: a disk that stays as it is |
//! | `REFLINKD_FAIL_WITH` | how: `ENOSPC` (if not given), `EDQUOT`, `EIO` |
//! | `REFLINKD_STEPS` | file to which each step's name is added, a line each |
//!
//! A step's name is the call and what it is on, without what differs from run to run: `mkdir snapshots/UUID`. Release builds
//! have none of these. `driver-tests/architecture.rs` sees that store, engine and backends change what is on disk by these calls
//! only.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, XattrFlags, fsetxattr, renameat_with};

/// open(2) with `O_CREAT`: an empty file.
pub fn create(path: &Path) -> io::Result<File> {
    step("create", path)?;
    File::create(path)
}

/// [`create`], if there is nothing at `path`.
pub fn create_new(path: &Path) -> io::Result<File> {
    step("create", path)?;
    File::create_new(path)
}

/// A small file with this content, which whoever reads it can do without.
pub fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    step("write", path)?;
    std::fs::write(path, content)
}

/// fsync(2): a file's contents, or the names in a directory.
pub fn fsync(file: impl AsFd, path: &Path) -> rustix::io::Result<()> {
    step("fsync", path)?;
    rustix::fs::fsync(file)
}

/// syncfs(2): all of the filesystem that `file` is on.
pub fn syncfs(file: impl AsFd, path: &Path) -> rustix::io::Result<()> {
    step("syncfs", path)?;
    rustix::fs::syncfs(file)
}

/// mkdir(2), whatever the umask leaves of `mode`.
pub fn mkdir(path: &Path, mode: u32) -> io::Result<()> {
    step("mkdir", path)?;
    DirBuilder::new().mode(mode).create(path)
}

/// The same with all that are missing above it; one that is there is fine.
pub fn mkdir_all(path: &Path, mode: u32) -> io::Result<()> {
    step("mkdir", path)?;
    DirBuilder::new().recursive(true).mode(mode).create(path)
}

/// rmdir(2).
pub fn rmdir(path: &Path) -> io::Result<()> {
    step("rmdir", path)?;
    std::fs::remove_dir(path)
}

/// unlink(2).
pub fn unlink(path: &Path) -> io::Result<()> {
    step("unlink", path)?;
    std::fs::remove_file(path)
}

/// Remove a directory with all that is in it.
pub fn remove_all(path: &Path) -> io::Result<()> {
    step("remove", path)?;
    std::fs::remove_dir_all(path)
}

/// chmod(2).
pub fn chmod(path: &Path, mode: u32) -> io::Result<()> {
    step("chmod", path)?;
    std::fs::set_permissions(path, Permissions::from_mode(mode))
}

/// rename(2): what was at `to` is gone.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    step("rename", to)?;
    std::fs::rename(from, to)
}

/// renameat2(2) with `RENAME_NOREPLACE`: EEXIST if there is something at `to`.
pub fn rename_new(from: &Path, to: &Path) -> rustix::io::Result<()> {
    step("rename", to)?;
    renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)
}

/// renameat2(2) with `RENAME_EXCHANGE`: both are there before and afterwards.
pub fn exchange(one: &Path, other: &Path) -> rustix::io::Result<()> {
    exchange_at((CWD, one.as_os_str()), (CWD, other.as_os_str()), other)
}

/// The same of names in directories that are open; the latter is at `path`.
pub fn exchange_at(one: (impl AsFd, &OsStr), other: (impl AsFd, &OsStr), path: &Path) -> rustix::io::Result<()> {
    step("exchange", path)?;
    renameat_with(one.0, one.1, other.0, other.1, RenameFlags::EXCHANGE)
}

/// fsetxattr(2) of the file at `path`.
pub fn set_xattr(file: impl AsFd, path: &Path, name: &str, value: &[u8]) -> rustix::io::Result<()> {
    step("setxattr", path)?;
    fsetxattr(file, name, value, XattrFlags::empty())
}

/// A step that a failpoint let fail: the error of the call that it stands before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failed(i32);

impl From<Failed> for io::Error {
    fn from(failed: Failed) -> Self {
        Self::from_raw_os_error(failed.0)
    }
}

impl From<Failed> for rustix::io::Errno {
    fn from(failed: Failed) -> Self {
        Self::from_raw_os_error(failed.0)
    }
}

impl From<Failed> for nix::errno::Errno {
    fn from(failed: Failed) -> Self {
        Self::from_raw(failed.0)
    }
}

/// A failpoint; what it stands before is the next thing that the caller does.
#[cfg(not(debug_assertions))]
#[allow(clippy::unnecessary_wraps)]
pub fn step(_call: &str, _object: &Path) -> Result<(), Failed> {
    Ok(())
}

#[cfg(debug_assertions)]
pub use failpoint::step;

#[cfg(debug_assertions)]
mod failpoint;
