//! The calls that decide what a crash leaves of a store, each with a failpoint before it.
//!
//! A *step* is one such call on the store's own files, directories, records, subvolumes and groups. Writing into a tree that
//! nobody finds yet (unpacking, cloning, copying) is none: what makes it found is. A debug build counts the steps of its
//! process and can end it, as `kill -9` would, before one of them:
//!
//! | variable | |
//! |---|---|
//! | `REFLINKD_STOP_BEFORE` | number of the step, from 1, before which the process aborts |
//! | `REFLINKD_STEPS` | file to which each step's name is added, a line each |
//!
//! A step's name is the call and what it is on, without what differs from run to run: `mkdir snapshots/UUID`. Release builds
//! have neither. `driver-tests/architecture.rs` sees that store, engine and backends change what is on disk by these calls only.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, XattrFlags, fsetxattr, renameat_with};

/// open(2) with `O_CREAT`: an empty file.
pub fn create(path: &Path) -> io::Result<File> {
    step("create", path);
    File::create(path)
}

/// A small file with this content, which whoever reads it can do without.
pub fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    step("write", path);
    std::fs::write(path, content)
}

/// fsync(2): a file's contents, or the names in a directory.
pub fn fsync(file: impl AsFd, path: &Path) -> rustix::io::Result<()> {
    step("fsync", path);
    rustix::fs::fsync(file)
}

/// syncfs(2): all of the filesystem that `file` is on.
pub fn syncfs(file: impl AsFd, path: &Path) -> rustix::io::Result<()> {
    step("syncfs", path);
    rustix::fs::syncfs(file)
}

/// mkdir(2), whatever the umask leaves of `mode`.
pub fn mkdir(path: &Path, mode: u32) -> io::Result<()> {
    step("mkdir", path);
    DirBuilder::new().mode(mode).create(path)
}

/// The same with all that are missing above it; one that is there is fine.
pub fn mkdir_all(path: &Path, mode: u32) -> io::Result<()> {
    step("mkdir", path);
    DirBuilder::new().recursive(true).mode(mode).create(path)
}

/// rmdir(2).
pub fn rmdir(path: &Path) -> io::Result<()> {
    step("rmdir", path);
    std::fs::remove_dir(path)
}

/// unlink(2).
pub fn unlink(path: &Path) -> io::Result<()> {
    step("unlink", path);
    std::fs::remove_file(path)
}

/// Remove a directory with all that is in it.
pub fn remove_all(path: &Path) -> io::Result<()> {
    step("remove", path);
    std::fs::remove_dir_all(path)
}

/// chmod(2).
pub fn chmod(path: &Path, mode: u32) -> io::Result<()> {
    step("chmod", path);
    std::fs::set_permissions(path, Permissions::from_mode(mode))
}

/// rename(2): what was at `to` is gone.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    step("rename", to);
    std::fs::rename(from, to)
}

/// renameat2(2) with `RENAME_NOREPLACE`: EEXIST if there is something at `to`.
pub fn rename_new(from: &Path, to: &Path) -> rustix::io::Result<()> {
    step("rename", to);
    renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)
}

/// renameat2(2) with `RENAME_EXCHANGE`: both are there before and afterwards.
pub fn exchange(one: &Path, other: &Path) -> rustix::io::Result<()> {
    exchange_at((CWD, one.as_os_str()), (CWD, other.as_os_str()), other)
}

/// The same of names in directories that are open; the latter is at `path`.
pub fn exchange_at(one: (impl AsFd, &OsStr), other: (impl AsFd, &OsStr), path: &Path) -> rustix::io::Result<()> {
    step("exchange", path);
    renameat_with(one.0, one.1, other.0, other.1, RenameFlags::EXCHANGE)
}

/// fsetxattr(2) of the file at `path`.
pub fn set_xattr(file: impl AsFd, path: &Path, name: &str, value: &[u8]) -> rustix::io::Result<()> {
    step("setxattr", path);
    fsetxattr(file, name, value, XattrFlags::empty())
}

/// A failpoint; what it stands before is the next thing that the caller does.
#[cfg(not(debug_assertions))]
pub fn step(_call: &str, _object: &Path) {}

#[cfg(debug_assertions)]
pub use failpoint::step;

#[cfg(debug_assertions)]
mod failpoint {
    use std::fs::OpenOptions;
    use std::io::Write;
    use std::path::{Path, PathBuf};
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use uuid::Uuid;

    static STOP_BEFORE: LazyLock<Option<u64>> =
        LazyLock::new(|| std::env::var("REFLINKD_STOP_BEFORE").ok().and_then(|number| number.parse().ok()));
    static STEPS: LazyLock<Option<PathBuf>> = LazyLock::new(|| std::env::var_os("REFLINKD_STEPS").map(PathBuf::from));
    static COUNT: AtomicU64 = AtomicU64::new(0);

    /// A failpoint; what it stands before is the next thing that the caller does.
    pub fn step(call: &str, object: &Path) {
        if STOP_BEFORE.is_none() && STEPS.is_none() {
            return;
        }
        let number = COUNT.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(path) = &*STEPS
            && let Ok(mut steps) = OpenOptions::new().append(true).create(true).open(path)
        {
            // In one call, so that those of several threads don't mix.
            let _ = steps.write_all(format!("{call} {}\n", name_of(object)).as_bytes());
        }
        if *STOP_BEFORE == Some(number) {
            std::process::abort();
        }
    }

    /// The last two components, with `UUID` and `DIGEST` in the place of such.
    fn name_of(object: &Path) -> String {
        let names: Vec<_> = object.iter().map(|name| name.to_string_lossy()).collect();
        let last = names.iter().skip(names.len().saturating_sub(2));
        last.map(|name| general(name)).collect::<Vec<_>>().join("/")
    }

    fn general(name: &str) -> String {
        let (stem, rest) = name.split_at(name.find('.').unwrap_or(name.len()));
        if Uuid::try_parse(stem).is_ok() {
            return format!("UUID{rest}");
        }
        if stem.len() == 64 && stem.bytes().all(|b| b.is_ascii_hexdigit()) {
            return format!("DIGEST{rest}");
        }
        name.to_string()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_name_is_the_same_for_each_tree() {
            let name = |path: &str| name_of(Path::new(path));
            assert_eq!(name("/a/snapshots/6d2f3f6e-6a6b-4dbb-9d2e-0c8b1f0d7a11/fs"), "UUID/fs");
            assert_eq!(name("/a/images/6d2f3f6e-6a6b-4dbb-9d2e-0c8b1f0d7a11.json"), "images/UUID.json");
            assert_eq!(name(&format!("/a/sha256/{}", "a".repeat(64))), "sha256/DIGEST");
            assert_eq!(name("store.json"), "store.json");
        }
    }
}
