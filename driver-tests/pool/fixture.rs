//! A pool of a test's own, and what its filesystem promises.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use reflinkd::engine::pool::{Creation, Pool, PoolFs};
use reflinkd::sys::loopdev;

use crate::support::{MIB, Scratch, arg, require_root, run, scratch, wait_until};

/// What tests ask of a pool's filesystem.
pub(crate) trait Promises: Copy {
    /// Bytes that a new pool may take on the host.
    fn occupied_at_most(self) -> u64;
    /// How long the filesystem mounted at `root` is, by its own program.
    fn total_bytes(self, root: &Path) -> u64;
    /// The filesystem's own program finds nothing wrong with the one in `file`.
    fn check(self, file: &Path);
}

impl Promises for PoolFs {
    fn occupied_at_most(self) -> u64 {
        match self {
            Self::Btrfs => 2 * MIB,
            // The log, 64 MiB in small filesystems.
            Self::Xfs => 66 * MIB,
        }
    }

    fn total_bytes(self, root: &Path) -> u64 {
        match self {
            Self::Btrfs => {
                let space = rustix::fs::statvfs(root).expect("statvfs");
                space.f_blocks * space.f_frsize
            }
            // statfs leaves out the log.
            Self::Xfs => {
                let said = run("xfs_io", &["-r", "-c", "statfs", arg(root)]);
                let fact = |name: &str| -> u64 {
                    let found = said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
                    found.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no {name} in {said}"))
                };
                fact("geom.bsize") * fact("geom.datablocks")
            }
        }
    }

    fn check(self, file: &Path) {
        match self {
            Self::Btrfs => {
                let report = run("btrfs", &["check", "--check-data-csum", arg(file)]);
                assert!(report.contains("no error found"), "{report}");
            }
            // Fails if it would change anything.
            Self::Xfs => drop(run("xfs_repair", &["-n", "-f", arg(file)])),
        }
    }
}

/// A private mount namespace has a copy of every mount, and keeps other tests' pools from going away. So a test that
/// makes one runs alone.
static TURN: RwLock<()> = RwLock::new(());

/// Only held.
pub(crate) enum Turn {
    Shared {
        _guard: RwLockReadGuard<'static, ()>,
    },
    Alone {
        _guard: RwLockWriteGuard<'static, ()>,
    },
    /// Another fixture of the same test holds it.
    Another,
}

impl Turn {
    pub(crate) fn shared() -> Self {
        Self::Shared { _guard: TURN.read().unwrap_or_else(PoisonError::into_inner) }
    }

    pub(crate) fn alone() -> Self {
        Self::Alone { _guard: TURN.write().unwrap_or_else(PoisonError::into_inner) }
    }
}

/// A pool of a test's own; unmounted, detached and deleted when dropped.
pub(crate) struct Fixture {
    pub(crate) pool: Pool,
    kind: PoolFs,
    // Dropped after the mounts, and with it the files.
    scratch: Option<Scratch>,
    _turn: Turn,
}

impl Fixture {
    /// Nothing is made yet.
    pub(crate) fn new(kind: PoolFs) -> Self {
        Self::with(kind, Turn::shared())
    }

    /// In a test that makes a mount namespace.
    pub(crate) fn alone(kind: PoolFs) -> Self {
        Self::with(kind, Turn::alone())
    }

    /// One more in the same test.
    pub(crate) fn another(&self) -> Self {
        Self::with(self.kind, Turn::Another)
    }

    fn with(kind: PoolFs, turn: Turn) -> Self {
        require_root();
        let scratch = scratch("pool");
        Self { pool: Pool::at(&scratch.path().join("root")), kind, scratch: Some(scratch), _turn: turn }
    }

    /// In a directory that somebody else cleans up.
    pub(crate) fn within(kind: PoolFs, directory: &Path) -> Self {
        require_root();
        Self { pool: Pool::at(&directory.join("root")), kind, scratch: None, _turn: Turn::shared() }
    }

    pub(crate) fn attached(kind: PoolFs, size: u64) -> Self {
        Self::new(kind).made(size)
    }

    /// Created and attached.
    pub(crate) fn made(self, size: u64) -> Self {
        assert_eq!(self.pool.create(self.kind, size).expect("create"), Creation::Created);
        self.pool.attach().expect("attach");
        self
    }

    pub(crate) fn directory(&self) -> &Path {
        self.scratch.as_ref().expect("a scratch directory of its own").path()
    }

    pub(crate) fn root(&self) -> &Path {
        self.pool.root()
    }

    pub(crate) fn draft(&self) -> PathBuf {
        self.root().with_extension("pool.new")
    }

    pub(crate) fn total_bytes(&self) -> u64 {
        self.kind.total_bytes(self.root())
    }

    /// Loop devices that have the pool file.
    pub(crate) fn devices(&self) -> Vec<String> {
        let file = File::open(self.pool.file()).expect("open the pool file");
        loopdev::of_file(&file)
            .expect("look for loop devices")
            .iter()
            .map(|device| device.path().display().to_string())
            .collect()
    }

    /// No loop device has the pool file, or none soon: the kernel keeps one until its last opener has closed it, and the
    /// child that another test is just starting has all files of this process until its `exec`.
    pub(crate) fn wait_for_no_device(&self) {
        wait_until("the pool file has no loop device", || self.devices().is_empty());
    }

    /// The detached pool is sound.
    pub(crate) fn check(&self) {
        self.wait_for_no_device();
        self.kind.check(self.pool.file());
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        while Command::new("umount").arg("--lazy").arg(self.root()).output().is_ok_and(|o| o.status.success()) {}
        let mut list = Command::new("losetup");
        list.args(["--noheadings", "--output", "NAME", "--associated"]).arg(self.pool.file());
        if let Ok(output) = list.output() {
            for device in String::from_utf8_lossy(&output.stdout).split_whitespace() {
                let _ = Command::new("losetup").args(["--detach", device]).status();
            }
        }
    }
}

/// The names in a directory, sorted.
pub(crate) fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .expect("list")
        .map(|entry| entry.expect("list").file_name().into_string().expect("names of tests are UTF-8"))
        .collect();
    names.sort();
    names
}
