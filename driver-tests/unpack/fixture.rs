//! Directories to unpack into, gone when the test is.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A directory on the filesystem of the target directory (ext4 or whatever the machine has).
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory below the target directory")
}

/// A fresh Btrfs on a loop device, unmounted and detached when dropped.
pub(crate) struct Btrfs {
    mount: PathBuf,
    _files: tempfile::TempDir,
}

impl Btrfs {
    pub(crate) fn new() -> Self {
        let files = scratch();
        let (image, mount) = (files.path().join("image"), files.path().join("mount"));
        std::fs::create_dir(&mount).expect("mount point");
        std::fs::File::create(&image).and_then(|f| f.set_len(2 << 30)).expect("sparse image");
        run(Command::new("mkfs.btrfs").arg("-q").arg(&image));
        // The mount owns the loop device (autoclear): unmounting detaches it.
        run(Command::new("mount").args(["-o", "loop,user_subvol_rm_allowed"]).arg(&image).arg(&mount));
        Self { mount, _files: files }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.mount
    }
}

impl Drop for Btrfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.mount).status();
    }
}

/// A filesystem in memory, where only the unpacker's own work takes time.
pub(crate) struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    pub(crate) fn new() -> Self {
        let mount = scratch();
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=1G,nr_inodes=1M", "none"]).arg(mount.path()));
        Self(mount)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

pub(crate) fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(status.success(), "{command:?}: {status} (these tests need root and loop devices)");
}
